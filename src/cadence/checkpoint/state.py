"""Everything a run needs to go on, as tensors and plain values, and whether it belongs here."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from cadence.plan.clock import Clock


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that a run needs to go on as if it had never stopped: tensors, plain values."""

    model: dict[str, Any]
    """Its state dict."""
    optimizer: dict[str, Any]
    """Its state dict."""
    scaler: dict[str, Any] | None
    """The loss scale's state dict; None = there is none."""
    clock: Clock
    """With the mini-batches of the present epoch that are already used."""
    random: dict[str, Any]
    """What `cadence.checkpoint.random_state.random_states` returned, once or more, by name."""
    record: dict[str, Any]
    """What `cadence.metrics.record.Record.state` returned."""
    config: dict[str, Any]
    """The flattened config: a key such as ``trainer.step_size`` to its value."""
    mlflow_run_id: str | None
    """None = the run is not tracked."""
    objective: dict[str, Any] | None = None
    """The state dict of the objective's own modules; None = it has none."""


def checked_objective_state(modules: nn.Module, state: State) -> dict[str, Any]:
    """Return the state dict of the objective's modules in a checkpoint, if it is of these.

    Args:
        modules: What is to load it.
        state: What `cadence.checkpoint.file_format.read` returned.

    Raises:
        ValueError: Names, shapes or dtypes differ.
    """
    return _checked_state("objective", modules, state.objective or {})


def checked_model_state(model: nn.Module, state: State) -> dict[str, Any]:
    """Return the model's state dict in a checkpoint, if it is of this very model.

    Args:
        model: What is to load it.
        state: What `cadence.checkpoint.file_format.read` returned.

    Raises:
        ValueError: Names, shapes or dtypes differ.
    """
    return _checked_state("model", model, state.model)


def _checked_state(what: str, module: nn.Module, found: dict[str, Any]) -> dict[str, Any]:
    here = {name: described(value) for name, value in module.state_dict().items()}
    _refuse_another(what, here, {name: described(value) for name, value in found.items()})
    return found


def checked_optimizer_state(optimizer: Optimizer, state: State) -> dict[str, Any]:
    """Return the optimizer's state dict in a checkpoint, if it is of this very kind.

    torch itself takes AdamW's state into an SGD without a word. The values of the options may
    differ: only their names are compared, and the parameters in each group.

    Args:
        optimizer: What is to load it.
        state: What `cadence.checkpoint.file_format.read` returned.

    Raises:
        ValueError: They differ.
    """
    here = _options(optimizer.state_dict()["param_groups"])
    there = _options(state.optimizer.get("param_groups", []))
    _refuse_another("optimizer", here, there)
    return state.optimizer


def _options(groups: list[dict[str, Any]]) -> dict[str, str]:
    """Return the options of all parameter groups, by group where there are several."""
    prefixes = [f"group {index}: " if len(groups) > 1 else "" for index in range(len(groups))]
    described: dict[str, str] = {}
    for prefix, group in zip(prefixes, groups, strict=True):
        described |= {f"{prefix}{name}": "" for name in sorted(group)}
        described[f"{prefix}params"] = f"{len(group['params'])} tensors"
    return described


def _refuse_another(what: str, here: dict[str, str], there: dict[str, str]) -> None:
    """Refuse a checkpoint whose parts, by name, are not those that there are here.

    Raises:
        ValueError: They differ.
    """
    differing = [
        f"{name} is {there[name]} there and {here[name]} here"
        for name in here
        if name in there and here[name] != there[name]
    ]
    missing = [f"{name} {here[name]}".rstrip() for name in here if name not in there]
    extra = [f"{name} {there[name]}".rstrip() for name in there if name not in here]
    listed = {"differ": differing, "it lacks": missing, "it has too": extra}
    problems = [f"{verb} {first_three(names)}" for verb, names in listed.items() if names]
    if problems:
        raise ValueError(
            f"the checkpoint is of another {what}: {'; '.join(problems)}; choose the {what} "
            "options that it was trained with"
        )


def described(value: Any) -> str:
    """Return what a value is in a word or two, such as ``float32[3, 4]``."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return f"of type {type(value).__name__}"


def first_three(names: list[str]) -> str:
    """Return the first three names, and how many there are beside them."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
