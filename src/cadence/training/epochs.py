"""What a loader is asked and told about its epochs."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, Dataset, Sampler

from cadence.checkpoint.random_state import GENERATORS
from cadence.data.batch import Batch

log = logging.getLogger(__name__)


def announce_epoch(loader: Iterable[Batch], epoch: int) -> None:
    """Tell whoever shuffles which epoch begins, as torch's DistributedSampler wants to be told."""
    for part in parts_of(loader):
        set_epoch = getattr(part, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)


def generators_of(loader: Iterable[Batch]) -> list[Any]:
    """Return the random generators that an epoch is drawn from, beside the global ones."""
    return [part for part in parts_of(loader) if isinstance(part, GENERATORS)]


def parts_of(loader: Any) -> Iterator[Any]:
    """Yield a loader and what an epoch of it is made of, each once: samplers, batch samplers, data
    sets, loaders and random generators, and what these hold of such."""
    seen: set[int] = set()
    waiting = [loader]
    while waiting:
        part = waiting.pop(0)
        if id(part) in seen:
            continue
        seen.add(id(part))
        yield part
        if isinstance(part, GENERATORS):
            continue
        for value in list(getattr(part, "__dict__", {}).values()):
            several = isinstance(value, list | tuple) and len(value) <= MOST_PARTS
            held = value if several else (value,)
            waiting += [each for each in held if _is_part(each)]


PARTS = (Sampler, Dataset, DataLoader, *GENERATORS)
"""What an epoch is made of, whatever else says by a method ``set_epoch`` that it is of it too."""

MOST_PARTS = 64
"""The longest list that is looked into for data sets and samplers: a longer one holds samples."""


def _is_part(value: Any) -> bool:
    is_known = isinstance(value, PARTS)
    return is_known or (not isinstance(value, type) and hasattr(value, "set_epoch"))


def batches_in(loader: Iterable[Batch]) -> int | None:
    """Return the mini-batches of an epoch; None = the loader does not tell."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:  # a generator, or a DataLoader of an IterableDataset
        return None


def warn_of_short_epochs(loader: Iterable[Batch], step_size: int) -> None:
    """Warn where a window cannot be as large as asked."""
    minibatches = batches_in(loader)
    if minibatches is not None and 0 < minibatches < step_size:
        log.warning(
            "an epoch of %d mini-batches is shorter than one window of step_size=%d: each update "
            "sees the whole epoch; a smaller data.batch_size gives more mini-batches",
            minibatches,
            step_size,
        )
