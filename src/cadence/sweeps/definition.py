"""What a study searches: the keys with their distributions, and what all trials share."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from optuna.distributions import BaseDistribution

from cadence.config.changes import changes

STORED = "question"
"""The user attribute of a study that holds its search definition, named as the first ones were."""

Options: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""For each searched config group and each option, the keys whose values the options decide."""


@dataclass(frozen=True, slots=True)
class SearchDefinition:
    """What a study searches; a study keeps to one definition."""

    space: Mapping[str, BaseDistribution]
    """The searched keys and their distributions."""
    directions: Sequence[str]
    """``minimize`` or ``maximize`` for each objective, in order."""
    fixed: Mapping[str, Any]
    """Every other key of the config that all trials share."""
    options: Options = field(default_factory=dict)
    """What the options of searched config groups decide."""

    def as_json(self) -> dict[str, Any]:
        """Return the definition as plain JSON values, as a study stores it."""
        stored = {
            "space": {name: str(distribution) for name, distribution in self.space.items()},
            "directions": list(self.directions),
            "fixed": _plain(self.fixed),
        }
        return stored | ({"options": _plain(self.options)} if self.options else {})


def differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between two definitions as JSON, with both values in words.

    A study of before options were stored differs by none of them.
    """
    if was["directions"] != now["directions"]:
        yield f"directions: was {was['directions']}, now {now['directions']}"
    yield from changes(was["space"], now["space"])
    new, fixed = now.get("options", {}), was["fixed"]
    if "options" not in was:
        decided = {key for options in new.values() for keys in options.values() for key in keys}
        fixed = {key: value for key, value in fixed.items() if key not in decided}
    yield from changes(fixed, now["fixed"])
    for group, options in was.get("options", {}).items():
        for option, values in options.items():
            for change in changes(values, new.get(group, {}).get(option, {})):
                yield f"{group}={option}: {change}"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps(dict(values), default=str))
    return plain
