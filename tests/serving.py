"""Real servers on this machine alone: MLflow's, which tests kill and start again; PostgreSQL's."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from waiting import until


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class MlflowServer:
    """``mlflow server`` with one worker, whose database and artifacts are in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        database = f"sqlite:///{self._folder}/mlflow.db"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--workers", "1"),
                *("--host", "127.0.0.1", "--port", str(self._port)),
                *("--backend-store-uri", database),
                *("--artifacts-destination", str(self._folder / "artifacts")),
            ],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        process = self._process
        try:
            until(
                self._answers,
                f"{self.uri} answers",
                alive=lambda: process.poll() is None,
                every=0.1,
            )
        except BaseException:
            self.kill()  # nobody else would
            raise

    def kill(self) -> None:
        """End it at once, as kill -9 does, with its worker."""
        self.send(signal.SIGKILL)
        assert self._process is not None
        self._process.wait()

    def send(self, number: signal.Signals) -> None:
        """Send it and its worker a signal; after SIGSTOP it accepts and never answers."""
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
        except OSError:
            return False
        return True


def program(name: str) -> str | None:
    """Where Debian or the PATH has one of PostgreSQL's programs."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return str(debian[-1]) if debian else shutil.which(name)


needs_postgres = pytest.mark.skipif(
    not (program("initdb") and program("postgres")) and not os.environ.get("CI"),
    reason="needs PostgreSQL's server (apt-get install postgresql)",
)


@contextmanager
def postgres_server(folder: Path) -> Iterator[int]:
    """Run PostgreSQL's server in a folder, and give its port; its user is cadence."""
    user = None
    if os.geteuid() == 0:  # the server refuses to run as root
        user = "postgres"
        shutil.chown(folder, user)
    port = free_port()
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
        until(lambda: _accepts(port), "a database", alive=lambda: process.poll() is None, every=0.2)
        yield port
    finally:
        process.send_signal(signal.SIGINT)  # do not wait for clients
        process.wait(timeout=400)


def _accepts(port: int) -> bool:
    try:
        psycopg.connect(f"postgresql://cadence@127.0.0.1:{port}/postgres").close()
    except psycopg.OperationalError:
        return False
    return True
