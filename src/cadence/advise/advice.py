"""What a probe advises: a prediction for every step_size, and whether to accumulate at all."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from cadence.advise.goodput import FLAT, best_step_size, flat_region, goodput
from cadence.display.table import Table, markdown, plain
from cadence.engine.noise_scale import LEVEL as NOISE_LEVEL
from cadence.metrics.window_time_model import LEVEL, NEAR_CEILING, Estimate, Forecast, Model

LARGEST = 64
"""The largest step_size that is looked at."""

MAREK = "Marek et al. 2025, arXiv 2507.07101"
"""On when small mini-batches without accumulation are as good: where updates cost little."""


@dataclass(frozen=True, slots=True)
class Row:
    """What is predicted for a step_size."""

    step_size: int
    throughput: Estimate
    """Samples per second."""
    items: float
    """Per update."""
    time: Estimate
    """To the same loss, as a multiple of step_size 1's."""
    memory_mib: float
    """The peak: measured where the step_size was, else a straight line between or beyond."""
    was_measured: bool
    verdict: str
    """``chosen``, ``as good``, or nothing."""


@dataclass(frozen=True, slots=True)
class Advice:
    """What a probe came to."""

    sentence: str
    """The recommendation."""
    step_size: int
    """The recommended one; 1 = do not accumulate."""
    rows: Sequence[Row]
    """By step_size: the powers of two, and the best."""
    facts: Mapping[str, str]
    """What the recommendation follows from, by name."""
    forecast: Forecast
    flat: tuple[int, int]
    """The smallest and the largest step_size whose goodput is as good as the best."""


def advise(
    forecast: Forecast,
    noise: Estimate,
    items: float,
    memory_mib: Mapping[int, float],
    minibatches: int | None = None,
    first_samples: int = 0,
) -> Advice:
    """Say which step_size is worth choosing, from throughput and noise scale.

    Args:
        forecast: The throughput.
        noise: The gradient noise scale, in items. Infinite = larger than could be told; NaN =
            unknown, which counts as infinite from 0 on.
        items: In a mini-batch.
        memory_mib: Peak memory of some step_sizes, in MiB; at least one.
        minibatches: Mini-batches in an epoch, from which on a larger step_size changes nothing;
            None = unknown.
        first_samples: After how many samples of training the noise scale was measured.
    """
    if math.isnan(noise.value):
        noise = Estimate(math.inf, 0.0, math.inf)
    question = _Question(forecast, noise, items, min(LARGEST, minibatches or LARGEST))
    recommended, flat = question.recommended(), question.flat()
    sizes = sorted(
        {question.chosen(), *(size for size in _powers(LARGEST) if size <= question.limit)}
    )
    rows = [
        Row(
            step_size=size,
            throughput=forecast.estimate(partial(Model.throughput, step_size=size)),
            items=size * items,
            time=question.time(size),
            memory_mib=_interpolated(memory_mib, size),
            was_measured=size in memory_mib,
            verdict=_verdict(size, recommended, flat),
        )
        for size in sizes
    ]
    return Advice(
        sentence=_accumulate(question) if recommended > 1 else _do_not(question),
        step_size=recommended,
        rows=rows,
        facts=_facts(question, minibatches, first_samples),
        forecast=forecast,
        flat=flat,
    )


def _verdict(size: int, recommended: int, flat: tuple[int, int]) -> str:
    if size == recommended:
        return "chosen"
    return "as good" if flat[0] <= size <= flat[1] else ""


def table_of_advice(advice: Advice) -> Table:
    """Return a row for each step_size."""
    columns = (
        "step_size\n(mini-batches\nper update)",
        "items\nper update",
        "predicted\nthroughput\n(samples/s)",
        "time to the\nsame loss\n(1 = step_size 1)",
        "peak\nmemory\n(MiB)",
        "goodput",
    )
    rows = (
        (
            str(row.step_size),
            f"{row.items:,.0f}",
            _interval(row.throughput),
            f"{row.time.value:.2f} ({row.time.low:.2f} to {row.time.high:.2f})",
            f"{'' if row.was_measured else '~'}{row.memory_mib:,.0f}",
            row.verdict or "-",
        )
        for row in advice.rows
    )
    return Table(columns, tuple(rows))


def advice_markdown(advice: Advice) -> str:
    """Return an advice as a page of Markdown."""
    facts = Table(("what", "value"), tuple(advice.facts.items()))
    blocks = [
        "# Which step_size?",
        f"**{plain(advice.sentence)}**",
        "![throughput and the time to the same loss by step_size](advice.png)",
        markdown(table_of_advice(advice)),
        LEGEND,
        markdown(facts),
    ]
    return "\n\n".join(blocks) + "\n"


LEGEND = (
    "step_size is the number of mini-batches per update. In brackets, intervals. Memory with ~ was "
    "not measured: it lies on the line through what was. Times to the same loss hold for a "
    "learning rate that follows the effective batch (scaling=sqrt)."
)


