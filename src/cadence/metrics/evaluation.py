"""What a model is worth on held-out data."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import numpy as np
import torch
from torch import Tensor, nn

from cadence.data.batch import Batch, moved, sample_count
from cadence.engine.device import restored_threads, set_threads
from cadence.engine.gradient_sums import wide
from cadence.engine.out_of_memory import MemoryLimit, in_parts
from cadence.engine.threads import DefaultThreads
from cadence.objectives import Objective, ReportsTotals, items_in, with_objective


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model's means over held-out items."""

    loss: float
    """Mean loss per item; NaN without any item."""
    metrics: dict[str, float]
    """The objective's further means, such as ``accuracy``, by name."""
    samples: int
    items: float
    seconds: float


def evaluate(
    model: nn.Module,
    objective: Objective,
    minibatches: Iterable[Batch],
    device: torch.device,
    autocast: torch.dtype | None = None,
    limit: MemoryLimit | None = None,
    threads: DefaultThreads | None = None,
) -> Evaluation:
    """Return a model's means over all items of some mini-batches, in evaluation mode.

    Every module is back in its own mode afterwards.

    Args:
        model: The model, on ``device``.
        objective: What to count and sum.
        minibatches: The held-out data, read once.
        device: Where to compute.
        autocast: As in `cadence.accumulate`.
        limit: What is known to fit into memory; a mini-batch that does not is evaluated in parts,
            and the limit learns from it. None = nothing is known yet.
        threads: The threads of an operation by its work; None = as torch has them.

    Raises:
        ValueError: There is no mini-batch.
        DoesNotFitError: Not even one sample fits into memory.
    """
    start = perf_counter()
    limit = limit or MemoryLimit()
    whole = with_objective(model, objective)
    training = [module for module in whole.modules() if module.training]
    sums: dict[str, Tensor] = {}
    samples = 0
    items: float = 0
    totals_of = partial(_totals, objective, model, device)
    if threads is not None:
        threads.take(model)
    whole.eval()
    try:
        # Not inference_mode: what a model keeps of a forward, such as a state or a cache, could be
        # used in no later training.
        with (
            restored_threads(),
            torch.no_grad(),
            torch.autocast(device.type, autocast, autocast is not None),
        ):
            for batch in minibatches:
                if threads is not None:
                    set_threads(threads.for_window((batch,), None))
                samples += sample_count(batch)
                items += items_in(objective, batch)
                for totals in in_parts(totals_of, batch, limit):
                    for name, total in totals.items():
                        sums[name] = sums.get(name, 0) + wide(total)
    finally:
        for module in training:
            module.training = True
    if samples == 0:
        raise ValueError(
            "the validation data gave no mini-batch; is it empty, or a generator that can be read "
            "once? Give a DataLoader, or another iterable that starts anew each time"
        )
    means = {name: float(total) / items if items else np.nan for name, total in sums.items()}
    loss = means.pop("loss", np.nan)
    return Evaluation(loss, means, samples, items, perf_counter() - start)


def _totals(
    objective: Objective, model: nn.Module, device: torch.device, batch: Batch
) -> dict[str, Tensor]:
    """Ask for an objective's totals; one that only has ``items`` and ``total_loss`` will do."""
    if items_in(objective, batch) == 0:
        return {}
    batch = moved(batch, device)
    if isinstance(objective, ReportsTotals):
        return objective.totals(model, batch)
    return {"loss": objective.total_loss(model, batch)}
