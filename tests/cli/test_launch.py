"""Several processes by the command line: the numbers of one, one error, one run, nothing left."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import optuna
import psutil
import pytest
import torch
from conftest import ROOT, CommandLine
from oracles import same
from serving import free_port
from waiting import until

from cadence.checkpoint.file_format import read
from cadence.checkpoint.folder import latest

PATHS = os.environ.get("PYTHONPATH", "").split(os.pathsep)

ON_TWO = ("distributed=ddp", "distributed.processes=2", "device=cpu")

TWO_GPUS = (
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
)

FAILING = """
import builtins, os, sys

imported = builtins.__import__

def fail(self, model, batch):
    raise ValueError("data.path=disk: it is on fire; try water")

def watched(name, *arguments, **named):
    module = imported(name, *arguments, **named)
    if name == "cadence.objectives" and os.environ.get("RANK") == "1":
        sys.modules[name].Classification.total_loss = fail
    return module

builtins.__import__ = watched
"""
"""A sitecustomize.py with which process 1 fails in its first forward."""


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


def status_in_mlflow(uri: str, folder: Path) -> str:
    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    return str(mlflow.MlflowClient(uri).get_run(run_id).info.status)


@pytest.mark.parametrize(
    ("device", "error"), [("cpu", 1e-6), pytest.param("cuda", 1e-4, marks=TWO_GPUS)]
)
def test_two_processes_train_as_one_with_twice_their_step_size(
    command: CommandLine, tmp_path: Path, device: str, error: float
) -> None:
    given = ("trainer.max_epochs=2", "track=none", f"device={device}")
    alone = command(*given, "trainer.step_size=4", f"hydra.run.dir={tmp_path}/alone")
    given = (*ON_TWO, *given)
    both = command(*given, "trainer.step_size=2", f"hydra.run.dir={tmp_path}/both")

    assert (alone.returncode, both.returncode) == (0, 0), both.stderr
    assert both.stderr == ""
    assert (
        "window  step_size=[2, 2] mini-batches per update of 32 samples, on 2 processes: effective "
        "batch 128 samples" in both.stdout.splitlines()
    )
    ended = [line for line in both.stdout.splitlines() if line.startswith("step_size ")]
    assert [line.split(maxsplit=1)[1] for line in ended] == [
        "[2, 2] mini-batches per update, by process"
    ]
    expected, found = summary(tmp_path / "alone"), summary(tmp_path / "both")
    for name in ("train_loss", "val_loss"):
        assert found[name] == pytest.approx(expected[name], rel=error)
    for name in ("updates", "samples", "effective_batch", "status"):
        assert found[name] == expected[name]
    assert (found["step_size"], found["processes"], found["step_sizes"]) == (2, 2, [2, 2])
    assert [each.name for each in tmp_path.iterdir() if each.name not in ("alone", "both")] == []


def test_a_process_that_fails_ends_the_run_with_its_own_error(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(FAILING)

    ended = command(
        f"track.uri={tracking_uri}",
        *ON_TWO,
        environment={"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), *PATHS])},
    )

    assert ended.returncode == 1
    assert ended.stderr == "error: data.path=disk: it is on fire; try water\n"
    assert summary(tmp_path / "run")["status"] == "FAILED"
    assert status_in_mlflow(tracking_uri, tmp_path / "run") == "FAILED"
    assert 'raise ValueError("data.path=disk' in (tmp_path / "run" / "train.log").read_text()


def started(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "src.train", *arguments, *ON_TWO],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def ran_through(*arguments: str) -> bool:
    process = started(*arguments)
    process.communicate()
    return process.returncode == 0


def after_some_progress(folder: Path) -> None:
    last = folder / "checkpoints" / "last.pt"
    until(last.exists, "a checkpoint", every=0.05)
    time.sleep(0.5)


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    children = psutil.Process(process.pid).children()
    return [each for each in children if "spawn_main" in " ".join(each.cmdline())]


LONG = ("model=cnn", "model.dropout=0.3", "trainer.checkpoint_every=2000", "trainer.max_epochs=20")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_the_run_which_goes_on_bit_for_bit(
    tmp_path: Path, tracking_uri: str, rank: int
) -> None:
    given = (*LONG, f"track.uri={tracking_uri}")
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    assert ran_through(*given, f"hydra.run.dir={undisturbed}")
    process = started(*given, f"hydra.run.dir={folder}")
    after_some_progress(folder)
    all_of_them = workers(process)
    assert len(all_of_them) == 2

    killed = time.monotonic()
    process.send_signal(signal.SIGSTOP)  # the launcher looks late: both could be gone by then
    all_of_them[rank].kill()
    time.sleep(2)
    process.send_signal(signal.SIGCONT)
    _, error = process.communicate(timeout=400)

    assert time.monotonic() - killed < 30
    assert process.returncode == 1
    assert error == (
        f"error: process {rank} of the run was ended by SIGKILL (was memory short?); resume= goes "
        "on from the last checkpoint\n"
    )
    assert not any(each.is_running() for each in all_of_them)
    assert summary(folder)["status"] == "FAILED"
    assert status_in_mlflow(tracking_uri, folder) == "FAILED"

    assert ran_through(f"resume={folder}")
    theirs, ours = (read(each / "checkpoints" / "last.pt") for each in (undisturbed, folder))
    assert ours.clock == theirs.clock
    assert same(ours.model.values(), theirs.model.values())
    assert status_in_mlflow(tracking_uri, folder) == "FINISHED"


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_after_the_timeout(tmp_path: Path) -> None:
    process = started(*LONG, "distributed.timeout=3", "track=none", f"hydra.run.dir={tmp_path}")
    after_some_progress(tmp_path)
    all_of_them = workers(process)

    all_of_them[1].suspend()
    _, error = process.communicate(timeout=400)

    assert process.returncode == 1
    assert error.startswith(
        "error: another process of this run failed, was killed, or did not answer within "
        "distributed.timeout; its own error says why ("
    )
    assert error.count("\n") == 1
    assert not any(each.is_running() for each in all_of_them)
    assert summary(tmp_path)["status"] == "FAILED"


@pytest.mark.slow
def test_a_resume_that_is_refused_leaves_a_finished_run_as_it_was(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    run = f"hydra.run.dir={tmp_path}/run"
    trained = command(*ON_TWO, "trainer.max_epochs=1", f"track.uri={tracking_uri}", run)
    assert trained.returncode == 0, trained.stderr
    before = (tmp_path / "run" / "summary.json").read_bytes()

    refused = command(f"resume={tmp_path}/run", "optimizer.lr=0.1")

    assert refused.returncode == 1
    assert refused.stderr.startswith("error: resume: it would be another training (optimizer.lr: ")
    assert (tmp_path / "run" / "summary.json").read_bytes() == before
    assert status_in_mlflow(tracking_uri, tmp_path / "run") == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["the command", "process 1"])
def test_a_signal_stops_all_processes_at_one_boundary(tmp_path: Path, whom: str) -> None:
    process = started("trainer.max_epochs=100000", "trainer.checkpoint_every=2000", "track=none",
                      f"hydra.run.dir={tmp_path}")  # fmt: skip
    after_some_progress(tmp_path)
    asked = psutil.Process(process.pid) if whom == "the command" else workers(process)[1]

    asked.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=400)

    assert process.returncode == 128 + signal.SIGTERM
    assert re.fullmatch(
        r"\[.*\] WARNING: SIGTERM: the window under way ends first; a second one stops at once\n"
        "interrupted\n",
        error,
    )
    state = read(tmp_path / "checkpoints" / "last.pt")
    assert summary(tmp_path)["status"] == "KILLED"
    assert summary(tmp_path)["samples"] == state.clock.samples


@pytest.mark.slow
def test_each_trial_of_a_sweep_starts_its_own_processes(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    folder = tmp_path / "sweep"

    ended = command(
        "--multirun", "sweep=step_size_grid", f"hydra.sweep.dir={folder}", *ON_TWO,
        f"track.uri={tracking_uri}", "trainer.max_samples=512",
        "hydra.sweeper.params={trainer.step_size: 'choice(1, 2)'}",
    )  # fmt: skip

    assert ended.returncode == 0, ended.stderr
    (study,) = optuna.get_all_study_summaries(f"sqlite:///{folder}/study.db")
    trials = optuna.load_study(
        study_name=study.study_name, storage=f"sqlite:///{folder}/study.db"
    ).trials
    assert [trial.user_attrs["summary"]["processes"] for trial in trials] == [2, 2]
    for trial in trials:
        own = summary(folder / "trials" / str(trial.number))
        assert trial.values == [own["val_loss"], own["samples_per_second"]]
        assert own["mlflow_run_id"] == trial.user_attrs["mlflow_run_id"]
        run = mlflow.MlflowClient(tracking_uri).get_run(own["mlflow_run_id"])
        assert run.info.status == "FINISHED"
        assert run.data.tags["optuna.trial_number"] == str(trial.number)


@pytest.mark.slow
def test_two_agents_of_torchrun_make_one_run(tmp_path: Path) -> None:
    port = free_port()
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=one"),
        *("--local-addr=127.0.0.1", "-m", "src.train", "distributed=ddp", "device=cpu"),
        *("trainer.max_epochs=2", "track=none", f"hydra.run.dir={tmp_path}/run"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))}
    agents = [
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]  # fmt: skip

    said = [agent.communicate(timeout=400) for agent in agents]

    assert [agent.returncode for agent in agents] == [0, 0], said
    told = sorted(out for out, _ in said)
    assert told[0] == ""  # process 0 alone tells
    assert "on 2 processes" in told[1]
    found = summary(tmp_path / "run")
    assert (found["processes"], found["samples"], found["status"]) == (2, 2874, "FINISHED")
    assert {each.name for each in tmp_path.iterdir()} == {"run"}


@pytest.mark.slow
def test_a_machine_without_the_checkpoint_is_refused_on_all(
    command: CommandLine, tmp_path: Path
) -> None:
    assert command(*ON_TWO, "trainer.max_epochs=1", "track=none").returncode == 0
    shutil.copytree(tmp_path / "run" / ".hydra", tmp_path / "elsewhere" / ".hydra")
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [*(sys.executable, "-m", "src.train", "trainer.max_epochs=2"),
             f"resume={tmp_path / folder}"],
            cwd=ROOT, env={**os.environ, **there, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank, folder in enumerate(("run", "elsewhere"))
    ]  # fmt: skip

    errors = [process.communicate(timeout=400)[1] for process in processes]

    assert [process.returncode for process in processes] == [1, 1]
    for error in errors:
        assert "error: where the run goes on differs between the 2 processes; " in error
    assert latest(tmp_path / "run" / "checkpoints").clock.epoch == 1
