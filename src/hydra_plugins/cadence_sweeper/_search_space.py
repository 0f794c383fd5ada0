"""A sweep's overrides read once: what is searched, what is fixed, and the words of each trial."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from math import ceil, ulp
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import (
    IntervalSweep,
    Override,
    RangeSweep,
    Transformer,
)
from hydra.errors import HydraException
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from cadence.cli.overrides import with_one_schedule
from cadence.config.checks import quoted


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """The overrides of a sweep; of several for one key the last holds."""

    searched: dict[str, BaseDistribution] = field(default_factory=dict)
    """The searched keys and their distributions."""
    fixed: dict[str, str] = field(default_factory=dict)
    """The other keys, with the text of their values."""
    deletions: list[str] = field(default_factory=list)
    """Overrides such as ``~key``."""

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Return the words with which a trial is composed: its values come after what is fixed.

        Args:
            params: The values of the searched keys.
        """
        fixed = [f"{name}={value}" for name, value in self.fixed.items()]
        own = [f"{name}={text_of(value)}" for name, value in params.items()]
        return [*with_one_schedule([*fixed, *own]), *self.deletions]


def read_space(words: list[str]) -> SearchSpace:
    """Return what overrides search and what they fix.

    Args:
        words: Overrides, those of a sweep's file before those of the command line.

    Raises:
        ValueError: A range has no values, or is of a kind that cannot be searched.
    """
    last: dict[str, Override] = {}
    deletions = []
    for override in OverridesParser.create().parse_overrides(words):
        if override.is_delete():
            deletions.append(str(override.input_line))
        else:
            last[override.get_key_element().lstrip("+")] = override
    space = SearchSpace(deletions=deletions)
    for override in last.values():
        name = override.get_key_element()
        if override.is_sweep_override():
            space.searched[name] = _distribution(override)
        else:
            space.fixed[name] = override.get_value_element_as_str()
    return space


def text_of(value: Any) -> str:
    """Return a searched value as the text of an override, in quotes where it needs them."""
    if not isinstance(value, str):
        return "null" if value is None else str(value)
    try:
        override = OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return quoted(value)
    return quoted(value) if override.is_sweep_override() else value


def _distribution(override: Override) -> BaseDistribution:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return _interval(value)
    if isinstance(value, RangeSweep) and not (value.shuffle or value.transformers):
        return _range(override, value)
    if override.is_discrete_sweep():
        return _choice(override)
    raise ValueError(f"{override.input_line} cannot be searched")


def _interval(value: IntervalSweep) -> BaseDistribution:
    """Return a distribution of integers where both ends are, else of floats."""
    assert value.start is not None
    assert value.end is not None
    is_log = "log" in value.tags
    if isinstance(value.start, int) and isinstance(value.end, int):
        return IntDistribution(value.start, value.end, log=is_log)
    return FloatDistribution(value.start, value.end, log=is_log)


def _range(override: Override, value: RangeSweep) -> BaseDistribution:
    """Return a distribution of the range's steps; Hydra's stop is exclusive, Optuna's high is not.

    Raises:
        ValueError: The range has no values.
    """
    if value.step == 0:
        raise ValueError(f"{override.input_line}: a range needs a step other than 0")
    numbers = value.range()
    if isinstance(numbers, range):
        if not numbers:
            raise ValueError(f"{override.input_line}: a range needs at least one value")
        low, high = sorted((numbers[0], numbers[-1]))
        return IntDistribution(low, high, step=abs(numbers.step))
    start, stop, step = (Decimal(end) for end in (numbers.start, numbers.stop, numbers.step))
    count = ceil((Fraction(stop) - Fraction(start)) / Fraction(step))
    if count <= 0:
        raise ValueError(f"{override.input_line}: a range needs at least one value")
    exact = (*sorted((start, start + (count - 1) * step)), abs(step))
    low_float, high_float, step_float = map(float, exact)
    is_exact = all(Decimal(str(float(number))) == number for number in exact)
    is_coarse = low_float == high_float or step_float >= max(ulp(low_float), ulp(high_float))
    if is_exact and is_coarse:
        return FloatDistribution(low_float, high_float, step=step_float)
    return _choice(override)


def _choice(override: Override) -> BaseDistribution:
    values: Any = override.sweep_iterator(transformer=Transformer.encode)
    return CategoricalDistribution(list(values))
