"""Runs whose MLflow server is down, restarts or hangs, and the command that delivers the rest."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import pytest
from conftest import ROOT, CommandLine
from serving import MlflowServer, free_port
from told import in_mlflow, in_the_folder, tracker
from waiting import until

from cadence.cli import sync
from cadence.tracking import address
from cadence.tracking import upload as delivery
from cadence.tracking.metrics_file import BUFFERED, FILE
from cadence.tracking.mlflow.sweep_runs import SweepRuns
from cadence.tracking.run_file import RunFile, UploadState


def run_file(folder: Path) -> RunFile:
    file = RunFile.load(folder)
    assert file is not None
    return file


Sync = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def quick(quick_delivery: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Sync:
    """Run ``python -m src.sync``, here: return its exit code and what it printed."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sync", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            sync.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code, *capsys.readouterr()

    return run


def wait_until_delivered(folder: Path) -> None:
    """Wait until MLflow has all that is in the folder's file by now."""
    size = (folder / FILE).stat().st_size
    until(lambda: run_file(folder).run.upload.points >= size, "MLflow has everything")


@pytest.mark.slow
def test_a_server_that_is_killed_and_restarted_three_times_costs_no_point_and_no_memory(
    server: MlflowServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = []
    with tracker(server.uri, tmp_path) as tracked:
        for sample in range(4000):
            tracked.log("number", 1.0 / (sample + 1), sample)
            waiting.append(tracked._metrics.waiting)
            if sample in (500, 1500, 2500):
                wait_until_delivered(tmp_path)
                server.kill()
            if sample in (1400, 2400, 3900):
                until(lambda: len(caplog.messages) % 2, "it is said that the server is away")
                server.start()
                wait_until_delivered(tmp_path)
                until(lambda: len(caplog.messages) % 2 == 0, "it is said that the server is back")

    assert in_mlflow(server.uri, tracked.run_id) == in_the_folder(tmp_path)
    numbers = [point.step for point in in_the_folder(tmp_path) if point.key == "number"]
    assert numbers == list(range(4000))
    assert max(waiting) < BUFFERED
    outages, returns = caplog.messages[::2], caplog.messages[1::2]
    assert len(outages) == 3
    for outage in outages:
        assert outage.startswith("MLflow takes nothing (API request to ")
        assert outage.endswith("; what it is to be told waits in the run folder")
    assert returns == ["MLflow is back, and has taken what waited"] * 3


def test_a_server_that_accepts_and_never_answers_holds_up_neither_training_nor_its_end(
    server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    synced: Sync,
) -> None:
    monkeypatch.setattr(delivery, "END_SECONDS", 0.1)
    with tracker(server.uri, tmp_path) as tracked:
        server.send(signal.SIGSTOP)
        for sample in range(2500):
            tracked.log("number", float(sample), sample)
    assert caplog.messages[-1] == (
        "MLflow has not taken all of this run; when it answers, deliver the rest by "
        f"python -m src.sync {tmp_path}"
    )
    server.send(signal.SIGCONT)

    for _ in range(5):  # it has yet to catch up with what nobody waits for any more
        code, said, _ = synced(tmp_path)
        if code == 0:
            break

    assert code == 0
    assert said.startswith(f"{tmp_path}: delivered ")
    assert in_mlflow(server.uri, tracked.run_id) == in_the_folder(tmp_path)
    assert len([point for point in in_the_folder(tmp_path) if point.key == "number"]) == 2500
    assert mlflow.MlflowClient(server.uri).get_run(tracked.run_id).info.status == "FINISHED"


def test_points_that_are_sent_again_through_a_server_are_kept_once(
    server: MlflowServer, tmp_path: Path, synced: Sync
) -> None:
    with tracker(server.uri, tmp_path) as tracked:
        for sample, value in enumerate((0.1, float("nan"), float("inf"), float("-inf"))):
            tracked.log("number", value, sample)
    file = run_file(tmp_path)
    done = file.run
    file.update(upload=UploadState(described=True))

    assert synced(tmp_path)[0] == 0

    assert run_file(tmp_path).run == done
    assert in_mlflow(server.uri, tracked.run_id) == in_the_folder(tmp_path)


def test_a_sweep_waits_between_two_trials_for_a_server_that_went_away_but_not_for_ever(
    server: MlflowServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(address, "FIRST_PAUSE_SECONDS", 0.05)
    lineage = SweepRuns(server.uri, "waiting", "a sweep", tmp_path, "an id", parent=None)
    server.kill()
    with monkeypatch.context() as impatient:
        impatient.setattr(address, "WAIT_SECONDS", 0.0)
        with pytest.raises(ValueError, match="MLflow cannot log there") as refused:
            lineage.child(7)
    assert str(refused.value).endswith("; correct it, or train without by track=none")
    with ThreadPoolExecutor(1) as pool:
        child = pool.submit(lineage.child, 7)
        until(lambda: caplog.messages, "it is said", alive=lambda: not child.done())
        server.start()
        run = mlflow.MlflowClient(server.uri).get_run(child.result())

    assert run.data.tags["mlflow.parentRunId"] == lineage.parent
    assert run.data.tags["optuna.trial_number"] == "7"
    (said,) = caplog.messages
    assert said.startswith(f"track.uri={server.uri}: no MLflow server answers (")
    assert said.endswith("; the sweep waits, up to 60 minutes")


def test_a_server_that_is_down_at_the_start_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    uri = f"http://127.0.0.1:{free_port()}"

    with pytest.raises(ValueError, match="no MLflow") as refused, tracker(uri, tmp_path / "run"):
        pass

    assert str(refused.value) == (
        f"track.uri={uri}: no MLflow server answers ([Errno 111] Connection refused); start it, "
        "correct the address, or train without by track=none, or deliver later by "
        "track.offline=true"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("scheme", ["http", "postgresql+psycopg"])
def test_a_server_that_never_answers_at_the_start_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setattr(address, "ANSWER_SECONDS", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        if scheme == "http":
            silent.listen()
        uri = f"{scheme}://127.0.0.1:{silent.getsockname()[1]}"

        with pytest.raises(ValueError, match="no MLflow") as refused, tracker(uri, tmp_path):
            pass

    assert str(refused.value).startswith(f"track.uri={uri}: no MLflow server answers (")


def test_an_offline_run_is_delivered_later_as_if_it_had_been_online(
    command: CommandLine, server: MlflowServer, tmp_path: Path, synced: Sync
) -> None:
    folder, down = tmp_path / "run", f"http://127.0.0.1:{free_port()}"
    options = ("trainer.max_samples=640", "track.every=64", "track.experiment=offline")
    ended = command(*options, f"track.uri={down}", "track.offline=true")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert f"MLflow run    to be delivered by python -m src.sync {folder}" in ended.stdout
    assert json.loads((folder / "summary.json").read_text())["mlflow_run_id"] is None
    began = json.loads((folder / "run.json").read_text())

    code, said, _ = synced(folder, "--uri", server.uri)

    assert code == 0
    summary = json.loads((folder / "summary.json").read_text())
    run_id, points = summary["mlflow_run_id"], in_the_folder(folder)
    assert said == (
        f"{folder}: delivered {len(points)} numbers and that it is FINISHED to run {run_id} at "
        f"{server.uri}\n"
    )
    assert in_mlflow(server.uri, run_id) == points
    client = mlflow.MlflowClient(server.uri)
    run = client.get_run(run_id)
    assert run.info.run_name == "step_size=2 digits mlp"
    assert run.info.status == "FINISHED"
    assert (run.info.start_time, run.info.end_time) == (began["began"], began["ended"])
    assert run.data.params["trainer.step_size"] == "2"
    assert run.data.tags["cadence.run_folder"] == str(folder)
    assert {file.path for file in client.list_artifacts(run_id)} == {
        *("config.yaml", "environment.json", "summary.json"),
    }
    kept = Path(client.download_artifacts(run_id, "summary.json", str(tmp_path)))
    assert json.loads(kept.read_text()) == summary


def test_what_was_delivered_is_not_delivered_again(
    tracking_uri: str, tmp_path: Path, synced: Sync
) -> None:
    with tracker(tracking_uri, tmp_path, offline=True) as tracked:
        tracked.log("number", 1.0, 1)
    first = synced(tmp_path)
    before = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}

    again = synced(tmp_path)

    run_id = run_file(tmp_path).run.run_id
    assert first[0] == again[0] == 0
    assert again[1] == f"{tmp_path}: nothing is left to deliver; it is run {run_id}\n"
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before
    assert in_mlflow(tracking_uri, run_id) == in_the_folder(tmp_path)


def test_a_run_that_died_between_its_making_and_the_note_of_it_is_found_again(
    tracking_uri: str, tmp_path: Path, synced: Sync
) -> None:
    with tracker(tracking_uri, tmp_path) as tracked:
        tracked.log("number", 1.0, 1)
    run_file(tmp_path).update(run_id=None, upload=UploadState())

    assert synced(tmp_path)[0] == 0
    assert run_file(tmp_path).run.run_id == tracked.run_id
    assert in_mlflow(tracking_uri, tracked.run_id) == in_the_folder(tmp_path)


def test_a_killed_run_is_delivered_up_to_the_last_point_in_its_file(
    tmp_path: Path, tracking_uri: str, synced: Sync
) -> None:
    folder = tmp_path / "run"
    running = subprocess.Popen(
        [
            *(sys.executable, "-m", "src.train", "trainer.max_epochs=100000", "track.every=1"),
            *(f"track.uri={tracking_uri}", f"hydra.run.dir={folder}"),
        ],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    until(
        lambda: (folder / FILE).exists() and (folder / FILE).stat().st_size,
        "a number in its file",
        alive=lambda: running.poll() is None,
    )
    refused = synced(folder)
    running.kill()
    running.wait()

    delivered = synced(folder)

    assert refused == (
        1,
        "",
        f"error: {folder}: {folder}: its run is still going on, or being delivered; wait for it\n",
    )
    assert delivered[0] == 0, delivered
    run = mlflow.MlflowClient(tracking_uri).get_run(str(run_file(folder).run.run_id))
    assert run.info.status == "KILLED"
    assert run.data.tags["cadence.reason"] == "its process died"
    points = in_the_folder(folder)
    assert len(points) > 0
    assert in_mlflow(tracking_uri, run.info.run_id) == points


def test_the_jobs_of_an_offline_multirun_are_grouped_when_they_are_delivered(
    tracking_uri: str, tmp_path: Path, synced: Sync
) -> None:
    folders = [tmp_path / "jobs" / name for name in ("0", "1")]
    for folder in folders:
        with tracker(tracking_uri, folder, offline=True, parent=tmp_path / "jobs"):
            pass

    assert synced(*folders)[0] == 0

    client = mlflow.MlflowClient(tracking_uri)
    runs = [client.get_run(str(run_file(folder).run.run_id)) for folder in folders]
    (parent,) = {run.data.tags["mlflow.parentRunId"] for run in runs}
    assert client.get_run(parent).info.run_name == "multirun jobs"


def test_each_folder_that_cannot_be_delivered_is_named_with_a_remedy_and_the_others_are(
    tracking_uri: str, tmp_path: Path, synced: Sync
) -> None:
    untracked, secret, down, fine = (tmp_path / name for name in ("a", "b", "c", "d"))
    untracked.mkdir()
    closed = f"http://127.0.0.1:{free_port()}"
    for folder, uri in ((secret, "http://me:SECRET@host"), (down, closed), (fine, tracking_uri)):
        with tracker(uri, folder, offline=True):
            pass

    code, said, error = synced(untracked, secret, down, fine)

    assert code == 1
    assert error.splitlines() == [
        f"error: {untracked}: there is no run.json in it; give the folder of a tracked run",
        f"error: {secret}: track.uri=http://me:***@host: its secret is not kept; give all of it "
        "by --uri",
        f"error: {down}: track.uri={closed}: no MLflow server answers ([Errno 111] Connection "
        "refused); start it, correct the address, or train without by track=none, or deliver "
        "later by track.offline=true",
    ]
    assert said.startswith(f"{fine}: delivered ")


def test_a_run_that_mlflow_does_not_know_any_more_is_said_with_a_remedy(
    tracking_uri: str, tmp_path: Path, synced: Sync
) -> None:
    with tracker(tracking_uri, tmp_path, offline=True):
        pass
    run_file(tmp_path).update(run_id="0" * 32, upload=UploadState())

    code, _, error = synced(tmp_path)

    assert code == 1
    assert error == (
        f"error: {tmp_path}: MLflow takes nothing (Run with id={'0' * 32} not found); what it took "
        "is noted: the same command goes on, and without run_id and upload in run.json it begins "
        "anew\n"
    )
