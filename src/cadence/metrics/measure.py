"""What a run is measured by: throughput, where its time goes, peak memory, evaluation."""

import contextlib
import resource
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from cadence.data.batch import Batch, moved, sample_count
from cadence.engine.accumulation import wide
from cadence.engine.device import restored_threads, set_threads
from cadence.engine.out_of_memory import MemoryLimit, in_parts
from cadence.engine.threads import DefaultThreads
from cadence.objectives import Objective, ReportsTotals, items_in
from cadence.system.malloc import give_back

T = TypeVar("T")

WARM_UP_SHARE = 0.1
"""The first windows left out of the throughput, as a share of all; at least one of several."""

MIB = 2**20

STATUS = Path("/proc/self/status")
"""What Linux tells of this process."""


@dataclass(frozen=True, slots=True)
class Throughput:
    """Samples per second over whole windows, optimizer step included."""

    samples_per_second: float
    """The median window."""
    p10: float
    """The window that is faster than one in ten."""
    p90: float
    """The window that is faster than nine in ten."""


UNKNOWN = Throughput(np.nan, np.nan, np.nan)
"""The throughput of a run without a window."""


class Stopwatch:
    """Times windows end to end: gathering, forward, backward, update, and what is between them."""

    def __init__(self) -> None:
        self._samples = array("d")
        self._seconds = array("d")
        self.mark = perf_counter()
        """When the present window began, or the last ended: seconds of ``time.perf_counter``."""

    def resume(self) -> None:
        """Start the next window's time now: what came before it (an evaluation) is not its own."""
        self.mark = perf_counter()

    def window(self, samples: int) -> float:
        """End a window of that many samples, start the next, and return the seconds it took.

        The device has nothing left to do but the optimizer's step, whose tail falls to the next
        window: the update has just read the loss from it.
        """
        now = perf_counter()
        self._samples.append(samples)
        seconds = now - self.mark
        self._seconds.append(seconds)
        self.mark = now
        return seconds

    @property
    def windows(self) -> int:
        """The windows so far."""
        return len(self._seconds)

    def throughput(self) -> Throughput | None:
        """Return the throughput of the windows so far, without the warm-up; None before any."""
        count = len(self._seconds)
        if count == 0:
            return None
        first = warm_up(count)
        rates = np.divide(self._samples[first:], self._seconds[first:])
        p10, median, p90 = np.percentile(rates, (10, 50, 90)).tolist()
        return Throughput(median, p10, p90)


def warm_up(windows: int) -> int:
    """Return how many of the first of that many windows are left out of what is measured."""
    return min(windows - 1, max(1, int(windows * WARM_UP_SHARE)))


@dataclass(frozen=True, slots=True)
class WindowTime:
    """Where the time of a window goes: medians over a run's full windows, in milliseconds."""

    samples: float
    """In such a window."""
    data_ms: float
    """Waiting for the window's mini-batches."""
    compute_ms: float
    """Forward and backward, of all its micro-batches."""
    sync_ms: float
    """Summing gradients over processes; 0 with one process."""
    update_ms: float
    """Clip, optimizer step, and all else that happens once a window."""


UNTIMED = WindowTime(np.nan, np.nan, np.nan, np.nan, np.nan)
"""The window time of a run without a window."""


class WindowParts(NamedTuple):
    """The parts of each of a run's windows, in their order; seconds but for the samples."""

    samples: np.ndarray
    data: np.ndarray
    compute: np.ndarray
    sync: np.ndarray
    update: np.ndarray

    @property
    def seconds(self) -> np.ndarray:
        """The windows' whole time."""
        whole: np.ndarray = self.data + self.compute + self.sync + self.update
        return whole

    def full(self) -> "WindowParts":
        """Return the full windows after the warm-up: those as large as the third quartile.

        The last window of an epoch may be shorter; its time is no other's.
        """
        first = warm_up(len(self.samples))
        least = np.percentile(self.samples[first:], 75, method="higher")
        return WindowParts(*(part[first:][self.samples[first:] >= least] for part in self))


class PartTimer:
    """Times the parts of windows, in the order in which they are marked.

    On a device that computes behind the host's back the marks are events in its own stream, so the
    parts are the device's: ``data`` is how long it had nothing to do. An event is read a window
    later, when the update has just waited for the loss, so that reading waits for nothing.

    Args:
        device: Where a window is computed.
    """

    def __init__(self, device: torch.device) -> None:
        self._mark: Callable[[], Any] = perf_counter
        self._seconds: Callable[[Any, Any], float] = _difference
        self._ended: Callable[[Any], None] = _has_ended
        if device.type != "cpu":
            kind = torch.get_device_module(device).Event
            self._mark = lambda: _recorded(kind(enable_timing=True))
            self._seconds = _between
            self._ended = kind.synchronize
        self._numbers = array("d")
        self._unread: tuple[Any, ...] | None = None
        self.resume()

    def resume(self) -> None:
        """Start the next window's time now, as `Stopwatch.resume`."""
        self._began = self._mark()

    def arriving(self, windows: Iterable[T]) -> Iterator[T]:
        """Yield windows; how long each one is waited for is its ``data``."""
        arrivals = iter(windows)
        while True:
            self._waiting = self._mark()
            try:
                window = next(arrivals)
            except StopIteration:
                return
            self._gathered = self._mark()
            yield window

    def computed(self, waited: float) -> None:
        """End the window's forward and backward, and what it waited for other processes."""
        self._computed, self._waited = self._mark(), waited

    def window(self, samples: int) -> None:
        """End a window of that many samples with its update, and start the next."""
        ended = self._mark()
        self._read()
        marks = self._began, self._waiting, self._gathered, self._computed, ended
        self._unread = (samples, self._waited, *marks)
        self._began = ended

    def windows(self) -> WindowParts:
        """Return the parts of the windows so far."""
        self._read()
        return WindowParts(*np.array(self._numbers).reshape(-1, len(WindowParts._fields)).T)

    def medians(self) -> WindowTime | None:
        """Return the median parts of the windows so far, without the warm-up; None before any."""
        windows = self.windows()
        if len(windows.samples) == 0:
            return None
        samples, *seconds = (float(np.median(part)) for part in windows.full())
        return WindowTime(samples, *(1000 * part for part in seconds))

    def _read(self) -> None:
        if self._unread is None:
            return
        samples, waited, began, waiting, gathered, computed, ended = self._unread
        self._unread = None
        self._ended(ended)
        seconds = self._seconds
        between = seconds(began, waiting)  # observers, and what else follows on an update
        self._numbers.extend(
            (
                samples,
                seconds(waiting, gathered),
                seconds(gathered, computed) - waited,
                waited,
                between + seconds(computed, ended),
            )
        )


