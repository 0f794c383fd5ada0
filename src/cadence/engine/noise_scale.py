"""The gradient noise scale: about how many items an update can average before more pay less.

It is tr(Sigma) / |G|^2 (McCandlish et al. 2018, arXiv 1812.06162), where G is the mean of an item's
gradient and Sigma its covariance. Both are read off the windows as they are trained on.

A window of N items is run in k parts of n_1 to n_k items: its micro-batches, or the shares of its
processes. If items are drawn independently, part j's mean gradient g_j and the window's g are
unbiased, and their squared norms are too large by their own variance:

    E |g_j|^2 = |G|^2 + tr(Sigma) / n_j        E |g|^2 = |G|^2 + tr(Sigma) / N

The first, times n_j and summed over the parts, less the second times N, leaves

    E [sum n_j |g_j|^2 - N |g|^2] = (k - 1) tr(Sigma)

whatever the n_j are. For equal parts that is McCandlish's pair of estimators (appendix A.1); in
general it is the variance between groups of an analysis of variance. g is the window's gradient as
the update sees it, divided once, by N: so n_j |g_j|^2 is N^2 / n_j times the squared norm of what
part j adds to it. Over several windows, weighted by their items,

    tr(Sigma) = sum of the brackets / sum of (k - 1)                over the measured windows
    |G|^2     = (sum of N |g|^2 - windows * tr(Sigma)) / sum of N   over all windows

are unbiased, and their ratio is the estimate: the numerator and the denominator are averaged apart,
because a mean of ratios is not the ratio of the means. |g|^2 comes with every update for nothing.
Only the parts cost something, so only some windows are measured, and which ones depends on their
number alone, never on the time: a run that goes on measures the same ones.

Where the windows hold far fewer items than the noise scale, |G|^2 is small beside its own error and
its estimate may be negative. No number would be honest there: the estimate is infinite, "larger
than these windows can tell", and the lower end of its interval is what is known.

What the items of a sample share (the tokens of a text) counts as noise of the sample, per item. G
is the mean over what the data are drawn from; that over a data set of M items has a squared norm
larger by tr(Sigma) / M.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

MEASURED_EVERY = 8
"""One of so many windows is measured: the norm of each of its micro-batches' gradients is taken,
which makes even a tiny model's window no more than a fifth longer, and all of them 2.5 %."""

HALVED_EVERY = 40
"""One of so many windows that are a single forward and backward is run as two, to have parts. Were
it twice as long, all of them would be 2.5 % longer; measured on a tiny model it is 5 %
(docs/performance.md)."""

BLOCK = 16
"""Windows in a block, of which a resample draws whole ones."""

NEW_BLOCKS = 4
"""Blocks between two estimates: with its interval one takes as long as half a tiny window."""

BLOCKS = 128
"""Blocks that count. The weights move while a run trains, and the noise scale grows, so only the
last 2,048 windows tell of the present; within them the estimate is a mean weighted by |G|^2."""

LEAST = 8
"""Blocks, and measured windows in them, before there is an estimate: fewer do not even tell how
uncertain it is."""

RESAMPLES = 500

LEVEL = 0.98
"""The share of such intervals that hold the truth, if the weights stand still."""


class NoiseEstimate(NamedTuple):
    """A noise scale in items, and its interval."""

    noise_scale: float
    """NaN = unknown yet; infinite = larger than the windows can tell."""
    low: float
    """The lower end of the interval at `LEVEL`; NaN = unknown yet."""
    high: float
    """The upper end; infinite = the windows set no bound."""


UNKNOWN = NoiseEstimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True, slots=True)
class Parts:
    """The gradients of a window's parts, as far as the noise scale needs them."""

    count: int
    """The parts that hold an item."""
    squares: float
    """The sum of n |g|^2 over them: items times the squared norm of the items' mean gradient."""


