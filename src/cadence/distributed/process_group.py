"""One run on several processes: their shares of a window, and one synchronisation per update.

Each process accumulates the gradient of its own mini-batches alone, divided by the items of the
whole window, and then the parts are summed. So nothing is sent during forward and backward: a
micro-batch that does not fit into memory is run again where it did not fit, parameters that some
micro-batches or processes do not use are no special case, and neither is a process without data in
a short last window. Two things are exchanged for an update: before it one small vector of counts
(items, samples, requests to stop), in which all processes agree, and after it the gradients, by one
all-reduce per bucket. One more such vector goes round at the end of an epoch.

Buffers, such as BatchNorm's running means, are each process's own after the start; process 0's are
evaluated and saved.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Protocol, runtime_checkable

from torch import nn

from cadence.data.batch import Batch, first_samples, samples_in
from cadence.distributed.partition import (
    GathersWindows,
    Now,
    PlannedWindow,
    as_planned,
)
from cadence.engine.accumulation import Summed
from cadence.objectives import Objective
from cadence.plan.clock import Limits
from cadence.plan.shares import WindowPlan
from cadence.plan.window import windows
from cadence.system.signals import Interruption


class WindowCounts(NamedTuple):
    """What all processes together have in a window, and what they agreed on before it."""

    items: float | None
    """The divisor of its gradient; None = the items of this process's part, which is all of it."""
    samples: int
    minibatches: int
    stop: bool
    """Whether a process asked to stop before this window."""
    interrupted: bool = False
    """Whether a process was sent a signal, so that the boundary before it is the last."""
    step_sizes: tuple[int, ...] | None = None
    """The mini-batches of each process from the next window on; None = as before."""


@runtime_checkable
class ProcessGroup(Protocol):
    """The processes of a run, as one of them sees them."""

    rank: int
    """Which process this is, from 0; process 0 evaluates, writes and prints."""
    count: int
    waited: float
    """Seconds that the last window spent waiting for others."""

    def begin(self, model: nn.Module) -> None:
        """Start from process 0's parameters and buffers."""

    def check_same(self, what: str, text: str) -> None:
        """Refuse to go on where something differs between the processes.

        Args:
            what: What an error calls it.
            text: What it is, in words that are the same on every process.

        Raises:
            ValueError: It differs.
        """

    def windows(
        self, loader: Iterable[Batch], plan: WindowPlan, now: Now, limits: Limits
    ) -> Iterator[PlannedWindow]:
        """Return this process's mini-batches of each window in the rest of an epoch.

        Args:
            loader: Yields the mini-batches of the epoch.
            plan: The mini-batches of each process; it may change between two windows.
            now: Returns how far the run is.
            limits: Where it ends.
        """

    def epoch_is_read(self) -> bool:
        """Return whether the loader of `windows`, asked once more, has no further mini-batch.

        Only then has it drawn from its random generators all that a whole epoch draws.
        """

    def watch(self, interruption: Interruption) -> None:
        """Let the others learn of a signal that came here, and this process of theirs."""

    def agree(self, stop: bool) -> bool:
        """Return whether any process asks to stop; all of them call it at the same place."""

    def count_window(
        self, window: Sequence[Batch], objective: Objective, stop: bool
    ) -> WindowCounts:
        """Count a window with all processes, before it is run.

        Args:
            window: This process's part, which may be empty.
            objective: What counts its items.
            stop: Whether this process asks to stop.
        """

    @property
    def sum(self) -> Summed | None:
        """Sums a window's gradients, and some numbers, over all processes; None = there is one.

        It takes the numbers of this process's part, and the gradients of half-precision parameters
        in float32; those of the others are in ``.grad``. Both gradients change in place, and the
        numbers' sums are returned.
        """


class SingleProcess:
    """A run on one process, which has nobody to wait for."""

    rank = 0
    count = 1
    waited = 0.0

    def __init__(self) -> None:
        self._minibatches: Iterator[Batch] = iter(())

    def begin(self, model: nn.Module) -> None:
        """Do nothing; for this and the others see `ProcessGroup`."""

    def check_same(self, what: str, text: str) -> None:
        """Do nothing: there is no other to differ from."""

    def windows(
        self, loader: Iterable[Batch], plan: WindowPlan, now: Now, limits: Limits
    ) -> Iterator[PlannedWindow]:
        """Return the windows in the rest of an epoch."""
        if isinstance(loader, GathersWindows):
            return as_planned(
                plan,
                now,
                lambda step_sizes, clock: loader.windows(
                    *step_sizes,
                    skip=clock.batches_of_epoch,
                    samples=limits.samples_left(clock),
                    own=slice(None),
                ),
            )
        self._minibatches = minibatches = iter(loader)
        for _ in islice(minibatches, now().batches_of_epoch):
            pass
        unseen = first_samples(minibatches, limits.samples_left(now()))
        return as_planned(plan, now, lambda step_sizes, _: windows(unseen, *step_sizes))

    def epoch_is_read(self) -> bool:
        """Ask the loader once more."""
        return next(self._minibatches, None) is None

    def watch(self, interruption: Interruption) -> None:
        """Do nothing."""

    def agree(self, stop: bool) -> bool:
        """Return ``stop``."""
        return stop

    def count_window(
        self, window: Sequence[Batch], objective: Objective, stop: bool
    ) -> WindowCounts:
        """Count the window."""
        return WindowCounts(None, samples_in(window), len(window), stop)

    @property
    def sum(self) -> None:
        """Nobody else has a part."""
