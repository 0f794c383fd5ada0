"""A run's numbers in its own folder: a file that only grows, one JSON object a line.

Whatever becomes of a server, the points are here. The file outlives the process, kill -9 included,
but for the last second; it is not forced to the disk, so not the machine's fall.
"""

import json
import math
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from cadence.system.locks import taken

FILE = "metrics.jsonl"

BUFFERED = 1000
"""Points that wait in memory at most: whoever logs one more writes them all to the file."""


class LoggedMetric(NamedTuple):
    """One number of a run."""

    key: str
    value: float
    """Any float; in the file NaN and the infinities are the words that `float` reads."""
    step: int
    """Samples seen."""
    timestamp: int
    """Milliseconds since 1970."""


class MetricsFile:
    """The points of one run, kept in its folder; no other process can open it meanwhile.

    Any thread may call any method. A line that was cut off by the death of its process is removed
    on opening.

    Args:
        folder: The run's folder; it is made.

    Raises:
        ValueError: Another process, or another metrics file of this one, is at work there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        in_use = f"{folder}: its run is still going on, or being delivered; wait for it"
        self._lock = taken(folder / ".tracking.lock", in_use)
        self._file = folder / FILE
        self._out = self._file.open("ab", buffering=0)
        self._buffer: list[LoggedMetric] = []
        self._buffering, self._writing = threading.Lock(), threading.Lock()
        self._held: dict[str, int] = {}
        self.size = _complete_lines(self._file)
        """Bytes of whole lines in the file."""
        if self.size < self._file.stat().st_size:
            self._out.truncate(self.size)

    @property
    def waiting(self) -> int:
        """Points that are in memory alone; at most `BUFFERED`."""
        return len(self._buffer)

    def clear(self) -> None:
        """Forget every point in the file."""
        self._out.truncate(0)
        self.size = 0

    def rewind(self, samples: int, *, keep: int) -> None:
        """Go back to a number of samples, from where the same points are about to come again.

        Points after it are dropped, except those that a server may hold: they stay, and for each
        key the file passes over what comes again up to the last step that it holds.

        Args:
            samples: The last step that stands.
            keep: Bytes from the file's start that stay, whatever their steps.

        Raises:
            ValueError: A line of the file is damaged; the message says which and what to do.
        """
        part = self._file.with_suffix(".jsonl.part")
        end = 0
        with self._file.open("rb") as lines, part.open("wb") as kept:
            for line in lines:
                end += len(line)
                point = _parsed(line, self._file)
                if end <= keep or point.step <= samples:
                    kept.write(line)
                    self._held[point.key] = max(point.step, self._held.get(point.key, 0))
        self._out.close()
        part.replace(self._file)
        self._out = self._file.open("ab", buffering=0)
        self.size = self._file.stat().st_size

    def append(self, points: Iterable[LoggedMetric], *, again: bool = False) -> None:
        """Take in points; they are in the file after the next `flush`.

        Args:
            points: In the order of their steps, key by key.
            again: Whether a point at the last step that the file held on `rewind` is wanted beside
                the one it holds, as a newer measurement. Earlier steps never are.

        Raises:
            OSError: `BUFFERED` points wait and the file takes none; they are still there.
        """
        if self._held:
            points = [p for p in points if p.step + again > self._held.get(p.key, -1)]
        with self._buffering:
            self._buffer += points
            full = len(self._buffer) >= BUFFERED
        if full:
            self.flush()

    def flush(self) -> None:
        """Write what waits to the file.

        Raises:
            OSError: The file took it not, or not whole; nothing of it is in the file, and it waits.
        """
        with self._writing:
            with self._buffering:
                points = list(self._buffer)
            self._write(b"".join(map(_line, points)))
            with self._buffering:
                del self._buffer[: len(points)]

    def _write(self, lines: bytes) -> None:
        left = memoryview(lines)
        try:
            while left:
                left = left[self._out.write(left) :]
        except OSError as error:
            self._out.truncate(self.size)
            raise OSError(error.errno, error.strerror, str(self._file)) from error
        self.size += len(lines)

    def read(self, start: int, limit: int) -> tuple[list[LoggedMetric], int]:
        """Return points of the file in their order, and where the next one begins.

        Args:
            start: The byte at which a line begins.
            limit: Points wanted, at least 1.

        Raises:
            ValueError: A line of them is damaged; the message says which and what to do.
        """
        points: list[LoggedMetric] = []
        end = self.size
        with self._file.open("rb") as lines:
            lines.seek(start)
            while start < end and len(points) < limit:
                line = lines.readline()
                points.append(_parsed(line, self._file))
                start += len(line)
        return points, start

    def close(self) -> None:
        """Let others open the metrics file; what waits in memory is lost."""
        self._out.close()
        self._lock.release()


def _complete_lines(file: Path) -> int:
    """Return the bytes up to the end of a file's last whole line."""
    with file.open("rb") as lines:
        end = lines.seek(0, 2)
        while end > 0:
            start = max(0, end - 4096)
            lines.seek(start)
            newline = lines.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def _line(point: LoggedMetric) -> bytes:
    fields: dict[str, Any] = point._asdict()
    if not math.isfinite(point.value):
        fields["value"] = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(point.value)]
    return json.dumps(fields).encode() + b"\n"


def _parsed(line: bytes, file: Path) -> LoggedMetric:
    try:
        held = json.loads(line)
        return LoggedMetric(held["key"], float(held["value"]), held["step"], held["timestamp"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: a line holds no number of a run: {line[:60]!r}; take it out, the others stand"
        ) from error
