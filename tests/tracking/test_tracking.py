"""What MLflow holds after a run, read back through MLflow's own client."""

import json
import math
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
from conftest import ROOT, CommandLine
from mlflow.entities import Run
from told import in_mlflow, in_the_folder, tracker

from cadence.engine.update import Outcome
from cadence.plan.clock import Clock
from cadence.tracking.mlflow.tracker import Tracker
from cadence.tracking.run_file import FILE, RunFile, UploadState


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
    for part in ("data", "compute", "sync", "update"):
        assert last[f"time/{part}_ms"] == summary[f"time_{part}_ms"]
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


def test_a_schedule_of_step_size_and_the_noise_scale_are_told_everywhere(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    ended = command(
        *("trainer.step_size={0: 2, 1000: 8}", "trainer.noise_scale=true", "track.every=1"),
        *("trainer.max_epochs=24", f"track.uri={tracking_uri}"),
    )
    assert ended.returncode == 0, ended.stderr
    client = mlflow.MlflowClient(tracking_uri)
    run = the_run(tracking_uri, tmp_path)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())

    assert run.info.run_name == "step_size={0: 2, 1000: 8} digits mlp"
    assert run.data.params["trainer.step_size"] == "{0: 2, 1000: 8}"
    step_sizes = client.get_metric_history(run.info.run_id, "train/step_size")
    # Windows of two end at 64, 128, ... 1,024; the first that begins at 1,000 or later is of eight.
    assert [point.value for point in step_sizes] == [2] * 16 + [8] * (len(step_sizes) - 16)
    assert [point.step for point in step_sizes][14:18] == [960, 1024, 1280, 1437]
    assert (summary["step_size"], summary["effective_batch"]) == (8, 256)
    assert "effective batch 64 samples; 8 from 1,000 samples on\n" in ended.stdout

    low, estimate, high = (
        summary[name] for name in ("noise_scale_low", "noise_scale", "noise_scale_high")
    )
    assert 0 < low < estimate < high
    last = run.data.metrics
    assert last["train/noise_scale"] == estimate
    assert (last["train/noise_scale_low"], last["train/noise_scale_high"]) == (low, high)
    assert (
        f"\nnoise scale   {estimate:,.0f} items (an estimate; 98 % interval {low:,.0f} to "
        f"{high:,.0f} items)\n"
    ) in ended.stdout


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


def test_an_interrupt_marks_the_run_killed(tracking_uri: str, tmp_path: Path) -> None:
    tracked = tracker(tracking_uri, tmp_path)
    with pytest.raises(KeyboardInterrupt), tracked:
        raise KeyboardInterrupt

    assert mlflow.MlflowClient(tracking_uri).get_run(tracked.run_id).info.status == "KILLED"


def test_points_are_thinned_by_samples_and_keep_the_first_and_the_last_window(
    tracking_uri: str, tmp_path: Path
) -> None:
    with tracker(tracking_uri, tmp_path, every=100) as tracked:
        for window in range(1, 33):
            tracked.window(Clock(samples=10 * window), Outcome(True, 1.0 / window, 1.0, 0.1))

    client = mlflow.MlflowClient(tracking_uri)
    points = client.get_metric_history(tracked.run_id, "train/loss")
    assert [point.step for point in points] == [10, 100, 200, 300, 320]
    assert points[-1].value == 1 / 32


def test_more_points_than_one_batch_all_arrive(tracking_uri: str, tmp_path: Path) -> None:
    with tracker(tracking_uri, tmp_path) as tracked:
        for sample in range(1500):
            tracked.log("number", float(sample), sample)

    points = mlflow.MlflowClient(tracking_uri).get_metric_history(tracked.run_id, "number")
    assert [point.value for point in points] == list(range(1500))


def test_mlflow_holds_the_points_of_the_run_folder_one_for_one(
    tracking_uri: str, tmp_path: Path
) -> None:
    with tracker(tracking_uri, tmp_path) as tracked:
        for sample, value in enumerate((0.1, math.nan, math.inf, -math.inf, 1e-300, -0.0)):
            tracked.log("number", value, sample)
            tracked.log("val/other", -value, sample)
            tracked.window(Clock(samples=sample), Outcome(False, value, value, 0.1))

    kept = in_the_folder(tmp_path)
    assert {point.key for point in kept} >= {"number", "val/other", "train/loss", "train/updates"}
    assert in_mlflow(tracking_uri, tracked.run_id) == kept


