"""Throughput by step_size (mini-batches per update), from the time of a few windows.

A window of k mini-batches takes ``base + k * slope`` seconds: ``base`` is what happens once, the
update and the synchronisation, ``slope`` what each mini-batch costs, its data, its forward and
backward. With B samples in a mini-batch and P processes that is

    samples/s = k B P / (k t_compute + t_sync + t_update)

which rises with k towards its ceiling B P / t_compute. It reaches the share s of that at

    k B P / (base + k slope) = s B P / slope    =>    k = s / (1 - s) * base / slope

so 95 % at k = 19 base / slope.

One line is right where every mini-batch is a forward and backward of its own. With
``microbatch_size=auto`` a larger window may go through in one pass, whose time is no straight line
in k, and memory that a cache holds no more bends it too. So where one line misses a measured
window by more than `BEND`, lines between the measured windows take its place; the first and the
last go on beyond them.

The median of a step_size's windows stands for them: a shared machine delays some, and hurries none.
The line is the one with the least squared relative errors, so that a window counts by its share
and not by its length, and every step_size's throughput is met as well as every other's; neither of
its parts is below 0. Its uncertainty is that of `DRAWS` resamples: of the rounds in which the
step_sizes took turns, since a machine is slow for whole rounds, and then of the windows in them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

BEND = 0.03
"""The relative error at a measured window from which one straight line is no longer enough."""

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


class Line(NamedTuple):
    """Seconds of a window of k mini-batches, up to a step_size: ``base + k * slope``."""

    base: float
    """Seconds that a window takes once: update and synchronisation."""
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
    """By their ends, ascending; the last has none."""
    samples: float
    """In a mini-batch, summed over processes."""

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
        slope = self.lines[-1].slope
        return self.samples / slope if slope > 0 else math.inf

    def update_share(self, step_size: float) -> float:
        """Return the share of a window that its update and synchronisation take."""
        return self.line(step_size).base / self.seconds(step_size)

    def reaching(self, share: float = NEAR_CEILING) -> float:
        """Return the smallest step_size, at least 1, with that share of the ceiling.

        Args:
            share: In (0, 1).
        """
        start = 1.0
        for line in self.lines:
            # k samples / (base + k slope) >= share * ceiling, solved for k
            room = self.samples - share * self.ceiling * line.slope
            wanted = share * self.ceiling * line.base
            reached = max(start, wanted / room) if room > 0 else math.inf
            if reached <= line.until:
                return reached
            start = max(start, line.until)
        return math.inf


def straight(base: float, slope: float, samples: float) -> Model:
    """Return the model of one line.

    Args:
        base: Seconds of a window's update and synchronisation.
        slope: Seconds of a mini-batch's data, forward and backward.
        samples: In a mini-batch, summed over processes.
    """
    return Model((Line(base, slope),), samples)


def fitted(seconds: Mapping[int, float], samples: float, *, may_bend: bool = True) -> Model:
    """Fit a model to the time of windows.

    Args:
        seconds: Of a window, by its step_size; at least two of them, all above 0.
        samples: In a mini-batch, summed over processes.
        may_bend: Whether lines between the windows may take the place of one; see `BEND`.
    """
    sizes = np.array(sorted(seconds), dtype=float)
    times = np.array([seconds[size] for size in sorted(seconds)])
    line = _least_squares(sizes, times)
    errors = np.abs((line.base + line.slope * sizes) / times - 1)
    if not may_bend or errors.max() <= BEND:
        return Model((line,), samples)
    slopes = np.maximum(np.diff(times) / np.diff(sizes), 0)
    bases = times[1:] - slopes * sizes[1:]
    ends = [*sizes[1:-1].tolist(), math.inf]
    return Model(tuple(map(Line, bases.tolist(), slopes.tolist(), ends)), samples)


def _least_squares(sizes: np.ndarray, times: np.ndarray) -> Line:
    """Return the line with the least squared relative errors, neither of its parts below 0."""
    ones, target = 1 / times, np.ones_like(times)
    base, slope = np.linalg.lstsq(np.stack([ones, sizes / times], 1), target, rcond=None)[0]
    if base < 0:
        base, slope = 0.0, (sizes / times).sum() / ((sizes / times) ** 2).sum()
    elif slope < 0:
        base, slope = ones.sum() / (ones**2).sum(), 0.0
    return Line(float(base), float(slope))


@dataclass(frozen=True, slots=True)
class Forecast:
    """A model with its uncertainty."""

    model: Model
    draws: tuple[Model, ...]
    """Models of resampled windows."""

    def estimate(self, quantity: Callable[[Model], float]) -> Estimate:
        """Return what a model says of something, with the interval at `LEVEL`."""
        drawn = sorted(map(quantity, self.draws))
        tail = round((1 - LEVEL) / 2 * (len(drawn) - 1))
        value = quantity(self.model)
        return Estimate(value, min(value, drawn[tail]), max(value, drawn[-1 - tail]))


Round = Mapping[int, Sequence[float]]
"""The seconds of some windows, by step_size."""


def forecast(rounds: Sequence[Round], samples: float) -> Forecast:
    """Fit a model to rounds in which the same step_sizes took turns.

    Args:
        rounds: At least one, with two step_sizes and a window of each at the least.
        samples: In a mini-batch, summed over processes.
    """
    random = np.random.default_rng(0)
    draws = [fitted(_resampled(rounds, random), samples) for _ in range(DRAWS)]
    return Forecast(fitted(medians(rounds), samples), tuple(draws))


def medians(rounds: Sequence[Round]) -> dict[int, float]:
    """Return the median seconds of each step_size's windows."""
    return _medians(rounds, lambda windows: windows)


def _resampled(rounds: Sequence[Round], random: np.random.Generator) -> dict[int, float]:
    drawn = [rounds[place] for place in random.integers(len(rounds), size=len(rounds))]
    return _medians(drawn, lambda windows: random.choice(windows, len(windows)))


def _medians(
    rounds: Sequence[Round], chosen: Callable[[np.ndarray], np.ndarray]
) -> dict[int, float]:
    windows = {size: np.concatenate([each[size] for each in rounds]) for size in rounds[0]}
    return {size: float(np.median(chosen(every))) for size, every in windows.items()}
