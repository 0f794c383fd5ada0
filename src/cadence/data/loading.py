"""From a data set to its mini-batches: torch's DataLoader, seeded, and fast for tensors."""

import logging
from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cadence.data.batch import Gathered
from cadence.data.tensors import MapData, Samples, TensorData
from cadence.data.worker import stay_with_parent

log = logging.getLogger(__name__)


def samples_of_epoch(samples: int, batch_size: int, *, drop_last: bool) -> int:
    """Return the samples that an epoch of a data set has: less a last mini-batch left out."""
    return samples - (samples % batch_size if drop_last else 0)


class EpochOrder(Sampler[Any]):
    """The sample indices of each mini-batch of an epoch, in an order of the epoch's own.

    Args:
        samples: Samples in the data set.
        batch_size: Samples in a mini-batch, at least 1; the last of an epoch holds what is left.
        seed: Fixes the order, with the epoch; None means the data set's own order.
        drop_last: Whether an epoch leaves a last mini-batch out that is not full.
    """

    def __init__(
        self, samples: int, batch_size: int, seed: int | None, *, drop_last: bool = False
    ) -> None:
        self._of_data = samples
        self._samples = samples_of_epoch(samples, batch_size, drop_last=drop_last)
        self.drop_last = drop_last
        self.batch_size = batch_size
        self._seed = seed
        self.worker_seeds = torch.Generator()
        """What a DataLoader draws its workers' seeds from, seeded anew in each epoch."""
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order comes next."""
        # Mixed, not added: seed 1 in epoch 0 must not be seed 0 in epoch 1.
        mixed = np.random.SeedSequence([self._seed or 0, epoch]).generate_state(1, np.uint64)
        self._seed_of_epoch = int(mixed[0] >> 1)
        self.worker_seeds.manual_seed(self._seed_of_epoch)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the indices of each mini-batch."""
        for indices in self.tensors():
            yield indices.tolist()

    def tensors(
        self, minibatches: int = 1, *, skip: int = 0, samples: int | None = None
    ) -> Iterator[Int[Tensor, " samples"]]:
        """Yield the indices of some mini-batches at a time: [minibatches * batch_size], int64.

        Args:
            minibatches: Mini-batches at a time, at least 1.
            skip: Mini-batches to leave out at the epoch's start.
            samples: Samples after which the epoch ends; None means all of them.
        """
        order = self._order()[skip * self.batch_size : self._samples][:samples]
        at_once = min(self.batch_size * minibatches, len(order))
        yield from torch.split(order, at_once) if at_once else ()

    def __len__(self) -> int:
        """Return the mini-batches in an epoch."""
        return -(-self._samples // self.batch_size)

    def _order(self) -> Int[Tensor, " samples"]:
        if self._seed is None:
            return torch.arange(self._of_data)
        generator = torch.Generator().manual_seed(self._seed_of_epoch)
        return torch.randperm(self._of_data, generator=generator)


class InMemoryLoader(DataLoader[Samples]):
    """A DataLoader over tensors that gathers each mini-batch with one index operation.

    Mini-batches are gathered in this process: a worker would only add the time of their transfer.
    """

    def __init__(self, data: TensorData, order: EpochOrder, *, pin_memory: bool) -> None:
        super().__init__(data, batch_sampler=order, pin_memory=pin_memory)
        self._data = data
        self._order = order

    def __iter__(self) -> Iterator[Samples]:  # type: ignore[override]
        """Yield the mini-batches of the epoch set last: tuples of tensors [batch_size, ...]."""
        return map(self._gathered, self._order.tensors())

    def windows(
        self,
        step_size: int,
        *,
        skip: int = 0,
        samples: int | None = None,
        own: slice = slice(None),
    ) -> Iterator[Gathered | tuple[()]]:
        """Yield the windows of the epoch set last, each gathered with one operation.

        Args:
            step_size: Mini-batches in a window, at least 1; the last may hold fewer.
            skip: Mini-batches of the epoch to leave out at its start.
            samples: Samples after which the epoch ends; None means all of them.
            own: The mini-batches of a window to gather; () is yielded where there is none.
        """
        batch_size = self._order.batch_size
        first, last, _ = own.indices(step_size)
        mine, is_all = slice(first * batch_size, last * batch_size), last - first == step_size
        for indices in self._order.tensors(step_size, skip=skip, samples=samples):
            found = indices if is_all else indices[mine]
            yield Gathered(self._gathered(found), batch_size) if len(found) else ()

    def _gathered(self, indices: Int[Tensor, " samples"]) -> Samples:
        batch = self._data.gathered(indices)
        return tuple(part.pin_memory() for part in batch) if self.pin_memory else batch


def loader(
    data: MapData,
    batch_size: int,
    *,
    shuffle_seed: int | None = None,
    workers: int = 0,
    pin_memory: bool = False,
    drop_last: bool = False,
) -> DataLoader[Any]:
    """Return a DataLoader that shuffles by seed and epoch.

    Args:
        data: `TensorData`, or any map-style data set.
        batch_size: Samples in a mini-batch, at least 1; the last of an epoch holds what is left.
        shuffle_seed: Fixes the order, with the epoch; None means the data set's own order.
        workers: Processes that load samples; 0 means this process. `TensorData`, as all data sets
            of cadence's own are, needs none and ignores it.
        pin_memory: Whether to put mini-batches into page-locked memory, from which a CUDA device
            copies without waiting.
        drop_last: Whether an epoch leaves a last mini-batch out that is not full.

    Raises:
        ValueError: The data set is empty, or has fewer samples than a full mini-batch.
    """
    samples = len(data)
    if samples == 0:
        raise ValueError("the data set has no sample; check its path and its splits")
    if batch_size > samples and drop_last:
        raise ValueError(
            f"data.drop_last=true: the {samples} samples fill no mini-batch of {batch_size}; "
            "choose a smaller data.batch_size"
        )
    if batch_size > samples:
        log.warning(
            "data.batch_size=%d is larger than the %d samples: every mini-batch is an epoch",
            batch_size,
            samples,
        )
    order = EpochOrder(samples, batch_size, shuffle_seed, drop_last=drop_last)
    if isinstance(data, TensorData):
        return InMemoryLoader(data, order, pin_memory=pin_memory)
    return DataLoader(
        cast("Dataset[Any]", data),
        batch_sampler=order,
        num_workers=workers,
        pin_memory=pin_memory,
        worker_init_fn=stay_with_parent,
        generator=order.worker_seeds,
    )
