"""Small files are whole or not there, and on the disk before their name is."""

import os
from pathlib import Path
from typing import Any

import pytest

from cadence.system.atomic_write import copy_atomically, write_atomically


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the disk was told, in order."""
    told: list[str] = []
    sync, rename = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        told.append("synced")
        sync(descriptor)

    def renamed(file: Path, target: Any) -> Path:
        told.append("renamed")
        return rename(file, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    return told


def test_the_bytes_are_on_the_disk_before_the_name_is(disk: list[str], tmp_path: Path) -> None:
    write_atomically(tmp_path / "written", "text")
    copy_atomically(tmp_path / "written", tmp_path / "copied")

    assert disk == ["synced", "renamed"] * 2
    assert (tmp_path / "copied").read_text() == "text"
    assert {file.name for file in tmp_path.iterdir()} == {"written", "copied"}


def test_what_cannot_be_written_leaves_what_was_there_and_no_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, source = tmp_path / "file", tmp_path / "source"
    for one in (file, source):
        one.write_text(one.name)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda: write_atomically(file, "new"), lambda: copy_atomically(source, file)):
        with pytest.raises(OSError, match="No space left on device") as refused:
            write()
        assert refused.value.filename == str(file)

    assert file.read_text() == "file"
    assert {one.name for one in tmp_path.iterdir()} == {"file", "source"}
