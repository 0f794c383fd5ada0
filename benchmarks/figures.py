"""What every benchmark prints with its numbers: their spread, and what they depend on."""

import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cadence.tracking.provenance import git_tags

ROOT = Path(__file__).resolve().parents[1]


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


def conditions(packages: Sequence[str] = ("torch",), **more: Any) -> dict[str, Any]:
    """Return what numbers depend on, by name.

    Args:
        packages: Those whose versions matter.
        more: What else does.
    """
    return {
        "CPU": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "C library": " ".join(platform.libc_ver()),
        "commit": git_tags(ROOT).get("mlflow.source.git.commit", "none")[:12],
        **more,
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def said(facts: Mapping[str, Any]) -> str:
    """Return conditions in a line."""
    return "; ".join(f"{name} {value}" for name, value in facts.items())


def progress(text: str) -> None:
    """Show where a measurement is, if somebody can see it."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = [
        each.partition(":")[2].strip()
        for each in (info.read_text().splitlines() if info.exists() else ())
        if each.startswith("model name")
    ]
    return names[0] if names else platform.processor() or platform.machine()
