"""What the other trials of a sweep predict of each one's throughput, and where they differ."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from cadence.metrics.window_time_model import Model, Turn, fit_model
from cadence.sweeps.pareto_front import Measure, PointResult, number

NEUTRAL = ("trainer.step_size", "optimizer.lr", "optimizer.weight_decay", "scaling.", "schedule.")
"""The beginnings of the searched keys that leave the time of a window of given samples alone."""

APART = 0.1
"""The relative difference from which the two part, if it is beyond the spread."""

PREDICTED = (
    "The predicted throughput of a row is that of a model fitted to the time of windows at the "
    "other step_sizes alone."
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the other points predict of a point."""

    result: PointResult
    measured: Turn
    """What a full window of the point took."""
    predicted: Turn
    """What such a window was to take."""
    samples_per_second: float
    """The predicted throughput."""

    @property
    def difference(self) -> float:
        """Measured over predicted throughput, less 1."""
        return self.result.throughput.value / self.samples_per_second - 1

    @property
    def is_apart(self) -> bool:
        """Whether the two differ by more than the spread and `APART`."""
        throughput = self.result.throughput
        is_held = throughput.low <= self.samples_per_second <= throughput.high
        return abs(self.difference) > APART and not is_held


def predictions(results: Sequence[PointResult]) -> list[Prediction]:
    """Return what is predicted of each point by those that differ from it in step_size.

    A point is left out where no trial has the time of its window, or no other point predicts it:
    those do that share every searched key that has a say in speed.
    """
    windows: defaultdict[str, _Windows] = defaultdict(_Windows)
    for result in results:
        windows[_speed_key(result)].add(result)
    found = (_prediction(result, windows[_speed_key(result)]) for result in results)
    return [prediction for prediction in found if prediction is not None]


@dataclass(slots=True)
class _Windows:
    """The timed windows of points that differ in step_size, and in nothing else that has a say."""

    by_samples: dict[float, list[tuple[Turn, float]]] = field(default_factory=dict)
    """By the samples of a window: its seconds and its relative spread, for each point."""
    models: dict[float, Model | None] = field(default_factory=dict)
    """What has been fitted to all windows but those of so many samples."""

    def add(self, result: PointResult) -> None:
        """Add a point, if its window was timed."""
        if result.window is not None and result.window_samples and result.window.passes > 0:
            timed = result.window, _spread(result.throughput)
            self.by_samples.setdefault(result.window_samples, []).append(timed)

    def model_without(self, samples: float) -> Model | None:
        """Return the model of all windows but those of so many samples; None means no others."""
        if samples not in self.models:
            self.models[samples] = self._fitted_without(samples)
        return self.models[samples]

    def _fitted_without(self, samples: float) -> Model | None:
        # The samples of a window stand for its step_size: mini-batches of one sample.
        timed: dict[int, list[tuple[Turn, float]]] = {}
        for size, windows in self.by_samples.items():
            if size != samples:
                timed.setdefault(round(size), []).extend(windows)
        turns = {size: _mean_turn([turn for turn, _ in timed[size]]) for size in timed}
        noise = {size: fmean(spread for _, spread in timed[size]) for size in timed}
        return fit_model(turns, samples=1, noise=noise) if turns else None


def _mean_turn(turns: Sequence[Turn]) -> Turn:
    return Turn(*map(fmean, zip(*turns, strict=True)))


def _prediction(result: PointResult, windows: _Windows) -> Prediction | None:
    samples = result.window_samples
    if result.window is None or not samples:
        return None
    model = windows.model_without(samples)
    if model is None:
        return None
    predicted = Turn(passes=model.seconds(samples) - model.once, once=model.once)
    return Prediction(result, result.window, predicted, model.throughput(samples))


def _spread(measure: Measure) -> float:
    """Return how far a number may be off, as a share of it."""
    return (measure.high - measure.low) / 2 / measure.value


def where_they_part(predictions: Sequence[Prediction]) -> str:
    """Say where measurement and prediction part most, and the likely reason."""
    worst = max(predictions, key=lambda each: (each.is_apart, abs(each.difference)))
    if not worst.is_apart:
        return f"The two agree at every step_size, within {100 * APART:.0f} % or the spread."
    percent = 100 * worst.difference
    return (
        f"They part most at {worst.result.name}: {number(worst.result.throughput.value)} samples/s "
        f"measured against {number(round(worst.samples_per_second))} ({percent:+.0f} %), as "
        f"{_reason(worst)}; or the machine was busier for some trials than for others."
    )


def _reason(prediction: Prediction) -> str:
    measured, predicted = prediction.measured, prediction.predicted
    passes = measured.passes - predicted.passes
    once = measured.once - predicted.once
    if abs(once) > abs(passes):
        how = "longer" if once > 0 else "shorter"
        return f"its update took {how}, {1000 * measured.once:.3g} ms against " + (
            f"{1000 * predicted.once:.3g}"
        )
    change = f"{100 * abs(measured.passes / predicted.passes - 1):.0f} %"
    if passes > 0:
        return (
            f"its forward and backward took {change} longer per sample: memory bandwidth, or "
            "caches that a larger window no longer fits"
        )
    return (
        f"its forward and backward took {change} less per sample: warm caches, or larger passes "
        "at a time"
    )


def _speed_key(result: PointResult) -> str:
    """Return the searched keys that have a say in speed, with their values, as text."""
    keys = {key: value for key, value in result.params.items() if not key.startswith(NEUTRAL)}
    return json.dumps(keys, sort_keys=True, default=str)
