"""What a run tells as it goes, and what it came to."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch

from cadence.engine.noise_scale import NoiseScale
from cadence.engine.update import Outcome
from cadence.metrics.evaluation import Evaluation
from cadence.metrics.memory import PeakMemory
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


@runtime_checkable
class Observer(Protocol):
    """Whoever wants to see a run as it goes: a tracker, a progress bar."""

    def window(self, clock: Clock, outcome: Outcome) -> None:
        """See a window that has just ended; called once per window, so it must be quick."""

    def evaluation(self, clock: Clock, result: "Result") -> None:
        """See what the run came to so far, after an evaluation has just ended."""


@dataclass(frozen=True, slots=True)
class Result:
    """What a run came to."""

    step_size: int
    """Mini-batches per update, as last set; of several processes, this one's (process 0's in
    summary.json)."""
    microbatch_size: int | None
    """Samples per forward and backward; None = one mini-batch."""
    updates: int
    """Updates applied."""
    updates_skipped: int
    """Updates refused or without any item."""
    samples: int
    """Samples trained on."""
    items: int
    """Items trained on."""
    minibatches: int
    """Mini-batches trained on, all processes together."""
    train_loss: float
    """Mean over the items of the applied updates of the last epoch begun; NaN without any."""
    val_loss: float
    """Mean over the validation items after the last update; NaN without validation data."""
    val_metrics: dict[str, float]
    """The objective's further validation means, such as ``accuracy``."""
    samples_per_second: float
    """Median over the windows; see `cadence.metrics.timing.Throughput`."""
    samples_per_second_p10: float
    samples_per_second_p90: float
    time: WindowTime
    """Where the time of a window goes."""
    peak_memory_mib: float
    """Most memory taken, counted from the start of the run; see
    `cadence.metrics.memory.PeakMemory`."""
    seconds: float
    """Wall time of the whole run, evaluations included."""
    device: str
    noise_scale: float | None = None
    """An estimate of the gradient noise scale, in items; see `cadence.engine.noise_scale`. None =
    none was asked for, NaN = unknown, infinite = larger than the windows can tell."""
    noise_scale_low: float | None = None
    """The lower end of its interval at `cadence.engine.noise_scale.LEVEL`."""
    noise_scale_high: float | None = None
    """The upper end; infinite = the windows set no bound."""


class Record:
    """Keeps what a run came to so far, and shows it to the observers.

    Args:
        device: Where the run computes.
        observers: Who is shown.
        memory: Measures the run's peak, which others begin.
        noise: Estimates the gradient noise scale, which others feed; None = nothing does.
    """

    def __init__(
        self,
        device: torch.device,
        observers: Sequence[Observer],
        memory: PeakMemory,
        noise: NoiseScale | None = None,
    ) -> None:
        self._device = device
        self._noise = noise
        self._observers = observers
        self._memory = memory
        self._started = perf_counter()
        self._stopwatch = Stopwatch()
        self._parts = PartTimer(device)
        self._evaluation: Evaluation | None = None
        self._evaluated_at: int | None = None
        self._best_loss = math.inf
        self._best_at: int | None = None
        self._before = _Before()
        self.evaluations_in_vain = 0
        """Evaluations since the lowest validation loss."""
        self._windows = self._items = 0
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

    def window(self, clock: Clock, samples: int, items: int, outcome: Outcome) -> float:
        """Take in a window that has just ended, and return the seconds it took.

        ``clock`` already counts it.
        """
        seconds = self._stopwatch.window(samples)
        self._parts.window(samples)
        self._windows += 1
        if outcome.applied:
            self._items += items
            self._total_loss += outcome.loss * items
        for observer in self._observers:
            observer.window(clock, outcome)
        return seconds

    def evaluation(self, clock: Clock, evaluation: Evaluation) -> None:
        """Take in an evaluation that has just ended; its time counts for no window."""
        self._evaluation = evaluation
        self._evaluated_at = clock.samples
        self.evaluations_in_vain += 1
        if evaluation.loss < self._best_loss:
            self._best_loss, self._best_at = evaluation.loss, clock.samples
            self.evaluations_in_vain = 0

    def show(self, clock: Clock, result: Result) -> None:
        """Show the observers what the run came to so far."""
        for observer in self._observers:
            observer.evaluation(clock, result)
        self.resume()

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

    def end_epoch(self, clock: Clock) -> None:
        """Refuse an epoch without a mini-batch: the run would never end.

        Raises:
            ValueError: There was none.
        """
        if self._windows == 0:
            raise ValueError(
                f"the training data gave no mini-batch after {clock.samples} samples; is it empty, "
                "or a generator that can be read once? Give a DataLoader, or another iterable "
                "that starts anew each epoch"
            )

    def result(self, clock: Clock, step_size: int, microbatch_size: int | None) -> Result:
        """Return what the run came to."""
        throughput = self._throughput()
        evaluation = self._evaluation
        noise_scale, low, high = self._noise.estimate() if self._noise else (None, None, None)
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
            noise_scale=noise_scale,
            noise_scale_low=low,
            noise_scale_high=high,
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
            "evaluations_in_vain": self.evaluations_in_vain,
            "seconds": perf_counter() - self._started + self._before.seconds,
            "peak_memory_mib": max(self._memory.mib(), self._before.peak_memory_mib),
            "throughput": asdict(self._throughput()),
            "throughput_windows": max(self._stopwatch.windows, self._before.windows),
            "time": asdict(self._time()),
            "noise_scale": self._noise and self._noise.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._windows, self._items = state["windows"], state["items"]
        self._total_loss = state["total_loss"]
        self._evaluation = state["evaluation"] and Evaluation(**state["evaluation"])
        self._evaluated_at = state["evaluated_at"]
        self._best_loss, self._best_at = state["best_loss"], state["best_at"]
        self.evaluations_in_vain = state["evaluations_in_vain"]
        self._before = _Before(
            state["seconds"],
            state["peak_memory_mib"],
            Throughput(**state["throughput"]),
            WindowTime(**state["time"]) if "time" in state else UNTIMED,  # older ones have none
            state.get("throughput_windows", 0),
        )
        if self._noise and state.get("noise_scale"):
            self._noise.restore(state["noise_scale"])


class _Before(NamedTuple):
    """What a run measured before it was interrupted."""

    seconds: float = 0.0
    peak_memory_mib: float = 0.0
    throughput: Throughput = UNKNOWN
    time: WindowTime = UNTIMED
    windows: int = 0
    """Those that throughput and time are of."""
