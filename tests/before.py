"""A run and a study that cadence made before its packages, kept as small files.

They were made at commit 1fbd386 and live in ``tests/golden/before``: checkpoints compressed, the
study as SQL, and each path as a placeholder.
"""

import gzip
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

FOLDER = Path(__file__).parent / "golden" / "before"

HERE, PROJECT = "@HERE@", "@PROJECT@"
"""Stand for the folder itself, and for the project that made the folder."""


def restore(name: str, folder: Path) -> Path:
    """Copy a kept run or study into a folder, as if cadence had made the folder's content there."""
    for file in sorted(path for path in (FOLDER / name).rglob("*") if path.is_file()):
        place = folder / file.relative_to(FOLDER / name)
        place.parent.mkdir(parents=True, exist_ok=True)
        RESTORED.get(file.suffix, _text)(file, place, folder)
    return folder


def _compressed(file: Path, place: Path, folder: Path) -> None:
    place.with_suffix("").write_bytes(gzip.decompress(file.read_bytes()))


def _database(file: Path, place: Path, folder: Path) -> None:
    with closing(sqlite3.connect(place.with_suffix(""))) as database:
        database.executescript(_at_home(file.read_text(), folder))


def _text(file: Path, place: Path, folder: Path) -> None:
    place.write_text(_at_home(file.read_text(), folder))


def _at_home(text: str, folder: Path) -> str:
    return text.replace(HERE, str(folder)).replace(PROJECT, str(folder.parent))


RESTORED: dict[str, Callable[[Path, Path, Path], None]] = {".gz": _compressed, ".sql": _database}
"""How to restore a kept file, by suffix; any other is text."""
