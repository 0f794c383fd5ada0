"""Which point of a sweep is worth choosing, in one sentence, and whether to trust the answer."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cadence.plan.window import DEFAULT_STEP_SIZE
from cadence.sweeps.pareto_front import FEWEST_WINDOWS, Measure, PointResult, front, several

ROUNDING = 1e-9
"""A distance from the chord that counts as zero."""

LEARNING_CURVE = 0.2
"""Loss falls with about this power of the samples (0.07 to 0.35 in Hestness et al. 2017, "Deep
Learning Scaling is Predictable, Empirically"): the power of a throughput's factor that is worth as
much in equal time. Twice the throughput may cost 15 % of loss."""

DEFINITION = (
    f"A point beats another when the factor on its throughput, to the power {LEARNING_CURVE}, is "
    "above the factor on its loss: about what more samples in equal time make up for (Hestness et "
    "al. 2017), so that twice the throughput may cost 15 % of loss. Differences within the spread "
    "count as none. The knee is looked for on the front of the baseline and the points that beat "
    "it: the one farthest below the straight line between that front's two ends, in axes of val "
    "loss and log throughput, each scaled to 0..1 (Kneedle, Satopaa et al. 2011). Where none lies "
    "below the line, as between two points, it is the end that beats the other. Where nothing "
    "beats the baseline, the baseline is kept."
)
"""The knee, for readers of the report."""

DEFINITION_AT_EQUAL_TIME = (
    "Every trial had the same wall time, so its loss counts its throughput already: the knee is "
    "the lowest loss, where that is below the baseline's beyond the spread, else the baseline."
)
"""The knee of a sweep whose trials were given equal seconds."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The points of a sweep compared: their Pareto front, the baseline and the knee."""

    results: Sequence[PointResult]
    front: Sequence[PointResult]
    """The Pareto front, from the slowest on."""
    baseline: PointResult
    """The lowest loss at step_size 1; where 1 was not run at the default, else the smallest."""
    knee: PointResult
    """The point worth choosing, see `definition`; the baseline where nothing beats it."""
    equal_time: bool = False
    """Whether all were trained for the same wall time, and not on the same samples."""

    @property
    def definition(self) -> str:
        """The knee, for readers of the report."""
        return DEFINITION_AT_EQUAL_TIME if self.equal_time else DEFINITION


def compare(results: Sequence[PointResult], *, equal_time: bool = False) -> Comparison:
    """Find the front, the baseline and the knee of at least one result.

    The knee is that of Satopaa et al. (2011), "Finding a 'Kneedle' in a Haystack", which on a
    Pareto front is the point farthest from the chord of its ends (Das 1999, "On characterizing the
    'knee' of the Pareto curve"). Noise would give a front knees that are none, and one diverged
    point would stretch the axes until all others look alike, so only points that beat the baseline
    take part; see `DEFINITION`.

    Args:
        results: At least one.
        equal_time: Whether all were trained for the same wall time: then the lowest loss is the
            answer, see `DEFINITION_AT_EQUAL_TIME`.
    """
    baseline = _baseline(results)
    if equal_time:
        lowest = min(results, key=lambda result: result.val_loss.value)
        is_lower = baseline.val_loss.above(lowest.val_loss)
        chosen = lowest if is_lower else baseline
        return Comparison(results, front(results), baseline, chosen, equal_time=True)
    beating = [result for result in results if gain(result, baseline) > 1]
    return Comparison(
        results=results,
        front=front(results),
        baseline=baseline,
        knee=knee(front([baseline, *beating])) if beating else baseline,
    )


def knee(front: Sequence[PointResult]) -> PointResult:
    """Return the point of a front farthest below the chord of its ends; see `DEFINITION`.

    Args:
        front: At least one point, from the slowest on. The point of a front of one is its knee.
    """
    slow, fast = front[0], front[-1]
    farthest = max(front, key=lambda point: _below_chord(point, slow, fast))
    if _below_chord(farthest, slow, fast) > ROUNDING:
        return farthest
    return fast if gain(fast, slow) > 1 else slow


def gain(point: PointResult, baseline: PointResult) -> float:
    """Return how far a point beats another: above 1 the point wins, at 1 both are worth the same.

    The gain is what the point's throughput can make up for in equal time (see `LEARNING_CURVE`)
    over what its loss is multiplied by. What cannot be told apart counts as equal. Where a loss is
    at or below 0 there is no ratio: the lower loss has an infinite gain, the higher one none.
    """
    worth = 1.0
    if point.throughput.apart(baseline.throughput):
        worth = (point.throughput.value / baseline.throughput.value) ** LEARNING_CURVE
    if not point.val_loss.apart(baseline.val_loss):
        return worth
    loss, reference = point.val_loss.value, baseline.val_loss.value
    if loss > 0 and reference > 0:
        return worth * reference / loss
    return math.inf if loss < reference else 0.0


def sentence(comparison: Comparison) -> str:
    """Say which point is worth choosing, and what it has over the baseline."""
    baseline, chosen = comparison.baseline, comparison.knee
    larger = [result for result in comparison.results if _is_larger(result, baseline)]
    if chosen is baseline:
        if larger and comparison.equal_time:
            return (
                f"{_stay(baseline)}: no larger step_size has a lower loss after the same time, "
                "beyond the spread"
            )
        if larger:
            return f"{_stay(baseline)}: {_why_stay(larger, baseline)}"
        if len(comparison.results) == 1:
            return f"{baseline.name} is the only point: nothing to compare it with"
        return f"{baseline.name}: nothing else that was run beats it"
    after = " after the same time" if comparison.equal_time else ""
    said = f"{chosen.name}: {versus(chosen, baseline)}{after}"
    is_plain = larger and chosen.step_size == baseline.step_size == 1
    return f"do not accumulate: {said}" if is_plain else said


def versus(point: PointResult, baseline: PointResult) -> str:
    """Say a point's throughput and loss against the baseline's, as ``2.1x the throughput of 2``."""
    return (
        f"{_throughput_versus(point.throughput, baseline.throughput, baseline.short_name)} at "
        f"{_loss_versus(point.val_loss, baseline.val_loss)}"
    )


def warnings_of_noise(results: Sequence[PointResult]) -> list[str]:
    """Warn of throughputs of too few windows, and of two best points that cannot be told apart.

    Each step_size takes part with its best point, since other keys, such as the learning rate, may
    not change throughput.
    """
    warnings = []
    untimed = [result.name for result in results if not result.throughput.is_measured]
    if untimed:
        warnings.append(
            f"{several(untimed, '; ')}: fewer than {FEWEST_WINDOWS} windows, of which the first "
            "are slow, tell no throughput, so it counts for nothing here; train on more samples "
            "(trainer.max_samples, trainer.max_epochs or trainer.max_seconds)"
        )
    fastest = _bests(results, lambda result: -result.throughput.value)[:2]
    if len(fastest) == 2 and _is_blurred(fastest[0].throughput, fastest[1].throughput):
        one, other = (f"{result.name} with {result.throughput} samples/s" for result in fastest)
        warnings.append(
            f"the two fastest cannot be told apart: {one}, {other}; leave the machine to the sweep "
            "alone, or ask for repeats (sweep.repeats=3)"
        )
    lowest = _bests(results, lambda result: result.val_loss.value)[:2]
    if len(lowest) == 2 and _is_blurred(lowest[0].val_loss, lowest[1].val_loss):
        one, other = (f"{result.name} with {result.val_loss}" for result in lowest)
        warnings.append(
            f"the two lowest losses cannot be told apart: {one}, {other}; ask for more repeats "
            "(sweep.repeats)"
        )
    return warnings


def best_by_step_size(results: Sequence[PointResult]) -> list[PointResult]:
    """Return the point of lowest loss for each step_size, ascending; schedules last."""
    bests = _bests(results, lambda result: result.val_loss.value)
    return sorted(bests, key=lambda result: result.step_size or math.inf)


def _baseline(results: Sequence[PointResult]) -> PointResult:
    known = [result for result in results if result.step_size is not None]
    sizes = {result.step_size for result in known}
    wanted = next((size for size in (1, DEFAULT_STEP_SIZE) if size in sizes), None)
    if wanted is None and known:
        wanted = min(result.step_size for result in known if result.step_size is not None)
    there = [result for result in results if result.step_size == wanted]
    return min(there, key=lambda result: (result.val_loss.value, -result.throughput.value))


def _below_chord(point: PointResult, slow: PointResult, fast: PointResult) -> float:
    """Return log throughput minus val loss, each scaled to 0..1 between the ends."""
    speed = _scaled(*(math.log(result.throughput.value) for result in (point, slow, fast)))
    loss = _scaled(*(result.val_loss.value for result in (point, slow, fast)))
    return speed - loss


def _scaled(value: float, start: float, end: float) -> float:
    return 0.0 if start == end else (value - start) / (end - start)


def _is_larger(result: PointResult, baseline: PointResult) -> bool:
    return (result.step_size or 0) > (baseline.step_size or math.inf)


def _stay(baseline: PointResult) -> str:
    if baseline.step_size == 1:
        return "do not accumulate"
    return f"keep step_size {baseline.step_size} (1 was not run)"


def _why_stay(larger: Sequence[PointResult], baseline: PointResult) -> str:
    gaining = [
        result
        for result in larger
        if result.throughput.above(baseline.throughput) or baseline.val_loss.above(result.val_loss)
    ]
    if not gaining:
        return (
            f"no larger step_size is faster than {baseline.short_name} beyond the spread, and none "
            "has a lower loss"
        )
    best = max(gaining, key=lambda result: gain(result, baseline))
    the_best = f"the best of the larger, {best.name}, has {versus(best, baseline)}"
    if gain(best, baseline) > 1:
        return f"{baseline.name} is the knee itself; {the_best}"
    if best.throughput.above(baseline.throughput):
        return f"a larger step_size is faster only at a loss that outweighs it; {the_best}"
    return f"a larger step_size has a lower loss only at a throughput that outweighs it; {the_best}"


def _throughput_versus(one: Measure, baseline: Measure, name: str) -> str:
    if not one.apart(baseline):
        return f"the throughput of {name}{_within(one, baseline)}"
    ratio = one.value / baseline.value
    decimals = 0 if ratio >= 9.95 else 1 if ratio >= 1.2 else 2
    return f"{ratio:.{decimals}f}x the throughput of {name}"


def _loss_versus(one: Measure, baseline: Measure) -> str:
    if not one.apart(baseline):
        return f"the same loss{_within(one, baseline)}"
    difference = one.value - baseline.value
    if baseline.value <= 0:
        return f"{difference:+.4g} loss"
    percent = 100 * difference / baseline.value
    decimals = 0 if abs(percent) >= 9.95 else 1 if abs(percent) >= 0.1 else 3
    return f"{percent:+.{decimals}f} % loss"


def _within(one: Measure, other: Measure) -> str:
    if not (one.is_measured and other.is_measured):
        return " (too few windows to tell)"
    return " (within the spread)" if one.has_spread or other.has_spread else ""


def _is_blurred(one: Measure, other: Measure) -> bool:
    are_measured = one.is_measured and other.is_measured
    return are_measured and (one.has_spread or other.has_spread) and not one.apart(other)


def _bests(
    results: Sequence[PointResult], cost: Callable[[PointResult], float]
) -> list[PointResult]:
    bests: dict[str | None, PointResult] = {}
    for result in sorted(results, key=cost):
        bests.setdefault(result.steps, result)
    return list(bests.values())
