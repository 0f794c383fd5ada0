"""The points of a search space: how many there are, each of them in order, and their keys."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial

Point: TypeAlias = dict[str, Any]
"""A value for each searched key."""

PointKey: TypeAlias = tuple[tuple[str, Any], ...]
"""A point that can be looked up in a dict."""

COUNTABLE = 10_000
"""The most points of a space whose end a sweep can reach."""


def check_grid(space: Mapping[str, BaseDistribution]) -> None:
    """Refuse a space that cannot be gone through in order.

    Raises:
        ValueError: A key has no end of values, or there are too many points; the message says so.
    """
    sizes = {name: _size(distribution) for name, distribution in space.items()}
    endless = [name for name, size in sizes.items() if size is None]
    if endless:
        raise ValueError(
            f"{', '.join(endless)} has no end of values; give choice() or range(), or choose tpe, "
            "random or gp"
        )
    count = math.prod(size for size in sizes.values() if size is not None)
    if count > COUNTABLE:
        raise ValueError(
            f"the search space has {count:,} points, a grid at most {COUNTABLE:,}; search fewer, "
            "or choose tpe, random or gp"
        )


def points(space: Mapping[str, BaseDistribution]) -> list[Point] | None:
    """Return every point of a space once, in order; None means too many points to count."""
    sizes = [_size(distribution) for distribution in space.values()]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes) or math.prod(known) > COUNTABLE:
        return None
    axes = [_values(distribution) for distribution in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def point_of(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> Point:
    """Return a trial's values of the searched keys, also where the trial has not begun."""
    values = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
    return {name: values[name] for name in space if name in values}


def key_of(point: Point) -> PointKey:
    """Return a point as a key, equal for equal points of one space."""
    return tuple(point.items())


def _size(distribution: BaseDistribution) -> int | None:
    """Return the number of values; None means no end of values."""
    if isinstance(distribution, CategoricalDistribution | IntDistribution):
        return len(_values(distribution))
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        return round((distribution.high - distribution.low) / distribution.step) + 1
    return None


def _values(distribution: BaseDistribution) -> Sequence[Any]:
    """Return the values of a distribution that has a size."""
    if isinstance(distribution, CategoricalDistribution):
        return list(dict.fromkeys(distribution.choices))
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    assert isinstance(distribution, FloatDistribution)
    assert distribution.step is not None
    low, high, step = distribution.low, distribution.high, distribution.step
    size = _size(distribution) or 0
    return [min(low + index * step, high) for index in range(size)]  # rounding may pass the end
