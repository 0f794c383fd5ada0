"""Goodput by step_size (mini-batches per update): throughput times what a sample is still worth.

An update over more items has a better gradient, but less than twice as good for twice the items.
By McCandlish et al. (2018, arXiv 1812.06162), with a noise scale of n items, the items that reach a
loss with updates of b items are proportional to n + b. So a sample of an update of b items is worth

    (n + r) / (n + b)

of one in an update of r items, and the time to the same loss goes with 1 / goodput (Pollux, Qiao et
al., OSDI 2021), where with B items in a mini-batch and a window of ``base + k slope`` seconds

    goodput(k)  ~  k / (base + k slope)  *  1 / (n + k B)

Its inverse is ``base n / k + (base B + slope n) + slope B k``: a part that falls with k, one that
does not care, and one that rises. The sum is least where the first and the last are equal:

    k* = sqrt(n / B * base / slope)

where base / slope is (t_update + t_sync) / t_compute if the mini-batches of a window all cost the
same. It grows only with the root of either, and close to it goodput hardly changes: `flat_region`.
It holds for updates whose learning rate suits their effective batch, and for the noise scale of the
moment, which grows while a model learns.
"""

import math

from cadence.metrics.window_time_model import Model

FLAT = 0.95
"""The share of the best goodput that counts as no difference."""


def efficiency(noise: float, batch: float, reference: float) -> float:
    """Return what an item is worth against one in updates of ``reference`` items.

    Args:
        noise: The noise scale, in items; infinite = more items never pay less.
        batch: Items per update.
        reference: Items per update of what it is compared with.
    """
    return 1.0 if math.isinf(noise) else (noise + reference) / (noise + batch)


def goodput(model: Model, noise: float, items: float, step_size: float) -> float:
    """Return the samples per second that are worth as much as at step_size 1.

    Args:
        model: The throughput.
        noise: The noise scale, in items.
        items: In a mini-batch, summed over processes.
        step_size: Mini-batches per update.
    """
    return model.throughput(step_size) * efficiency(noise, step_size * items, items)


def best_step_size(model: Model, noise: float, items: float, limit: int) -> int:
    """Return the step_size from 1 to ``limit`` with the highest goodput.

    On each of the model's lines it is beside the closed form above, or at one of the line's ends.

    Args:
        model: The throughput.
        noise: The noise scale, in items.
        items: In a mini-batch, summed over processes.
        limit: The largest step_size there can be, at least 1.
    """
    peaks = _peaks(model, noise, items, limit)
    beside = {near for peak in peaks for near in (math.floor(peak), math.ceil(peak))}
    return max(sorted(beside), key=lambda each: goodput(model, noise, items, each))


def _peaks(model: Model, noise: float, items: float, limit: int) -> list[float]:
    """Return where goodput may be highest, by the model's lines."""
    peaks = [1.0]
    start = 1.0
    for line in model.lines:
        end = max(start, min(line.until, limit))
        falls = line.slope > 0 and math.isfinite(noise)
        peak = math.sqrt(max(0.0, noise / items * line.base / line.slope)) if falls else end
        peaks += [min(max(peak, start), end), end]
        start = end
    return peaks


def flat_region(model: Model, noise: float, items: float, limit: int) -> tuple[int, int]:
    """Return the smallest and the largest step_size around the best that are as good as it.

    Args:
        model: The throughput.
        noise: The noise scale, in items.
        items: In a mini-batch, summed over processes.
        limit: The largest step_size there can be.
    """
    best = best_step_size(model, noise, items, limit)
    enough = FLAT * goodput(model, noise, items, best)
    low = high = best
    while low > 1 and goodput(model, noise, items, low - 1) >= enough:
        low -= 1
    while high < limit and goodput(model, noise, items, high + 1) >= enough:
        high += 1
    return low, high