@dataclass(frozen=True, slots=True)
class _Question:
    """Which step_size, from 1 to ``limit``."""

    forecast: Forecast
    noise: Estimate
    items: float
    limit: int

    def best(self) -> int:
        return best_step_size(self.forecast.model, self.noise.value, self.items, self.limit)

    def best_interval(self) -> tuple[int, int]:
        """Return the best of the fastest and the slowest updates with the ends of the noise."""
        low, high = (
            self.forecast.estimate(partial(self._best_of, noise=noise)) for noise in self.noise[1:]
        )
        return round(low.low), round(high.high)

    def chosen(self) -> int:
        """Return the best; where the noise scale sets no bound, the smallest that is as good."""
        return self.flat()[0] if math.isinf(self.noise.value) else self.best()

    def recommended(self) -> int:
        """Return what to train with: 1, which needs no accumulation, where it is as good."""
        return self.chosen() if self.flat()[0] > 1 else 1

    def flat(self) -> tuple[int, int]:
        return flat_region(self.forecast.model, self.noise.value, self.items, self.limit)

    def time(self, step_size: int) -> Estimate:
        """Return the time to the same loss against step_size 1's, with both uncertainties."""
        value, *ends = (
            self.forecast.estimate(partial(self._time_of, noise=noise, step_size=step_size))
            for noise in self.noise
        )
        low = min(estimate.low for estimate in (value, *ends))
        return Estimate(value.value, low, max(estimate.high for estimate in (value, *ends)))

    def _best_of(self, model: Model, noise: float) -> float:
        return best_step_size(model, noise, self.items, self.limit)

    def _time_of(self, model: Model, noise: float, step_size: int) -> float:
        at_one = goodput(model, noise, self.items, 1)
        return at_one / goodput(model, noise, self.items, step_size)


def _accumulate(question: _Question) -> str:
    best, flat = question.chosen(), question.flat()
    low, high = question.best_interval()
    time = question.time(best)
    interval = f" (interval {low} to {high})" if low < high else ""
    doubt = "" if time.high < 1 else "; that it is faster than step_size 1 is not certain"
    around = f"{flat[0]} to {flat[1]} are" if flat[0] < flat[1] else f"only {best} is"
    return (
        f"accumulate: step_size {best}{interval} comes to the same loss in {time.value:.2f} "
        f"({time.low:.2f} to {time.high:.2f}) of the time of step_size 1; {around} within "
        f"{1 - FLAT:.0%} of the best{doubt}".replace("%", " %")
    )


def _do_not(question: _Question) -> str:
    model, noise, items = question.forecast.model, question.noise, question.items
    share = f"{100 * model.update_share(1):.2g} %"
    fastest = max(model.throughput(size) for size in range(1, question.limit + 1))
    best = question.best()
    reason = (
        f"what larger updates save, {share} of a window at step_size 1, they lose again in "
        f"samples, with a noise scale of {_scale(noise)}"
    )
    if FLAT * fastest <= model.throughput(1):
        reason = f"updates cost {share} of a window at step_size 1, so there is nothing to win"
    elif noise.value < items:
        reason = (
            f"the noise scale, {_scale(noise)}, is below the {items:,.0f} of one mini-batch, so "
            f"that a larger effective batch wastes samples ({MAREK})"
        )
    elif best > 1:
        saved = f"{100 * (1 - question.time(best).value):.2g} %"
        reason = (
            f"the best, step_size {best}, takes {saved} less time to the same loss, within the "
            f"{100 * (1 - FLAT):.0f} % that count as no difference"
        )
    high = question.best_interval()[1]
    doubt = "" if high == 1 else f"; up to step_size {high} is not ruled out"
    return f"do not accumulate: {reason}{doubt}"


def _facts(question: _Question, minibatches: int | None, first_samples: int) -> dict[str, str]:
    forecast = question.forecast
    share = forecast.estimate(lambda model: 100 * model.update_share(1))
    ceiling = forecast.estimate(lambda model: model.ceiling)
    near = forecast.estimate(lambda model: model.reaching())
    facts = {
        "update": f"{share.value:.2g} % ({share.low:.2g} to {share.high:.2g}) of a window at "
        "step_size 1, synchronisation included",
        "ceiling": f"{_interval(ceiling)} samples/s, {NEAR_CEILING:.0%} of it from step_size "
        f"{_up(near.value)} on".replace("%", " %"),
        "noise scale": f"{_scale(question.noise)}, an estimate after {first_samples:,} samples; it "
        "grows while the loss falls",
        "model": f"a window's passes are {forecast.model.shape} in step_size; intervals at "
        f"{LEVEL:.0%}, of the noise scale at {NOISE_LEVEL:.0%}".replace("%", " %"),
    }
    if minibatches is not None and minibatches < LARGEST:
        facts["epoch"] = f"{minibatches} mini-batches, so no window can be larger"
    return facts


def _scale(noise: Estimate) -> str:
    if math.isinf(noise.value):
        return f"more items than could be told (at least {noise.low:,.0f})"
    high = f"to {noise.high:,.0f}" if math.isfinite(noise.high) else "or more"
    return f"{noise.value:,.0f} items ({noise.low:,.0f} {high})"


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:,.0f} ({estimate.low:,.0f} to {estimate.high:,.0f})"


def _up(value: float) -> str:
    return f"{math.ceil(value):,}" if math.isfinite(value) else "infinity"


def _powers(largest: int) -> list[int]:
    return [1 << power for power in range(largest.bit_length())]


def _interpolated(known: Mapping[int, float], size: int) -> float:
    """Return the value on the line through the two known sizes around one, or nearest to it."""
    sizes = sorted(known)
    if size in known or len(sizes) == 1:
        return known.get(size, known[sizes[0]])
    low, high = next((pair for pair in pairwise(sizes) if size < pair[1]), (sizes[-2], sizes[-1]))
    return known[low] + (known[high] - known[low]) * (size - low) / (high - low)
