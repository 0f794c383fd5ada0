"""torch's backward and optimizer step without what is wrapped around them for cases not at hand.

Both pass through Python that looks for batched gradients, hooks and profilers. Where there is none
of these it does nothing, and takes a sixth of the time of a small model's window: the figures are
in docs/performance.md. Where there is one, the ordinary way is taken; only torch's
``ExecutionTraceObserver``, which cannot be asked for, misses the line of the optimizer's step.
"""

from types import FunctionType

import torch
from torch import Tensor
from torch.autograd import profiler
from torch.autograd.graph import _engine_run_backward
from torch.optim import Optimizer
from torch.optim import optimizer as optimizers
from torch.overrides import has_torch_function_unary

from cadence.engine.without_dynamo import step_without_dynamo

_CODE_OF_WRAPPERS = Optimizer.profile_hook_step.__code__.co_consts
"""Among other constants: the code of what torch wraps around an optimizer's step."""


def backward(loss: Tensor, gradient: Tensor) -> None:
    """Add to the leaves' ``.grad``, as ``torch.autograd.backward`` does.

    Megatron-LM calls the engine in the same way, to spare the same checks.

    Args:
        loss: Any tensor with a graph.
        gradient: What to start from: of the loss's shape, dtype and device.

    Raises:
        RuntimeError: The loss has no graph, or a backward fails.
    """
    if has_torch_function_unary(loss):  # a subclass or a mode may have a backward of its own
        torch.autograd.backward(loss, gradient)
        return
    _engine_run_backward(
        (loss,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def step(optimizer: Optimizer) -> None:
    """Make an optimizer's step, and call its hooks if it has any."""
    if _is_observed(optimizer):
        optimizer.step()
    else:
        step_without_dynamo(type(optimizer).step.__wrapped__)(optimizer)  # type: ignore[attr-defined]


def _is_observed(optimizer: Optimizer) -> bool:
    """Return whether a step is more than the optimizer's own: hooked, profiled, or replaced."""
    if not isinstance(optimizer, Optimizer) or "step" in vars(optimizer):
        return True
    ordinary = type(optimizer).step
    if not isinstance(ordinary, FunctionType) or ordinary.__code__ not in _CODE_OF_WRAPPERS:
        return True
    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        optimizers._global_optimizer_pre_hooks,
        optimizers._global_optimizer_post_hooks,
    )
    # The first knows of profiles of this thread alone, the second of torch.profiler's alone.
    is_profiled = torch._C._autograd._profiler_enabled() or profiler._is_profiler_enabled
    return any(hooks) or is_profiled
