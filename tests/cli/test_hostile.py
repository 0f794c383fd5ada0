"""Configs, checkpoints and run folders that try to run code or to reach outside: all refused."""

import hashlib
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
import torch
from conftest import CommandLine
from told import in_mlflow, in_the_folder
from warm import Warm

from cadence.checkpoint.file_format import read
from cadence.checkpoint.folder import FOLDER

TRIED = "executed"
"""The file that hostile code would make where the command runs."""

SYSTEM = "{_target_: os.system, command: 'touch executed'}"
EVAL = "{_target_: builtins.eval, _args_: [\"open('executed', 'w')\"]}"

CONFIGS = {
    "a callback": [f"+hydra.callbacks.one={SYSTEM}"],
    "a callback's eval": [f"+hydra.callbacks.one={EVAL}"],
    "within a callback": [
        f"+hydra.callbacks.one={{_target_: hydra.experimental.callbacks.PickleJobInfoCallback, "
        f"more: {SYSTEM}}}"
    ],
    "the run's log": [
        "hydra.job_logging.handlers.console.class=subprocess.Popen",
        "+hydra.job_logging.handlers.console.args=[touch,executed]",
    ],
    "Hydra's log": [
        "hydra.hydra_logging.handlers.console.class=subprocess.Popen",
        "+hydra.hydra_logging.handlers.console.args=[touch,executed]",
    ],
    "the model": ["model._target_=os.system"],
    "within the model": [f"+model.more={SYSTEM}"],
    "the model's eval": ["model._target_=builtins.eval"],
    "within the data": [f"+data.more={EVAL}"],
    "the objective": [
        "data.objective._target_=os.system",
        "+data.objective.command='touch executed'",
    ],
    "within the objective": [f"+data.objective.ignore_index={EVAL}"],
    "within the model's list": [f"model.hidden=[{EVAL}]"],
    "the optimizer": ["optimizer._target_=os.system"],
    "within the optimizer": [f"+optimizer.more={EVAL}"],
    "a method of a trusted module": ["optimizer._target_=torch.optim.sys.exit"],
    "the whole of torch": ["optimizer._target_=torch.load"],
}


@pytest.mark.parametrize("overrides", CONFIGS.values(), ids=CONFIGS)
def test_code_in_a_config_never_runs(
    command: CommandLine, tmp_path: Path, overrides: list[str]
) -> None:
    run = [f"hydra.run.dir={tmp_path}/run", "track=none", "trainer.max_samples=64"]
    ended = command(*overrides, *run)

    assert ended.returncode == 1, ended.stdout
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.count("\n") == 1
    assert not (tmp_path / TRIED).exists()
    assert not list(tmp_path.rglob("summary.json"))


class Hostile:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {TRIED}",)


def sealed(file: Path) -> None:
    """Give a file the checksum of a whole one."""
    contents = file.read_bytes()
    footer = b"\ncadence checkpoint, sha256:" + hashlib.sha256(contents).digest()
    file.write_bytes(contents + footer)


def test_code_in_a_checkpoint_never_runs(command: CommandLine, tmp_path: Path) -> None:
    run, files = tmp_path / "run", ("last.pt", "previous.pt", "best.pt")
    assert command("trainer.max_epochs=1", "track=none").returncode == 0
    contents = torch.load(run / FOLDER / "last.pt", weights_only=True)
    said = set()
    for form in ("pickle", "torch"):
        for name in files:
            file = run / FOLDER / name
            if form == "pickle":
                file.write_bytes(pickle.dumps(Hostile()))
            else:
                torch.save({**contents, "config": {"a": Hostile()}}, file)
            sealed(file)
        for arguments, module in (
            ([f"resume={run}"], "src.train"),
            ([f"run={run}"], "src.evaluate"),
        ):
            ended = command(*arguments, module=module)
            assert ended.returncode == 1
            said.add(ended.stderr.partition(f"{run}/{FOLDER}/")[2])

    refusal = (
        "refused: it holds more than tensors and plain values, which could run code; use a "
        "checkpoint that cadence wrote\n"
    )
    assert said == {f"last.pt: {refusal}", f"best.pt: {refusal}"}
    assert not (tmp_path / TRIED).exists()


