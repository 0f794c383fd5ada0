"""How far a run has come, one immutable value, and how far it goes."""

from time import perf_counter
from typing import NamedTuple

from cadence.plan.numbers import number_above_0, whole_number

REMEDY = "use None (null) for no such limit"


class Clock(NamedTuple):
    """What a run has seen and done so far.

    Samples, not updates, are the axis of everything that runs are compared on.
    """

    epoch: int = 0
    """Epochs ended, the last of a run perhaps early."""
    batches: int = 0
    """Mini-batches seen."""
    samples: int = 0
    """Samples seen."""
    items: float = 0
    """Items seen."""
    updates_attempted: int = 0
    """Windows seen; each asks for one update."""
    updates: int = 0
    """Updates applied."""
    refused_in_a_row: int = 0
    """Updates refused since the last one applied; windows without any item do not count."""
    samples_applied: int = 0
    """Samples in the applied updates: what learning-rate schedules go by."""
    batches_of_epoch: int = 0
    """Mini-batches of the present epoch seen."""

    @property
    def updates_skipped(self) -> int:
        """Updates asked for and not applied: refused, or without any item."""
        return self.updates_attempted - self.updates

    def after_window(self, batches: int, samples: int, items: float, applied: bool) -> "Clock":
        """Return the clock after one more window."""
        return Clock(
            epoch=self.epoch,
            batches=self.batches + batches,
            samples=self.samples + samples,
            items=self.items + items,
            updates_attempted=self.updates_attempted + 1,
            updates=self.updates + applied,
            refused_in_a_row=0 if applied else self.refused_in_a_row + (items > 0),
            samples_applied=self.samples_applied + applied * samples,
            batches_of_epoch=self.batches_of_epoch + batches,
        )

    def after_epoch(self) -> "Clock":
        """Return the clock after the end of an epoch."""
        return self._replace(epoch=self.epoch + 1, batches_of_epoch=0)

    def passed(self, period: int, *, since: "Clock") -> bool:
        """Return whether a multiple of ``period`` samples was reached after ``since``."""
        return self.samples // period > since.samples // period


class Limits:
    """Where a run ends: at the first of its limits.

    Args:
        start: The clock at the start.
        epochs: Epochs from there, at least 1; None = no such limit.
        samples: Samples from there, at least 1; None = no such limit.
        seconds: Wall time from now, above 0; None = no such limit.

    Raises:
        TypeError: Epochs or samples are not a whole number, or seconds no number (a bool is not).
        ValueError: No limit is given, or one is not above 0.
    """

    def __init__(
        self, start: Clock, epochs: int | None, samples: int | None, seconds: float | None
    ) -> None:
        if epochs is None and samples is None and seconds is None:
            raise ValueError(
                "without a limit the run would never end; set epochs (trainer.max_epochs), "
                "max_samples or max_seconds"
            )
        what = "epochs to train (trainer.max_epochs)"
        self._last_epoch = _end(start.epoch, "epochs", epochs, what)
        self._last_sample = _end(start.samples, "max_samples", samples, "samples to train on")
        self._deadline: float | None = None
        if seconds is not None:
            seconds = number_above_0("max_seconds", seconds, "seconds to train", REMEDY)
            self._deadline = perf_counter() + seconds

    def is_complete(self, clock: Clock) -> bool:
        """Return whether all the epochs or samples are done."""
        epochs_done = self._last_epoch is not None and clock.epoch >= self._last_epoch
        return epochs_done or self.samples_left(clock) == 0

    def time_is_up(self) -> bool:
        """Return whether no further window may start."""
        return self._deadline is not None and perf_counter() >= self._deadline

    def samples_left(self, clock: Clock) -> int | None:
        """Return the samples until the limit; None = there is no such limit."""
        return None if self._last_sample is None else max(0, self._last_sample - clock.samples)


def _end(start: int, name: str, limit: int | None, what: str) -> int | None:
    """Return where a limit ends a run that starts there; None = there is no such limit."""
    return None if limit is None else start + whole_number(name, limit, what, REMEDY)
