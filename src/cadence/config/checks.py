"""From a composed config to plain values, or to one line that says what is wrong with it.

Hydra refuses a wrong key or type when it composes; `checked` refuses what is impossible, before
anything is loaded. No module of this package knows torch, so that a typo or ``--help`` is answered
at once.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from cadence.config import project, trust
from cadence.config.errors import ConfigError, unknown_key
from cadence.config.keys import in_words, keys, meaning
from cadence.config.schema import SCHEMAS, Config, DistributedConfig
from cadence.plan.window import StepSizeSchedule


def register(root: Path) -> None:
    """Make the schemas known to Hydra, and to conf/ the project's folder as ``${root:}``.

    ``${command:train}`` there is that command as this process was started.
    """
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(group="schema", name=name, node=schema, replace=True)
    OmegaConf.register_resolver("root", lambda: str(root), replace=True)
    OmegaConf.register_resolver("command", project.command, replace=True)


def checked(cfg: DictConfig) -> Config:
    """Return a composed config as plain values, if a run can be made of it.

    ``model``, ``data`` and ``optimizer`` become plain dicts, whether their YAML has a schema here
    or is a user's own; ``trainer.step_size`` becomes a `cadence.plan.window.StepSizeSchedule`.

    Raises:
        ConfigError: A value is missing or out of its limits, or a target is not trusted.
    """
    for key in sorted(OmegaConf.missing_keys(cfg)):
        group, _, name = key.rpartition(".")
        schema = OmegaConf.get_type(OmegaConf.select(cfg, group) if group else cfg)
        fields = dataclasses.fields(schema) if dataclasses.is_dataclass(schema) else ()
        words = in_words([field for field in fields if field.name == name]) or "a value"
        raise ConfigError(f"{key} is not set; give {key}=... ({words})")
    config = _typed(cfg)
    _check_limits(config, "")
    try:
        config.trainer.step_size = StepSizeSchedule(config.trainer.step_size)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer.{error}") from error
    ends = config.trainer.max_epochs, config.trainer.max_samples, config.trainer.max_seconds
    if ends == (None, None, None):
        raise ConfigError(
            "trainer.max_epochs=null: without a limit the run would never end; set it, "
            "trainer.max_samples or trainer.max_seconds"
        )
    for group in ("model", "data", "optimizer"):
        node = getattr(config, group)
        typed = dataclasses.is_dataclass(node) and not isinstance(node, type)
        plain = dataclasses.asdict(node) if typed else node
        setattr(config, group, plain)
        if not isinstance(plain, dict) or "_target_" not in plain:
            raise ConfigError(f"{group}: no _target_ in it; conf/{group}/NAME.yaml must name one")
        trust.check(group, plain)
    _check_user_data(config.data)
    _check_distributed(config.distributed)
    return config


def _typed(cfg: DictConfig) -> Config:
    try:
        config = OmegaConf.to_object(cfg)
    except AttributeError as error:  # a key that a `+` added beside the schema
        name = str(error).split("'")[-2]
        raise ConfigError(unknown_key(_added_key(cfg, name))) from error
    assert isinstance(config, Config)
    return config


def _added_key(cfg: DictConfig, name: str) -> str:
    """Return the dotted key of this last name that no schema knows."""
    known = keys()
    for leaf in flattened(cfg):
        parts = leaf.split(".")
        if name in parts:
            key = ".".join(parts[: parts.index(name) + 1])
            if key not in known:
                return key
    return name


def quoted(text: Path | str) -> str:
    """Return text as an override's value, with whatever quotes and backslashes it has."""
    inside = re.sub(r"(\\*)('|$)", lambda end: 2 * end[1] + (r"\'" if end[2] else ""), str(text))
    return f"'{inside}'"


def flattened(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as one dict of dotted keys to plain values.

    Lists stay whole; a mapping of numbers, such as a schedule, is the text that a user types.
    """
    return dict(_leaves(OmegaConf.to_container(cfg, resolve=True), ""))


def _check_limits(node: Any, prefix: str) -> None:
    for found in dataclasses.fields(node):
        value, key = getattr(node, found.name), f"{prefix}{found.name}"
        if dataclasses.is_dataclass(value):
            _check_limits(value, f"{key}.")
        elif "unit" in found.metadata and not _within(value, found.metadata):
            raise ConfigError(f"{key}={_typed_in(value)}: must be {meaning(key)}")


def _within(value: Any, limits: Mapping[str, Any]) -> bool:
    if value is None:
        return bool(limits["null"])
    if limits["schedule"] and isinstance(value, dict):
        return True  # looked into by whoever knows what it means
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if (limits["auto"] or limits["schedule"]) and not is_whole:
        return bool(limits["auto"] and value == "auto")
    if isinstance(value, list):
        return all(_within(part, limits) for part in value)
    return (
        not (isinstance(value, float) and math.isinf(value))
        and (limits["at_least"] is None or value >= limits["at_least"])
        and (limits["above"] is None or value > limits["above"])
        and (limits["at_most"] is None or value <= limits["at_most"])
        and (limits["below"] is None or value < limits["below"])
        and (not limits["choices"] or value in limits["choices"])
    )


def _typed_in(value: Any) -> Any:
    """Return a value as a user types it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "null" if value is None else value


def _check_user_data(data: Mapping[str, Any]) -> None:
    """Check what a run needs of a data set whose YAML has no schema."""
    size = data.get("batch_size")
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ConfigError(f"data.batch_size={size}: must be {meaning('data.batch_size')}")
    if "_target_" not in (data.get("objective") or {}):
        raise ConfigError(
            "data.objective: no _target_ in it; name one, such as "
            "data.objective._target_=cadence.objectives.Classification"
        )


def _check_distributed(chosen: DistributedConfig) -> None:
    """Check the processes of a run and their shares, which are a list, auto or null."""
    sizes = chosen.step_sizes
    listed = isinstance(sizes, list) and sizes and all(type(size) is int for size in sizes)
    if sizes not in (None, "auto") and not (listed and min(sizes) >= 1):
        words = meaning("distributed.step_sizes")
        raise ConfigError(f"distributed.step_sizes={sizes}: must be {words}")
    if chosen.name == "none" and (chosen.processes != 1 or sizes is not None):
        key, value = ("processes", chosen.processes) if sizes is None else ("step_sizes", sizes)
        raise ConfigError(
            f"distributed.{key}={value}: one process trains alone; add distributed=ddp to train "
            "on several"
        )


def _leaves(value: Any, key: str) -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(key, value)]
    if value and not any(isinstance(name, str) for name in value):
        return [(key, str(value))]
    return [
        leaf
        for name, part in value.items()
        for leaf in _leaves(part, f"{key}.{name}" if key else name)
    ]