def is_measured(windows_before: int, *, in_one_pass: bool) -> bool:
    """Return whether a window is one of those that are measured.

    Args:
        windows_before: The windows of the run before it.
        in_one_pass: Whether it would be a single forward and backward.
    """
    return windows_before % (HALVED_EVERY if in_one_pass else MEASURED_EVERY) == 0


class NoiseScale:
    """Estimates the noise scale of the last windows from what each update leaves behind.

    Args:
        block: Windows in a block, of which the last 128 count.
    """

    def __init__(self, block: int = BLOCK) -> None:
        self._block = block
        self._windows = 0
        self._blocks = np.zeros((BLOCKS, len(_COLUMNS)))
        self._new_blocks: list[list[float]] = []
        self._estimate: NoiseEstimate | None = UNKNOWN
        # Poisson's bootstrap: each resample draws each block so many times. Drawn once, so that the
        # same windows have the same interval.
        self._draws = np.random.default_rng(0).poisson(1.0, (RESAMPLES, BLOCKS)).astype(float)

    def window(self, items: float, grad_norm: float, parts: Parts | None) -> None:
        """Take in a window whose update was applied.

        Args:
            items: The items in it, at least 1.
            grad_norm: The 2-norm of its mean gradient, before clipping.
            parts: The gradients of its parts; None = they were not measured.
        """
        if self._windows % self._block == 0:
            self._new_blocks.append([0.0] * len(_COLUMNS))
        self._windows += 1
        block, square = self._new_blocks[-1], items * grad_norm**2
        block[0] += 1
        block[1] += items
        block[2] += square
        if parts is not None and parts.count > 1:
            block[3] += 1
            block[4] += parts.squares - square
            block[5] += parts.count - 1
        if self._windows % (NEW_BLOCKS * self._block) == 0:
            self._keep_new_blocks()

    def _keep_new_blocks(self) -> None:
        """Let the new blocks take the place of the oldest."""
        end = (self._windows // self._block - 1) % BLOCKS + 1
        self._blocks[end - len(self._new_blocks) : end] = self._new_blocks
        self._new_blocks = []
        self._estimate = None

    def estimate(self) -> NoiseEstimate:
        """Return what the last windows tell: an estimate, with its interval by resampling.

        It is renewed every four blocks, 64 windows as a rule.
        """
        if self._estimate is None:
            kept = -(-self._windows // self._block) - len(self._new_blocks)
            self._estimate = self._estimated(self._blocks[:kept])
        return self._estimate

    def _estimated(self, blocks: Float[np.ndarray, "blocks columns"]) -> NoiseEstimate:
        total = blocks.sum(0)
        if min(len(blocks), total[_COLUMNS.index("measured windows")]) < LEAST:
            return UNKNOWN
        resampled = np.sort(_ratios(self._draws[:, : len(blocks)] @ blocks))
        tail = round((1 - LEVEL) / 2 * RESAMPLES)
        return NoiseEstimate(*_ratios(total[None]).tolist(), *resampled[[tail, -1 - tail]].tolist())

    def state(self) -> dict[str, Any]:
        """Return what a run that goes on needs to know, as plain values."""
        return {
            "windows": self._windows,
            "blocks": self._blocks.tolist(),
            "new_blocks": [list(block) for block in self._new_blocks],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._windows = state["windows"]
        self._blocks = np.array(state["blocks"])
        self._new_blocks = [list(block) for block in state["new_blocks"]]
        self._estimate = None


_COLUMNS = ("windows", "N", "N |g|^2", "measured windows", "sum n |g|^2 - N |g|^2", "k - 1")
"""What a block has the sums of; the last three over its measured windows."""


def _ratios(sums: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, " rows"]:
    """Return the noise scale of each row of sums; infinite where |G|^2 is not above 0."""
    windows, items, squares, _, between, freedom = sums.T
    noise = np.maximum(between / np.maximum(freedom, 1), 0)  # below 0 only by rounding
    signal = (squares - windows * noise) / np.maximum(items, 1)
    ratios = np.full(len(sums), np.inf)
    np.divide(noise, signal, out=ratios, where=signal > 0)
    return ratios
