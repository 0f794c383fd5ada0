"""A sweep whose study is in PostgreSQL: a real server, started and ended here."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import psycopg
import pytest
from conftest import CommandLine
from optuna.trial import TrialState
from sqlalchemy.pool import NullPool

from cadence.sweep import alone_with_study


def program(name: str) -> str | None:
    """Where Debian or the PATH has one of PostgreSQL's programs."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(debian[-1]) if debian else shutil.which(name)


needs_postgres = pytest.mark.skipif(
    not (program("initdb") and program("postgres")) and not os.environ.get("CI"),
    reason="needs PostgreSQL's server (apt-get install postgresql)",
)


@pytest.fixture
def postgres() -> Iterator[str]:
    """The address of an empty database on this machine alone."""
    with tempfile.TemporaryDirectory(prefix="cadence-") as folder:
        yield from served(Path(folder))


def served(folder: Path) -> Iterator[str]:
    """Run a server in a folder, and yield its address."""
    user = None
    if os.geteuid() == 0:  # the server refuses to run as root
        user = "postgres"
        shutil.chown(folder, user)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    initdb, server = program("initdb"), program("postgres")
    assert initdb is not None
    assert server is not None
    data = folder / "data"
    subprocess.run(
        [initdb, "-D", data, "-U", "cadence", "-A", "trust", "--no-sync"],
        user=user,
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    process = subprocess.Popen(
        [server, "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"],
        user=user,
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not answers(port):
            assert process.poll() is None
            time.sleep(0.2)
        yield f"postgresql+psycopg://cadence@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGINT)  # do not wait for clients
        process.wait(timeout=60)


def answers(port: int) -> bool:
    try:
        psycopg.connect(f"postgresql://cadence@127.0.0.1:{port}/postgres").close()
    except psycopg.OperationalError:
        return False
    return True


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
    with alone_with_study(storage, "step_size_digits_mlp"):
        refused = sweep("other host")
    let_in = sweep("other host")

    assert refused.returncode == 1
    assert refused.stderr == (
        "error: study step_size_digits_mlp: another process is running this sweep; wait for it, or "
        "choose another hydra.sweeper.study_name=\n"
    )
    assert let_in.returncode == 0, let_in.stderr
