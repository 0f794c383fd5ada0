"""Whether a run is going on in its folder, on whichever host and whoever began it.

A sweep can die before the workers that run its trials. The lock tells: the system releases it when
the run's process ends, however it does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

FILE = ".running.lock"


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Let others know that a run is going on in a folder.

    Args:
        folder: The run's folder; it must be there.

    Raises:
        ValueError: Another process has a run there.
    """
    lock = FileLock(folder / FILE)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(
            f"{folder}: its run is still going on; wait for it, or choose another hydra.run.dir="
        ) from error
    try:
        yield
    finally:
        lock.release()


def is_running(folder: Path) -> bool:
    """Return whether a run is going on in a folder; False where there is no folder."""
    lock = FileLock(folder / FILE)
    if not Path(lock.lock_file).exists():
        return False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
