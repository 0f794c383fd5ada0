"""A run's summary.json: what it came to, for people and programs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from cadence.metrics.result import Result
from cadence.system.atomic_write import write_atomically

FILE = "summary.json"

OPTIONAL = ("noise_scale", "noise_scale_low", "noise_scale_high")
"""What a callback reports where there is one; else null."""


def status_after(error: BaseException | None) -> str:
    """Return MLflow's word for how a run ended.

    Args:
        error: What ended the run; None means that nothing went wrong.
    """
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def write_summary(
    folder: Path,
    result: Result,
    *,
    effective_batch: int,
    step_sizes: Sequence[int],
    seed: int,
    mlflow_run_id: str | None,
    status: str,
) -> Path:
    """Write summary.json into a run's folder, whole or not at all.

    The names are those of `cadence.metrics.result.Result`, with each validation metric as
    ``val_NAME`` and each part of a window's time as ``time_NAME``; what is not a finite number is
    null.

    Args:
        folder: The run's folder.
        result: What the run came to.
        effective_batch: Items per full update, over all processes.
        step_sizes: Mini-batches per update of each process, as last set.
        seed: The run's seed.
        mlflow_run_id: Its run in MLflow; None = it was not tracked.
        status: FINISHED, FAILED or KILLED.

    Returns:
        The file.
    """
    values = asdict(result)
    metrics, time = values.pop("val_metrics"), values.pop("time")
    reported = dict.fromkeys(OPTIONAL) | values.pop("reported")
    summary: dict[str, Any] = values | {f"val_{name}": value for name, value in metrics.items()}
    summary |= reported
    summary |= {f"time_{name}": value for name, value in time.items()}
    summary |= {"effective_batch": effective_batch, "seed": seed}
    summary |= {"processes": len(step_sizes), "step_sizes": list(step_sizes)}
    summary |= {"mlflow_run_id": mlflow_run_id, "status": status}
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in summary.items()
    }
    return _write(folder, finite)


def mark_ended(folder: Path, *, seed: int, mlflow_run_id: str | None, status: str) -> Path:
    """Say in a run's summary.json how it ended, where the process that knew more is gone.

    What an earlier session wrote stays; without one, all that is not known is null.

    Args:
        folder: The run's folder.
        seed: As in `write_summary`, and so are the others.
        mlflow_run_id: Its run in MLflow.
        status: FAILED or KILLED.

    Returns:
        The file.
    """
    file = folder / FILE
    names = {field.name for field in fields(Result)} - {"val_metrics", "reported"}
    unknown = dict.fromkeys([*sorted(names), *OPTIONAL])
    known = read_summary(file) if file.exists() else unknown
    return _write(folder, known | {"seed": seed, "mlflow_run_id": mlflow_run_id, "status": status})


def _write(folder: Path, summary: Mapping[str, Any]) -> Path:
    file = folder / FILE
    write_atomically(file, json.dumps(summary, indent=2) + "\n")
    return file


def read_summary(file: Path) -> dict[str, Any]:
    """Return a summary.json; null is None."""
    found: dict[str, Any] = json.loads(file.read_text())
    return found
