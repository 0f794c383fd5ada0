"""The SQLite database that MLflow keeps runs in where no server does it: whole, or not there."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine
from sqlalchemy.engine import make_url


def one_at_a_time(uri: str) -> AbstractContextManager[Any]:
    """Keep two processes from making the same database at once, which MLflow cannot."""
    file = _file(uri)
    return nullcontext() if file is None else FileLock(f"{file}.lock")


def make_whole(uri: str) -> None:
    """Make the database of an SQLite address if there is none; for any other do nothing.

    MLflow makes its tables in dozens of steps, takes seconds over it, and refuses for ever what a
    kill leaves between two of them. So they are made beside it, and put in place by one rename.

    Raises:
        SQLAlchemyError, OSError: The disk does not take it; then nothing of it is left.
    """
    file = _file(uri)
    if file is None or (file.exists() and file.stat().st_size > 0):
        return
    part = file.with_name(f"{file.name}.part")
    _remove(part)
    beside = make_url(uri).set(database=str(part))
    engine = create_sqlalchemy_engine(beside.render_as_string(hide_password=False))
    try:
        _initialize_tables(engine)
        engine.dispose()
        part.replace(file)
    except BaseException:
        engine.dispose()
        _remove(part)
        raise


def _file(uri: str) -> Path | None:
    """Return the file of an SQLite database; None = it is in memory, or a server's."""
    database = make_url(uri).database if uri.startswith("sqlite:") else None
    return None if database in (None, "", ":memory:") else Path(str(database)).resolve()


def _remove(part: Path) -> None:
    """Remove a database that was never finished, and the journal that a kill left beside it."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        part.with_name(part.name + suffix).unlink(missing_ok=True)
