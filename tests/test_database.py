"""The SQLite database that MLflow keeps runs in is whole or not there, wherever a kill comes."""

import multiprocessing
import time
from pathlib import Path

import pytest

from cadence import database, track


@pytest.mark.parametrize("bytes_made", [1, 200_000])
def test_a_kill_while_the_database_is_made_leaves_none_and_the_next_run_makes_it(
    tmp_path: Path, bytes_made: int
) -> None:
    file = tmp_path / "a #1 [x] folder" / "mlflow.db"
    file.parent.mkdir()
    file.touch()  # as whoever asked whether it can be written leaves it
    uri, part = f"sqlite:///{file}", file.with_name("mlflow.db.part")
    making = multiprocessing.get_context("fork").Process(target=database.make_whole, args=(uri,))
    making.start()
    while not part.exists() or part.stat().st_size < bytes_made:
        assert making.is_alive()
        time.sleep(0.001)
    making.kill()
    making.join()

    assert file.stat().st_size == 0
    assert part.exists()
    assert track.open_client(uri).search_experiments()[0].name == "Default"
    assert sorted(path.name for path in file.parent.iterdir()) == ["mlflow.db", "mlflow.db.lock"]


def test_a_database_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"something")

    database.make_whole(f"sqlite:///{file}?timeout=5")

    assert file.read_bytes() == b"something"


@pytest.mark.parametrize("uri", ["sqlite://", "sqlite:///:memory:", "http://127.0.0.1:5000"])
def test_nothing_is_made_for_an_address_without_a_file(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with database.one_at_a_time(uri):
        database.make_whole(uri)

    assert not list(tmp_path.iterdir())
