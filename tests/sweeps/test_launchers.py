"""Sweeps on engines: the commands of docs/cluster.md, and what becomes of what dies there."""

import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import mlflow
import optuna
import psutil
import pytest
from browsing import serving, wait_for
from conftest import ROOT, CommandLine
from optuna.trial import FrozenTrial, TrialState
from serving import free_port, needs_postgres, postgres_server, program
from sqlalchemy.pool import NullPool
from told import in_mlflow, in_the_folder
from waiting import until

pytestmark = [pytest.mark.slow, needs_postgres, pytest.mark.xdist_group("servers")]

PAGE = (ROOT / "docs" / "cluster.md").read_text()
DOCUMENTED = re.findall(r"^    ((?:createdb|mlflow|python -m src.train) .*)$", PAGE, re.M)
"""The commands of docs/cluster.md that can run on one machine."""

TINY = ("data=synthetic", "data.samples=400", "data.shape=[4]", "trainer.max_epochs=null")
TWO_DIVERGE = (
    *("trainer.step_size=choice(1,2)", "optimizer.lr=choice(0.001,1e30)"),
    *("optimizer=sgd", "trainer.max_skipped=0", "trainer.max_samples=400"),
)
GRID = "hydra.sweeper.params={trainer.step_size:'choice(1,2)'}"
SECONDS_OF_FEW_POINTS = (
    *("trainer.max_seconds=5", "track.every=20000", "trainer.evaluate_every=20000"),
)
"""A trial long enough to be disturbed, of which the server has everything as soon as it ends."""

SECRET = "pass-word"


def needs(launcher: str) -> pytest.MarkDecorator:
    package = f"hydra_plugins.hydra_{launcher}_launcher"
    return pytest.mark.skipif(
        importlib.util.find_spec(package) is None and not os.environ.get("CI"),
        reason=f"needs hydra-{launcher}-launcher",
    )


