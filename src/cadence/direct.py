"""torch's backward and optimizer step without what is wrapped around them for cases not at hand.

Both pass through Python that looks for batched gradients, hooks and profilers. Where there is none
of these it does nothing, and takes a sixth of the time of a small model's window: the figures are
in docs/performance.md. Where there may be one, the ordinary way is taken.
"""

from types import FunctionType

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
from torch.optim import Optimizer, optimizer

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
    if type(loss) is not Tensor:  # a subclass may have a backward of its own
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
        type(optimizer).step.__wrapped__(optimizer)  # type: ignore[attr-defined]


def _is_observed(of: Optimizer) -> bool:
    """Return whether a step is more than the optimizer's own: hooked, profiled, or replaced."""
    ordinary = type(of).step
    if "step" in vars(of) or not isinstance(ordinary, FunctionType):
        return True
    if ordinary.__code__ not in _CODE_OF_WRAPPERS:
        return True
    hooks = (
        of._optimizer_step_pre_hooks,
        of._optimizer_step_post_hooks,
        optimizer._global_optimizer_pre_hooks,
        optimizer._global_optimizer_post_hooks,
    )
    return any(hooks) or torch._C._autograd._profiler_enabled()