@pytest.mark.parametrize(
    "override",
    [
        "hydra.callbacks.one._target_=os.system",
        "+hydra/launcher=joblib",
        "--config-dir=/tmp",
    ],
)
def test_a_run_folder_that_would_change_hydra_is_refused(
    command: CommandLine, tmp_path: Path, override: str
) -> None:
    kept = tmp_path / "given" / ".hydra" / "overrides.yaml"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps(["track=none", override]))

    resumed = command(f"resume={tmp_path}/given")
    evaluated = command(f"run={tmp_path}/given", module="src.evaluate")

    assert resumed.returncode == evaluated.returncode == 1
    assert (
        resumed.stderr
        == evaluated.stderr
        == (f"error: {kept}: {override} is no override of a run; take it out\n")
    )


def test_a_run_folder_cannot_have_files_from_elsewhere_delivered(
    command: CommandLine, tmp_path: Path
) -> None:
    run, secret = tmp_path / "run", tmp_path / "secret"
    secret.write_text("secret")
    options = ("trainer.max_samples=64", "track.offline=true", f"track.uri=sqlite:///{tmp_path}/db")
    assert command(*options).returncode == 0
    manifest, again = run / "run.json", ("--uri", f"sqlite:///{tmp_path}/db", str(run))
    told = json.loads(manifest.read_text())

    for name in ("../secret", str(secret)):
        manifest.write_text(json.dumps({**told, "files": [name]}))
        ended = command(*again, module="src.sync")

        assert ended.returncode == 1
        assert ended.stderr == (
            f"error: {run}: {manifest}: {name} is not in the run's folder; take it out of files\n"
        )
    manifest.write_text(manifest.read_text()[:100])
    damaged = command(*again, module="src.sync")
    assert damaged.returncode == 1
    assert damaged.stderr.startswith(f"error: {run}: {manifest}: damaged (")


def test_a_damaged_line_among_a_runs_points_is_named_and_once_out_costs_nothing_else(
    warm: Warm, command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    run = tmp_path / "run"
    options = ("trainer.max_samples=64", "track.offline=true", f"track.uri={tracking_uri}")
    assert command(*options).returncode == 0
    file = run / "metrics.jsonl"
    whole = file.read_text()
    lines = whole.splitlines(keepends=True)
    damaged = "".join([lines[0], "\0\0\0\n", *lines[1:]])
    file.write_text(damaged)

    ends = [
        warm.run("src.sync", [str(run)], tmp_path),
        warm.run("src.train", [f"resume={run}", "trainer.max_samples=128"], tmp_path),
        warm.run("src.advise", [f"run={run}"], tmp_path),
    ]

    reason = (
        f"{file}: a line holds no number of a run: b'\\x00\\x00\\x00\\n'; take it out, the others "
        "stand\n"
    )
    assert [ended.returncode for ended in ends] == [1, 1, 1]
    assert ends[0].stderr == f"error: {run}: {reason}"
    warning, _, error = ends[1].stderr.partition("\n")
    assert warning.endswith("WARNING: resume: trainer.max_samples: was 64, now 128")
    assert [error, ends[2].stderr] == [f"error: {reason}"] * 2
    assert file.read_text().startswith(damaged)
    file.write_text(whole)
    assert warm.run("src.sync", [str(run)], tmp_path).returncode == 0
    told = json.loads((run / "summary.json").read_text())
    assert told["status"] == "FINISHED"
    assert in_mlflow(tracking_uri, told["mlflow_run_id"]) == in_the_folder(run)


def test_an_experiment_whose_name_climbs_folders_makes_none_elsewhere(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    ended = command(
        *("trainer.max_samples=64", "track.experiment=../../climbed"),
        f"track.uri={tracking_uri}",
    )

    assert ended.returncode == 0, ended.stderr
    state = read(tmp_path / "run" / FOLDER / "last.pt")
    run = mlflow.MlflowClient(tracking_uri).get_run(str(state.mlflow_run_id))
    home = Path(tracking_uri.removeprefix("sqlite:///")).parent
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert artifacts.resolve().is_relative_to(home.resolve())
    assert (artifacts / "config.yaml").is_file()
    assert not list(home.parent.rglob("*climbed*"))