def _difference(start: float, end: float) -> float:
    return end - start


def _has_ended(mark: float) -> None:
    """Do nothing: the host's own time has come."""


def _recorded(event: Any) -> Any:
    event.record()
    return event


def _between(start: Any, end: Any) -> float:
    return float(start.elapsed_time(end)) / 1000


class PeakMemory:
    """The most memory a run takes, counted from where it begins.

    On CUDA it is what torch's allocator held; elsewhere the process's resident set above the start,
    in which what is built before (the model, the data in memory) does not count. Memory that an
    earlier run in the same process left to the allocator is given back first.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start: int | None = None

    def begin(self) -> None:
        """Count from here, unless the run has begun before."""
        if self._start is not None:
            return
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
        else:
            give_back()
            with contextlib.suppress(OSError):  # not Linux, or forbidden: the peak stays older
                Path("/proc/self/clear_refs").write_text("5")
            self._start = _peak_resident_bytes()

    def mib(self) -> float:
        """Return the peak since the run began, in MiB; 0 before."""
        if self._start is None:
            return 0.0
        if self._device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self._device)
        else:
            peak = _peak_resident_bytes()
        return (peak - self._start) / MIB


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model's means over held-out items."""

    loss: float
    """Mean loss per item; NaN without any item."""
    metrics: dict[str, float]
    """The objective's further means, such as ``accuracy``, by name."""
    samples: int
    items: int
    seconds: float


def evaluate(
    model: nn.Module,
    objective: Objective,
    minibatches: Iterable[Batch],
    device: torch.device,
    autocast: torch.dtype | None = None,
    limit: MemoryLimit | None = None,
    threads: DefaultThreads | None = None,
) -> Evaluation:
    """Return a model's means over all items of some mini-batches, in evaluation mode.

    Every module is back in its own mode afterwards.

    Args:
        model: The model, on ``device``.
        objective: What to count and sum.
        minibatches: The held-out data, read once.
        device: Where to compute.
        autocast: As in `cadence.accumulate`.
        limit: What is known to fit into memory; a mini-batch that does not is evaluated in parts,
            and the limit learns from it. None = nothing is known yet.
        threads: The threads of an operation by its work; None = as torch has them.

    Raises:
        ValueError: There is no mini-batch.
        DoesNotFitError: Not even one sample fits into memory.
    """
    start = perf_counter()
    limit = limit or MemoryLimit()
    training = [module for module in model.modules() if module.training]
    sums: dict[str, Tensor] = {}
    samples = items = 0
    totals_of = partial(_totals, objective, model, device)
    if threads is not None:
        threads.take(model)
    model.eval()
    try:
        # Not inference_mode: what a model keeps of a forward, such as a state or a cache, could be
        # used in no later training.
        with (
            restored_threads(),
            torch.no_grad(),
            torch.autocast(device.type, autocast, autocast is not None),
        ):
            for batch in minibatches:
                if threads is not None:
                    set_threads(threads.for_window((batch,), None))
                samples += sample_count(batch)
                items += items_in(objective, batch)
                for totals in in_parts(totals_of, batch, limit):
                    for name, total in totals.items():
                        sums[name] = sums.get(name, 0) + wide(total)
    finally:
        for module in training:
            module.training = True
    if samples == 0:
        raise ValueError(
            "the validation data gave no mini-batch; is it empty, or a generator that can be read "
            "once? Give a DataLoader, or another iterable that starts anew each time"
        )
    means = {name: float(total) / items if items else np.nan for name, total in sums.items()}
    loss = means.pop("loss", np.nan)
    return Evaluation(loss, means, samples, items, perf_counter() - start)


def _totals(
    objective: Objective, model: nn.Module, device: torch.device, batch: Batch
) -> dict[str, Tensor]:
    """Ask for an objective's totals; one that only has ``items`` and ``total_loss`` will do."""
    if items_in(objective, batch) == 0:
        return {}
    batch = moved(batch, device)
    if isinstance(objective, ReportsTotals):
        return objective.totals(model, batch)
    return {"loss": objective.total_loss(model, batch)}


def _peak_resident_bytes() -> int:
    if STATUS.exists():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):  # which some sandboxes' kernels do not tell
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
