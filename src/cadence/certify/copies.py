"""Copies of a model, an objective and a window, on which passes can be tried in any dtype."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from cadence.certify.hooks import carry_hooks
from cadence.certify.precision import coarsest_dtype, scaled, tolerance_of
from cadence.certify.trial_passes import TrialPasses, in_one_pass
from cadence.data.batch import Batch, mapped
from cadence.engine.device import uncompile
from cadence.objectives import Objective
from cadence.system.secrets import with_its_type


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
        copied, own = copy.deepcopy((model, objective))
    except Exception as error:
        if dtype is not None:
            raise ValueError(f"the model cannot be copied ({with_its_type(error)})") from None
        copied = model
    else:
        carry_hooks([model, *_modules_in(objective)], [copied, *_modules_in(own)])
        objective = own
        uncompile(copied)
    if dtype is not None:
        _convert(copied, dtype)
        _convert_parts(objective, dtype)
        window = [mapped(partial(_converted, dtype=dtype), batch) for batch in window]
        autocast = None
    named = dict(copied.named_parameters())
    trial = TrialPasses(
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
    coarsest = coarsest_dtype(trial)
    inside = "" if dtype in (None, coarsest) else f"{dtype} with "
    return scaled(
        dataclasses.replace(
            trial,
            precision=f"{inside}{coarsest}".replace("torch.", ""),
            tolerance=tolerance_of(coarsest),
        )
    )


def _modules_in(objective: Objective) -> list[nn.Module]:
    held = getattr(objective, "__dict__", {}).values()
    return [part for part in (objective, *held) if isinstance(part, nn.Module)]


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
