"""The dtype that a model truly computes in, and the rounding that the dtype allows."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.utils._python_dispatch import TorchDispatchMode

from cadence.certify.relative_error import is_finite
from cadence.certify.trial_passes import TrialPasses, Wrapped, errors_explained, tensors_in
from cadence.data.batch import Batch
from cadence.engine.device import device_of

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


def coarsest_dtype(trial: TrialPasses) -> torch.dtype:
    """Return the coarsest floating-point dtype that one pass computes in."""
    dtypes = {parameter.dtype for parameter in trial.parameters.values()}
    watched = dataclasses.replace(trial, objective=_WatchesDtypes(trial.objective, dtypes))
    with errors_explained():
        gradient = watched.gradient(trial.one_pass)
    if all(part is None for part in gradient.values()):
        raise ValueError(
            "no parameter gets a gradient from the window, so there is nothing to compare: the "
            "loss must come from the model that the objective is given"
        )
    rounding = [dtype for dtype in dtypes if dtype.is_floating_point or dtype.is_complex]
    return max(rounding, key=lambda dtype: torch.finfo(dtype).eps)


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


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the tolerance of a dtype; that of the next coarser one where it is not listed."""
    fine = [
        tolerance
        for listed, tolerance in TOLERANCES.items()
        if torch.finfo(listed).eps >= torch.finfo(dtype).eps
    ]
    return min(fine, default=1.0)


def scaled(trial: TrialPasses) -> TrialPasses:
    """Scale the loss as float16 needs it: as far as the gradient stays finite."""
    if trial.autocast != torch.float16:
        return trial
    for power in range(16, 0, -1):
        scaler = GradScaler(device_of(trial.model).type, init_scale=2.0**power)
        scaled = dataclasses.replace(trial, scaler=scaler)
        with errors_explained():
            if is_finite(scaled.gradient(trial.one_pass)):
                return scaled
    return trial
