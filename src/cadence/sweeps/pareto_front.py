"""The results of a sweep, point by point, and which points no other one dominates.

A point is what its trials share: their values of the searched keys.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from optuna.trial import FrozenTrial

from cadence.metrics.window_time_model import Turn
from cadence.sweeps.trials import Trials, attributes, shown

STEP_SIZE = "trainer.step_size"

FEWEST_WINDOWS = 5
"""Windows from which a trial has a throughput: the first are slow, and one has no spread."""


MOST_NAMES = 12
"""Points that a line names at most."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A number and its spread."""

    value: float
    """As measured; the mean where the point was run several times."""
    low: float
    """The lower end of the spread; ``value`` itself where none is known."""
    high: float
    """The upper end of the spread."""
    is_measured: bool = True
    """Whether there was enough to measure; if not, it counts as equal to every other."""

    @property
    def has_spread(self) -> bool:
        """Whether a spread is known."""
        return self.low < self.high

    def apart(self, other: "Measure") -> bool:
        """Return whether the two can be told apart: neither's spread holds the other's value."""
        held = self.low <= other.value <= self.high or other.low <= self.value <= other.high
        return self.is_measured and other.is_measured and not held

    def above(self, other: "Measure") -> bool:
        """Return whether the number is greater beyond the spread of either."""
        return self.value > other.value and self.apart(other)

    def __str__(self) -> str:
        """Say the number, and in brackets its spread, or that too few windows were measured."""
        if not self.is_measured:
            return f"{number(self.value)} (too few windows)"
        spread = f" ({number(self.low)} to {number(self.high)})" if self.has_spread else ""
        return number(self.value) + spread


@dataclass(frozen=True, slots=True)
class PointResult:
    """The result of the trials of one point: means over the trials, None where no trial has any."""

    params: Mapping[str, Any]
    """The searched keys and their values."""
    step_size: int | None
    """Mini-batches per update; None where not known, or where a schedule changes it."""
    trials: tuple[int, ...]
    """The numbers of its trials, ascending."""
    val_loss: Measure
    """The spread is the lowest to the highest trial, where the point was run several times."""
    throughput: Measure
    """Samples per second. The spread is the 10th to the 90th percentile of a trial's windows; the
    slowest to the fastest trial, where the point was run several times."""
    updates: float | None
    effective_batch: float | None
    """Items per update."""
    peak_memory_mib: float | None
    seconds: float | None
    window_samples: float | None = None
    """In a full window."""
    window: Turn | None = None
    """Seconds of such a window, by its parts; None also where too few windows ran."""
    schedule: str | None = None
    """The schedule of step_size, as its user writes it; None means one step_size throughout."""

    @property
    def others(self) -> dict[str, str]:
        """The searched keys but step_size, with their values as text."""
        return {key: shown(value) for key, value in self.params.items() if key != STEP_SIZE}

    @property
    def name(self) -> str:
        """What tells the point from the others, such as ``step_size 8, optimizer.lr 0.003``."""
        known = {} if self.steps is None else {"step_size": self.steps}
        named = [f"{key} {value}" for key, value in (known | self.others).items()]
        return ", ".join(named) or f"trial {self.trials[0]}"

    @property
    def short_name(self) -> str:
        """The name after another one's: the number alone where only step_size was searched."""
        return self.name if self.others or self.steps is None else self.steps

    @property
    def steps(self) -> str | None:
        """The step_size or its schedule as text; None where neither is known."""
        if self.schedule is not None:
            return self.schedule
        return None if self.step_size is None else str(self.step_size)


def number(value: float | None) -> str:
    """Say a number in four significant digits, an integer in full, None as a dash."""
    if value is None:
        return "-"
    if not math.isfinite(value) or 0 < abs(value) < 1e-6:
        return f"{value:.3e}"
    if value == int(value):
        return f"{value:,.0f}"
    decimals = 3 - math.floor(math.log10(abs(value)))
    return f"{value:,.{max(0, decimals)}f}"


def several(names: Sequence[str], separator: str = ", ") -> str:
    """Say names, of many only the first ones and how many more there are."""
    shown_names = separator.join(names[:MOST_NAMES])
    more = len(names) - MOST_NAMES
    return shown_names if more <= 0 else f"{shown_names}{separator}and {more:,} more"


