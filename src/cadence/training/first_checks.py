"""What is known to go wrong before the first window, told before it."""

import logging
from collections.abc import Iterable, Sized
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from cadence.data.batch import Batch, first_samples, moved
from cadence.data.loading import InMemoryLoader
from cadence.engine.coupling import coupling
from cadence.engine.preserve import preserved
from cadence.engine.private_torch import batch_norms
from cadence.objectives import HALF, Objective

log = logging.getLogger(__name__)


def check_precision(model: nn.Module, precision: str) -> None:
    """Refuse parameters that a loss scale cannot train, and warn of those that may stand still.

    Args:
        model: All that is trained.
        precision: ``fp32``, ``bf16`` or ``fp16``.

    Raises:
        ValueError: The parameters are float16 and ``precision`` is ``fp16``.
    """
    half = {each.dtype for each in model.parameters() if each.requires_grad and each.dtype in HALF}
    if torch.float16 in half and precision == "fp16":
        raise ValueError(
            "device.precision=fp16 scales the loss of float32 parameters, and the model's are "
            "float16 already; leave them in float32, such as by model.float()"
        )
    if half:
        name = str(min(half, key=str)).removeprefix("torch.")
        log.warning(
            "the model's parameters are %s: an update below about a %s of a weight is lost in its "
            "rounding; keep them in float32 (model.float()) and give device.precision=bf16",
            name,
            "256th" if name == "bfloat16" else "2048th",
        )


def check_lone_sample(
    model: nn.Module, objective: Objective, loader: Iterable[Batch], device: torch.device
) -> None:
    """Refuse an epoch whose last mini-batch is one sample that a BatchNorm cannot take.

    Only where that is so is one sample run through the model, which stays as it was.

    Raises:
        ValueError: BatchNorm would refuse the last mini-batch; the message says what to do.
    """
    lone = _lone_sample(loader) if coupling(model, objective) else None
    if lone is None or not any(isinstance(each, batch_norms()) for each in model.modules()):
        return
    samples, sample = lone
    try:
        with preserved(model), torch.no_grad():
            objective.total_loss(model, moved(sample, device))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"the last mini-batch of an epoch would be one of the {samples:,} samples alone, and "
            "BatchNorm needs more than one in training; choose another data.batch_size, set "
            "data.drop_last=true, or use GroupNorm or LayerNorm"
        ) from error


def _lone_sample(loader: Iterable[Batch]) -> tuple[int, Batch] | None:
    """Return an epoch's samples and the first of them, if its last mini-batch is one alone.

    None = it is not, or that is not known.
    """
    if not isinstance(loader, DataLoader) or not isinstance(loader.dataset, Sized):
        return None
    order: Any = loader.batch_sampler
    size, samples = getattr(order, "batch_size", None), len(loader.dataset)
    is_dropped = getattr(order, "drop_last", False)
    is_plain = type(loader.sampler).__name__ in PLAIN_SAMPLERS
    if is_dropped or not is_plain or not isinstance(size, int) or samples % size != 1 or size == 1:
        return None
    return samples, next(first_samples(_first_batch(loader), 1))


PLAIN_SAMPLERS = ("SequentialSampler", "RandomSampler")
"""Those that yield each sample of a data set once; a batch sampler has the first beside it."""


def _first_batch(loader: "DataLoader[Any]") -> Iterable[Batch]:
    """Return the mini-batch of the first two samples, without touching the loader's order."""
    if isinstance(loader, InMemoryLoader):
        return [loader.dataset.gathered(torch.arange(2))]  # type: ignore[attr-defined]
    return [loader.collate_fn([loader.dataset[0], loader.dataset[1]])]
