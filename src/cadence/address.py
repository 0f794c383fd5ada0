"""Where a tracking URI points, and whether anything answers there."""

import http.client
import socket
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from sqlalchemy.engine import make_url

from cadence.redaction import in_one_line, redacted

ANSWER_SECONDS = 10.0
"""How long a server may take to answer at a run's start."""

PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Where a server listens whose address names no port."""


def check(uri: str) -> None:
    """Find out at once what MLflow's own client would find out in minutes, or never.

    The folder of an SQLite database is made.

    Raises:
        ValueError: MLflow cannot keep runs there, or nothing answers; the message says what to try.
    """
    parts = urlsplit(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme == "sqlite":
        _make_folder(uri)
    elif scheme in ("", "file"):
        raise ValueError(
            f"track.uri={uri}: MLflow 3 keeps runs in a database, not in a folder; try "
            f"track.uri=sqlite:///{Path(parts.path).absolute()}/mlflow.db"
        )
    elif scheme in PORTS:
        try:
            _connect(parts.hostname or "", parts.port or PORTS[scheme], asks=scheme == "http")
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise ValueError(
                f"track.uri={redacted(uri)}: no MLflow server answers "
                f"({in_one_line(error)}); start it, correct the address, or train without by "
                "track=none, or deliver later by track.offline=true"
            ) from error


def _make_folder(uri: str) -> None:
    database = make_url(uri).database
    try:
        Path(database or ".").resolve().parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"track.uri={uri}: its folder cannot be made ({error}); choose another, "
                         "or track=none") from error  # fmt: skip


def _connect(host: str, port: int, *, asks: bool) -> None:
    """Connect, and wait for an answer, whatever it is, where one can be asked for in plain text."""
    if not asks:
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
        return
    with closing(http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)) as connection:
        connection.request("GET", "/health")
        connection.getresponse()


def one_at_a_time(uri: str) -> AbstractContextManager[Any]:
    """Keep two processes from making the same SQLite database at once, which MLflow cannot."""
    database = make_url(uri).database if uri.startswith("sqlite:") else None
    return nullcontext() if database is None else FileLock(f"{database}.lock")


def artifact_folder(uri: str) -> str | None:
    """Return where artifacts go: beside an SQLite file; None = where the server says."""
    if not uri.startswith("sqlite:"):
        return None
    database = make_url(uri).database
    return None if database is None else (Path(database).resolve().parent / "artifacts").as_uri()
