"""From any loader to one process's part of every window.

All processes go through the same epoch in the same order, and each takes its own mini-batches of
each window. What a loader allows decides what is read:

- one that `GathersWindows` is asked for the own part alone;
- a torch DataLoader of a map-style data set loads the own part alone, by its own settings;
- any other iterable is read as a whole by every process, which keeps its own part.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol, TypeAlias, TypeGuard, runtime_checkable

from torch.utils.data import DataLoader, IterableDataset

from cadence.data.batch import Batch, first_samples
from cadence.distributed.random_numbers import RandomStreams
from cadence.plan.clock import Clock
from cadence.plan.shares import Share, WindowPlan
from cadence.plan.window import windows


@runtime_checkable
class GathersWindows(Protocol):
    """A loader that fetches the mini-batches of a window with one operation."""

    def windows(
        self, step_size: int, *, skip: int, samples: int | None, own: slice
    ) -> Iterator[Sequence[Batch]]:
        """Yield the windows of the epoch that was last set, but its first ``skip`` mini-batches.

        It ends after that many samples; None = with the epoch. Each window holds only those of its
        ``step_size`` mini-batches that ``own`` selects, which may be none.
        """


Now: TypeAlias = Callable[[], Clock]
"""Returns how far a run is."""

PlannedWindow: TypeAlias = tuple[tuple[int, ...], Sequence[Batch]]
"""The mini-batches of each process in a full window, and those of this process in this one."""


def as_planned(
    plan: WindowPlan,
    now: Now,
    draw: Callable[[tuple[int, ...], Clock], Iterator[Sequence[Batch]]],
) -> Iterator[PlannedWindow]:
    """Yield the windows of the rest of an epoch, drawn anew wherever the plan changes.

    Args:
        plan: The mini-batches of each process.
        now: Returns how far the run is.
        draw: Returns the windows of the rest of the epoch, by the mini-batches of each process.
    """
    drawn_for: tuple[int, ...] = ()
    while (step_sizes := plan.at(now().samples)) != drawn_for:
        drawn_for = step_sizes
        for window in draw(step_sizes, now()):
            yield step_sizes, window
            if plan.at(now().samples) != step_sizes:
                break


def own_windows(
    loader: Iterable[Batch], share: Share, streams: RandomStreams, clock: Clock, samples: int | None
) -> Iterator[Sequence[Batch]]:
    """Yield one process's mini-batches of each window in the rest of an epoch; there may be none.

    Every process is at the same window whenever this yields, with random numbers of its own.

    Args:
        loader: Yields the mini-batches of the epoch, on every process the same ones.
        share: What the process has of every window.
        streams: Where its random numbers come from.
        clock: How far the run is.
        samples: Samples after which the epoch ends, all processes together; None = with its data.
    """
    epoch, behind = clock.epoch, clock.batches_of_epoch
    if isinstance(loader, GathersWindows):
        gathered = loader.windows(share.window, skip=behind, samples=samples, own=share.own)
        yield from _each_drawn(gathered, share.window, streams, epoch, behind)
    elif _loads_by_index(loader):
        assert loader.batch_sampler is not None
        order = _OwnOrder(loader.batch_sampler, share, streams, epoch, behind, samples)
        loaded = order.windows(_loading(loader, order, streams, epoch, behind))
        yield from _each_drawn(loaded, share.window, streams, epoch, behind)
    else:
        yield from _kept(loader, share, streams, epoch, behind, samples)


def _each_drawn(
    drawn: Iterator[Sequence[Batch]], window: int, streams: RandomStreams, epoch: int, behind: int
) -> Iterator[Sequence[Batch]]:
    """Set the random numbers before each window is loaded, and again before it is trained on.

    A loader that prefetches takes random numbers while it loads, as many as its start allows.
    """
    streams.own(epoch, behind)
    for own in drawn:
        streams.own(epoch, behind)
        yield own
        behind += window
        streams.own(epoch, behind)


def _kept(
    loader: Iterable[Batch],
    share: Share,
    streams: RandomStreams,
    epoch: int,
    behind: int,
    samples: int | None,
) -> Iterator[Sequence[Batch]]:
    """Read everything, with the random numbers that all processes share, and keep the own part."""
    streams.common(epoch, 0)
    stream = iter(loader)
    for seen in range(0, behind, share.window):
        streams.common(epoch, seen)
        for _ in islice(stream, min(share.window, behind - seen)):
            pass
    rest = windows(first_samples(stream, samples), share.window)
    while True:
        streams.common(epoch, behind)
        window = next(rest, None)
        if window is None:
            return
        streams.own(epoch, behind)
        yield window[share.own]
        behind += share.window


class _OwnOrder:
    """The indices of the own mini-batches of an epoch, and how many of them each window has.

    It goes through the order of all processes window by window, with the random numbers that they
    share: a sampler may draw them as it goes.
    """

    def __init__(
        self,
        order: Iterable[list[Any]],
        share: Share,
        streams: RandomStreams,
        epoch: int,
        behind: int,
        samples: int | None,
    ) -> None:
        self._order = order
        self._share = share
        self._streams = streams
        self._epoch = epoch
        self._behind = behind
        self._samples = samples
        self._counts: deque[int] = deque()

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield the indices of each own mini-batch."""
        self._streams.common(self._epoch, 0)
        order, window = iter(self._order), self._share.window
        for seen in range(0, self._behind, window):
            self._pull(order, seen, min(window, self._behind - seen))
        seen, left = self._behind, self._samples
        while indices := self._pull(order, seen, window):
            if left is not None:
                indices, left = _cut(indices, left)
            own = indices[self._share.own]
            self._counts.append(len(own))
            yield from own
            seen += window
            if left == 0:
                return

    def windows(self, minibatches: Iterable[Batch]) -> Iterator[Sequence[Batch]]:
        """Group the loaded own mini-batches; only the last windows may have none."""
        stream = iter(minibatches)
        for first in stream:
            yield (first, *islice(stream, self._counts.popleft() - 1))
        for _ in self._counts:
            yield ()

    def _pull(self, order: Iterator[list[Any]], seen: int, count: int) -> list[list[Any]]:
        self._streams.common(self._epoch, seen)
        pulled = [list(indices) for indices in islice(order, count)]
        self._streams.own(self._epoch, seen)
        return pulled


def _cut(minibatches: list[list[Any]], samples: int) -> tuple[list[list[Any]], int]:
    """Return mini-batches up to that many samples, and how many samples are left of them."""
    kept = []
    for indices in minibatches:
        if samples == 0:
            break
        kept.append(indices[:samples])
        samples -= len(kept[-1])
    return kept, samples


def _loads_by_index(loader: Iterable[Batch]) -> TypeGuard[DataLoader[Any]]:
    return (
        isinstance(loader, DataLoader)
        and type(loader).__iter__ is DataLoader.__iter__
        and not isinstance(loader.dataset, IterableDataset)
        and loader.batch_sampler is not None
    )


def _loading(
    loader: DataLoader[Any], order: _OwnOrder, streams: RandomStreams, epoch: int, behind: int
) -> DataLoader[Any]:
    """Return a DataLoader like another one, of some of its mini-batches."""
    return DataLoader(
        loader.dataset,
        batch_sampler=order,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=streams.generator(epoch, behind),
        prefetch_factor=loader.prefetch_factor,
    )
