"""Small files that are whole or not there, wherever a kill comes."""

from pathlib import Path


def write_whole(file: Path, content: str | bytes) -> None:
    """Write a file by one rename, so that a reader sees the old one or the new.

    Raises:
        OSError: The disk does not take it; what was there stays, and nothing else is left.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(file)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(file)) from error
