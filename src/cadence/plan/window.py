"""Turn a stream of mini-batches into windows: the mini-batches of one update each.

This module knows no torch. A window is a value: it is gathered before anything runs, so everything
after it can count what is truly in it.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, pairwise
from typing import NamedTuple, TypeAlias, TypeVar

from cadence.plan.numbers import is_whole, whole_number

T = TypeVar("T")

DEFAULT_STEP_SIZE = 2
"""Mini-batches per update where the caller names none, on every device."""

StepSizes: TypeAlias = int | Mapping[int, int]
"""Mini-batches per update: one number, or a schedule from samples to numbers."""


def windows(
    minibatches: Iterable[T], step_size: int = DEFAULT_STEP_SIZE
) -> Iterator[tuple[T, ...]]:
    """Group a stream of mini-batches into consecutive windows, lazily and in order.

    Args:
        minibatches: Any iterable, read once; at most one window of it is held at a time.
        step_size: Mini-batches per update, at least 1.

    Returns:
        An iterator of tuples of ``step_size`` mini-batches. The last tuple holds what is left,
        1 to ``step_size`` of them; an empty stream gives no window.

    Raises:
        TypeError: ``step_size`` is not an int (a bool is not).
        ValueError: ``step_size`` is below 1.
    """
    return _gather(iter(minibatches), checked_step_size(step_size))


def checked_step_size(step_size: int) -> int:
    """Return ``step_size`` if it is a possible number of mini-batches per update.

    Raises:
        TypeError: It is not a whole number (a bool is not).
        ValueError: It is below 1.
    """
    remedy = f"try step_size={DEFAULT_STEP_SIZE}"
    return whole_number("step_size", step_size, "mini-batches per update", remedy)


class StepSizeSchedule:
    """Mini-batches per update by the samples seen.

    Each number holds from the first window on that begins at or after its samples, in the middle of
    an epoch as well: a window that began before is never cut.

    Args:
        step_sizes: One number for the whole run, at least 1; or a schedule, such as
            ``{0: 2, 50_000: 8}``: samples, from 0 and ascending, to numbers.

    Raises:
        TypeError: A number is not an int (a bool is not).
        ValueError: A step_size is below 1, or the samples do not begin at 0 and ascend.
    """

    def __init__(self, step_sizes: StepSizes) -> None:
        self.given = step_sizes
        """As the caller gave it."""
        if isinstance(step_sizes, Mapping):
            self._changes = [Change(*change) for change in _checked_schedule(step_sizes)]
        else:
            self._changes = [Change(0, checked_step_size(step_sizes))]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.given})"

    @property
    def first(self) -> int:
        """Mini-batches per update at the start of a run."""
        return self._changes[0].step_size

    @property
    def largest(self) -> int:
        """The most mini-batches per update there will be."""
        return max(change.step_size for change in self._changes)

    @property
    def later(self) -> "list[Change]":
        """The changes after the start, ascending; none of them = one number for the whole run."""
        return self._changes[1:]

    def at(self, samples: int) -> int:
        """Return the mini-batches of a window that begins after so many samples."""
        return [change.step_size for change in self._changes if change.samples <= samples][-1]


class Change(NamedTuple):
    """A step_size, and the samples from which on it holds."""

    samples: int
    step_size: int


def _checked_schedule(schedule: Mapping[int, int]) -> list[tuple[int, int]]:
    said, example = f"step_size={dict(schedule)}", "such as {0: 2, 50000: 8}"
    for samples, step_size in schedule.items():
        if not is_whole(samples):
            raise TypeError(
                f"{said}: {samples!r} is no whole number of samples; give samples: mini-batches "
                f"per update, {example}"
            )
        try:
            checked_step_size(step_size)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{said}: from {samples} samples on, {error}") from None
    if next(iter(schedule), None) != 0:
        raise ValueError(f"{said}: a schedule must say what holds from 0 samples on, {example}")
    for earlier, later in pairwise(schedule):
        if later <= earlier:
            raise ValueError(f"{said}: {later} after {earlier}; the samples must ascend, {example}")
    return list(schedule.items())


def _gather(minibatches: Iterator[T], step_size: int) -> Iterator[tuple[T, ...]]:
    while window := tuple(islice(minibatches, min(step_size, sys.maxsize))):
        yield window
