"""Lock files: whether a run, a sweep or a database is in use, on whichever host and by whomever.

A process can die before those it started. The lock tells: the system releases a lock when the
process that holds it ends, however it does.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

RUNNING = ".running.lock"


def taken(file: Path, in_use: str) -> FileLock:
    """Take a lock that no other process holds, until its `release`, which any thread may call.

    Args:
        file: The lock's file; its folder must be there.
        in_use: What to say where another holds the lock.

    Raises:
        ValueError: Another process, or another lock of this one, holds it.
    """
    lock = FileLock(file, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(in_use) from error
    return lock


@contextmanager
def held(file: Path, in_use: str) -> Iterator[None]:
    """Hold a lock that no other process holds, as `taken` takes one.

    Raises:
        ValueError: Another process holds the lock.
    """
    lock = taken(file, in_use)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def waited_for(file: Path) -> Iterator[None]:
    """Hold a lock, as soon as no other process holds it."""
    with FileLock(file):
        yield


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Let others know that a run is going on in a folder.

    Args:
        folder: The run's folder; it must be there.

    Raises:
        ValueError: Another process has a run there.
    """
    in_use = f"{folder}: its run is still going on; wait for it, or choose another hydra.run.dir="
    with held(folder / RUNNING, in_use):
        yield


def is_running(folder: Path) -> bool:
    """Return whether a run is going on in a folder; False where there is no folder."""
    lock = folder / RUNNING
    if not lock.exists():
        return False
    try:
        taken(lock, "in use").release()
    except ValueError:
        return True
    return False
