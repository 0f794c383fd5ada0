"""A user's own conf folders: typed once, and kept by the run that was composed from them."""

from pathlib import Path

import pytest

from cadence.cli.conf_folders import KEPT, with_conf_folders
from cadence.cli.sweep import as_multirun
from cadence.config import project
from cadence.config.errors import ConfigError


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.setenv(project.ROOT_VARIABLE, str(folder))
    return folder


def folder(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


def run_of(tmp_path: Path, *places: str) -> Path:
    file = tmp_path / "run" / KEPT
    file.parent.mkdir(parents=True)
    file.write_text(f"hydra:\n  searchpath: {list(places)}\n")
    return tmp_path / "run"


def test_a_command_line_without_folders_stays_as_it_is() -> None:
    assert with_conf_folders(["model=mlp", "--cfg", "job"]) == ["model=mlp", "--cfg", "job"]


@pytest.mark.parametrize("flag", ["--config-dir", "-cd"])
@pytest.mark.parametrize("is_one_word", [True, False])
def test_a_typed_folder_is_looked_at(tmp_path: Path, flag: str, is_one_word: bool) -> None:
    own = folder(tmp_path / "it's own")
    typed = [f"{flag}={own}"] if is_one_word else [flag, str(own)]

    (word,) = with_conf_folders(typed)

    assert word == f"hydra.searchpath=['file://{tmp_path}/it\\'s own']"


def test_the_projects_conf_and_the_runs_come_after_what_is_typed_each_once(
    root: Path, tmp_path: Path
) -> None:
    typed, kept, own = folder(tmp_path / "a"), folder(tmp_path / "b"), folder(root / "conf")
    run = run_of(tmp_path, f"file://{kept}", f"file://{own}", f"file://{typed}")

    *rest, word = with_conf_folders([f"hydra.searchpath=[file://{typed}]", "model=mine"], run)

    assert rest == ["model=mine"]
    assert word == f"hydra.searchpath=['file://{typed}','file://{kept}','file://{own}']"


def test_a_typed_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--config-dir=/nowhere/at/all: there is no such folder"):
        with_conf_folders(["--config-dir", "/nowhere/at/all"])


def test_a_runs_folder_that_is_gone_is_named_unless_another_is_typed(tmp_path: Path) -> None:
    run, moved = run_of(tmp_path, "file:///gone/conf"), folder(tmp_path / "moved")

    with pytest.raises(ConfigError, match=r"/gone/conf, which is not there any more"):
        with_conf_folders([], run)

    (word,) = with_conf_folders(["--config-dir", str(moved)], run)
    assert word == f"hydra.searchpath=['file://{moved}']"


def test_neither_a_package_nor_the_runs_own_folder_is_looked_at(tmp_path: Path) -> None:
    assert with_conf_folders([], run_of(tmp_path, "pkg://antigravity")) == []

    inside = folder(tmp_path / "other" / "run" / "conf")
    run = run_of(tmp_path / "other", f"file://{inside}")
    with pytest.raises(ConfigError, match="own folder"):
        with_conf_folders([], run)


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        ([], ["sweep=step_size"]),
        (["step_size_grid", "model=cnn"], ["sweep=step_size_grid", "model=cnn"]),
        (["model=cnn", "sweep=mine"], ["model=cnn", "sweep=mine"]),
        (["-m", "model=cnn"], ["sweep=step_size", "model=cnn"]),
    ],
)
def test_cadence_sweep_is_a_multirun_of_train(typed: list[str], given: list[str]) -> None:
    assert as_multirun(typed) == ["--multirun", *given]
