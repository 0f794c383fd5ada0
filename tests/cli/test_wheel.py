"""The built wheel in a folder of its own, used in a user's empty project by the cadence command."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow

NET = """
from torch import nn

def net(input_shape, outputs, width):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, outputs))
"""
YAML = "_target_: my_net.net\ninput_shape: null\noutputs: null\nwidth: 16\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the wheel is installed in."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip"]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps"]
    build = ["wheel", *quiet, "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("cadence-*.whl")
    target = folder / "installed"
    subprocess.run([*pip, "install", *quiet, "--target", str(target), str(wheel)], check=True)
    return target


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[tool.cadence]\ntrusted = ["my_net.*"]\n')
    (tmp_path / "my_net.py").write_text(NET)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "mine.yaml").write_text(YAML)
    (tmp_path / "notes").mkdir()
    return tmp_path


def cadence(installed: Path, folder: Path, *arguments: str) -> str:
    """Run the command in a folder, and return what it printed."""
    ended = subprocess.run(
        [sys.executable, str(installed / "bin" / "cadence"), *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_wheel_holds_conf_and_the_sweeper_and_leaves_hydras_plugins_in_sight(
    installed: Path,
) -> None:
    shipped = {file.relative_to(ROOT / "conf") for file in (ROOT / "conf").rglob("*.yaml")}
    inside = installed / "cadence" / "conf"

    assert {file.relative_to(inside) for file in inside.rglob("*.yaml")} == shipped
    assert (installed / "hydra_plugins" / "cadence_sweeper" / "sweeper.py").is_file()
    assert not (installed / "hydra_plugins" / "__init__.py").exists()


def test_a_users_own_model_trains_goes_on_and_is_evaluated_without_naming_its_folder_again(
    installed: Path, project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (project / "conf").rename(elsewhere / "conf")
    here = project / "notes"
    few = ("track=none", "trainer.max_samples=64")

    trained = cadence(
        installed, here, "train", f"--config-dir={elsewhere}/conf", "model=mine", *few
    )

    assert "model   mine, " in trained
    (summary,) = project.glob("mlruns/runs/*/*/summary.json")
    assert json.loads(summary.read_text())["status"] == "FINISHED"
    cadence(installed, here, "train", "resume=last", "trainer.max_samples=128")
    assert json.loads(summary.read_text())["samples"] == 128
    assert "val/loss" in cadence(installed, here, "evaluate", "run=last")


def test_a_sweep_of_a_users_own_model_is_kept_in_its_project(
    installed: Path, project: Path
) -> None:
    few = ("track=none", "trainer.max_samples=64", "hydra.sweeper.n_trials=2")

    cadence(installed, project / "notes", "sweep", "step_size", "model=mine", *few)

    assert (project / "sweeps" / "step_size_digits_mine" / "study.db").is_file()
    assert cadence(installed, project, "report", "step_size_digits_mine")
