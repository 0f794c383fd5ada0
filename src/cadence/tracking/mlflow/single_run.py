"""A run in MLflow that is written at once: what a command found out, without training."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from mlflow.entities import Metric, Param

from cadence.system.secrets import redacted
from cadence.tracking.metrics_logger import milliseconds
from cadence.tracking.mlflow.client import experiment_id, open_client, refused
from cadence.tracking.mlflow.names import BATCH, can_be_named, param_text
from cadence.tracking.mlflow.sweep_runs import new_run


def note(
    uri: str,
    experiment: str,
    name: str,
    *,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    files: Sequence[Path],
) -> str:
    """Write a finished run, and return its id.

    Args:
        uri: MLflow's tracking URI.
        experiment: The experiment's name; it is made if it is not there.
        name: How the UI calls the run.
        params: What was asked, by name.
        metrics: What was found, by name.
        tags: What else to say of it.
        files: Kept as artifacts.

    Raises:
        ValueError: Nothing answers at ``uri``, or MLflow cannot log there.
    """
    client = open_client(uri)
    with refused(uri):
        run_id = new_run(client, experiment_id(client, uri, experiment), name, dict(tags))
        now = milliseconds()
        told = [
            Param(key, redacted(param_text(value)))
            for key, value in params.items()
            if can_be_named(key, "param")
        ]
        for start in range(0, len(told), BATCH):
            client.log_batch(run_id, params=told[start : start + BATCH])
        client.log_batch(run_id, [Metric(key, value, now, 0) for key, value in metrics.items()])
        for file in files:
            client.log_artifact(run_id, str(file))
        client.set_terminated(run_id)
    return run_id
