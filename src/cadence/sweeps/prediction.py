"""What a sweep's other trials foretell of each one's throughput, and where it came otherwise."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from cadence.config.keys import marked
from cadence.config.schema import SPEED_NEUTRAL
from cadence.metrics.window_time_model import Turn, fit_model
from cadence.sweeps.pareto_front import Measure, PointResult, number

NEUTRAL = marked(SPEED_NEUTRAL)
"""The beginnings of the searched keys that leave the time of a window of given samples alone."""

APART = 0.1
"""The relative difference from which the two part, if it is beyond the spread."""

PREDICTED = (
    "The predicted throughput of a row is that of a model fitted to the time of windows at the "
    "other step_sizes alone."
)


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the other points foretell of one."""

    result: PointResult
    measured: Turn
    """What a full window of it took."""
    foretold: Turn
    """What it was to take."""
    samples_per_second: float
    """Foretold."""

    @property
    def difference(self) -> float:
        """Measured over foretold throughput, less 1."""
        return self.result.throughput.value / self.samples_per_second - 1

    @property
    def is_apart(self) -> bool:
        """Whether the two differ by more than the spread and `APART`."""
        throughput = self.result.throughput
        is_held = throughput.low <= self.samples_per_second <= throughput.high
        return abs(self.difference) > APART and not is_held


def predictions(results: Sequence[PointResult]) -> list[Prediction]:
    """Return what is foretold of each point by those that differ from it in step_size.

    A point is left out where no trial told its window's time, or no other point tells of it: those
    do that share every searched key that has a say in speed.
    """
    found = []
    for result in results:
        others = [
            other
            for other in results
            if _speed_keys(other) == _speed_keys(result)
            and other.window_samples != result.window_samples
        ]
        prediction = _prediction(result, others)
        if prediction is not None:
            found.append(prediction)
    return found


def _prediction(result: PointResult, others: Sequence[PointResult]) -> Prediction | None:
    # A window's samples stand for its step_size: mini-batches of one sample.
    known: dict[int, list[tuple[Turn, float]]] = {}
    for other in others:
        if other.window is not None and other.window_samples and other.window.passes > 0:
            told = other.window, _spread(other.throughput)
            known.setdefault(round(other.window_samples), []).append(told)
    if not known or result.window is None or not result.window_samples:
        return None
    turns, noise = {}, {}
    for size, told_of_it in known.items():
        windows, spreads = zip(*told_of_it, strict=True)
        turns[size] = Turn(*map(fmean, zip(*windows, strict=True)))
        noise[size] = fmean(spreads)
    model, samples = fit_model(turns, samples=1, noise=noise), result.window_samples
    foretold = Turn(passes=model.seconds(samples) - model.once, once=model.once)
    return Prediction(result, result.window, foretold, model.throughput(samples))


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
    measured, foretold = prediction.measured, prediction.foretold
    passes = measured.passes - foretold.passes
    once = measured.once - foretold.once
    if abs(once) > abs(passes):
        how = "longer" if once > 0 else "shorter"
        return f"its update took {how}, {1000 * measured.once:.3g} ms against " + (
            f"{1000 * foretold.once:.3g}"
        )
    change = f"{100 * abs(measured.passes / foretold.passes - 1):.0f} %"
    if passes > 0:
        return (
            f"its forward and backward took {change} longer per sample: memory bandwidth, or "
            "caches that a larger window no longer fits"
        )
    return (
        f"its forward and backward took {change} less per sample: warm caches, or larger passes "
        "at a time"
    )


def _speed_keys(result: PointResult) -> dict[str, object]:
    return {key: value for key, value in result.params.items() if not key.startswith(NEUTRAL)}
