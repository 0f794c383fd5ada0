"""A run's points: told by a tracker, as its folder has them and as MLflow has them."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlflow

from cadence.tracking.metrics_file import FILE, LoggedMetric
from cadence.tracking.mlflow.tracker import Tracker

LARGEST = 1.7976931348623157e308
"""What MLflow's store has for infinity."""


def tracker(uri: str, folder: Path, *, every: int = 1, **more: Any) -> Tracker:
    """Return a tracker of a run without params, tags and texts but those that are given."""
    given = {"params": {}, "tags": {}, "texts": {}, **more}
    return Tracker(uri, "tests", "a run", folder=folder, every=every, **given)


def in_the_folder(folder: Path) -> list[LoggedMetric]:
    """Return the points in a run's folder, in order."""
    lines = (folder / FILE).read_text().splitlines()
    return in_order(LoggedMetric(**json.loads(line)) for line in lines)


def in_mlflow(uri: str, run_id: str | None) -> list[LoggedMetric]:
    """Return the points of a run in MLflow, in order."""
    assert run_id is not None
    client = mlflow.MlflowClient(uri)
    return in_order(
        LoggedMetric(one.key, one.value, one.step, one.timestamp)
        for key in client.get_run(run_id).data.metrics
        for one in client.get_metric_history(run_id, key)
    )


def in_order(points: Iterable[LoggedMetric]) -> list[LoggedMetric]:
    alike = [point._replace(value=comparable(float(point.value))) for point in points]
    return sorted(alike, key=lambda point: (point.key, point.step, point.timestamp, point.value))


def comparable(value: float) -> float:
    """Return a value as MLflow stores it, and NaN as a number that equals itself."""
    return -0.125 if math.isnan(value) else max(-LARGEST, min(LARGEST, value))
