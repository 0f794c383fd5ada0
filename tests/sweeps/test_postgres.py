"""A sweep whose study is in PostgreSQL: a real server, started and ended here."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
import psycopg
import pytest
from conftest import CommandLine
from optuna.trial import TrialState
from serving import needs_postgres, postgres_server
from sqlalchemy.pool import NullPool

from cadence.sweeps.locks import study_locked
from cadence.sweeps.study import open_storage


@pytest.fixture
def postgres() -> Iterator[str]:
    """The address of an empty database on this machine alone."""
    with (
        tempfile.TemporaryDirectory(prefix="cadence-") as folder,
        postgres_server(Path(folder)) as port,
    ):
        yield f"postgresql+psycopg://cadence@127.0.0.1:{port}/postgres"


@needs_postgres
def test_a_sweep_in_postgresql_goes_on_as_one_in_sqlite_does(
    command: CommandLine, tmp_path: Path, postgres: str
) -> None:
    for total in (1, 3):
        ended = command(
            *("--multirun", "sweep=step_size", f"hydra.sweep.dir={tmp_path}/sweep", "track=none"),
            *("trainer.max_samples=64", f"hydra.sweeper.n_trials={total}"),
            f"hydra.sweeper.storage={postgres}",
        )
        assert ended.returncode == 0, ended.stderr
    storage = optuna.storages.RDBStorage(postgres, engine_kwargs={"poolclass": NullPool})
    study = optuna.load_study(study_name="step_size_digits_mlp", storage=storage)

    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    assert len({trial.params["trainer.step_size"] for trial in study.trials}) == 3
    assert (tmp_path / "sweep" / "report.md").is_file()
    assert not (tmp_path / "sweep" / "study.db").exists()


@needs_postgres
def test_a_sweep_in_postgresql_holds_no_transaction_open_and_bears_a_server_that_starts_again(
    postgres: str,
) -> None:
    name = "step_size_digits_mlp"
    database = optuna.storages.RDBStorage(postgres, engine_kwargs={"pool_pre_ping": True})
    storage = open_storage(database)
    study = optuna.create_study(storage=storage, study_name=name)
    states = "select distinct state from pg_stat_activity where query like '%advisory%'"
    elsewhere = "and pid <> pg_backend_pid()"
    ended = "select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()"
    with psycopg.connect(postgres.replace("+psycopg", ""), autocommit=True) as other:
        with study_locked(database, name):
            assert other.execute(f"{states} {elsewhere}").fetchall() == [("idle",)]
        other.execute(f"{ended} and datname = current_database()")

    study.set_user_attr("still", "there")  # its connections were the server's that ended
    database.engine.dispose()


@needs_postgres
@pytest.mark.slow
def test_a_second_host_is_kept_out_of_a_study_in_postgresql(
    command: CommandLine, tmp_path: Path, postgres: str
) -> None:
    def sweep(folder: str) -> "subprocess.CompletedProcess[str]":
        return command(
            *("--multirun", "sweep=step_size", f"hydra.sweep.dir={tmp_path}/{folder}"),
            *("track=none", "trainer.max_samples=64", "hydra.sweeper.n_trials=1"),
            f"hydra.sweeper.storage={postgres}",
        )

    storage = optuna.storages.RDBStorage(postgres, engine_kwargs={"poolclass": NullPool})
    with study_locked(storage, "step_size_digits_mlp"):
        refused = sweep("other host")
    let_in = sweep("other host")

    assert refused.returncode == 1
    assert refused.stderr == (
        "error: study step_size_digits_mlp: another process is running this sweep; wait for it, or "
        "choose another hydra.sweeper.study_name=\n"
    )
    assert let_in.returncode == 0, let_in.stderr
