"""Where a command works, and how it is typed."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from cadence.config import project


def test_a_checkout_is_its_own_project_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(project.ROOT_VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)

    assert (project.root(), project.conf()) == (ROOT, ROOT / "conf")
    assert project.own_conf() is None
    assert project.command("sync") == "python -m src.sync"


@pytest.mark.parametrize("mark", ["pyproject.toml", "conf/model/mine.yaml"])
def test_the_project_is_the_nearest_folder_upwards_with_a_pyproject_or_a_conf(
    tmp_path: Path, mark: str
) -> None:
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "a" / mark).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "a" / mark).touch()

    assert project.nearest_root(inner) == tmp_path / "a"
    assert project.nearest_root(tmp_path) == tmp_path


def test_the_cadence_command_enters_the_project_and_is_named_in_what_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "conf").mkdir()
    monkeypatch.setenv(project.ROOT_VARIABLE, "")
    monkeypatch.delenv(project.ROOT_VARIABLE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.chdir(tmp_path)

    project.enter()

    assert project.root() == tmp_path
    assert project.own_conf() == tmp_path / "conf"
    assert sys.path[0] == str(tmp_path)
    assert project.as_typed("try python -m src.train --help") == "try cadence train --help"


def test_cadence_help_lists_the_commands_without_torch_hydra_or_mlflow() -> None:
    listed = (
        "import sys; from cadence.cli.main import main; sys.argv[1:] = ['--help']; main(); "
        "print({'torch', 'hydra', 'mlflow', 'optuna', 'omegaconf'} & {*sys.modules})"
    )

    ended = subprocess.run([sys.executable, "-c", listed], capture_output=True, text=True)

    assert ended.returncode == 0, ended.stderr
    for name in ("train", "sweep", "evaluate", "advise", "certify", "report", "sync", "ui"):
        assert f"\n  {name} " in ended.stdout
    assert ended.stdout.endswith("set()\n")
