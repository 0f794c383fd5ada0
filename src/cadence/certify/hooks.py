"""Hooks, which see one micro-batch at a time, as suspects."""

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

from torch import Tensor, nn

from cadence.certify.cause import Cause, Suspect, listed
from cadence.certify.trial_passes import TrialPasses

Hooks: TypeAlias = MutableMapping[int, Callable[..., Any]]
"""By the number of their handle, as torch keeps them; torch has no public way to read them."""

OF_GRADIENTS = ("_backward_hooks", "_post_accumulate_grad_hooks")
OF_BACKWARDS = ("_backward_hooks", "_backward_pre_hooks")
OF_FORWARDS = ("_forward_hooks", "_forward_pre_hooks")


def carry_hooks(modules: Sequence[nn.Module], copied: Sequence[nn.Module]) -> None:
    """Give copies the hooks on gradients, which copying a parameter leaves behind."""
    pairs = {
        id(original): (original, parameter)
        for module, twin in zip(modules, copied, strict=True)
        for original, parameter in zip(module.parameters(), twin.parameters(), strict=True)
    }
    for original, parameter in pairs.values():
        on_gradient, once_accumulated = (_kept(original, kind) for kind in OF_GRADIENTS)
        for hook in on_gradient.values():
            parameter.register_hook(hook)  # type: ignore[no-untyped-call]
        for hook in once_accumulated.values():
            parameter.register_post_accumulate_grad_hook(hook)  # type: ignore[no-untyped-call]


def hooks_as_suspects(trial: TrialPasses) -> list[Suspect]:
    """Return the hooks on parameters' gradients and on modules' backwards as suspects."""
    return [
        *_suspect("gradient", trial.parameters, OF_GRADIENTS),
        *_suspect("backward", _modules(trial.model), OF_BACKWARDS),
    ]


def forward_hooks(model: nn.Module, path: str) -> dict[str, list[Hooks]]:
    """Return the hooks on the forwards of the module at a path and its children, by their paths."""
    inside = {id(module) for module in model.get_submodule(path).modules()}
    modules = {name: each for name, each in _modules(model).items() if id(each) in inside}
    return _found(modules, OF_FORWARDS)


def _suspect(
    what: str, owners: "dict[str, nn.Parameter] | dict[str, nn.Module]", kinds: Sequence[str]
) -> list[Suspect]:
    hooks = _found(owners, kinds)
    if not hooks:
        return []
    cause = Cause(
        "hook",
        f"a {what} hook on {listed(list(hooks))} changes the gradient of each micro-batch, "
        "before they are summed",
        "remove it and change the window's gradient instead: trainer.clip_norm clips that",
    )
    every = [each for found in hooks.values() for each in found]
    return [Suspect(cause, partial(unhooked, every))]


def _modules(model: nn.Module) -> dict[str, nn.Module]:
    return {name or type(module).__name__: module for name, module in model.named_modules()}


def _found(
    owners: "dict[str, nn.Parameter] | dict[str, nn.Module]", kinds: Sequence[str]
) -> dict[str, list[Hooks]]:
    every = {name: [_kept(owner, kind) for kind in kinds] for name, owner in owners.items()}
    return {name: [each for each in found if each] for name, found in every.items() if any(found)}


def _kept(owner: Tensor | nn.Module, kind: str) -> Hooks:
    found: Hooks | None = getattr(owner, kind, None)
    return {} if found is None else found


@contextmanager
def unhooked(hooks: Sequence[Hooks], trial: TrialPasses) -> Iterator[TrialPasses]:
    """Run a trial without these hooks."""
    kept = [dict(found) for found in hooks]
    for found in hooks:
        found.clear()
    try:
        yield trial
    finally:
        for found, before in zip(hooks, kept, strict=True):
            found.update(before)
