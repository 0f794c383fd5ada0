"""Which micro-batch size and how many threads are fastest, found while training.

The window contract leaves both free: they change when a window is done, not what it gives. So each
try is a real update, and nothing is thrown away. Times are only compared with those of the windows
beside them, because a shared machine is twice as fast in one minute as in the next.
"""

import logging
import math
from collections.abc import Generator, Hashable, Iterable, Sequence
from statistics import median
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import nn

from cadence.data.batch import Batch, elements_per_sample, sample_count
from cadence.engine.device import set_threads
from cadence.engine.out_of_memory import MemoryLimit
from cadence.engine.threads import DefaultThreads

log = logging.getLogger(__name__)

Auto: TypeAlias = Literal["auto"]

GIVE_UP = 1.25
"""Two candidates in a row that take so many times as long as the best end the search on their side;
one alone may have met a slow moment."""

FIRST_ROUNDS = 3
"""Turns that each candidate takes with what there was before; the quickest counts."""

NEAR = 1.1
"""A candidate that takes less than so many times as long as the best goes into the last rounds."""

ROUNDS = 5
"""Last rounds, in which the candidates take turns with what there was before."""

GAIN = 0.03
"""The share of a window's time that a change must save, and that fewer threads may cost."""

TURN_SECONDS = 0.003
"""The least time that a candidate is measured for in its turn: a small window alone is noise."""


class Setting(NamedTuple):
    """What a window is run with."""

    microbatch_size: int | None
    """Samples per forward and backward; None = one mini-batch."""
    threads: int
    """Threads of an operation on the CPU."""

    def __str__(self) -> str:
        """Return it as a log names it."""
        size = "null" if self.microbatch_size is None else self.microbatch_size
        return f"microbatch_size={size} threads={self.threads}"


Search: TypeAlias = Generator[Setting, float, Setting]
"""Yields what to try next, is sent the seconds per sample it took, returns the fastest."""


class Tuner:
    """Chooses what each window is run with, and learns from the time that it took.

    Args:
        microbatch_size: Samples per forward and backward, at least 1; None = one mini-batch;
            ``auto`` = the fastest that fits.
        threads: Threads of an operation on the CPU, at least 1; None = by the work of a window, see
            `cadence.engine.threads`; ``auto`` = the fewest up to torch's number that are as fast as
            any.
        limit: What fits into memory.
    """

    def __init__(
        self, microbatch_size: int | Auto | None, threads: int | Auto | None, limit: MemoryLimit
    ) -> None:
        self._tunes_size = microbatch_size == "auto"
        self._tunes_threads = threads == "auto"
        self.default_threads = DefaultThreads() if threads is None else None
        """The threads of an operation by its work; None = the caller named them, or ``auto``."""
        self._limit = limit
        self._start = Setting(
            microbatch_size if isinstance(microbatch_size, int) else None,
            threads if isinstance(threads, int) else torch.get_num_threads(),
        )
        self._chosen: dict[Hashable, Setting] = {}
        self._trials: dict[Hashable, _Trial | None] = {}  # None = to begin anew
        self._condition: Hashable = None
        self._trial: _Trial | None = None
        self.setting = self._start
        """What the last window was run with, or the first will be."""

    @property
    def is_searching(self) -> bool:
        """Whether what suits windows like the last is still being looked for."""
        return self._condition in self._trials

    def begin(self, model: nn.Module) -> None:
        """Take a model that the windows are for."""
        if self.default_threads is not None:
            self.default_threads.take(model)

    def keep_minibatches(self) -> None:
        """Try no other micro-batch size than one mini-batch."""
        self._tunes_size = False

    def choose(self, window: Sequence[Batch], step_size: int) -> Setting:
        """Return what to run a window with, and set torch's threads to it.

        Args:
            window: The mini-batches of one update.
            step_size: Mini-batches per update; a window of fewer says nothing about the others.
        """
        self._refusals = self._limit.refusals
        self.setting = self._next(window, step_size)
        set_threads(self.setting.threads)
        return self.setting

    def took(self, seconds: float, samples: int) -> None:
        """Learn from the window that was last chosen for.

        Args:
            seconds: The time it took, update included.
            samples: The samples in it.
        """
        if self._limit.refusals != self._refusals:
            self._trials = dict.fromkeys(self._trials)  # what fits has changed
        elif self._trial is not None and (found := self._trial.took(seconds, samples)) is not None:
            self._chosen[self._condition] = found
            del self._trials[self._condition]
            self._trial = None
            log.info("auto: %s is the fastest", found)

    def _next(self, window: Sequence[Batch], step_size: int) -> Setting:
        self._trial = None
        start = self._start_of(window)
        if not (self._tunes_size or self._tunes_threads):
            return start
        # Inputs of other lengths may come in turns: each search goes on where it was left.
        self._condition = step_size, elements_per_sample(window).bit_length()
        if self._condition in self._chosen:
            return self._chosen[self._condition]
        if len(window) < step_size:
            return start
        self._trial = self._trials.get(self._condition) or _Trial(self._searching(window, start))
        self._trials[self._condition] = self._trial
        return self._trial.setting

    def _start_of(self, window: Sequence[Batch]) -> Setting:
        """Return what a window is run with as long as nothing was measured."""
        if self.default_threads is None:
            return self._start
        size = self._start.microbatch_size
        return Setting(size, self.default_threads.for_window(window, size))

    def _searching(self, window: Sequence[Batch], start: Setting) -> Search:
        best = start
        if self._tunes_size:
            best = best._replace(microbatch_size=self._limit.within(window, None))
            ladders = [
                [best._replace(microbatch_size=size) for size in sizes if self._fits(window, size)]
                for sizes in _sizes(window, best.microbatch_size)
            ]
            ratios = yield from _compared(best, ladders, settle=0)
            fastest = min(ratios, key=ratios.__getitem__)
            best = fastest if ratios[fastest] < 1 - GAIN else best
        if self._tunes_threads:
            fewer = [best._replace(threads=count) for count in _halves(best.threads)]
            # Threads that were just started or let go disturb the window they are used in.
            ratios = yield from _compared(best, [fewer], settle=1)
            # Fewer that are as fast: who else needs a core slows them down less.
            fast = [each for each in ratios if ratios[each] < (1 + GAIN) * min(ratios.values())]
            best = min(fast, key=lambda each: each.threads)
        return best

    def _fits(self, window: Sequence[Batch], size: int) -> bool:
        return self._limit.within(window, size) == size