class Servers(NamedTuple):
    """The two servers of docs/cluster.md, each on a port of its own."""

    postgres: int
    mlflow: int

    def here(self, command: str) -> list[str]:
        """Return a documented command with these servers' ports, in parts."""
        for documented, own in (("5432", self.postgres), ("5000", self.mlflow)):
            command = command.replace(documented, str(own))
        return shlex.split(command)


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with (
        tempfile.TemporaryDirectory(prefix="cadence-") as folder,
        postgres_server(Path(folder)) as port,
    ):
        both = Servers(port, free_port())
        *databases, server = [
            both.here(command) for command in DOCUMENTED if not command.startswith("python")
        ]
        for command in databases:
            subprocess.run([program("createdb") or "createdb", *command[1:]], check=True)
        assert server[-2:] == ["--artifacts-destination", "mlartifacts"]
        server[-1] = f"{folder}/artifacts"
        with serving([sys.executable, "-m", *server], MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false"):
            wait_for(f"http://127.0.0.1:{both.mlflow}/health")
            yield both


class Sweep:
    """A sweep in a folder, by the documented command for its launcher, passwords in it."""

    def __init__(self, folder: Path, servers: Servers, launcher: str) -> None:
        (command,) = [line for line in DOCUMENTED if f"hydra/launcher={launcher} " in line]
        command = command.replace("//cadence@", f"//cadence:{SECRET}@")
        command = command.replace("http://", f"http://me:{SECRET}@")
        self.folder = folder / "sweep"
        self.output = folder / "output"
        self.name = f"{launcher}_{folder.name}"
        self._servers = servers
        self._command = [
            *(sys.executable, *servers.here(command)[1:], *TINY),
            *(f"hydra.sweep.dir={self.folder}", f"hydra.sweeper.study_name={self.name}"),
        ]

    def start(self, *more: str) -> "subprocess.Popen[bytes]":
        # Into a file: whoever outlives the sweep would hold a pipe open.
        with self.output.open("wb") as output:
            return subprocess.Popen(
                [*self._command, *more],
                cwd=ROOT,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def ended_well(self, started: "subprocess.Popen[bytes]") -> str:
        """Wait for its end, and return what it says."""
        assert started.wait(timeout=900) == 0, self.said
        assert SECRET not in self.said
        return self.said

    def run(self, *more: str) -> str:
        """Run it to its end, and return what it says."""
        return self.ended_well(self.start(*more))

    @property
    def said(self) -> str:
        return self.output.read_text()

    @property
    def study(self) -> optuna.Study:
        address = f"postgresql+psycopg://cadence@127.0.0.1:{self._servers.postgres}/studies"
        storage = optuna.storages.RDBStorage(address, engine_kwargs={"poolclass": NullPool})
        return optuna.load_study(study_name=self.name, storage=storage)

    @property
    def tracking_uri(self) -> str:
        return f"http://127.0.0.1:{self._servers.mlflow}"

    def run_of(self, trial: FrozenTrial) -> mlflow.entities.Run:
        return mlflow.MlflowClient(self.tracking_uri).get_run(trial.user_attrs["mlflow_run_id"])

    def trial_folder(self, number: int) -> Path:
        return self.folder / "trials" / str(number)

    def until_saved(self, number: int) -> None:
        """Wait until a trial has a checkpoint."""
        saved = self.trial_folder(number) / "checkpoints" / "last.pt"
        until(saved.exists, f"no {saved}")

    def suspended(self, *more: str) -> tuple["subprocess.Popen[bytes]", psutil.Process]:
        """Start it, and stop the worker of its first trial once that has a checkpoint."""
        started = self.start(*more)
        self.until_saved(0)
        worker = self.worker(0)
        worker.suspend()
        return started, worker

    def worker(self, number: int) -> psutil.Process:
        """Return the process that runs a trial, whoever is its parent."""
        lock = str(self.trial_folder(number) / ".running.lock")
        (found,) = [one for one in psutil.process_iter() if lock in open_files(one)]
        return found


def open_files(process: psutil.Process) -> list[str]:
    try:
        return [file.path for file in process.open_files()]
    except psutil.Error:
        return []


def check_links(sweep: Sweep) -> None:
    """Assert that each trial and its run know each other, and ended alike."""
    study = sweep.study
    client = mlflow.MlflowClient(sweep.tracking_uri)
    parent = client.get_run(study.user_attrs["mlflow_parent_run_id"])
    assert parent.info.run_name == sweep.name
    assert parent.info.status == "FINISHED"
    assert parent.info.artifact_uri.startswith("mlflow-artifacts:")
    assert {"report.md", "pareto.png"} <= {
        file.path for file in client.list_artifacts(parent.info.run_id)
    }
    for trial in study.trials:
        run = sweep.run_of(trial)
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["optuna.trial_number"] == str(trial.number)
        folder = sweep.trial_folder(trial.number)
        assert trial.user_attrs["folder"] == run.data.tags["cadence.run_folder"] == str(folder)
        if trial.state == TrialState.COMPLETE:
            assert run.info.status == "FINISHED"
            assert run.data.metrics["val/loss"] == trial.values[0]
            assert trial.user_attrs["mlflow_run_id"] == run.info.run_id
            assert (folder / "summary.json").is_file()
        else:
            assert run.info.status == "FAILED"
            assert run.data.tags["cadence.reason"] == trial.user_attrs["reason"]


def files_with_the_secret(folder: Path) -> list[Path]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return [file for file in files if SECRET.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("joblib", marks=needs("joblib")),
        pytest.param("submitit_local", marks=needs("submitit")),
        pytest.param("ray", marks=needs("ray")),
    ],
)
def test_a_documented_sweep_is_linked_goes_on_and_keeps_reasons_and_secrets(
    tmp_path: Path, servers: Servers, launcher: str
) -> None:
    sweep = Sweep(tmp_path, servers, launcher)

    first = sweep.run(*TWO_DIVERGE, "hydra.sweeper.n_trials=2")
    began = {trial.number: trial.datetime_complete for trial in sweep.study.trials}
    second = sweep.run(*TWO_DIVERGE, "hydra.sweeper.n_trials=4")

    warning = f"hydra.sweeper.n_jobs=2 with hydra/launcher={launcher}: trials that share a device"
    assert warning in first
    assert "INFO" not in first.replace("INFO worker.py", "")
    trials = sweep.study.trials
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert {t.number: t.datetime_complete for t in trials[:2]} == began
    assert "trial 0" not in second
    points = [(t.params["trainer.step_size"], t.params["optimizer.lr"]) for t in trials]
    assert sorted(points) == [(1, 0.001), (1, 1e30), (2, 0.001), (2, 1e30)]
    for trial in trials:
        diverged = trial.params["optimizer.lr"] == 1e30
        assert trial.state == (TrialState.FAIL if diverged else TrialState.COMPLETE)
        if diverged:
            assert trial.user_attrs["reason"].startswith("DivergedError: samples=")
    check_links(sweep)
    assert files_with_the_secret(tmp_path) == []
    assert all(SECRET not in str(trial.user_attrs) for trial in trials)
    assert SECRET not in str(sweep.study.user_attrs)


@needs("submitit")
def test_a_trial_that_outlives_its_sweep_is_waited_for_told_and_not_run_again(
    tmp_path: Path, servers: Servers
) -> None:
    sweep = Sweep(tmp_path, servers, "submitit_local")
    options = (GRID, *SECONDS_OF_FEW_POINTS, "hydra.sweeper.n_trials=2")
    dying, worker = sweep.suspended(*options)
    dying.kill()
    dying.wait()

    again = sweep.start(*options)
    waits = "waiting for what runs on without its sweep: trial 0"
    until(lambda: waits in sweep.said, f"{waits!r} is not said")
    worker.resume()
    sweep.ended_well(again)

    first = sweep.study.trials[0]
    assert first.state == TrialState.COMPLETE
    assert first.user_attrs["samples"] > 0
    check_links(sweep)


@needs("submitit")
def test_an_interrupted_sweep_leaves_its_jobs_running_and_takes_their_results_later(
    tmp_path: Path, servers: Servers
) -> None:
    sweep = Sweep(tmp_path, servers, "submitit_local")
    options = (GRID, *SECONDS_OF_FEW_POINTS, "hydra.sweeper.n_trials=1")
    interrupted, worker = sweep.suspended(*options)
    interrupted.send_signal(signal.SIGINT)

    assert interrupted.wait(timeout=400) == 130
    assert "trial 0 runs on; the same command takes its result\n" in sweep.said
    (trial,) = sweep.study.trials
    assert trial.state == TrialState.RUNNING
    assert sweep.run_of(trial).info.status == "RUNNING"
    worker.resume()
    sweep.run(*options)
    (trial,) = sweep.study.trials
    assert trial.state == TrialState.COMPLETE
    check_links(sweep)


@needs("submitit")
def test_a_trial_whose_worker_is_killed_is_failed_with_the_reason_and_the_others_are_not(
    tmp_path: Path, servers: Servers
) -> None:
    sweep = Sweep(tmp_path, servers, "submitit_local")
    going = sweep.start(GRID, *SECONDS_OF_FEW_POINTS, "hydra.sweeper.n_trials=2")
    sweep.until_saved(0)
    sweep.worker(0).kill()
    sweep.ended_well(going)

    dead, other = sweep.study.trials
    assert dead.state == TrialState.FAIL
    assert dead.user_attrs["reason"].startswith("ChildProcessError: its worker died: Job ")
    assert other.state == TrialState.COMPLETE
    check_links(sweep)


@needs("ray")
def test_a_trial_that_ray_begins_a_second_time_goes_on_from_its_checkpoint(
    tmp_path: Path, servers: Servers
) -> None:
    sweep = Sweep(tmp_path, servers, "ray")
    going = sweep.start(GRID, *SECONDS_OF_FEW_POINTS, "hydra.sweeper.n_trials=1")
    sweep.until_saved(0)
    killed = time.time() * 1000
    sweep.worker(0).kill()
    sweep.ended_well(going)

    assert [trial.state for trial in sweep.study.trials] == [TrialState.COMPLETE]
    check_links(sweep)
    told = in_the_folder(sweep.trial_folder(0))
    assert in_mlflow(sweep.tracking_uri, sweep.study.trials[0].user_attrs["mlflow_run_id"]) == told
    losses = [point for point in told if point.key == "train/loss"]
    steps = [point.step for point in losses]
    assert steps == sorted(set(steps))
    assert losses[0].timestamp < killed < losses[-1].timestamp


@needs("submitit")
def test_the_documented_slurm_job_composes(command: CommandLine) -> None:
    (documented,) = re.findall(r"```sh\npython -m src.train --multirun (.*?)```", PAGE, re.S)

    overrides = shlex.split(documented.replace("\\\n", ""))
    shown = command(*overrides, "--cfg", "hydra", "--package", "hydra.launcher")

    assert shown.returncode == 0, shown.stderr
    assert "submitit_folder: ${hydra.sweep.dir}/.submitit/%j" in shown.stdout
    for line in ("partition: gpu", "gpus_per_node: 1", "cpus_per_task: 8", "max_num_timeout: 3"):
        assert line in shown.stdout.splitlines()
    assert "submitit_launcher.SlurmLauncher" in shown.stdout


def test_a_launcher_that_runs_one_trial_after_another_says_that_n_jobs_is_no_gain(
    command: CommandLine, tmp_path: Path
) -> None:
    ended = command(
        *("--multirun", "sweep=step_size", GRID, "track=none", "trainer.max_samples=64"),
        *("hydra.sweeper.n_jobs=2", "hydra.sweeper.n_trials=2"),
        f"hydra.sweep.dir={tmp_path}/sweep",
    )

    assert ended.returncode == 0, ended.stderr
    assert (
        "hydra.sweeper.n_jobs=2: this launcher runs one trial after another, so more are only "
        "asked before the ones beside them are known; use 1, or hydra/launcher=joblib"
    ) in ended.stderr
