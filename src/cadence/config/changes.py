"""What differs between the config that something began with and the one it goes on with."""

from collections.abc import Iterator, Mapping
from typing import Any

from cadence.system.secrets import shortened

LONGEST_VALUE = 200
"""Characters of a value that a person is shown."""


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield each key whose value differs, in the keys' order, with both values in words.

    A key that only one of them has is no difference where it is off, by null or false: so are the
    options that a later version adds.
    """
    for key in sorted(was.keys() | now.keys()):
        before, after = was.get(key, "absent"), now.get(key, "absent")
        if before != after and not _is_off(key, was, now):
            shown = (shortened(str(value), LONGEST_VALUE) for value in (before, after))
            yield "{}: was {}, now {}".format(key, *shown)


def _is_off(key: str, was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    if key in was and key in now:
        return False
    value = was.get(key, now.get(key))
    return value is None or value is False
