"""A step_size schedule from how a run's noise scale grew: small updates first, larger ones later.

A model's gradient noise scale grows as it learns, and with it the step_size of the highest goodput
(see `cadence.advise.goodput`). Merrill et al. (2025, arXiv 2505.23971) call training by that a
batch warm-up, and double the batch whenever the critical batch size has doubled. So does this.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from cadence.advise.advice import LARGEST


class Growth(NamedTuple):
    """The noise scale after so many samples, and what it asks for."""

    samples: int
    noise_scale: float
    """In items."""
    best: float
    """The step_size of the highest goodput: a real number, at least 1."""


@dataclass(frozen=True, slots=True)
class Warmup:
    """What step_size a run's noise scale asked for as it grew."""

    growth: Sequence[Growth]
    """By samples; at least one."""
    schedule: Mapping[int, int]
    """Samples, from 0 and ascending -> the step_size from there on, ascending powers of two."""


def warmup(noise_scales: Mapping[int, float], *, items: float, cost: float) -> Warmup:
    """Return the schedule of step_size that noise scales ask for.

    Each number is the nearest power of two to the best, up to `cadence.advise.advice.LARGEST`, from
    where no later estimate asks for less: an outlier does not change it.

    Args:
        noise_scales: Samples -> the noise scale after them, in items; at least one. The first also
            stands for what was before it.
        items: In a mini-batch, summed over processes.
        cost: Of synchronisation and update, in times of a mini-batch's data, forward and backward.
    """
    growth = [
        Growth(samples, scale, max(1.0, math.sqrt(scale / items * cost)))
        for samples, scale in sorted(noise_scales.items())
    ]
    wanted = [min(LARGEST, 2 ** round(math.log2(each.best))) for each in growth]
    lasting = list(accumulate(reversed(wanted), min))[::-1]
    schedule = {0: lasting[0]}
    for each, size in zip(growth, lasting, strict=True):
        if size > max(schedule.values()):
            schedule[each.samples] = size
    return Warmup(growth, schedule)
