"""The SQLite database that MLflow keeps runs in is whole or not there, wherever a kill comes."""

import multiprocessing
import re
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.store.db import utils as private_mlflow
from sqlalchemy import Connection, create_engine

from cadence.tracking.mlflow import client, database


def dump(file: Path) -> list[list[str]]:
    """Return the lines of each statement that would make a database.

    They are sorted: MLflow's constraints and indices come as they may.
    """
    with closing(sqlite3.connect(file)) as connection:
        statements = list(connection.iterdump())
    return sorted(sorted(line.strip(" ,") for line in each.splitlines()) for each in statements)


@pytest.fixture(scope="module")
def made_by_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    engine = create_engine(f"sqlite:///{file}")
    private_mlflow._initialize_tables(engine)
    engine.dispose()
    return file


@pytest.mark.parametrize("scheme", ["sqlite", "sqlite+pysqlite"])
def test_the_database_is_what_mlflow_itself_makes(
    tmp_path: Path, made_by_mlflow: Path, scheme: str
) -> None:
    file = tmp_path / "a #1 [x] folder" / "mlflow.db"
    file.parent.mkdir()
    file.touch(0o660)  # as whoever asked whether it can be written leaves it
    mode, number = file.stat().st_mode, file.stat().st_ino

    database.make_whole(f"{scheme}:///{file}?timeout=5")

    assert dump(file) == dump(made_by_mlflow)
    assert (file.stat().st_mode, file.stat().st_ino) == (mode, number)
    assert stat.S_IMODE(mode) & 0o060  # whoever shares the folder may write it
    assert client.open_client(f"sqlite:///{file}").search_experiments()[0].name == "Default"


def test_a_kill_while_the_database_is_made_leaves_none_and_the_next_run_makes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlflow.db"
    context = multiprocessing.get_context("fork")
    half = context.Event()

    def dies_half_way(connection: Connection, statements: list[str]) -> None:
        connection.exec_driver_sql("PRAGMA cache_size = 1")  # so that the file has some of it
        connection.exec_driver_sql("BEGIN EXCLUSIVE")
        for statement in statements[: len(statements) // 2]:
            connection.exec_driver_sql(statement)
        half.set()
        context.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(database, "_fill", dies_half_way)
        making = context.Process(target=database.make_whole, args=(f"sqlite:///{file}",))
        making.start()
    assert half.wait(60)
    making.kill()
    making.join()

    assert file.stat().st_size > 0
    assert file.with_name("mlflow.db-journal").exists()
    opened = client.open_client(f"sqlite:///{file}")
    assert opened.search_experiments()[0].name == "Default"
    assert not file.with_name("mlflow.db-journal").exists()


def test_what_another_program_makes_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mlflow.db"
    tables = database._tables

    def quicker() -> list[str]:
        with closing(sqlite3.connect(file)) as connection:
            connection.execute("CREATE TABLE theirs (number INTEGER)")
        return tables()

    monkeypatch.setattr(database, "_tables", quicker)
    database.make_whole(f"sqlite:///{file}")

    assert ["CREATE TABLE theirs (number INTEGER);"] in dump(file)
    assert len(dump(file)) == 3  # with its BEGIN and its COMMIT


def gone(patch: pytest.MonkeyPatch) -> None:
    patch.delattr(private_mlflow, "_initialize_tables")


def called_otherwise(patch: pytest.MonkeyPatch) -> None:
    def initialize(engine: object, *, schema: str) -> None: ...

    patch.setattr(private_mlflow, "_initialize_tables", initialize)


@pytest.mark.parametrize("changed", [gone, called_otherwise])
def test_without_mlflows_private_function_there_is_nothing_to_copy_and_its_client_makes_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: Callable[[pytest.MonkeyPatch], None]
) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with monkeypatch.context() as patch:
        changed(patch)
        database.make_whole(uri)

    assert not dump(tmp_path / "mlflow.db")[2:]  # nothing but BEGIN and COMMIT
    assert client.open_client(uri).search_experiments()[0].name == "Default"


def test_mlflows_private_function_makes_tables_of_an_engine_alone() -> None:
    """Tried with MLflow 3.17.2; without it a kill while a database is made leaves half of it."""
    assert re.search(r'CREATE TABLE "?experiments"? ', " ".join(database._tables()))


@pytest.mark.parametrize(
    "uri",
    ["sqlite://", "sqlite:///:memory:", "sqlite:///file:a.db?uri=true", "http://127.0.0.1:5000"],
)
def test_nothing_is_made_for_an_address_without_a_file(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with database.one_at_a_time(uri):
        database.make_whole(uri)

    assert not list(tmp_path.iterdir())
