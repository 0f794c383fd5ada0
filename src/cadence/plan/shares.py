"""How the mini-batches of a window are shared out among processes: numbers alone, no torch."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple, TypeAlias

from cadence.plan.window import Change, StepSizes, StepSizeSchedule, checked_step_size

WARM_UP = 2
"""Windows that are not measured: the first passes of a process allocate and compile."""

MEASURED = 5
"""Windows after them whose median decides."""


class Share(NamedTuple):
    """What one process has of every window: mini-batches that follow those of the ones before it.

    A short last window is cut as a full one is, so the processes at its end may have nothing of it.
    """

    step_sizes: tuple[int, ...]
    """Mini-batches per update of each process."""
    rank: int
    """Which process, from 0."""

    @property
    def window(self) -> int:
        """Mini-batches per update, all processes together."""
        return sum(self.step_sizes)

    @property
    def own(self) -> slice:
        """Which of a window's mini-batches are this process's."""
        first = sum(self.step_sizes[: self.rank])
        return slice(first, first + self.step_sizes[self.rank])


def even(window: int, processes: int) -> tuple[int, ...]:
    """Share a window out as evenly as whole mini-batches allow, the first processes having more.

    Args:
        window: Mini-batches per update.
        processes: Processes, at least 1.

    Raises:
        ValueError: There are more processes than mini-batches.
    """
    if window < processes:
        raise ValueError(
            f"distributed.processes={processes}: an update has {window} mini-batches, so some "
            f"processes would have none; use at most {window}, or a larger trainer.step_size"
        )
    each, left = divmod(window, processes)
    return tuple(each + (rank < left) for rank in range(processes))


def balanced(seconds: Sequence[float], window: int) -> tuple[int, ...]:
    """Share a window out so that the process that needs longest for its part is done soonest.

    Each mini-batch in turn goes to the process that would be done with it first, which no other
    sharing can beat.

    Args:
        seconds: What a mini-batch takes each process.
        window: Mini-batches per update, at least one for each process.
    """
    shares = [1] * len(seconds)
    for _ in range(window - len(seconds)):
        done = [(share + 1) * each for share, each in zip(shares, seconds, strict=True)]
        shares[done.index(min(done))] += 1
    return tuple(shares)


SharedStepSizes: TypeAlias = StepSizes | StepSizeSchedule | Sequence[int]
"""Mini-batches per update of each process: as one process has them, or a number for each."""


class WindowPlan:
    """The mini-batches of each process in every window of a run.

    Args:
        step_sizes: The same for each process, a number or a schedule in samples; or one for each.
        processes: How many they are.

    Raises:
        TypeError, ValueError: It is impossible, or has not one for each process.
    """

    def __init__(self, step_sizes: SharedStepSizes, processes: int) -> None:
        self.step_sizes = step_sizes
        """As they were given: what another plan of the same windows is made of."""
        self._processes = processes
        self._schedule: StepSizeSchedule | None = None
        if isinstance(step_sizes, Sequence):
            self._shares = self._one_for_each(step_sizes)
            return
        if not isinstance(step_sizes, StepSizeSchedule):
            step_sizes = StepSizeSchedule(step_sizes)
        self._schedule, self._shares = step_sizes, (step_sizes.first,) * processes

    def _one_for_each(self, step_sizes: Sequence[int]) -> tuple[int, ...]:
        count = self._processes
        if len(step_sizes) != count:
            raise ValueError(
                f"distributed.step_sizes={list(step_sizes)}: {len(step_sizes)} for {count} "
                f"process{'es' * (count != 1)}; give one for each, or null for trainer.step_size"
            )
        return tuple(map(checked_step_size, step_sizes))

    @property
    def window(self) -> int:
        """Mini-batches of the largest window there will be, all processes together."""
        return self._processes * self._schedule.largest if self._schedule else sum(self._shares)

    @property
    def later(self) -> list[Change]:
        """The changes after the start, the same for each process; often none."""
        return self._schedule.later if self._schedule else []

    def at(self, samples: int) -> tuple[int, ...]:
        """Return the mini-batches of each process in a window that begins after so many samples."""
        if self._schedule is not None and self._schedule.later:
            return (self._schedule.at(samples),) * self._processes
        return self._shares

    def share_out(self, step_sizes: tuple[int, ...]) -> None:
        """Give each process so many mini-batches of every window from the next one on."""
        self._schedule, self._shares = None, step_sizes


class Balance:
    """Finds out in the first windows how fast each process is, and shares them out accordingly."""

    def __init__(self) -> None:
        self._seen: list[Sequence[float]] = []
        self.seconds: tuple[float, ...] = ()
        """What a mini-batch takes each process; empty until that is known."""

    def take(self, seconds: Sequence[float], window: int) -> tuple[int, ...] | None:
        """Learn what a mini-batch took each process in the last window; 0 = it had none.

        Args:
            seconds: One number for each process, the same ones on every process.
            window: Mini-batches per update.

        Returns:
            The mini-batches of each process from here on; None = as before.
        """
        if self.seconds or not all(seconds):
            return None
        self._seen.append(tuple(seconds))
        if len(self._seen) < WARM_UP + MEASURED:
            return None
        self.seconds = tuple(map(median, zip(*self._seen[WARM_UP:], strict=True)))
        return balanced(self.seconds, window)