def results(sweep: Trials) -> list[PointResult]:
    """Return the results of a sweep's points, by step_size and then by loss.

    Trials of the same point are averaged; see `Trials.compared` for those that take part.
    """
    points: defaultdict[str, list[FrozenTrial]] = defaultdict(list)
    for trial in sweep.compared():
        points[json.dumps(trial.params, sort_keys=True, default=str)].append(trial)
    found = [_result(trials, sweep.config_of(trials[0].params)) for trials in points.values()]
    return sorted(found, key=lambda result: (result.step_size or math.inf, result.val_loss.value))


def front(results: Sequence[PointResult]) -> list[PointResult]:
    """Return the Pareto front: the points that no other one dominates, from the slowest on.

    A point dominates another when it is no worse in loss and in throughput and better in one of
    them; spreads play no part. Along the front throughput and loss both rise.
    """
    kept: list[PointResult] = []
    for result in sorted(results, key=lambda result: (-_speed(result), _loss(result))):
        is_twin = kept and (_speed(result), _loss(result)) == (_speed(kept[-1]), _loss(kept[-1]))
        if not kept or is_twin or _loss(result) < _loss(kept[-1]):
            kept.append(result)
    return kept[::-1]


def trials_of(results: Sequence[PointResult]) -> set[tuple[int, ...]]:
    """Return the trials of points, which tell each point from the others of its sweep."""
    return {result.trials for result in results}


def _speed(result: PointResult) -> float:
    return result.throughput.value


def _loss(result: PointResult) -> float:
    return result.val_loss.value


def _result(trials: Sequence[FrozenTrial], fixed: Mapping[str, Any]) -> PointResult:
    losses, rates = zip(*(trial.values for trial in trials), strict=True)
    schedule = _schedule(trials[0], fixed)
    throughput = _measure(rates)
    if len(trials) == 1:
        low, high = (_known(trials, f"samples_per_second_{end}") for end in ("p10", "p90"))
        throughput = _measure(rates, [end[0] for end in (low, high) if end])
    is_timed = min(map(_windows, trials)) >= FEWEST_WINDOWS
    return PointResult(
        params=trials[0].params,
        step_size=None if schedule else _step_size(trials[0], fixed),
        schedule=schedule,
        trials=tuple(trial.number for trial in trials),
        val_loss=_measure(losses),
        throughput=replace(throughput, is_measured=is_timed),
        updates=_mean(trials, "updates"),
        effective_batch=_mean(trials, "effective_batch"),
        peak_memory_mib=_mean(trials, "peak_memory_mib"),
        seconds=_mean(trials, "seconds"),
        window_samples=_mean(trials, "time_samples"),
        window=_window(trials) if is_timed else None,
    )


def _windows(trial: FrozenTrial) -> float:
    """Return how many windows a trial timed; infinity where that is not known."""
    known = attributes(trial)
    counts = [known.get(name) for name in ("updates", "updates_skipped")]
    return math.inf if counts[0] is None else sum(count or 0 for count in counts)


def _window(trials: Sequence[FrozenTrial]) -> Turn | None:
    parts = [_mean(trials, f"time_{part}_ms") for part in ("data", "compute", "sync", "update")]
    known = [part / 1000 for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    data, compute, sync, update = known
    return Turn(passes=data + compute, once=sync + update)


def _measure(values: Sequence[float], ends: Sequence[float] = ()) -> Measure:
    value = fmean(values)
    return Measure(value, min([*values, *ends, value]), max([*values, *ends, value]))


def _mean(trials: Sequence[FrozenTrial], attribute: str) -> float | None:
    known = _known(trials, attribute)
    return fmean(known) if known else None


def _known(trials: Sequence[FrozenTrial], attribute: str) -> list[float]:
    values = [attributes(trial).get(attribute) for trial in trials]
    return [value for value in values if isinstance(value, int | float) and math.isfinite(value)]


def _step_size(trial: FrozenTrial, fixed: Mapping[str, Any]) -> int | None:
    own = attributes(trial).get("step_size")
    places = (own, trial.params.get(STEP_SIZE), fixed.get(STEP_SIZE))
    return next((int(value) for value in places if isinstance(value, int | float)), None)


def _schedule(trial: FrozenTrial, fixed: Mapping[str, Any]) -> str | None:
    given = trial.params.get(STEP_SIZE, fixed.get(STEP_SIZE))
    return given if isinstance(given, str) and given.lstrip().startswith("{") else None
