"""Which ``_target_``s a config may call. Configs name code, so all others are refused.

What is trusted is said outside the config, by the user: as ``[tool.cadence] trusted`` in the
project's pyproject.toml, or in the environment as CADENCE_TRUSTED.
"""

import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cadence.config import project
from cadence.config.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VARIABLE = "CADENCE_TRUSTED"
"""The environment variable with the user's patterns, separated by commas."""

BUILT_IN = (
    "cadence.callbacks.*",
    "cadence.data.*",
    "cadence.models.*",
    "cadence.objectives.*",
    "torch.optim.*",
)
"""Packages of which all is trusted."""

TORCHMETRICS = re.compile(r"torchmetrics(\.[a-z]\w*)*\.[A-Z]\w*")
"""Classes of torchmetrics: no function of it, because some call what they are given."""

TIMM = re.compile(r"timm\.(models\.)?create_model")
"""The factory of timm's models; beside it are functions that unpickle files."""

TRANSFORMERS = re.compile(
    r"transformers\.[A-Z]\w*((Model|For[A-Z]\w*)(\.from_(pretrained|config))?"
    r"|Config(\.from_pretrained)?)"
)
"""Model classes of transformers and their configs, which no other name there is."""

_PATTERN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*(\.\*)?")


def patterns() -> tuple[str, ...]:
    """Return the trusted targets, each a dotted name or all beneath one, as ``my_project.*``.

    Raises:
        ConfigError: A pattern of the user is none, or the project's pyproject.toml cannot be read.
    """
    return BUILT_IN + tuple(_of_the_user())


def check(group: str, node: Mapping[str, Any]) -> tuple[str, ...]:
    """Refuse the targets in a node that are not trusted, however deep they are in it.

    Args:
        group: The key of the node.
        node: Plain values, interpolations resolved.

    Returns:
        What Hydra is to be told that it may call: the trusted patterns, and the node's own targets
        where only the whole name is trusted.

    Raises:
        ConfigError: A target is not trusted, or an argument makes a trusted one run code of others.
    """
    trusted, exact = patterns(), []
    for key, part in _targets(group, node):
        target = str(part["_target_"])
        if _is_among(target, trusted):
            continue
        _check_library(key, target, part)
        exact.append("torchmetrics.*" if TORCHMETRICS.fullmatch(target) else target)
    return (*trusted, *exact)


def refusal(key: str, target: str, reason: str = "") -> ConfigError:
    """Return the error that refuses a target and names the two ways to trust it."""
    package = f"{target.rpartition('.')[0] or target}.*"
    return ConfigError(
        f"{key}._target_={target}: refused, because a config can name any code to run; if you "
        f'trust it, add "{package}" to [tool.cadence] trusted in {project.root()}/pyproject.toml, '
        f"or set {VARIABLE}={package}" + (f" ({reason})" if reason else "")
    )


def _targets(key: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each node with a ``_target_`` by its dotted key, the outer ones first."""
    if isinstance(value, Mapping):
        if "_target_" in value:
            yield key, value
        parts = [(f"{key}.{name}", part) for name, part in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(f"{key}[{number}]", part) for number, part in enumerate(value)]
    else:
        return
    for name, part in parts:
        yield from _targets(name, part)


def _check_library(key: str, target: str, node: Mapping[str, Any]) -> None:
    """Refuse a target that is no metric or model of a known library, or would run others' code."""
    if TORCHMETRICS.fullmatch(target):
        return
    if TIMM.fullmatch(target):
        unsafe = _unpickled
    elif TRANSFORMERS.fullmatch(target):
        unsafe = _run_from_hub
    else:
        raise refusal(key, target)
    for name, value in _leaves("", node):
        if unsafe(name.rpartition(".")[2], value):
            raise ConfigError(
                f"{key}{name}={value}: refused, because {target} then runs code that comes with "
                f'the model; if you trust it, add "{target}" to [tool.cadence] trusted in '
                f"{project.root()}/pyproject.toml, or set {VARIABLE}={target}"
            )


def _run_from_hub(name: str, value: Any) -> bool:
    """Return whether an argument lets transformers run code of a model's repository."""
    if "implementation" in name:
        return "/" in str(value)  # a kernel from a repository
    is_code = name.endswith("trust_remote_code") or name.startswith(("use_kernels", "kernel_"))
    return is_code and value not in (None, False)


def _unpickled(name: str, value: Any) -> bool:
    """Return whether an argument lets timm load a pickle from a place of its own."""
    if name == "model_name" or name.startswith("_args_"):
        return ":" in str(value)
    return name.startswith(("checkpoint_path", "pretrained_cfg")) and value not in (None, "")


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _leaves(f"{key}.{name}", part)
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _leaves(f"{key}[{number}]", part)
    else:
        yield key, value


def _is_among(target: str, trusted: tuple[str, ...]) -> bool:
    return any(
        target.startswith(pattern[:-1]) if pattern.endswith(".*") else target == pattern
        for pattern in trusted
    )


def _of_the_user() -> Iterator[str]:
    file = project.root() / "pyproject.toml"
    for pattern in _in_pyproject(file):
        yield _checked(pattern, f"{file}: [tool.cadence] trusted")
    for word in os.environ.get(VARIABLE, "").split(","):
        if word.strip():
            yield _checked(word.strip(), VARIABLE)


def _in_pyproject(file: Path) -> list[Any]:
    if not file.is_file():
        return []
    try:
        said = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: it cannot be read ({error})") from error
    match said:
        case {"tool": {"cadence": {"trusted": [*patterns]}}}:
            return patterns
        case {"tool": {"cadence": {"trusted": other}}}:
            raise ConfigError(
                f'{file}: [tool.cadence] trusted={other}: must be a list, such as ["my_project.*"]'
            )
    return []


def _checked(pattern: Any, where: str) -> str:
    if not isinstance(pattern, str) or not _PATTERN.fullmatch(pattern):
        raise ConfigError(
            f"{where}: {pattern} is no dotted name; give such as my_project.*, or "
            "my_project.nets.Net"
        )
    return pattern
