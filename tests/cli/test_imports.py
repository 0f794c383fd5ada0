"""What each command imports: nothing heavy before the command needs it, nothing it never needs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

HEAVY = {
    *("hydra", "torch", "torch._dynamo", "sympy", "networkx", "numpy", "scipy", "sklearn"),
    *("pandas", "pyarrow", "mlflow", "sqlalchemy", "alembic", "optuna", "matplotlib", "plotly"),
    *("rich", "joblib", "ray", "submitit"),
    *("hydra_plugins.cadence_sweeper._impl", "hydra_plugins.hydra_optuna_sweeper._impl"),
}
"""Modules that take long to import, or bring many others."""

RECORDED = """
import json, runpy, sys
file, watched, *sys.argv = sys.argv[1:]
try:
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
finally:
    with open(file, "w") as said:
        json.dump(sorted({*json.loads(watched)} & {*sys.modules}), said)
"""
"""Runs a module as ``python -m`` does, and leaves behind which of the modules it imported."""

LIGHT = {"hydra"}
TRAINS = {"hydra", "numpy", "rich", "torch"}
TRACKS = TRAINS | {"alembic", "mlflow", "pandas", "pyarrow", "scipy", "sqlalchemy"}


def imported(folder: Path, module: str, *arguments: str, fails: bool = False) -> set[str]:
    """Return which of `HEAVY` a command has imported when it ends."""
    file = folder / "imported.json"
    ended = subprocess.run(
        [sys.executable, "-c", RECORDED, file, json.dumps([*HEAVY]), module, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert ended.returncode == fails, ended.stderr
    found: list[str] = json.loads(file.read_text())
    return {*found}


@pytest.mark.parametrize("module", ["src.train", "src.advise", "src.certify"])
def test_help_of_a_training_command_imports_hydra_alone(tmp_path: Path, module: str) -> None:
    assert imported(tmp_path, module, "--help") == LIGHT


@pytest.mark.parametrize("module", ["src.report", "src.sync"])
def test_help_of_a_command_without_a_config_imports_nothing_heavy(
    tmp_path: Path, module: str
) -> None:
    assert imported(tmp_path, module, "--help") == set()


def test_the_config_is_shown_with_hydra_alone(tmp_path: Path) -> None:
    assert imported(tmp_path, "src.train", "--cfg", "job") == LIGHT


@pytest.mark.parametrize("typo", ["trainer.step_sise=4", "trainer.step_size=0", "model=mpl"])
def test_a_typo_is_answered_with_hydra_alone(tmp_path: Path, typo: str) -> None:
    folder = f"hydra.run.dir={tmp_path / 'run'}"

    assert imported(tmp_path, "src.train", typo, folder, fails=True) == LIGHT


def test_an_untracked_run_imports_torch_and_its_display_and_so_does_its_evaluation(
    tmp_path: Path,
) -> None:
    run = tmp_path / "run"
    arguments = ("track=none", "trainer.max_epochs=1", f"hydra.run.dir={run}")

    assert imported(tmp_path, "src.train", *arguments) == TRAINS
    assert imported(tmp_path, "src.evaluate", f"run={run}") == TRAINS


@pytest.mark.slow
def test_a_tracked_run_imports_mlflow_and_no_sweeper_plots_or_compiler(
    tmp_path: Path, tracking_uri: str
) -> None:
    arguments = ("trainer.max_epochs=1", f"hydra.run.dir={tmp_path / 'run'}")

    assert imported(tmp_path, "src.train", f"track.uri={tracking_uri}", *arguments) == TRACKS


def test_a_certificate_imports_torch_and_its_display(tmp_path: Path) -> None:
    watches = {"sympy", "torch._dynamo"}  # with a mode of torch's that sees every operation
    assert imported(tmp_path, "src.certify") == TRAINS | watches
