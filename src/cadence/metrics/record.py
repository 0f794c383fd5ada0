"""What a run came to so far, kept while the run goes on."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import torch

from cadence.metrics.evaluation import Evaluation
from cadence.metrics.memory import PeakMemory
from cadence.metrics.result import Result, Window
from cadence.metrics.timing import (
    UNKNOWN,
    UNTIMED,
    PartTimer,
    Stopwatch,
    Throughput,
    WindowParts,
    WindowTime,
)
from cadence.plan.clock import Clock

T = TypeVar("T")


class Record:
    """Keeps what a run came to so far.

    Args:
        device: Where the run computes.
        memory: Measures the run's peak.
    """

    def __init__(self, device: torch.device, memory: PeakMemory) -> None:
        self._device = device
        self._memory = memory
        self._started = perf_counter()
        self._stopwatch = Stopwatch()
        self._parts = PartTimer(device)
        self._evaluation: Evaluation | None = None
        self._evaluated_at: int | None = None
        self._best_loss = math.inf
        self._best_at: int | None = None
        self._before = _Before()
        self.evaluations_since_best = 0
        """Evaluations since the lowest validation loss."""
        self._windows = 0
        self._items: float = 0
        self._total_loss = 0.0

    def begin_epoch(self, clock: Clock) -> None:
        """Start the means of an epoch anew, unless the run goes on within it."""
        if clock.batches_of_epoch == 0:
            self._windows = self._items = 0
            self._total_loss = 0.0
        self.resume()

    def arriving(self, windows: Iterator[T]) -> Iterator[T]:
        """Yield the windows of an epoch as they come, and time how long each is waited for."""
        return self._parts.arriving(windows)

    def computed(self, waited: float) -> None:
        """Take in that the window's forward and backward have just ended.

        Args:
            waited: The seconds of it that were spent on other processes.
        """
        self._parts.computed(waited)

    def window(self, window: Window) -> float:
        """Take in a window that has just ended, and return the seconds that it took."""
        seconds = self._stopwatch.window(window.samples)
        self._parts.window(window.samples)
        self._windows += 1
        if window.applied:
            self._items += window.items
            self._total_loss += window.loss * window.items
        return seconds

    def evaluation(self, clock: Clock, evaluation: Evaluation) -> None:
        """Take in an evaluation that has just ended; its time counts for no window."""
        self._evaluation = evaluation
        self._evaluated_at = clock.samples
        self.evaluations_since_best += 1
        if evaluation.loss < self._best_loss:
            self._best_loss, self._best_at = evaluation.loss, clock.samples
            self.evaluations_since_best = 0

    def resume(self) -> None:
        """Start the next window's time now: what came before it is not its own."""
        self._stopwatch.resume()
        self._parts.resume()

    def has_evaluated(self, clock: Clock) -> bool:
        """Return whether the model was evaluated as it is now."""
        return self._evaluated_at == clock.samples

    def is_best(self, clock: Clock) -> bool:
        """Return whether the model as it is now has the lowest validation loss so far."""
        return self._best_at == clock.samples

    def result(
        self,
        clock: Clock,
        step_size: int,
        microbatch_size: int | None,
        reported: Mapping[str, float],
    ) -> Result:
        """Return what the run came to."""
        throughput = self._throughput()
        evaluation = self._evaluation
        return Result(
            step_size=step_size,
            microbatch_size=microbatch_size,
            updates=clock.updates,
            updates_skipped=clock.updates_skipped,
            samples=clock.samples,
            items=clock.items,
            minibatches=clock.batches,
            train_loss=self._total_loss / self._items if self._items else math.nan,
            val_loss=math.nan if evaluation is None else evaluation.loss,
            val_metrics={} if evaluation is None else evaluation.metrics,
            samples_per_second=throughput.samples_per_second,
            samples_per_second_p10=throughput.p10,
            samples_per_second_p90=throughput.p90,
            time=self._time(),
            peak_memory_mib=max(self._memory.mib(), self._before.peak_memory_mib),
            seconds=self._stopwatch.mark - self._started + self._before.seconds,
            device=str(self._device),
            reported=dict(reported),
        )

    def windows(self) -> WindowParts:
        """Return the time of each window so far, by its parts."""
        return self._parts.windows()

    def _throughput(self) -> Throughput:
        """Return the throughput of this session, or of an earlier one that had more windows."""
        here = None if self._is_shorter() else self._stopwatch.throughput()
        return here or self._before.throughput

    def _time(self) -> WindowTime:
        here = None if self._is_shorter() else self._parts.medians()
        return here or self._before.time

    def _is_shorter(self) -> bool:
        return self._stopwatch.windows < self._before.windows

    def state(self) -> dict[str, Any]:
        """Return what a run that goes on needs to know, as plain values."""
        return {
            "windows": self._windows,
            "items": self._items,
            "total_loss": self._total_loss,
            "evaluation": self._evaluation and asdict(self._evaluation),
            "evaluated_at": self._evaluated_at,
            "best_loss": self._best_loss,
            "best_at": self._best_at,
            "evaluations_in_vain": self.evaluations_since_best,
            "seconds": perf_counter() - self._started + self._before.seconds,
            "peak_memory_mib": max(self._memory.mib(), self._before.peak_memory_mib),
            "throughput": asdict(self._throughput()),
            "throughput_windows": max(self._stopwatch.windows, self._before.windows),
            "time": asdict(self._time()),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._windows, self._items = state["windows"], state["items"]
        self._total_loss = state["total_loss"]
        self._evaluation = state["evaluation"] and Evaluation(**state["evaluation"])
        self._evaluated_at = state["evaluated_at"]
        self._best_loss, self._best_at = state["best_loss"], state["best_at"]
        self.evaluations_since_best = state["evaluations_in_vain"]
        self._before = _Before(
            state["seconds"],
            state["peak_memory_mib"],
            Throughput(**state["throughput"]),
            WindowTime(**state["time"]) if "time" in state else UNTIMED,  # older ones have none
            state.get("throughput_windows", 0),
        )


class _Before(NamedTuple):
    """What a run measured before it was interrupted."""

    seconds: float = 0.0
    peak_memory_mib: float = 0.0
    throughput: Throughput = UNKNOWN
    time: WindowTime = UNTIMED
    windows: int = 0
    """Those that throughput and time are of."""
