"""What a run tells as it goes, and what it came to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol, runtime_checkable

import torch

from cadence.clock import Clock
from cadence.measure import Evaluation, PeakMemory, Stopwatch
from cadence.update import Outcome


@runtime_checkable
class Observer(Protocol):
    """Whoever wants to see a run as it goes: a tracker, a progress bar."""

    def window(self, clock: Clock, outcome: Outcome) -> None:
        """See a window that has just ended; called once per window, so it must be quick."""

    def evaluation(self, clock: Clock, fitted: "Fitted") -> None:
        """See what the run came to so far, after an evaluation has just ended."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a run came to."""

    step_size: int
    """Mini-batches per update, as last set."""
    microbatch_size: int | None
    """Samples per forward and backward; None = one mini-batch."""
    updates: int
    """Updates applied."""
    updates_skipped: int
    """Updates refused or without any item."""
    samples: int
    """Samples trained on."""
    train_loss: float
    """Mean over the items of the applied updates of the last epoch begun; NaN without any."""
    val_loss: float
    """Mean over the validation items after the last update; NaN without validation data."""
    val_metrics: dict[str, float]
    """The objective's further validation means, such as ``accuracy``."""
    samples_per_second: float
    """Median over the windows; see `cadence.measure.Throughput`."""
    samples_per_second_p10: float
    samples_per_second_p90: float
    peak_memory_mib: float
    """Most memory taken, counted from the start of the run; see `cadence.measure.PeakMemory`."""
    seconds: float
    """Wall time of the whole run, evaluations included."""
    device: str


class Record:
    """Keeps what a run came to so far, and shows it to the observers."""

    def __init__(self, device: torch.device, observers: Sequence[Observer]) -> None:
        self._device = device
        self._observers = observers
        self._started = perf_counter()
        self._memory = PeakMemory(device)
        self._stopwatch = Stopwatch()
        self._evaluation: Evaluation | None = None
        self._evaluated_at: int | None = None
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Start the means of an epoch anew."""
        self._windows = self._items = 0
        self._total_loss = 0.0
        self._stopwatch.resume()

    def window(self, clock: Clock, samples: int, items: int, outcome: Outcome) -> float:
        """Take in a window that has just ended, and return the seconds it took.

        ``clock`` already counts it.
        """
        seconds = self._stopwatch.window(samples)
        self._windows += 1
        if outcome.applied:
            self._items += items
            self._total_loss += outcome.loss * items
        for observer in self._observers:
            observer.window(clock, outcome)
        return seconds

    def evaluation(self, clock: Clock, evaluation: Evaluation) -> None:
        """Take in an evaluation that has just ended; its time counts for no window."""
        self._evaluation = evaluation
        self._evaluated_at = clock.samples

    def show(self, clock: Clock, fitted: Fitted) -> None:
        """Show the observers what the run came to so far."""
        for observer in self._observers:
            observer.evaluation(clock, fitted)
        self._stopwatch.resume()

    def has_evaluated(self, clock: Clock) -> bool:
        """Return whether the model was evaluated as it is now."""
        return self._evaluated_at == clock.samples

    def end_epoch(self, clock: Clock) -> None:
        """Refuse an epoch without a mini-batch: the run would never end.

        Raises:
            ValueError: There was none.
        """
        if self._windows == 0:
            raise ValueError(
                f"the training data gave no mini-batch after {clock.samples} samples; is it empty, "
                "or a generator that can be read once? Give a DataLoader, or another iterable "
                "that starts anew each epoch"
            )

    def fitted(self, clock: Clock, step_size: int, microbatch_size: int | None) -> Fitted:
        """Return what the run came to."""
        throughput = self._stopwatch.throughput()
        evaluation = self._evaluation
        return Fitted(
            step_size=step_size,
            microbatch_size=microbatch_size,
            updates=clock.updates,
            updates_skipped=clock.updates_skipped,
            samples=clock.samples,
            train_loss=self._total_loss / self._items if self._items else math.nan,
            val_loss=math.nan if evaluation is None else evaluation.loss,
            val_metrics={} if evaluation is None else evaluation.metrics,
            samples_per_second=throughput.samples_per_second,
            samples_per_second_p10=throughput.p10,
            samples_per_second_p90=throughput.p90,
            peak_memory_mib=self._memory.mib(),
            seconds=self._stopwatch.mark - self._started,
            device=str(self._device),
        )