class _Trial:
    """A search under way, and the turn of the setting that it is trying."""

    def __init__(self, search: Search) -> None:
        self._search = search
        self._seconds, self._samples = 0.0, 0
        self.setting = next(search)
        """What it is trying."""

    def took(self, seconds: float, samples: int) -> Setting | None:
        """Learn what a window took; return the fastest setting once it is found."""
        self._seconds += seconds
        self._samples += samples
        if self._seconds < TURN_SECONDS:
            return None
        taken = self._seconds / self._samples
        self._seconds, self._samples = 0.0, 0
        try:
            self.setting = self._search.send(taken)
        except StopIteration as end:
            found: Setting = end.value
            return found
        return None


def _compared(
    base: Setting, ladders: Iterable[Sequence[Setting]], settle: int
) -> Generator[Setting, float, dict[Setting, float]]:
    """Climb each ladder from the base while that pays, then let the best take turns.

    Returns:
        The time that each of the best takes, in times of the base's, which is among them.
    """
    ratios = {base: 1.0}
    for ladder in ladders:
        best, slow_in_a_row = 1.0, 0
        for candidate in ladder:
            rounds = yield from _rounds(base, [candidate], FIRST_ROUNDS, settle)
            ratios[candidate] = min(rounds[candidate]) / min(rounds[base])
            best = min(best, ratios[candidate])
            slow_in_a_row = slow_in_a_row + 1 if ratios[candidate] > GIVE_UP * best else 0
            if slow_in_a_row == 2:
                break
    log.info("auto: %s", ", ".join(f"{each} {ratio:.2f}x" for each, ratio in ratios.items()))
    del ratios[base]
    limit = NEAR * min([1.0, *ratios.values()])
    last = [candidate for candidate, ratio in ratios.items() if ratio < limit]
    rounds = yield from _rounds(base, last, ROUNDS, settle)
    compared = {base: 1.0}
    for each in last:
        compared[each] = median(map(lambda one, other: one / other, rounds[each], rounds[base]))
    return compared


def _rounds(
    base: Setting, candidates: Sequence[Setting], count: int, settle: int
) -> Generator[Setting, float, dict[Setting, list[float]]]:
    """Let the candidates and the base take turns; return each one's seconds per sample."""
    seconds: dict[Setting, list[float]] = {each: [] for each in (*candidates, base)}
    for _ in range(count if candidates else 0):
        for each, taken in seconds.items():
            for _ in range(settle):
                yield each
            taken.append((yield each))
    return seconds


def _sizes(window: Sequence[Batch], fits: int | None) -> tuple[list[int], list[int]]:
    """Return the sizes above a mini-batch, up to the whole window, and those below it."""
    minibatch = max(map(sample_count, window))
    if fits is not None:
        return [], _halves(fits)
    most = minibatch * len(window)
    doublings = range(1, math.ceil(math.log2(len(window))) + 1)
    return [min(minibatch << times, most) for times in doublings], _halves(minibatch)


def _halves(number: int) -> list[int]:
    return [number >> times for times in range(1, number.bit_length())]
