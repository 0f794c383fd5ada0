"""Sweeps that are killed at random moments, and sweeps that share one MLflow database."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import optuna
import pytest
from conftest import ROOT
from optuna.trial import TrialState

pytestmark = pytest.mark.slow

TRIALS = 12
KILLS = 10
BEGUN = "train.log"
MOMENTS = (BEGUN, ".hydra/config.yaml", "checkpoints/last.pt", "summary.json", "run.json")
SYNTHETIC = (
    *("data=synthetic", "data.samples=400", "data.shape=[4]", "trainer.max_epochs=null"),
    *("trainer.max_samples=30000", f"hydra.sweeper.n_trials={TRIALS}"),
)


def start(folder: Path, name: str) -> "subprocess.Popen[str]":
    overrides = [
        *("--multirun", "sweep=step_size", f"hydra.sweeper.study_name={name}"),
        *(f"hydra.sweep.dir={folder}/{name}", f"track.uri=sqlite:///{folder}/mlflow.db"),
        *SYNTHETIC,
    ]
    return subprocess.Popen(
        [sys.executable, "-m", "src.train", *overrides],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def check_whole(folder: Path, name: str) -> int:
    """Assert that every trial is there once, with its run and its folder, and nothing runs.

    Returns:
        How many trials were cut off.
    """
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/{name}/study.db")
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    complete = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert len(complete) == TRIALS
    assert len({trial.params["trainer.step_size"] for trial in complete}) == TRIALS
    for trial in complete:
        run = client.get_run(trial.user_attrs["mlflow_run_id"])
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == study.user_attrs["mlflow_parent_run_id"]
        assert (folder / name / "trials" / str(trial.number) / "summary.json").is_file()
    others = [trial for trial in study.trials if trial.state != TrialState.COMPLETE]
    assert all(trial.user_attrs["abandoned"] for trial in others)
    experiment = client.get_experiment_by_name("cadence")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], f"tags.`optuna.study_name` = '{name}'")
    assert [run for run in runs if run.info.status == "RUNNING"] == []
    assert len([run for run in runs if "mlflow.parentRunId" not in run.data.tags]) == 1
    return len(others)


def kill_at_a_random_moment(
    sweep: "subprocess.Popen[str]", folder: Path, chance: random.Random
) -> None:
    """Kill a sweep in its start-up, or just after a further trial has written one of its files.

    Moments in the sweep's own progress find it at work on any machine: moments in seconds do not,
    because on a fast one it has ended.
    """
    moment = chance.choice(MOMENTS)
    before = list(folder.glob(f"trials/*/{moment}"))
    give_up = time.monotonic() + (chance.uniform(0, 6) if moment == BEGUN else 120)
    while time.monotonic() < give_up and len([*folder.glob(f"trials/*/{moment}")]) == len(before):
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.1))
    sweep.kill()
    sweep.communicate(timeout=400)


def test_ten_kills_at_random_moments_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    chance = random.Random(0)
    for _ in range(KILLS):
        sweep = start(tmp_path, "tortured")
        kill_at_a_random_moment(sweep, tmp_path / "tortured", chance)
        assert sweep.returncode == -signal.SIGKILL
    last = start(tmp_path, "tortured")
    _, error = last.communicate(timeout=900)

    assert last.returncode == 0, error
    assert check_whole(tmp_path, "tortured") > 0


def test_two_sweeps_at_once_share_one_mlflow_database(tmp_path: Path) -> None:
    both = [start(tmp_path, name) for name in ("one", "other")]

    for name, sweep in zip(("one", "other"), both, strict=True):
        _, error = sweep.communicate(timeout=400)
        assert sweep.returncode == 0, error
        assert "locked" not in error
        check_whole(tmp_path, name)