def test_points_that_are_sent_again_are_kept_once(
    tracking_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As after a death between MLflow's answer and the note of it."""
    with tracker(tracking_uri, tmp_path) as tracked:
        for sample, value in enumerate((0.1, math.nan, math.inf, -math.inf)):
            tracked.log("number", value, sample)
    file = RunFile.load(tmp_path)
    assert file is not None
    done = file.run

    file.update(upload=UploadState(described=True, ended=True))
    with tracker(tracking_uri, tmp_path, resumed_at=4) as tracked:
        tracked.log("number", 1.0, 5)

    assert tracked.run_id == done.run_id
    assert in_mlflow(tracking_uri, tracked.run_id) == in_the_folder(tmp_path)
    assert caplog.messages == []


def trained(tracked: Tracker, windows: range) -> None:
    """Show a tracker windows of ten samples, from the first of a run."""
    for window in windows:
        outcome = Outcome(True, 1.0 / window, 1.0, 0.1)
        tracked.window(Clock(samples=10 * window, updates=window), outcome)


def test_a_resumed_run_keeps_the_points_of_one_that_was_never_interrupted(
    tracking_uri: str, tmp_path: Path
) -> None:
    here, there = tmp_path / "interrupted", tmp_path / "never"
    with tracker(tracking_uri, here, every=20, offline=True) as first:
        trained(first, range(1, 14))
    with tracker(tracking_uri, here, every=20, offline=True, resumed_at=40) as second:
        trained(second, range(5, 21))
    with tracker(tracking_uri, there, every=20, offline=True) as never:
        trained(never, range(1, 21))

    curves = [
        [(point.step, point.value) for point in in_the_folder(folder) if point.key == "train/loss"]
        for folder in (here, there)
    ]
    assert curves[0] == curves[1]


def test_a_run_that_is_resumed_before_its_first_checkpoint_keeps_its_first_window(
    tracking_uri: str, tmp_path: Path
) -> None:
    with tracker(tracking_uri, tmp_path, every=100, offline=True, resumed_at=0) as tracked:
        trained(tracked, range(1, 21))

    points = [point for point in in_the_folder(tmp_path) if point.key == "train/loss"]
    assert [point.step for point in points] == [10, 100, 200]


def test_a_resumed_run_whose_run_file_is_lost_doubles_no_point(
    tracking_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracker(tracking_uri, tmp_path) as first:
        trained(first, range(1, 11))
    file = tmp_path / FILE
    file.write_bytes(b"")

    with tracker(tracking_uri, tmp_path, resumed_at=50, run_id=first.run_id) as second:
        trained(second, range(6, 21))

    assert second.run_id == first.run_id
    points = in_mlflow(tracking_uri, first.run_id)
    assert points == in_the_folder(tmp_path)
    assert [point.step for point in points if point.key == "train/loss"] == [*range(10, 201, 10)]
    assert caplog.messages == [
        f"{file}: damaged (Expecting value: line 1 column 1 (char 0)); without it the run cannot "
        "be uploaded, and its numbers are in metrics.jsonl; MLflow is sent again what it may have "
        "been sent already"
    ]


def test_a_resumed_run_misses_no_point_and_doubles_none(tracking_uri: str, tmp_path: Path) -> None:
    with tracker(tracking_uri, tmp_path, every=20) as first:
        trained(first, range(1, 14))
    with tracker(tracking_uri, tmp_path, every=20, resumed_at=70, run_id=first.run_id) as second:
        trained(second, range(8, 21))

    assert second.run_id == first.run_id
    points = in_mlflow(tracking_uri, first.run_id)
    assert points == in_the_folder(tmp_path)
    losses = [(point.step, point.value) for point in points if point.key == "train/loss"]
    steps = [10, 20, 40, 60, 80, 100, 120, 130, 140, 160, 180, 200]
    assert losses == [(step, 10 / step) for step in steps]


def test_a_run_that_was_offline_has_all_its_points_once_it_is_resumed_online(
    tracking_uri: str, tmp_path: Path
) -> None:
    with tracker(tracking_uri, tmp_path, offline=True) as offline:
        offline.log("number", 1.0, 1)
    with tracker(tracking_uri, tmp_path, resumed_at=1) as online:
        online.log("number", 2.0, 2)

    points = in_mlflow(tracking_uri, online.run_id)
    assert offline.run_id is None
    assert points == in_the_folder(tmp_path)
    assert [point.value for point in points if point.key == "number"] == [1.0, 2.0]


def test_a_resumed_run_says_no_more_why_it_had_ended(tracking_uri: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="first"), tracker(tracking_uri, tmp_path) as first:
        raise RuntimeError("the first time")
    failed = mlflow.MlflowClient(tracking_uri).get_run(str(first.run_id)).data.tags
    with tracker(tracking_uri, tmp_path, resumed_at=0):
        pass

    tags = mlflow.MlflowClient(tracking_uri).get_run(str(first.run_id)).data.tags
    assert failed["cadence.reason"] == "RuntimeError: the first time"
    assert "cadence.reason" not in tags


def test_a_resumed_run_is_described_as_it_is_now_and_says_what_changed(
    tracking_uri: str, tmp_path: Path
) -> None:
    texts = {"config.yaml": "first"}
    with tracker(tracking_uri, tmp_path, params={"a": 1, "b": 2}, texts=texts):
        pass
    with tracker(
        tracking_uri,
        tmp_path,
        resumed_at=0,
        params={"a": 1, "b": 3, "c": None},
        texts={"config.yaml": "second"},
    ) as tracked:
        running = mlflow.MlflowClient(tracking_uri).get_run(tracked.run_id).info.status

    run = mlflow.MlflowClient(tracking_uri).get_run(tracked.run_id)
    assert running == "RUNNING"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"a": "1", "b": "2", "c": "null"}
    assert run.data.tags["cadence.changed_params"] == "b: 2 -> 3"
    assert mlflow.artifacts.load_text(f"{run.info.artifact_uri}/config.yaml") == "second"


def test_a_folder_whose_points_are_not_delivered_is_not_begun_anew(
    tracking_uri: str, tmp_path: Path
) -> None:
    with tracker(tracking_uri, tmp_path, offline=True) as tracked:
        tracked.log("number", 1.0, 1)
    before = in_the_folder(tmp_path)

    with pytest.raises(ValueError, match="wait there") as refused, tracker(tracking_uri, tmp_path):
        pass

    assert str(refused.value) == (
        f"{tmp_path}: numbers of an earlier run wait there for MLflow; deliver them by "
        f"python -m src.sync {tmp_path}, or choose another hydra.run.dir="
    )
    assert in_the_folder(tmp_path) == before


def test_a_folder_whose_points_are_delivered_may_hold_another_run(
    tracking_uri: str, tmp_path: Path
) -> None:
    runs = []
    for value in (1.0, 2.0):
        with tracker(tracking_uri, tmp_path) as tracked:
            tracked.log("number", value, 1)
        runs.append(tracked.run_id)

    assert len(set(runs)) == 2
    assert in_mlflow(tracking_uri, runs[1]) == in_the_folder(tmp_path)


def test_a_name_that_mlflow_cannot_have_holds_up_no_other_point(
    tracking_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tracker(tracking_uri, tmp_path) as tracked:
        for sample in (1, 2):
            tracked.log("val/f1 (macro)", 1.0, sample)
            tracked.log("val/f1", 1.0, sample)

    names = {point.key for point in in_mlflow(tracking_uri, tracked.run_id)}
    assert "val/f1" in names
    assert "val/f1 (macro)" in {point.key for point in in_the_folder(tmp_path)} - names
    assert caplog.messages == [
        "val/f1 (macro): MLflow takes no metric of this name; it stays in the run folder"
    ]


def test_a_param_whose_name_mlflow_cannot_have_holds_up_no_run(
    tracking_uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = {"data.map.a&b": 1, "data.map.a": 2}
    with tracker(tracking_uri, tmp_path, params=params) as tracked:
        pass

    run = mlflow.MlflowClient(tracking_uri).get_run(str(tracked.run_id))
    assert (run.info.status, run.data.params) == ("FINISHED", {"data.map.a": "2"})
    assert caplog.messages == [
        "data.map.a&b: MLflow takes no param of this name; it stays in the run folder"
    ]


def test_the_newest_of_what_is_measured_twice_at_the_same_samples_is_shown(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    ended = command("trainer.max_samples=64", f"track.uri={tracking_uri}")
    assert ended.returncode == 0, ended.stderr
    run = the_run(tracking_uri, tmp_path)

    points = in_mlflow(tracking_uri, run.info.run_id)
    assert points == in_the_folder(tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    key = "throughput/samples_per_second"
    assert [point.step for point in points if point.key == key] == [64, 64]
    assert run.data.metrics[key] == summary["samples_per_second"]


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
