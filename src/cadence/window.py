"""Turn a stream of mini-batches into windows: the mini-batches of one update each.

This room knows no torch. A window is a value: it is gathered before anything runs, so everything
after it can count what is truly in it.
"""

import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")

DEFAULT_STEP_SIZE = 2
"""Mini-batches per update where the caller names none, on every device."""


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
    """Return ``step_size`` unchanged if it is a possible number of mini-batches per update.

    Raises:
        TypeError: It is not an int (a bool is not).
        ValueError: It is below 1.
    """
    if isinstance(step_size, bool) or not isinstance(step_size, int):
        raise TypeError(
            f"step_size={step_size!r}: mini-batches per update must be a whole number; "
            f"try step_size={DEFAULT_STEP_SIZE}"
        )
    if step_size < 1:
        raise ValueError(
            f"step_size={step_size}: an update needs at least 1 mini-batch; try step_size=1"
        )
    return step_size


def _gather(minibatches: Iterator[T], step_size: int) -> Iterator[tuple[T, ...]]:
    while window := tuple(islice(minibatches, min(step_size, sys.maxsize))):
        yield window
