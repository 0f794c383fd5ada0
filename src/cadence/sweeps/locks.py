"""One process at a time: the locks of a sweep's folder and of a study in PostgreSQL."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from cadence.system.locks import held


@contextmanager
def folder_locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a sweep's folder: it would take the first one's trials for dead.

    Args:
        folder: The sweep's folder, made where it is not there.

    Raises:
        ValueError: Another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / ".lock", str(_in_use(str(folder)))):
        yield


@contextmanager
def study_locked(storage: BaseStorage | str | None, name: str) -> Iterator[None]:
    """Keep other hosts, whose folders are their own, out of a study in PostgreSQL.

    Other storages are not locked: the lock of the folder is all that guards them.

    Args:
        storage: As the user gave it: a URL, a storage, or None for memory.
        name: The study's name.

    Raises:
        ValueError: Another process is at work on the study.
    """
    url = storage.url if isinstance(storage, RDBStorage) else storage
    if not isinstance(url, str) or not url.startswith("postgresql"):
        yield
        return
    known = storage.engine if isinstance(storage, RDBStorage) else None
    engine = known or create_engine(url, poolclass=NullPool)
    # A transaction would stay open for as long as the sweep runs.
    with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        # The server releases the lock when the connection ends, however its process does.
        lock = text("select pg_try_advisory_lock(hashtext(:study))")
        if not connection.execute(lock, {"study": f"cadence {name}"}).scalar():
            raise _in_use(f"study {name}")
        yield


def _in_use(what: str) -> ValueError:
    return ValueError(
        f"{what}: another process is running this sweep; wait for it, or choose another "
        "hydra.sweeper.study_name="
    )
