"""The keys that a run's config may have, and what each of their values must be, in words."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import GenericAlias
from typing import Any

from cadence.config.schema import OPTIONS, Config


def keys() -> list[str]:
    """Return the dotted keys that the schemas know, each option of a group counted in."""
    groups = {field.name: field.type for field in dataclasses.fields(Config)}
    owners = [(group, owner) for group, owner in groups.items() if dataclasses.is_dataclass(owner)]
    owners += [(group, schema) for group, schemas in OPTIONS.items() for schema in schemas]
    return [
        f"{group}.{field.name}" for group, owner in owners for field in dataclasses.fields(owner)
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
