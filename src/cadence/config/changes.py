"""What differs between the config that something began with and the one it goes on with."""

from collections.abc import Iterator, Mapping
from typing import Any


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield each key whose value differs, in the keys' order, with both values in words."""
    for key in sorted(was.keys() | now.keys()):
        before, after = was.get(key, "absent"), now.get(key, "absent")
        if before != after:
            yield f"{key}: was {before}, now {after}"
