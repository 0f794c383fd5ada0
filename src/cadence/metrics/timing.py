"""How fast a run is, and where the time of its windows goes."""

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

T = TypeVar("T")

WARM_UP_SHARE = 0.1
"""The first windows left out of the throughput, as a share of all; at least one of several."""


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
