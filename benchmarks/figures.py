"""What every benchmark tells alike: a median with its spread, a table's line, the machine."""

import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and what most values lie between."""

    median: float
    low: float
    """The 10th percentile; the smallest of fewer than ten values."""
    high: float
    """The 90th percentile; the largest of fewer than ten values."""

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


def spread(values: Sequence[float]) -> Spread:
    """Return the median of some values, and their 10th and 90th percentile."""
    if len(values) < 10:
        return Spread(statistics.median(values), min(values), max(values))
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return Spread(statistics.median(values), tenths[0], tenths[-1])


def line(fields: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(fields)} |"


def cpu() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    names = [
        each.partition(":")[2].strip()
        for each in (info.read_text().splitlines() if info.exists() else ())
        if each.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()


def progress(text: str) -> None:
    """Show where a measurement is, if somebody can see it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
