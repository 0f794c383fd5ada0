"""From what a user asked for to plain values, or to one line that says what is wrong with it.

Hydra refuses a wrong key or type when it composes; `checked` refuses what is impossible, before
anything is loaded. This is the only module of the library that knows Hydra, and it does not know
torch, so that a typo or ``--help`` is answered at once.
"""

import dataclasses
import difflib
import errno
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import GenericAlias
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from cadence.config.schema import OPTIONS, SCHEMAS, Config, DistributedConfig
from cadence.plan.window import StepSizeSchedule
from cadence.system.secrets import in_one_line


class ConfigError(ValueError):
    """The user asked for something impossible; the message names key, value and remedy."""


def register(project: Path) -> None:
    """Make the schemas known to Hydra, and the project's folder known to conf/ as ``${root:}``."""
    for name, schema in SCHEMAS.items():
        ConfigStore.instance().store(group="schema", name=name, node=schema, replace=True)
    OmegaConf.register_resolver("root", lambda: str(project), replace=True)


def checked(cfg: DictConfig) -> Config:
    """Return a composed config as plain values, if a run can be made of it.

    ``model``, ``data`` and ``optimizer`` become plain dicts, whether their YAML has a schema here
    or is a user's own.

    Raises:
        ConfigError: A value is missing or out of its limits.
    """
    for key in sorted(OmegaConf.missing_keys(cfg)):
        group, _, name = key.rpartition(".")
        schema = OmegaConf.get_type(OmegaConf.select(cfg, group) if group else cfg)
        fields = dataclasses.fields(schema) if dataclasses.is_dataclass(schema) else ()
        meaning = _words([field for field in fields if field.name == name]) or "a value"
        raise ConfigError(f"{key} is not set; give {key}=... ({meaning})")
    config = _typed(cfg)
    _check_limits(config, "")
    try:
        StepSizeSchedule(config.trainer.step_size)
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
    _check_user_data(config.data)
    _check_distributed(config.distributed)
    return config


def _typed(cfg: DictConfig) -> Config:
    try:
        config = OmegaConf.to_object(cfg)
    except AttributeError as error:  # a key that a `+` added beside the schema
        name = str(error).split("'")[-2]
        raise ConfigError(_unknown_key(_added_key(cfg, name))) from error
    assert isinstance(config, Config)
    return config


def _added_key(cfg: DictConfig, name: str) -> str:
    """Return the dotted key of this last name that no schema knows."""
    known = _keys()
    for leaf in flattened(cfg):
        parts = leaf.split(".")
        if name in parts:
            key = ".".join(parts[: parts.index(name) + 1])
            if key not in known:
                return key
    return name


def build(group: str, node: Mapping[str, Any], *first: Any, **filled: Any) -> Any:
    """Call what a config node names as ``_target_`` with the node's other keys.

    Args:
        group: What errors call the node.
        node: The node. Nodes with a ``_target_`` inside it are built first.
        first: Positional arguments, which no config can hold.
        filled: Values for keys that the node has as null; keys it does not have are not passed.

    Raises:
        ConfigError: The target is not trusted or cannot be imported, or its arguments do not fit.
    """
    given = {**node, **{key: filled[key] for key in filled if node.get(key, "") is None}}
    target = node["_target_"]
    try:
        make = instantiate({**given, "_partial_": True}, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, ImportError):
            raise ConfigError(
                f"{group}._target_={target}: cannot be imported; is it spelled right, and is its "
                "folder on PYTHONPATH?"
            ) from error
        raise ConfigError(
            f"{group}._target_={target}: refused, because a config can name any code to run; if "
            "you trust it, add its module to TRUSTED_TARGETS in src/train.py "
            f"({in_one_line(error)})"
        ) from error
    try:
        # The target is authorised; Hydra would authorise its result as well, if that is callable,
        # which every torch module is.
        return make.func(*first, *make.args, **make.keywords)
    except (TypeError, IndexError, RuntimeError) as error:
        raise ConfigError(f"{group}._target_={target}: {in_one_line(error)}") from error
    except ValueError as error:
        if target.startswith("cadence."):  # it names the key itself
            raise
        raise ConfigError(f"{group}._target_={target}: {in_one_line(error)}") from error


def quoted(text: Path | str) -> str:
    """Return text as an override's value, with whatever quotes and backslashes it has."""
    inside = re.sub(r"(\\*)('|$)", lambda end: 2 * end[1] + (r"\'" if end[2] else ""), str(text))
    return f"'{inside}'"


