"""Where a run computes and in which precision."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler

_AUTOCAST: dict[str, torch.dtype | None] = {
    "fp32": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


_OWN = "cadence_own_forward"
"""The attribute of a translated forward that holds what it was translated from."""


def resolved(name: str | torch.device) -> torch.device:
    """Return the device of a name.

    Args:
        name: ``auto`` (CUDA, else MPS, else CPU: the first that is there), or any torch name.

    Raises:
        ValueError: There is no such device on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).cpu()  # meta makes tensors too, and computes nothing
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device.name={name}: there is no such device on this machine, only "
            f"{', '.join(_present())}; try device=auto"
        ) from error
    return device


def _present() -> list[str]:
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's parameters; the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the dtype that autocast runs eligible operations in; None = no autocast.

    Parameters, their gradients and the optimizer's state stay as they are, float32 as a rule.

    Raises:
        ValueError: There is no such precision, or the device cannot compute in it.
    """
    if precision not in _AUTOCAST:
        raise ValueError(f"device.precision={precision}: choose one of {', '.join(_AUTOCAST)}")
    dtype = _AUTOCAST[precision]
    if dtype is None:
        return None
    unsupported = f"device.precision={precision}: {device} cannot compute in it; try fp32"
    if device.type == "cuda" and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported():
        raise ValueError(unsupported)
    try:
        with torch.autocast(device.type, dtype):
            ones = torch.ones(2, 2, device=device)
            torch.nn.functional.linear(ones, ones)
    except RuntimeError as error:
        raise ValueError(unsupported) from error
    return dtype


def grad_scaler(precision: str, device: torch.device) -> GradScaler | None:
    """Return the loss scale that float16 needs, on any device; None for the others."""
    return GradScaler(device.type) if precision == "fp16" else None


def compile_forward(model: nn.Module) -> None:
    """Let torch.compile translate a model's forward.

    Not by ``model.compile()``: that translates nothing where the outermost module is one of torch's
    own, such as ``nn.Sequential``, and says nothing either.
    """
    own = model.forward
    compiled = torch.compile(own)
    vars(compiled)[_OWN] = own
    model.forward = compiled


def is_compiled(model: nn.Module) -> bool:
    """Return whether `compile_forward` or ``model.compile()`` translates a model."""
    by_torch = getattr(model, "_compiled_call_impl", None)
    return by_torch is not None or _untranslated(model) is not None


def uncompile(model: nn.Module) -> None:
    """Take back what `compile_forward` did, as before a model is pickled.

    In a copy of the model it is needed as well: the translated forward is the original's.
    """
    own = _untranslated(model)
    if own is None:
        return
    del model.forward
    forward = MethodType(own.__func__, model) if isinstance(own, MethodType) else own
    if forward != model.forward:  # it was the instance's, not the class's
        model.forward = forward


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Let a model be called, within, as it was before `compile_forward`."""
    forward = vars(model).get("forward")
    uncompile(model)
    try:
        yield
    finally:
        if forward is not None:
            model.forward = forward


def _untranslated(model: nn.Module) -> Callable[..., Any] | None:
    """Return the forward that `compile_forward` took; None = it took none."""
    return getattr(vars(model).get("forward"), _OWN, None)


@contextmanager
def restored_threads() -> Iterator[None]:
    """Give torch back, in the end, the number of threads that it had."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        set_threads(before)


def set_threads(count: int) -> None:
    """Give an operation on the CPU so many threads; setting the same number anew takes time."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)
