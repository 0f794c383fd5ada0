"""Runs, checkpoints and studies that cadence made before its packages: they go on."""

import json
import shutil
from pathlib import Path

import optuna
import pytest
import torch
from before import FOLDER, restore
from conftest import CommandLine
from told import in_mlflow, in_the_folder

from cadence.checkpoint.folder import latest

EXPECTED = json.loads((FOLDER / "resumed.json").read_text())
"""What the run became when the code that made the run resumed it to four epochs."""

SAME_BITS = EXPECTED["computed_by"] == [torch.__version__, torch.backends.cpu.get_cpu_capability()]
"""Whether this torch and processor round as those did that the numbers are from."""

DATA = (
    *("data=synthetic", "data.samples=96", "data.shape=[6]", "data.classes=3"),
    *("data.batch_size=4", "model=mlp", "model.hidden=[5]", "device.name=cpu"),
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return restore("run", tmp_path / "run of before")


def same(found: object, expected: object) -> bool:
    return found == (expected if SAME_BITS else pytest.approx(expected, rel=1e-5, abs=1e-7))


def test_a_run_of_before_goes_on_to_the_same_losses_and_weights_bit_for_bit(
    command: CommandLine, run: Path
) -> None:
    ended = command(f"resume={run}", "trainer.max_epochs=4")

    assert ended.returncode == 0, ended.stderr
    state = latest(run / "checkpoints")
    assert state.clock.samples == EXPECTED["samples"]
    for key, curve in EXPECTED["curves"].items():
        found = [[one.step, one.value] for one in in_the_folder(run) if one.key == key]
        assert [step for step, _ in found] == [step for step, _ in curve]
        assert same([value for _, value in found], [value for _, value in curve]), key
    for name, numbers in EXPECTED["weights"].items():
        assert same(state.model[name].flatten().tolist(), numbers), name
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "FINISHED"
    for key, value in EXPECTED["summary"].items():
        assert same(summary[key], value), key


def test_a_run_of_before_is_uploaded_once_with_every_number(
    command: CommandLine, run: Path, tmp_path: Path
) -> None:
    uri = f"sqlite:///{tmp_path}/fresh.db"

    for _ in range(2):
        ended = command(str(run), f"--uri={uri}", module="src.sync")
        assert ended.returncode == 0, ended.stderr

    run_id = json.loads((run / "summary.json").read_text())["mlflow_run_id"]
    assert in_mlflow(uri, run_id) == in_the_folder(run)


def test_the_best_model_of_a_run_of_before_is_evaluated_as_its_summary_says(
    command: CommandLine, run: Path
) -> None:
    ended = command(f"run={run}", module="src.evaluate")

    assert ended.returncode == 0, ended.stderr
    loss = json.loads((run / "summary.json").read_text())["val_loss"]
    assert f"{loss:.4f}" in ended.stdout


def test_a_study_of_before_goes_on_and_reports(command: CommandLine, tmp_path: Path) -> None:
    folder = restore("study", tmp_path / "before")
    storage = f"sqlite:///{folder}/study.db"
    before = optuna.load_study(study_name="before", storage=storage).trials

    ended = command(
        *("--multirun", "sweep=step_size_grid", *DATA, "trainer.max_epochs=1", "track=none"),
        *("hydra.sweeper.study_name=before", "trainer.step_size=choice(1,2,4)"),
        *("hydra.sweeper.n_trials=3", f"hydra.sweep.dir={folder}"),
    )

    assert ended.returncode == 0, ended.stderr
    trials = optuna.load_study(study_name="before", storage=storage).trials
    assert len(before) == 2
    assert [trial.values for trial in trials[:2]] == [trial.values for trial in before]
    assert sorted(trial.params["trainer.step_size"] for trial in trials) == [1, 2, 4]
    assert all(trial.state.name == "COMPLETE" for trial in trials)
    assert len((folder / "trials.csv").read_text().splitlines()) == 1 + 3

    shutil.rmtree(folder / "trials")
    (folder / "report.md").unlink()
    drawn = command("before", f"--folder={folder}", module="src.report")

    assert drawn.returncode == 0, drawn.stderr
    assert (folder / "report.md").is_file()
