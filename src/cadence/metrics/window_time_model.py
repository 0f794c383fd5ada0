"""Throughput by step_size (mini-batches per update), from the time of a few windows.

A window of k mini-batches takes ``base + k * slope`` seconds: ``base`` is what happens once, the
update and the synchronisation, ``slope`` what each mini-batch costs, its data, its forward and
backward. With B samples in a mini-batch and P processes that is

    samples/s = k B P / (k t_compute + t_sync + t_update)

which rises with k towards its ceiling B P / t_compute (where larger windows cost more for each
mini-batch, the ceiling is the highest throughput on the way). It reaches the share s of that at

    k B P / (base + k slope) = s B P / slope    =>    k = s / (1 - s) * base / slope

so 95 % at k = 19 base / slope.

What a window does once is measured by itself: the least that it took at any step_size. What windows
take beyond it, their passes and an update that finds its state no longer in a cache, is fitted by
the simplest shape that meets what was measured (`SHAPES`):

- *proportional*: each mini-batch is a forward and backward of its own, and they all cost the same;
- *straight*: a window also has a price of its own, as where ``microbatch_size=auto`` runs it in one
  pass, whose time does not double with what is in it;
- *bent*: straight lines between the measured step_sizes, the last one going on, as where a window
  goes through in one pass up to some size, or no longer fits into a cache. The first goes on below
  the smallest, unless an empty window would take less than nothing: then mini-batches cost the same
  there.

The line is the one with the least squared relative errors, so that a window counts by its share
and not by its length, and every step_size's throughput is met as well as every other's.

What is measured is the mean window of a turn, and of the turns the median. A machine that others
use too delays nearly every long window and few short ones: medians over windows would flatter the
small step_sizes. The uncertainty is that of `DRAWS` resamples of the rounds in which the step_sizes
took turns.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np

BEND, MOST_BEND = 0.03, 0.1
"""The relative errors at a measured step_size from which on a shape is too simple: the first, or
twice its own uncertainty where that is more; the second however uncertain it is."""

NEAR_CEILING = 0.95
"""The share of the ceiling at which a larger step_size has nothing more to win."""

DRAWS = 400

LEVEL = 0.9
"""The share of the resamples that an interval holds."""


class Estimate(NamedTuple):
    """A number and its interval."""

    value: float
    low: float
    high: float


class Turn(NamedTuple):
    """The mean window of some that ran one after another."""

    passes: float
    """Seconds of its mini-batches: data, forward and backward."""
    once: float
    """Seconds of its update and synchronisation."""

    @property
    def seconds(self) -> float:
        """Its whole time."""
        return self.passes + self.once


Round: TypeAlias = Mapping[int, Turn]
"""One turn of each step_size."""


class Line(NamedTuple):
    """Seconds of a window of k mini-batches, up to a step_size: ``base + k * slope``."""

    base: float
    """Seconds of a window that do not grow with it: update, synchronisation, and more; see
    `SHAPES`. On a bent line they may be below 0."""
    slope: float
    """Seconds that each of its mini-batches takes: data, forward and backward."""
    until: float = math.inf
    """The step_size at which the next line begins."""

    def seconds(self, step_size: float) -> float:
        """Return the seconds of a window."""
        return self.base + self.slope * step_size


@dataclass(frozen=True, slots=True)
class Model:
    """What a window takes, and so the throughput, at every step_size."""

    lines: tuple[Line, ...]
    """By their ends, ascending; the last has none. Only on those after the first may the throughput
    fall."""
    once: float
    """Seconds of a window's update and synchronisation."""
    samples: float
    """In a mini-batch, summed over processes."""
    shape: str = "proportional"
    """One of `SHAPES`."""

    def line(self, step_size: float) -> Line:
        """Return the line that a step_size lies on."""
        return next(line for line in self.lines if step_size <= line.until)

    def seconds(self, step_size: float) -> float:
        """Return the seconds of a window."""
        return self.line(step_size).seconds(step_size)

    def throughput(self, step_size: float) -> float:
        """Return the samples per second."""
        return step_size * self.samples / self.seconds(step_size)

    @property
    def ceiling(self) -> float:
        """The samples per second that no step_size exceeds; infinite where time does not grow."""
        *finite, last = self.lines
        beyond = self.samples / last.slope if last.slope > 0 else math.inf
        return max([beyond, *(self.throughput(line.until) for line in finite)])

    def update_share(self, step_size: float) -> float:
        """Return the share of a window that its update and synchronisation take."""
        return self.once / self.seconds(step_size)

    def reaching(self, share: float = NEAR_CEILING) -> float:
        """Return the smallest step_size, at least 1, with that share of the ceiling.

        Args:
            share: In (0, 1).
        """
        start, wanted = 1.0, share * self.ceiling
        for line in self.lines:
            # k samples / (base + k slope) >= wanted, solved for k
            room = self.samples - wanted * line.slope
            reached = max(start, wanted * line.base / room) if room > 0 else math.inf
            if reached <= line.until:
                return reached
            start = max(start, line.until)
        return math.inf


def simple(once: float, each: float, samples: float) -> Model:
    """Return the model of a machine that is known.

    Args:
        once: Seconds of a window's update and synchronisation.
        each: Seconds of a mini-batch's data, forward and backward.
        samples: In a mini-batch, summed over processes.
    """
    return Model((Line(once, each),), once, samples)


