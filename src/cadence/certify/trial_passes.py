"""Passes over a window on copies, one after another from the same start, and their gradients.

Nothing here knows why a gradient depends on the split.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler

from cadence.certify.relative_error import Gradient
from cadence.data.batch import Batch, moved, rebatched, sample_count
from cadence.engine.accumulation import accumulate
from cadence.engine.device import device_of
from cadence.engine.preserve import fill_buffers
from cadence.objectives import Items, Objective, items_in
from cadence.system.secrets import with_its_type


@dataclass(frozen=True, slots=True)
class TrialPasses:
    """A model, an objective and a window, on which one pass after another starts the same."""

    model: nn.Module
    objective: Objective
    window: tuple[Batch, ...]
    one_pass: tuple[Batch, ...]
    parameters: dict[str, nn.Parameter]
    buffers: dict[str, Tensor]
    """What the model's buffers hold when a pass begins."""
    autocast: torch.dtype | None
    dtype: torch.dtype | None
    """What everything was converted to; None = nothing was."""
    scaler: GradScaler | None = None
    precision: str = ""
    tolerance: float = 0.0

    def gradient(
        self, minibatches: Sequence[Batch], size: int | None = None, *, seed: int = 0
    ) -> Gradient:
        """Return the window's mean gradient by parameter; None = it got none."""
        with self._pass(seed):
            accumulate(
                self.model,
                self.objective,
                minibatches,
                size,
                autocast=self.autocast,
                scaler=self.scaler,
            )
        found = {name: parameter.grad for name, parameter in self.parameters.items()}
        for parameter in self.model.parameters():
            parameter.grad = None
        if self.scaler is None:
            return found
        scale = self.scaler.get_scale()
        return {name: part if part is None else part / scale for name, part in found.items()}

    def total(self, batch: Batch) -> float:
        """Return the objective's total loss of one mini-batch."""
        device = device_of(self.model)
        with (
            self._pass(seed=0),
            torch.no_grad(),
            torch.autocast(device.type, self.autocast, self.autocast is not None),
        ):
            return float(self.objective.total_loss(self.model, moved(batch, device)))

    def parts(self, size: int | None) -> list[Batch]:
        """Return the window's micro-batches that hold an item."""
        parts = self.window if size is None else rebatched(self.window, size)
        return [part for part in parts if self.objective.items(part) > 0]

    @contextmanager
    def _pass(self, seed: int) -> Iterator[None]:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        fill_buffers(self.model, self.buffers)
        default = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype or default)  # for tensors that a forward makes
        try:
            yield
        finally:
            torch.set_default_dtype(default)


@dataclass(frozen=True)
class Wrapped:
    """An objective, made to do something else as well."""

    objective: Objective

    def items(self, batch: Batch) -> Items:
        """Return what the objective counts."""
        return items_in(self.objective, batch)

    def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what the objective sums."""
        return self.objective.total_loss(model, batch)


def innermost(objective: Objective) -> Objective:
    """Return the user's own objective, out of whatever wraps it."""
    while isinstance(objective, Wrapped):
        objective = objective.objective
    return objective


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value, however deep they lie in tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)


def in_one_pass(window: Sequence[Batch]) -> tuple[Batch, ...]:
    """Return the whole window as one mini-batch, or as few as their shapes allow."""
    return tuple(rebatched(window, sum(map(sample_count, window))))


@contextmanager
def errors_explained() -> Iterator[None]:
    """Say of an error that it was one pass over the whole window that failed, and what to try."""
    try:
        yield
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise MemoryError(
                "one pass over the whole window takes more memory than there is; certify a "
                "smaller one: trainer.step_size=2, or a smaller data.batch_size"
            ) from error
        raise ValueError(f"one pass over the whole window fails: {with_its_type(error)}") from error
