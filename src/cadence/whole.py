"""Small text files that are whole or not there, wherever a kill comes."""

from pathlib import Path


def write_whole(file: Path, text: str) -> None:
    """Write a text file by one rename, so that a reader sees the old one or the new.

    Raises:
        OSError: The disk does not take it; what was there stays.
    """
    part = file.with_name(f"{file.name}.part")
    part.write_text(text)
    part.replace(file)
