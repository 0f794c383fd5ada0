"""Disks that are full or read-only, and databases that are locked: clear errors, nothing lost."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import mlflow
import optuna
import pytest
from conftest import CommandLine
from optuna.trial import TrialState
from told import in_mlflow, in_the_folder, tracker
from waiting import until

from cadence.checkpoint.folder import latest
from cadence.tracking import upload as delivery
from cadence.tracking.sync import delivered

Disk = Callable[[str], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Give the folder of a disk of its own these options, such as ``size=64k``."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mounted(options: str) -> Path:
        remount = "remount," if folder.is_mount() else ""
        mount = ["mount", "-t", "tmpfs", "-o", f"{remount}{options}", "tmpfs", str(folder)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this user may not mount a disk of its own")
        return folder

    yield mounted
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Keep everyone else out of a SQLite file, from another process."""
    holding = (
        "import sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)\n"
        "connection.execute('BEGIN EXCLUSIVE')\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", holding, str(database)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    try:
        yield
    finally:
        holder.communicate()


def runs_of(folder: Path, uri: str) -> Sequence[mlflow.entities.Run]:
    """Return the runs in MLflow that were in a folder, the newest first."""
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("cadence")
    assert experiment is not None
    wanted = f"tags.`cadence.run_folder` = '{folder}'"
    runs: Sequence[mlflow.entities.Run] = client.search_runs([experiment.experiment_id], wanted)
    return runs


RUN = ("trainer.max_epochs=3", "trainer.checkpoint_every=500", "track.every=1")
REMEDY = "free some space"


@pytest.mark.parametrize("kib", [4, 16, 64, 250])
def test_a_full_disk_ends_a_run_with_a_remedy_and_leaves_the_last_checkpoint_readable(
    command: CommandLine, tmp_path: Path, tracking_uri: str, disk: Disk, kib: int
) -> None:
    run = disk(f"size={kib}k") / "run"

    ended = command(*RUN, f"hydra.run.dir={run}", f"track.uri={tracking_uri}")

    assert ended.returncode == 1
    *warnings, error = ended.stderr.splitlines()
    assert all(" WARNING: " in warning for warning in warnings), ended.stderr
    assert error.startswith("error: ")
    assert "No space left on device" in error
    assert REMEDY in error
    assert not list(run.rglob("*.part"))
    if kib == 250:
        assert latest(run / "checkpoints").clock.samples >= 500
    if kib > 16:
        (tracked,) = runs_of(run, tracking_uri)
        assert tracked.info.status == "FAILED"
        assert in_mlflow(tracking_uri, tracked.info.run_id) == in_the_folder(run)

    disk("size=8m")
    again = "hydra.run.dir=" if kib < 250 else "resume="
    went_on = command(*RUN, f"{again}{run}", f"track.uri={tracking_uri}")

    assert went_on.returncode == 0, went_on.stderr
    assert latest(run / "checkpoints").clock.epoch == 3
    tracked = runs_of(run, tracking_uri)[0]
    assert tracked.info.status == "FINISHED"
    assert in_mlflow(tracking_uri, tracked.info.run_id) == in_the_folder(run)


def test_a_disk_that_became_read_only_is_named_and_what_it_holds_is_still_readable(
    command: CommandLine, tmp_path: Path, disk: Disk
) -> None:
    folder = disk("size=8m,rw")
    assert command(*RUN, f"hydra.run.dir={folder}/run", "track=none").returncode == 0
    disk("size=8m,ro")

    beginning = command(*RUN, f"hydra.run.dir={folder}/new", "track=none")
    going_on = command(f"resume={folder}/run", "trainer.max_epochs=4")
    tracking = command(*RUN, f"track.uri=sqlite:///{folder}/mlflow.db")
    sweeping = command("--multirun", "sweep=step_size", f"hydra.sweep.dir={folder}/s", "track=none")

    elsewhere = "choose another folder by hydra.run.dir= (of a sweep: hydra.sweep.dir=)"
    refusal = f"Read-only file system; {elsewhere}"
    ended = (beginning, going_on, tracking, sweeping)
    assert [one.returncode for one in ended] == [1, 1, 1, 1]
    assert beginning.stderr == f"error: {folder}/new: {refusal}\n"
    assert going_on.stderr == f"error: {folder}/run/train.log: {refusal}\n"
    assert tracking.stderr == (
        f"error: track.uri=sqlite:///{folder}/mlflow.db: it cannot be written (Read-only file "
        f"system: {folder}/mlflow.db); choose another, or train without by track=none\n"
    )
    assert sweeping.stderr == f"error: {folder}/s: {refusal}\n"
    assert latest(folder / "run" / "checkpoints").clock.epoch == 3
    evaluated = command(f"run={folder}/run", module="src.evaluate")
    assert evaluated.returncode == 0, evaluated.stderr
    there = f"hydra.run.dir={tmp_path}/there"
    went_on = command(f"resume={folder}/run", "trainer.max_epochs=4", there)
    assert went_on.returncode == 0, went_on.stderr
    assert latest(tmp_path / "there" / "checkpoints").clock.epoch == 4


@pytest.mark.parametrize(
    ("options", "kib", "file"),
    [((), 100, "checkpoints/last.pt"), (("model.hidden=[1]",), 40, "metrics.jsonl")],
)
def test_a_file_that_may_grow_no_more_ends_a_run_with_its_name(
    command: CommandLine, tmp_path: Path, options: tuple[str, ...], kib: int, file: str
) -> None:
    run = tmp_path / "run"
    longer = ("trainer.max_epochs=20", "track.offline=true")
    ended = command(*RUN, *longer, *options, file_bytes=1024 * kib)

    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert f"{run / file}" in ended.stderr.splitlines()[-1]
    assert "File too large" in ended.stderr.splitlines()[-1]
    assert "free some space" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert [point.key for point in in_the_folder(run)].count("train/updates") > 5


def test_a_disk_too_full_for_mlflows_database_is_named_and_keeps_no_half_of_it(
    disk: Disk, tmp_path: Path
) -> None:
    full = disk("size=200k")
    uri = f"sqlite:///{full}/mlflow.db"

    with (
        pytest.raises(ValueError, match=r"mlflow\.db: MLflow cannot log there .*full\)") as refused,
        tracker(uri, tmp_path / "run"),
    ):
        pass
    disk("size=64m")

    assert str(refused.value).endswith("; correct it, or train without by track=none")
    assert (full / "mlflow.db").stat().st_size == 0
    with tracker(uri, tmp_path / "run") as tracked:
        tracked.log("number", 1.0, 1)
    assert ("number", 1.0, 1) in {
        (point.key, point.value, point.step) for point in in_mlflow(uri, tracked.run_id)
    }


@pytest.fixture
def quick(quick_delivery: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "END_SECONDS", 1.0)


@pytest.mark.usefixtures("quick")
def test_points_that_find_mlflows_disk_full_wait_in_the_run_folder_and_arrive_when_it_has_space(
    tmp_path: Path, tracking_uri: str, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    with tracker(tracking_uri, tmp_path / "another"):  # so that there is a database
        pass
    made = Path(tracking_uri.removeprefix("sqlite:///"))
    full = disk(f"size={made.stat().st_size // 1024 + 300}k")
    shutil.copyfile(made, full / "mlflow.db")
    uri, run = f"sqlite:///{full}/mlflow.db", tmp_path / "run"

    with tracker(uri, run) as tracked:
        left = shutil.disk_usage(full).free - 30_000
        (full / "filler").write_bytes(b"0" * left)
        for sample in range(5000):
            tracked.log("number", float(sample), sample)

    assert caplog.messages[0].startswith("MLflow takes nothing (")
    assert caplog.messages[0].endswith(
        "database or disk is full); what it is to be told waits in the run folder"
    )
    assert caplog.messages[-1].startswith("MLflow has not taken all of this run; when it answers")
    disk("size=64m")
    assert delivered(run, None).startswith("delivered ")
    assert in_mlflow(uri, tracked.run_id) == in_the_folder(run)
    assert len([point for point in in_the_folder(run) if point.key == "number"]) == 5000


def test_a_study_whose_disk_is_full_is_named_and_goes_on_when_it_has_space(
    command: CommandLine, disk: Disk
) -> None:
    sweep = disk("size=64k") / "sweep"
    arguments = (
        *("--multirun", "sweep=step_size", f"hydra.sweep.dir={sweep}", "track=none"),
        *("hydra.sweeper.n_trials=1", "trainer.max_samples=64"),
    )

    ended = command(*arguments)
    disk("size=8m")
    again = command(*arguments)

    assert ended.returncode == 1
    assert ended.stderr == (
        f"error: hydra.sweeper.storage=sqlite:///{sweep}/study.db: the study cannot be kept there "
        "(database or disk is full); correct it or free some space: the same command goes on\n"
    )
    assert again.returncode == 0, again.stderr


@pytest.mark.usefixtures("quick")
def test_a_tracking_database_that_another_process_locks_is_waited_for(
    tmp_path: Path, tracking_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "END_SECONDS", 60.0)
    database = Path(tracking_uri.removeprefix("sqlite:///"))
    with tracker(tracking_uri, tmp_path) as tracked:
        with locked(database):
            for sample in range(3000):
                tracked.log("number", float(sample), sample)
            tracked.flush()
        tracked.log("number", 3000.0, 3000)

    assert in_mlflow(tracking_uri, tracked.run_id) == in_the_folder(tmp_path)
    assert len([point for point in in_the_folder(tmp_path) if point.key == "number"]) == 3001
    assert mlflow.MlflowClient(tracking_uri).get_run(tracked.run_id).info.status == "FINISHED"


SECONDS_THAT_OPTUNA_WAITS = 5
"""Python's own for a locked SQLite file; a sweep must outlast more."""


def test_a_study_that_another_process_locks_is_waited_for(
    command: CommandLine, tmp_path: Path
) -> None:
    sweep = tmp_path / "sweep"
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(
            command,
            *("--multirun", "sweep=step_size", f"hydra.sweep.dir={sweep}", "track=none"),
            *("hydra.sweeper.n_trials=2", "trainer.max_samples=64"),
        )
        log = sweep / "trials" / "0" / "train.log"
        until(log.exists, "the first trial", alive=lambda: not running.done())
        with locked(sweep / "study.db"), pytest.raises(TimeoutError):
            running.result(SECONDS_THAT_OPTUNA_WAITS + 2)
        ended = running.result()

    assert ended.returncode == 0, ended.stderr
    study = optuna.load_study(
        study_name="step_size_digits_mlp", storage=f"sqlite:///{sweep}/study.db"
    )
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
