"""Passes over a window on copies, one after another from the same start, and their
gradients.

Nothing here knows why a gradient depends on the split; it runs passes and tells gradients apart.
"""

import copy
import dataclasses
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode

from cadence.data.batch import Batch, mapped, moved, rebatched, sample_count
from cadence.engine.accumulation import accumulate
from cadence.engine.device import device_of, uncompile
from cadence.engine.preserve import fill_buffers
from cadence.objectives import Objective
from cadence.system.secrets import with_its_type

TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 16 * torch.finfo(torch.float16).eps,
    torch.bfloat16: 16 * torch.finfo(torch.bfloat16).eps,
}
"""The largest relative error that counts as rounding, by the coarsest dtype computed in.

Two sums of the same numbers in another order differ by some ``eps``, the more the longer they are
and the more cancels in them. On the recipes (windows of 16 to 1,437 samples) float64 differs by up
to 11 eps, float32 by 15, float16 by 4 and bfloat16 by 1; in convolutions and attention layers of
other models float32 by 200. A real error is a share of some sample's gradient: 1e-3 and more. So
float64 tells them apart by a wide margin and is the judge; the others are there to tell how much
rounding the split adds.
"""

QUIET = 0.1
"""A parameter tensor whose gradient is below this share of the model's root mean square is compared
with that share instead. Where the true gradient is zero (a bias before a softmax or a
normalisation), all there is of it is rounding, and its own size means nothing."""

Gradient: TypeAlias = Mapping[str, Tensor | None]
"""By parameter; None = it got none."""


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


def set_up(
    model: nn.Module,
    objective: Objective,
    window: Sequence[Batch],
    groups: Mapping[str, Sequence[str]],
    autocast: torch.dtype | None,
    dtype: torch.dtype | None = None,
) -> TrialPasses:
    """Set up passes on copies, all converted to ``dtype`` without autocast; None = as they are."""
    try:
        copied, objective = copy.deepcopy((model, objective))
    except Exception as error:
        if dtype is not None:
            raise ValueError(f"the model cannot be copied ({with_its_type(error)})") from None
        copied = model
    else:
        _carry_hooks(model, copied)
        uncompile(copied)
    if dtype is not None:
        _convert(copied, dtype)
        _convert_parts(objective, dtype)
        window = [mapped(partial(_converted, dtype=dtype), batch) for batch in window]
        autocast = None
    named = dict(copied.named_parameters())
    bench = TrialPasses(
        model=copied,
        objective=objective,
        window=tuple(window),
        one_pass=in_one_pass(window),
        parameters={name: named[name] for names in groups.values() for name in names},
        buffers={name: buffer.clone() for name, buffer in copied.named_buffers()},
        autocast=autocast,
        dtype=dtype,
    )
    for parameter in copied.parameters():
        parameter.grad = None
    coarsest = _coarsest_dtype(bench)
    inside = "" if dtype in (None, coarsest) else f"{dtype} with "
    return _scaled(
        dataclasses.replace(
            bench,
            precision=f"{inside}{coarsest}".replace("torch.", ""),
            tolerance=_tolerance(coarsest),
        )
    )


def _carry_hooks(model: nn.Module, copied: nn.Module) -> None:
    """Give a copy the gradient hooks that copying a parameter leaves behind."""
    for original, parameter in zip(model.parameters(), copied.parameters(), strict=True):
        for hook in (original._backward_hooks or {}).values():
            parameter.register_hook(hook)  # type: ignore[no-untyped-call]


def _convert(module: nn.Module, dtype: torch.dtype) -> None:
    module.double() if dtype == torch.float64 else module.to(dtype)


def _convert_parts(objective: Objective, dtype: torch.dtype) -> None:
    """Convert what an objective holds, such as the class weights of a loss."""
    if isinstance(objective, nn.Module):
        _convert(objective, dtype)
    parts = getattr(objective, "__dict__", {})
    for name, value in parts.items():
        if isinstance(value, nn.Module):
            _convert(value, dtype)
        elif isinstance(value, Tensor):
            parts[name] = _converted(value, dtype)


