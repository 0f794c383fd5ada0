"""The keys that a run's config may have, and what each of their values must be, in words."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import GenericAlias
from typing import Any

from cadence.config.schema import OPTIONS, Config


def keys() -> list[str]:
    """Return the dotted keys that the schemas know, each option of a group counted in."""
    return [
        f"{group}.{found.name}" for group, owner in _owners() for found in dataclasses.fields(owner)
    ]


def meaning(key: str) -> str:
    """Return what a key's value must be, in words; empty for a user's own key."""
    return in_words(fields_of(key))


def fields_of(key: str) -> list["dataclasses.Field[Any]"]:
    """Return the fields that a dotted key may mean: one, or one for each option of its group."""
    group, _, name = key.rpartition(".")
    typed = {field.name: field.type for field in dataclasses.fields(Config)}
    owner = typed.get(group, Any) if group else Config
    owners = [owner] if dataclasses.is_dataclass(owner) else list(OPTIONS.get(group, ()))
    return [
        field for schema in owners for field in dataclasses.fields(schema) if field.name == name
    ]


def in_words(fields: "Sequence[dataclasses.Field[Any]]") -> str:
    """Return what a value of these fields must be; empty for fields without limits."""
    metadata = next((field.metadata for field in fields if "unit" in field.metadata), None)
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


def marked(mark: str) -> tuple[str, ...]:
    """Return how the keys with a mark begin: a key's whole name, or a group's and a dot.

    A user's own key has the marks of a schema's key of that name in that group, and of the group.
    """
    groups = [found for found in dataclasses.fields(Config) if mark in _marks(found)]
    of_groups = [found.name for found in groups if not _is_value(found)]
    values = [found.name for found in groups if _is_value(found)]
    inside = [
        f"{name}.{found.name}"
        for name, owner in _owners()
        for found in dataclasses.fields(owner)
        if mark in _marks(found) and name not in of_groups
    ]
    return tuple(dict.fromkeys([*values, *(f"{name}." for name in of_groups), *inside]))


def is_marked(key: str, mark: str) -> bool:
    """Return whether a dotted key has a mark, by itself or as one of a group."""
    return any(
        key == known.removesuffix(".") or (known.endswith(".") and key.startswith(known))
        for known in marked(mark)
    )


def conditions() -> tuple[str, ...]:
    """Return the keys that a sweep's report names where they are set, in the report's order."""
    found = {
        f"{name}.{each.name}" if name else each.name: each.metadata.get("condition", 0)
        for name, owner in [("", Config), *_owners()]
        for each in dataclasses.fields(owner)
    }
    return tuple(sorted((key for key in found if found[key]), key=found.__getitem__))


def _marks(found: "dataclasses.Field[Any]") -> frozenset[str]:
    marks: frozenset[str] = found.metadata.get("marks", frozenset())
    return marks


def _is_value(found: "dataclasses.Field[Any]") -> bool:
    """Return whether a field of Config is a value, and no group."""
    return "unit" in found.metadata


def _owners() -> list[tuple[str, Any]]:
    """Return each group with each schema that it may have."""
    groups = {found.name: found.type for found in dataclasses.fields(Config)}
    owners = [(name, owner) for name, owner in groups.items() if dataclasses.is_dataclass(owner)]
    return owners + [(name, schema) for name, schemas in OPTIONS.items() for schema in schemas]
