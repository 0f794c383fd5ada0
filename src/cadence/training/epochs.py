"""What a loader is asked and told about its epochs."""

import logging
from collections.abc import Iterable

from cadence.data.batch import Batch

log = logging.getLogger(__name__)


def announce_epoch(loader: Iterable[Batch], epoch: int) -> None:
    """Tell whoever shuffles which epoch begins, as torch's DistributedSampler wants to be told."""
    shufflers = loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    for shuffler in shufflers:
        set_epoch = getattr(shuffler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)


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
