"""Where a tracking URI points, and whether anything answers there."""

import http.client
import itertools
import logging
import socket
import time
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import SplitResult, urlsplit
from urllib.request import getproxies, proxy_bypass

from cadence.system.secrets import in_one_line, redacted

log = logging.getLogger(__name__)

ANSWER_SECONDS = 10.0
"""How long a server may take to answer at a run's start."""

WAIT_SECONDS = 3600.0
"""How long a sweep waits between two trials for a server that went away."""

FIRST_PAUSE_SECONDS, MOST_PAUSE_SECONDS = 1.0, 60.0
"""Between two tries; it doubles."""

PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
"""Where a server listens whose address names no port."""


def check(uri: str) -> None:
    """Find out at once what MLflow's own client would find out in minutes, or never.

    The folder and the file of an SQLite database are made.

    Raises:
        ValueError: MLflow cannot keep runs there, or nothing answers; the message says what to try.
    """
    parts, port = _parts(uri)
    scheme = parts.scheme.partition("+")[0]
    if scheme == "sqlite":
        _make_writable(uri)
    elif scheme in ("", "file"):
        raise ValueError(
            f"track.uri={uri}: MLflow 3 keeps runs in a database, not in a folder; try "
            f"track.uri=sqlite:///{Path(parts.path).absolute()}/mlflow.db"
        )
    elif scheme in PORTS:
        proxy = _proxy(parts)
        try:
            if proxy is not None:  # which may know names that this machine does not
                _connect(proxy.hostname or "", proxy.port or PORTS["http"], asks=False)
                return
            _connect(parts.hostname or "", port or PORTS[scheme], asks=scheme == "http")
        except (OSError, ValueError, http.client.HTTPException) as error:
            through = f"the proxy of {parts.scheme.upper()}_PROXY does not answer"
            answers = through if proxy else "no MLflow server answers"
            raise ValueError(
                f"track.uri={redacted(uri)}: {answers} "
                f"({in_one_line(error)}); start it, correct the address, or train without by "
                "track=none, or deliver later by track.offline=true"
            ) from error


def _proxy(parts: SplitResult) -> SplitResult | None:
    """Return the proxy that the environment has for an address; None = there is none for it."""
    proxy = getproxies().get(parts.scheme)
    if proxy is None or proxy_bypass(parts.hostname or ""):
        return None
    return urlsplit(proxy if "://" in proxy else f"http://{proxy}")


def _parts(uri: str) -> tuple[SplitResult, int | None]:
    """Return the parts of an address and its port.

    Raises:
        ValueError: It has no such parts; what Python says of it may hold some of the password.
    """
    with suppress(ValueError):
        parts = urlsplit(uri)
        is_read_by_all = parts.scheme in ("http", "https") or "@" not in (parts.password or "")
        if is_read_by_all:
            return parts, parts.port
    raise ValueError(
        f"track.uri={redacted(uri)}: it is no address; is its port a number? In a password write "
        "/ ? # @ [ ] as %2F %3F %23 %40 %5B %5D"
    )


def cannot_log(uri: str, error: BaseException) -> ValueError:
    """Return the error of a run that MLflow refuses, with its key and a remedy."""
    return ValueError(
        f"track.uri={redacted(uri)}: MLflow cannot log there ({in_one_line(error)}); correct it, "
        "or train without by track=none"
    )


def wait(uri: str) -> None:
    """Wait for a server that was there before, up to `WAIT_SECONDS`; it is asked again and again.

    What is not there then, its caller finds out.
    """
    given_up = time.monotonic() + WAIT_SECONDS
    for failures in itertools.count():
        try:
            return check(uri)
        except ValueError as error:
            if time.monotonic() > given_up:
                return None
            if failures == 0:
                log.warning("%s; the sweep waits, up to %.0f minutes", error, WAIT_SECONDS / 60)
        time.sleep(min(MOST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2**failures))


def _make_writable(uri: str) -> None:
    """Make the database's folder and find out whether it can be written, as MLflow never would.

    Raises:
        ValueError: It cannot.
    """
    file = sqlite_file(uri)
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.open("ab").close()
    except OSError as error:
        raise ValueError(
            f"track.uri={uri}: it cannot be written ({error.strerror}: {error.filename}); choose "
            "another, or train without by track=none"
        ) from error


def _connect(host: str, port: int, *, asks: bool) -> None:
    """Connect, and wait for an answer, whatever it is, where one can be asked for in plain text."""
    if not asks:
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
        return
    with closing(http.client.HTTPConnection(host, port, timeout=ANSWER_SECONDS)) as connection:
        connection.request("GET", "/health")
        connection.getresponse()


def artifact_folder(uri: str) -> str | None:
    """Return where artifacts go: beside an SQLite file; None = where the server says."""
    file = sqlite_file(uri)
    return None if file is None else (file.parent / "artifacts").as_uri()


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite database; None = it has none that we know.

    It is a server's, in memory, or named by a URI of SQLite's own (``sqlite:///file:...``).
    """
    if uri.partition(":")[0].partition("+")[0] != "sqlite":
        return None
    database = uri.partition("://")[2].partition("?")[0].partition("/")[2] or ":memory:"
    return None if database.startswith((":memory:", "file:")) else Path(database).resolve()
