"""A run says of its code only what git said."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cadence.tracking.provenance import git_tags

COMMIT = ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")


def git(folder: Path, *command: str) -> str:
    ran = subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, text=True)
    return ran.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "file").write_text("first")
    git(folder, "add", "file")
    git(folder, *COMMIT)
    return folder


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    git_tags.cache_clear()
    yield
    git_tags.cache_clear()


def test_a_run_says_whether_files_differ_from_its_commit(checkout: Path) -> None:
    clean = git_tags(checkout)
    (checkout / "file").write_text("second")
    git_tags.cache_clear()

    commit = git(checkout, "rev-parse", "HEAD")
    assert clean == {"mlflow.source.git.commit": commit, "cadence.git.changed": "false"}
    assert git_tags(checkout)["cadence.git.changed"] == "true"


def test_where_git_cannot_say_what_differs_no_tag_says_so(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = tmp_path / "bin" / "git"
    failing.parent.mkdir()
    real = subprocess.run(["which", "git"], check=True, capture_output=True, text=True).stdout
    failing.write_text(
        f'#!/bin/sh\ncase " $* " in *" status "*) exit 128;; esac\nexec {real.strip()} "$@"\n'
    )
    failing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{failing.parent}{os.pathsep}{os.environ['PATH']}")

    assert set(git_tags(checkout)) == {"mlflow.source.git.commit"}


def test_another_checkout_that_the_environment_names_is_not_asked(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_WORK_TREE", str(tmp_path))

    assert git_tags(checkout)["cadence.git.changed"] == "false"
