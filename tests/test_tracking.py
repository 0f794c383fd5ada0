"""What MLflow holds after a run, read back through MLflow's own client."""

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from conftest import ROOT, CommandLine
from mlflow.entities import Run

from cadence.clock import Clock
from cadence.track import Tracker
from cadence.update import Outcome


def the_run(uri: str, folder: Path) -> Run:
    summary = json.loads((folder / "run" / "summary.json").read_text())
    return mlflow.MlflowClient(uri).get_run(summary["mlflow_run_id"])


def test_a_run_carries_its_config_origin_and_numbers_by_samples_seen(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    ended = command(
        "trainer.step_size=4", "trainer.max_epochs=2", f"track.uri={tracking_uri}", "track.every=1"
    )
    assert ended.returncode == 0, ended.stderr
    client = mlflow.MlflowClient(tracking_uri)
    run = the_run(tracking_uri, tmp_path)

    assert run.info.status == "FINISHED"
    assert run.info.run_name == "step_size=4 digits mlp"
    experiment = client.get_experiment(run.info.experiment_id)
    assert experiment.name == "cadence"
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"

    params = run.data.params
    assert params["trainer.step_size"] == "4"
    assert params["data.batch_size"] == "32"
    assert params["optimizer.betas"] == "[0.9, 0.999]"
    assert params["trainer.clip_norm"] == "null"
    assert params["seed"] == "0"

    losses = client.get_metric_history(run.info.run_id, "train/loss")
    windows_of_an_epoch = [*range(128, 1409, 128), 1437]
    assert [point.step for point in losses] == [
        *windows_of_an_epoch,
        *(1437 + samples for samples in windows_of_an_epoch),
    ]
    assert [point.step for point in client.get_metric_history(run.info.run_id, "val/loss")] == [
        1437,
        2874,
    ]
    last = run.data.metrics
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert last["train/updates"] == summary["updates"] == 24
    assert last["val/loss"] == summary["val_loss"]
    assert last["val/accuracy"] == summary["val_accuracy"]
    assert last["throughput/samples_per_second"] == summary["samples_per_second"]
    assert last["memory/peak_mib"] == summary["peak_memory_mib"]
    assert last["train/lr"] == 0.001
    assert last["train/grad_norm"] > 0
    assert any(name.startswith("system/") for name in last)

    tags = run.data.tags
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert tags["mlflow.source.git.commit"] == commit
    assert tags["cadence.run_folder"] == str(tmp_path / "run")
    files = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert files == {"config.yaml", "environment.json", "summary.json"}


def test_a_failing_run_is_failed_in_mlflow_with_its_reason(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    ended = command(
        "optimizer=sgd", "optimizer.lr=1e30", "trainer.max_skipped=0", f"track.uri={tracking_uri}"
    )

    assert ended.returncode == 1
    run = the_run(tracking_uri, tmp_path)
    assert run.info.status == "FAILED"
    assert run.data.tags["cadence.reason"].startswith("DivergedError: samples=")


def tracker(uri: str, every: int = 1) -> Tracker:
    return Tracker(uri, "tracker", "a run", params={}, tags={}, texts={}, every=every)


def test_an_interrupt_marks_the_run_killed(tracking_uri: str) -> None:
    tracked = tracker(tracking_uri)
    with pytest.raises(KeyboardInterrupt), tracked:
        raise KeyboardInterrupt

    assert mlflow.MlflowClient(tracking_uri).get_run(tracked.run_id).info.status == "KILLED"


def test_points_are_thinned_by_samples_and_keep_the_first_and_the_last_window(
    tracking_uri: str,
) -> None:
    with tracker(tracking_uri, every=100) as tracked:
        for window in range(1, 33):
            tracked.window(Clock(samples=10 * window), Outcome(True, 1.0 / window, 1.0, 0.1))

    client = mlflow.MlflowClient(tracking_uri)
    points = client.get_metric_history(tracked.run_id, "train/loss")
    assert [point.step for point in points] == [10, 100, 200, 300, 320]
    assert points[-1].value == 1 / 32


def test_more_points_than_one_batch_all_arrive(tracking_uri: str) -> None:
    with tracker(tracking_uri) as tracked:
        for sample in range(1500):
            tracked.log(Clock(samples=sample), {"number": float(sample)})

    points = mlflow.MlflowClient(tracking_uri).get_metric_history(tracked.run_id, "number")
    assert [point.value for point in points] == list(range(1500))


def test_the_default_database_is_the_projects_wherever_the_command_starts(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "src.train", "--cfg", "job", "--resolve"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert f"uri: sqlite:///{ROOT}/mlruns/mlflow.db" in shown
