"""How far two gradients are apart, as a share of the true one."""

import math
from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor

QUIET = 0.1
"""A parameter tensor whose gradient is below this share of the model's root mean square is compared
with that share instead. Where the true gradient is zero (a bias before a softmax or a
normalisation), all there is of it is rounding, and its own size means nothing."""


Gradient: TypeAlias = Mapping[str, Tensor | None]
"""By parameter; None = it got none."""


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
