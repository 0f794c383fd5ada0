"""Small files that are whole or not there, wherever a kill or a power cut comes."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_atomically(file: Path, content: str | bytes) -> None:
    """Write a file by one rename, so that a reader sees the old one or the new.

    Raises:
        OSError: The disk does not take it; what was there stays, and nothing else is left.
    """
    written = content.encode() if isinstance(content, str) else content
    _renamed(file, lambda opened: opened.write(written))


def copy_atomically(source: Path, file: Path) -> None:
    """Copy a file as `write_atomically` writes one.

    Raises:
        OSError: As there, or the source cannot be read.
    """
    with source.open("rb") as opened:
        _renamed(file, lambda copy: shutil.copyfileobj(opened, copy))


def _renamed(file: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file under another name, and rename it once the disk has it."""
    part = file.with_name(f"{file.name}.part")
    try:
        with part.open("wb") as opened:
            write(opened)
            opened.flush()
            os.fsync(opened.fileno())
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from error
