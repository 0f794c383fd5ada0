"""torch's optimizers without torch._dynamo, whose import takes as long as torch's own.

torch guards some methods of an optimizer against being traced by `torch.compile`, and imports its
tracer for that at the first call. As long as nothing has imported the tracer nothing is traced,
and the guarded functions inside are called at once. Once something has, as a compiled model does,
and where a torch guards in another way, torch's own methods run.
"""

import sys
from collections.abc import Callable
from functools import cache, wraps
from types import FunctionType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as optimizers

GUARDED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
"""Methods of every optimizer that torch guards."""


def is_dynamo_loaded() -> bool:
    """Return whether something has imported what `torch.compile` traces with."""
    return "torch._dynamo" in sys.modules


@cache
def spare_dynamo() -> None:
    """Let torch's optimizers be made, saved, restored and zeroed without the tracer's import.

    For this process, as a command may: what the methods do stays the same.
    """
    for name in GUARDED:
        if name in vars(Optimizer):
            setattr(Optimizer, name, _unguarded(vars(Optimizer)[name]))


def _unguarded(guarded: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method whose guard is left out as long as nothing can trace it."""
    inside = getattr(guarded, "__wrapped__", guarded)

    @wraps(guarded)
    def method(*arguments: Any, **options: Any) -> Any:
        return (guarded if is_dynamo_loaded() else inside)(*arguments, **options)

    return method


@cache
def step_without_dynamo(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return an optimizer class's step without the tracer's import.

    Args:
        step: The step of an optimizer class, without its hooks. Any but one that torch's
            ``_use_grad_for_differentiable`` wraps comes back as it is.
    """
    wrapper = getattr(optimizers, "_use_grad_for_differentiable", None)
    wrappers = getattr(getattr(wrapper, "__code__", None), "co_consts", ())
    if not isinstance(step, FunctionType) or step.__code__ not in wrappers:
        return step
    inside = getattr(step, "__wrapped__", None)
    if inside is None:
        return step

    def unguarded(optimizer: Any) -> Any:
        if is_dynamo_loaded():
            return step(optimizer)
        with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
            return inside(optimizer)

    return unguarded