def flattened(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as one dict of dotted keys to plain values.

    Lists stay whole; a mapping of numbers, such as a schedule, is the text that a user types.
    """
    return dict(_leaves(OmegaConf.to_container(cfg, resolve=True), ""))


def explained(error: Exception) -> str:
    """Return any error of a run as one line that names the key, the value and the remedy."""
    text = str(error)
    missing = re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text)
    if missing:
        group, option = missing.groups()
        listed = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)+)", text)
        options = listed.group(1).split() if listed else []
        return f"{group}={option}: no such option; choose one of {', '.join(options)}"
    unknown = re.search(r"Could not override '([^']+)'", text)
    if unknown:
        added = re.search(r"To append to your config use (.*)", text)
        is_hydras = unknown.group(1).startswith("hydra.") and added
        hint = f"; to add it, give {added.group(1)}" if is_hydras and added else ""
        return _unknown_key(unknown.group(1)) + hint
    merged = re.search(r"Error merging override (\S+?)=(.*)", text)
    if merged:
        key, value = merged.groups()
        meaning = _meaning(key)
        problem = f"must be {meaning}" if meaning else in_one_line(error.__cause__ or error)
        return f"{key}={value}: {problem}"
    removed = re.search(r"Error merging override ~(\S+)", text)
    if removed:
        return f"~{removed.group(1)}: a run needs this key; give it a value instead"
    if "Config group override must be a string or a list" in text:
        return "a config group is null; give one of its options, see python -m src.train --help"
    return _explained_beyond_config(error)


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)


def _explained_beyond_config(error: Exception) -> str:
    """Return an error that no key of the config is to blame for; one that is ours says it all."""
    if isinstance(error.__cause__, OSError) and str(error).startswith("Unable to configure"):
        return _explained_beyond_config(error.__cause__)  # logging's own error names no file
    if isinstance(error, OSError) and error.errno in (*DISK_FULL, *NOT_WRITABLE):
        freed = "free some space, or " if error.errno in DISK_FULL else ""
        where = f"{error.filename}: " if error.filename else ""
        return (
            f"{where}{error.strerror}; {freed}choose another folder by hydra.run.dir= (of a sweep: "
            "hydra.sweep.dir=)"
        )
    ours = isinstance(error, ValueError | OSError | MemoryError) or type(
        error
    ).__module__.startswith(("cadence.", "src.", "hydra.", "omegaconf."))
    if ours:
        return in_one_line(error)
    return f"{type(error).__name__}: {in_one_line(error)} (HYDRA_FULL_ERROR=1 shows where)"


def _unknown_key(key: str) -> str:
    group, _, _ = key.partition(".")
    if group == "hydra":
        return f"{key}: there is no such key"
    if key in _keys():
        return f"{key}: the chosen option of {group} has no such key; see --cfg job {group}=NAME"
    if key == group:
        near = difflib.get_close_matches(key, [field.name for field in dataclasses.fields(Config)])
    else:
        near = difflib.get_close_matches(key, [k for k in _keys() if k.startswith(f"{group}.")])
    hint = f"did you mean {near[0]}?" if near else "see python -m src.train --cfg job"
    return f"{key}: there is no such key; {hint}"


def _schema_of(key: str) -> list["dataclasses.Field[Any]"]:
    """Return the fields that a dotted key may mean: one, or one for each option of its group."""
    group, _, name = key.rpartition(".")
    typed = {field.name: field.type for field in dataclasses.fields(Config)}
    owner = typed.get(group, Any) if group else Config
    owners = [owner] if dataclasses.is_dataclass(owner) else list(OPTIONS.get(group, ()))
    return [
        field for schema in owners for field in dataclasses.fields(schema) if field.name == name
    ]


def _keys() -> list[str]:
    groups = {field.name: field.type for field in dataclasses.fields(Config)}
    owners = [(group, owner) for group, owner in groups.items() if dataclasses.is_dataclass(owner)]
    owners += [(group, schema) for group, schemas in OPTIONS.items() for schema in schemas]
    return [
        f"{group}.{field.name}" for group, owner in owners for field in dataclasses.fields(owner)
    ]


def _meaning(key: str) -> str:
    """Return what a key's value must be, in words; empty for a user's own key."""
    return _words(_schema_of(key))


def _words(fields: "Sequence[dataclasses.Field[Any]]") -> str:
    metadata = next((field.metadata for field in fields if field.metadata), None)
    if metadata is None:
        return ""
    kinds: dict[Any, str] = {
        **{int: "a whole number: ", float: "a number: ", bool: "true or false: "},
        **{list[int]: "a list of whole numbers: ", list[float]: "a list of numbers: "},
    }
    is_whole = metadata["auto"] or metadata["schedule"]
    kind = "a whole number: " if is_whole else kinds.get(_plain_type(fields[0].type), "")
    words = [f"; {word} = {metadata[word]}" for word in ("auto", "null") if metadata[word]]
    words += [f"; {metadata['schedule']}"] if metadata["schedule"] else []
    return ", ".join([kind + metadata["unit"], *_limits(metadata)]) + "".join(words)


def _plain_type(declared: Any) -> Any:
    """Return the type that a field's values have, null apart."""
    if isinstance(declared, type | GenericAlias):
        return declared
    kinds = getattr(declared, "__args__", ())
    return next((kind for kind in kinds if isinstance(kind, type | GenericAlias)), str)


def _limits(metadata: Mapping[str, Any]) -> list[str]:
    words = {"at_least": "at least", "above": "above", "at_most": "at most", "below": "below"}
    limits = [
        f"{words[name]} {metadata[name]:,.10g}" for name in words if metadata[name] is not None
    ]
    if metadata["choices"]:
        limits.append(f"one of {', '.join(metadata['choices'])}")
    return limits


def _check_limits(node: Any, prefix: str) -> None:
    for found in dataclasses.fields(node):
        value, key = getattr(node, found.name), f"{prefix}{found.name}"
        if dataclasses.is_dataclass(value):
            _check_limits(value, f"{key}.")
        elif found.metadata and not _within(value, found.metadata):
            raise ConfigError(f"{key}={_typed_in(value)}: must be {_meaning(key)}")


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
        raise ConfigError(f"data.batch_size={size}: must be {_meaning('data.batch_size')}")
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
        meaning = _meaning("distributed.step_sizes")
        raise ConfigError(f"distributed.step_sizes={sizes}: must be {meaning}")
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
