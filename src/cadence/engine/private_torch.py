"""torch's private names that save time, each beside the public way that takes over without it.

None is looked up before its first use. Where this torch lacks a name, or a trial of it on a tiny
tensor goes wrong, the public way runs: slower, with the same result. What the shortcuts save is in
docs/performance.md; the versions of torch that have them are in tests/engine/test_private_torch.py.

torch's backward and optimizer step pass through Python that looks for batched gradients, hooks and
profilers, which takes a sixth of the time of a small model's window. Where there is one, the
ordinary way is taken; only torch's ``ExecutionTraceObserver``, which cannot be asked for, misses
the line of the optimizer's step.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter
from types import CodeType, FunctionType
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.autograd import profiler
from torch.linalg import vector_norm
from torch.optim import Optimizer
from torch.optim import optimizer as optimizers
from torch.overrides import has_torch_function

from cadence.engine.without_dynamo import step_without_dynamo

log = logging.getLogger(__name__)


def private(name: str) -> Any:
    """Return what torch has under a private name; None = this torch has no such name.

    Args:
        name: From torch on, such as ``autograd.graph._engine_run_backward``.
    """
    try:
        return attrgetter(name)(torch)
    except AttributeError:
        return None


@cache
def _working(name: str, trial: Callable[[Any], bool]) -> Any:
    """Return what torch has under a private name if a trial of it goes well; else None."""
    found = private(name)
    try:
        if found is not None and trial(found):
            return found
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        log.debug("torch.%s: %s", name, error)
    log.info("torch %s has no torch.%s as cadence knows it: slower", torch.__version__, name)
    return None


def backward(loss: Float[Tensor, "*shape"], gradient: Float[Tensor, "*shape"]) -> None:
    """Add to the leaves' ``.grad``, as ``torch.autograd.backward`` does.

    Megatron-LM calls the engine in the same way, to spare the same checks.

    Args:
        loss: [*shape], any tensor with a graph.
        gradient: [*shape], what to start from: of the loss's dtype and device.

    Raises:
        RuntimeError: The loss has no graph, or a backward fails.
    """
    engine = _working("autograd.graph._engine_run_backward", _adds_to_grad)
    if engine is None or has_torch_function((loss,)):  # a subclass or mode may have its own
        torch.autograd.backward(loss, gradient)
    else:
        _run(engine, loss, gradient)


def _run(engine: Any, loss: Tensor, gradient: Tensor) -> None:
    keep_graph = create_graph = False
    engine(
        (loss,), (gradient,), keep_graph, create_graph, (),
        allow_unreachable=True, accumulate_grad=True,
    )  # fmt: skip


def _adds_to_grad(engine: Any) -> bool:
    weight = nn.Parameter(torch.ones(()))
    with torch.enable_grad():
        for _ in range(2):
            _run(engine, weight * 2, torch.ones(()))
    return weight.grad is not None and weight.grad.item() == 4


def step(optimizer: Optimizer) -> None:
    """Make an optimizer's step, and call its hooks if it has any."""
    own = _own_step(optimizer)
    if own is None:
        optimizer.step()
    else:
        step_without_dynamo(own)(optimizer)


def _own_step(optimizer: Optimizer) -> Callable[[Optimizer], Any] | None:
    """Return an optimizer's step without what torch wraps around it.

    None = a step is more than that: hooked, profiled, replaced, or of a torch that cannot tell.
    """
    if not isinstance(optimizer, Optimizer) or "step" in vars(optimizer):
        return None
    wrapped = type(optimizer).step
    if not isinstance(wrapped, FunctionType) or wrapped.__code__ not in _wrappers_of_step():
        return None
    hooks = (
        getattr(optimizer, "_optimizer_step_pre_hooks", True),
        getattr(optimizer, "_optimizer_step_post_hooks", True),
        getattr(optimizers, "_global_optimizer_pre_hooks", True),
        getattr(optimizers, "_global_optimizer_post_hooks", True),
    )
    return None if any(hooks) or _is_profiled() else getattr(wrapped, "__wrapped__", None)


def _is_profiled() -> bool:
    """Return whether a profiler looks on, or torch cannot tell."""
    of_this_thread = private("_C._autograd._profiler_enabled")
    if of_this_thread is None or of_this_thread():
        return True
    of_torch_profiler: bool = getattr(profiler, "_is_profiler_enabled", True)
    return of_torch_profiler


@cache
def _wrappers_of_step() -> tuple[CodeType, ...]:
    """Return the code of what torch wraps around an optimizer's step; empty = it cannot tell."""
    constants = getattr(private("optim.Optimizer.profile_hook_step.__code__"), "co_consts", ())
    return tuple(constant for constant in constants if isinstance(constant, CodeType))


def norms(tensors: Sequence[Float[Tensor, "..."]]) -> Sequence[Float[Tensor, ""]]:
    """Return the 2-norm of each tensor, 0-d, in its dtype and on its device."""
    joint = _working("_foreach_norm", _is_norm)
    found: Sequence[Tensor] = [*map(vector_norm, tensors)] if joint is None else joint(tensors)
    return found


def _is_norm(joint: Any) -> bool:
    (found,) = joint([torch.tensor([3.0, 4.0])])
    return bool(found.item() == 5 and found.dim() == 0)


def copy_each(
    destinations: Sequence[Shaped[Tensor, "..."]], sources: Sequence[Shaped[Tensor, "..."]]
) -> None:
    """Copy each tensor into the one at its place.

    Args:
        destinations: At least one tensor; changed in place.
        sources: As many, each of its destination's shape.
    """
    joint = _working("_foreach_copy_", _copies)
    if joint is not None:
        joint(destinations, sources)
        return
    for destination, source in zip(destinations, sources, strict=True):
        destination.copy_(source)


def _copies(joint: Any) -> bool:
    destination = torch.zeros(1)
    joint([destination], [torch.ones(1)])
    return destination.item() == 1


def zero_each(tensors: Sequence[Shaped[Tensor, "..."]]) -> None:
    """Set every number of at least one tensor to 0, in place."""
    joint = _working("_foreach_zero_", _zeroes)
    if joint is not None:
        joint(tensors)
        return
    for tensor in tensors:
        tensor.zero_()


def _zeroes(joint: Any) -> bool:
    tensor = torch.ones(1)
    joint([tensor])
    return tensor.item() == 0


def version_of(tensor: Shaped[Tensor, "..."]) -> int | None:
    """Return how often a tensor was written to; None = this torch does not count it."""
    return getattr(tensor, "_version", None)


def batch_norms() -> tuple[type[nn.Module], ...]:
    """Return the base class of every BatchNorm; a torch that lacks it has the public classes."""
    base = private("nn.modules.batchnorm._BatchNorm")
    public = nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm
    return public if base is None else (base,)
