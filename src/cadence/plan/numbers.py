"""Numbers that a caller gives, refused by their name where they are impossible."""

from numbers import Integral, Real
from typing import TypeGuard


def whole_number(name: str, value: object, what: str, remedy: str, *, at_least: int = 1) -> int:
    """Return a whole number that is possible.

    Args:
        name: What the caller calls it.
        value: What the caller gave.
        what: What it counts, in an error's words.
        remedy: What to give instead, in an error's words.
        at_least: The smallest that is possible.

    Raises:
        TypeError: It is not a whole number (a bool is not).
        ValueError: It is below ``at_least``.
    """
    if not is_whole(value):
        raise TypeError(f"{name}={value!r}: {what} must be a whole number; {remedy}")
    if value < at_least:
        raise ValueError(f"{name}={value}: {what} must be at least {at_least}; {remedy}")
    return int(value)


def is_whole(value: object) -> TypeGuard[int]:
    """Return whether a value is a whole number of any type; a bool is not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def number_above_0(name: str, value: object, what: str, remedy: str) -> float:
    """Return a number that is above 0; for the arguments see `whole_number`.

    Raises:
        TypeError: It is not a real number (a bool is not).
        ValueError: It is not above 0; NaN is not.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r}: {what} must be a number; {remedy}")
    number = float(value)
    if not number > 0:
        raise ValueError(f"{name}={value}: {what} must be above 0; {remedy}")
    return number
