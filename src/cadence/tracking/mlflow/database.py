"""The SQLite database that MLflow keeps runs in where no server does it: whole, or not there."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine

from cadence.system.locks import waited_for
from cadence.tracking.address import sqlite_file


def one_at_a_time(uri: str) -> AbstractContextManager[Any]:
    """Keep two processes from opening a new database at once, which MLflow cannot."""
    file = sqlite_file(uri)
    return nullcontext() if file is None else waited_for(Path(f"{file}.lock"))


def make_whole(uri: str) -> None:
    """Make the tables of an empty SQLite database at once; do nothing where there are some.

    MLflow makes them in dozens of steps, takes seconds over it, and refuses for ever what a kill
    leaves between two of them. So it makes them in memory, and they are copied in one transaction.
    Where this version of MLflow cannot make them in memory, its client makes them as it does.

    Raises:
        SQLAlchemyError, OSError: The disk does not take it; then nothing of it is there.
        MlflowException: MLflow cannot keep runs in an SQLite as old as this one.
    """
    if sqlite_file(uri) is None:
        return
    engine = create_engine(uri)
    try:
        with engine.connect() as connection:
            if _is_empty(connection) and (statements := _tables()):
                _fill(connection, statements)
    finally:
        engine.dispose()


def _fill(connection: Connection, statements: list[str]) -> None:
    connection.exec_driver_sql("BEGIN EXCLUSIVE")
    if _is_empty(connection):  # still: another program may have been quicker
        for statement in statements:
            connection.exec_driver_sql(statement)
    connection.commit()


def _is_empty(connection: Connection) -> bool:
    return connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar() == 0


def _tables() -> list[str]:
    """Return the statements that make what MLflow makes of an empty database.

    None are returned where MLflow's function for it, a private one, is gone or is called otherwise.
    """
    engine = create_engine("sqlite://")
    try:
        from mlflow.store.db.utils import _initialize_tables

        _initialize_tables(engine)
        with engine.connect() as connection:
            held: Any = connection.connection.driver_connection
            _begin, *statements, _commit = held.iterdump()
    except (ImportError, TypeError):
        return []
    finally:
        engine.dispose()
    return list(statements)