def _converted(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


@dataclass(frozen=True)
class Wrapped:
    """An objective, made to do something else as well."""

    objective: Objective

    def items(self, batch: Batch) -> int:
        """Return what the objective counts."""
        return self.objective.items(batch)

    def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return what the objective sums."""
        return self.objective.total_loss(model, batch)


def innermost(objective: Objective) -> Objective:
    """Return the user's own objective, out of whatever wraps it."""
    while isinstance(objective, Wrapped):
        objective = objective.objective
    return objective


@dataclass(frozen=True)
class _WatchesDtypes(Wrapped):
    """Collects the dtypes of its forward passes."""

    dtypes: set[torch.dtype]

    def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        with _Dtypes(self.dtypes):
            return self.objective.total_loss(model, batch)


class _Dtypes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the dtypes that operations return."""

    def __init__(self, dtypes: set[torch.dtype]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtypes = dtypes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.dtypes.update(tensor.dtype for tensor in tensors_in(out))
        return out


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value, however deep they lie in tuples, lists and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from tensors_in(list(value.values()))
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)


def _coarsest_dtype(bench: TrialPasses) -> torch.dtype:
    """Return the coarsest floating-point dtype that one pass computes in."""
    dtypes = {parameter.dtype for parameter in bench.parameters.values()}
    watched = dataclasses.replace(bench, objective=_WatchesDtypes(bench.objective, dtypes))
    with errors_explained():
        gradient = watched.gradient(bench.one_pass)
    if all(part is None for part in gradient.values()):
        raise ValueError(
            "no parameter gets a gradient from the window, so there is nothing to compare: the "
            "loss must come from the model that the objective is given"
        )
    rounding = [dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex]
    return max(rounding, key=lambda dtype: torch.finfo(dtype).eps)


def _tolerance(dtype: torch.dtype) -> float:
    """Return the tolerance of a dtype; that of the next coarser one where it is not listed."""
    fine = [
        tolerance
        for listed, tolerance in TOLERANCES.items()
        if torch.finfo(listed).eps >= torch.finfo(dtype).eps
    ]
    return min(fine, default=1.0)


def _scaled(bench: TrialPasses) -> TrialPasses:
    """Scale the loss as float16 needs it: as far as the gradient stays finite."""
    if bench.autocast != torch.float16:
        return bench
    for power in range(16, 0, -1):
        scaler = GradScaler(device_of(bench.model).type, init_scale=2.0**power)
        scaled = dataclasses.replace(bench, scaler=scaler)
        with errors_explained():
            if is_finite(scaled.gradient(bench.one_pass)):
                return scaled
    return bench


def in_one_pass(window: Sequence[Batch]) -> tuple[Batch, ...]:
    """Return the whole window as one mini-batch, or as few as their shapes allow."""
    return tuple(rebatched(window, sum(map(sample_count, window))))


def relative_errors(found: Gradient, true: Gradient) -> dict[str, float]:
    """Return each parameter's relative error; infinite where something is not finite."""
    norms = {name: norm(gradient) for name, gradient in true.items()}
    numbers = sum(gradient.numel() for gradient in true.values() if gradient is not None)
    mean_square = sum(length**2 for length in norms.values()) / max(1, numbers)
    errors = {}
    for name, gradient in true.items():
        size = 0 if gradient is None else gradient.numel()
        scale = max(norms[name], QUIET * math.sqrt(mean_square * size))
        gap = norm(difference(found[name], gradient))
        share = gap / scale if scale > 0 else math.inf if gap > 0 else 0.0
        errors[name] = share if math.isfinite(share) else math.inf
    return errors


def is_finite(gradient: Gradient) -> bool:
    """Return whether a gradient holds neither NaN nor infinity."""
    return all(math.isfinite(norm(part)) for part in gradient.values())


def difference(found: Tensor | None, true: Tensor | None) -> Tensor | None:
    """Return what two tensors differ by, in double precision; None counts as zero."""
    if found is None or true is None:
        return true if found is None else found
    return _wide(found) - _wide(true)


def norm(gradient: Tensor | None) -> float:
    """Return the 2-norm, in double precision; that of None is 0."""
    return 0.0 if gradient is None else float(_wide(gradient).norm())


def _wide(tensor: Tensor) -> Tensor:
    dense = tensor.to_dense() if tensor.is_sparse else tensor
    on_device = dense.cpu() if dense.device.type == "mps" else dense  # which has no float64
    return on_device.to(torch.complex128 if dense.is_complex() else torch.float64)


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