def _proportional(sizes: np.ndarray, rest: np.ndarray) -> list[Line]:
    shares = sizes / rest
    return [Line(0.0, float(shares.sum() / (shares**2).sum()))]


def _straight(sizes: np.ndarray, rest: np.ndarray) -> list[Line]:
    ones = 1 / rest
    shares = np.stack([ones, sizes / rest], 1)
    base, slope = np.linalg.lstsq(shares, np.ones_like(rest), rcond=None)[0]
    if base < 0:
        return _proportional(sizes, rest)
    if slope < 0:
        base, slope = ones.sum() / (ones**2).sum(), 0.0
    return [Line(float(base), float(slope))]


def _bent(sizes: np.ndarray, rest: np.ndarray) -> list[Line]:
    slopes = np.maximum(np.diff(rest) / np.diff(sizes), 0)
    bases = rest[1:] - slopes * sizes[1:]
    ends = [*sizes[1:-1].tolist(), math.inf]
    lines = list(map(Line, bases.tolist(), slopes.tolist(), ends))
    if lines[0].base >= 0:
        return lines
    return [Line(0.0, float(rest[0] / sizes[0]), float(sizes[0])), *lines]


Shape: TypeAlias = Callable[[np.ndarray, np.ndarray], list[Line]]
"""(step_sizes, seconds beyond what a window does once, above 0) -> lines."""

SHAPES: Mapping[str, Shape] = {
    "proportional": _proportional,
    "straight": _straight,
    "bent": _bent,
}
"""From the simplest on."""


def fit_model(turns: Round, samples: float, noise: Mapping[int, float] | None = None) -> Model:
    """Fit the simplest shape that meets the time of windows.

    Args:
        turns: Of at least one step_size, with passes above 0.
        samples: In a mini-batch, summed over processes.
        noise: The relative uncertainty of each step_size's seconds; None = there is none.
    """
    uncertain = noise or dict.fromkeys(turns, 0.0)
    bounds = {size: min(MOST_BEND, max(BEND, 2 * uncertain[size])) for size in turns}
    possible = list(SHAPES)[: len(turns)]
    for shape in possible:
        model = _of_shape(shape, turns, samples)
        errors = {size: abs(model.seconds(size) / turns[size].seconds - 1) for size in turns}
        if all(errors[size] <= bounds[size] for size in turns):
            break
    return model


def _of_shape(shape: str, turns: Round, samples: float) -> Model:
    sizes = sorted(turns)
    once = min(turn.once for turn in turns.values())
    rest = np.array([turns[size].passes + (turns[size].once - once) for size in sizes])
    lines = SHAPES[shape](np.array(sizes, dtype=float), rest)
    return Model(
        tuple(line._replace(base=line.base + once) for line in lines), once, samples, shape
    )


@dataclass(frozen=True, slots=True)
class Forecast:
    """A model with its uncertainty."""

    model: Model
    draws: tuple[Model, ...]
    """Models of resampled rounds, of the same shape."""

    def estimate(self, quantity: Callable[[Model], float]) -> Estimate:
        """Return what a model says of something, with the interval at `LEVEL`."""
        drawn = sorted(map(quantity, self.draws))
        tail = round((1 - LEVEL) / 2 * (len(drawn) - 1))
        value = quantity(self.model)
        return Estimate(value, min(value, drawn[tail]), max(value, drawn[-1 - tail]))


def forecast(rounds: Sequence[Round], samples: float) -> Forecast:
    """Fit a model to rounds in which the same step_sizes took turns.

    Args:
        rounds: At least two.
        samples: In a mini-batch, summed over processes.
    """
    sizes, table = _table(rounds)
    model = fit_model(median_turns(rounds), samples, dict(zip(sizes, _noise(table), strict=True)))
    picks = np.random.default_rng(0).integers(len(rounds), size=(DRAWS, len(rounds)))
    draws = tuple(
        _of_shape(model.shape, dict(zip(sizes, map(Turn._make, each), strict=True)), samples)
        for each in _typical(table[picks]).tolist()
    )
    return Forecast(model, draws)


def median_turns(rounds: Sequence[Round]) -> Round:
    """Return the median turn of each step_size."""
    sizes, table = _table(rounds)
    return dict(zip(sizes, map(Turn._make, _typical(table).tolist()), strict=True))


def _table(rounds: Sequence[Round]) -> tuple[list[int], np.ndarray]:
    """Return the step_sizes, and the turns as rounds x step_sizes x (passes, once)."""
    sizes = sorted(rounds[0])
    return sizes, np.array([[each[size] for size in sizes] for each in rounds])


def _typical(table: np.ndarray) -> np.ndarray:
    """Return the median over rounds, third from the last: of the whole time, in its median shares.

    Medians of the parts would add up to less than the median of the whole.
    """
    parts = np.median(table, axis=-3)
    whole = np.median(table.sum(axis=-1), axis=-2)
    scaled: np.ndarray = parts * (whole / parts.sum(axis=-1))[..., None]
    return scaled


def _noise(table: np.ndarray) -> list[float]:
    """Return the relative standard error of each step_size's median seconds.

    From the median deviation, as that of a normal distribution: a turn that was held up by chance
    is to count for one turn.
    """
    seconds = table.sum(axis=2)
    typical = np.median(seconds, axis=0)
    deviation = np.median(np.abs(seconds - typical), axis=0) / 0.6745
    found: list[float] = (deviation / typical * math.sqrt(math.pi / 2 / len(seconds))).tolist()
    return found
