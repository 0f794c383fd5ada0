"""MLflow in a process of its own, so that neither a run's start nor its training waits for it.

MLflow takes as long to import as torch. A thread could not load it meanwhile: each of torch's calls
would wait its turn behind the import. So a command starts the process first, imports torch beside
it, and calls it over a pipe. Where MLflow is imported already, as in a sweep, no process is needed.
"""

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from cadence.tracking import address
from cadence.tracking.metrics_file import LoggedMetric
from cadence.tracking.run_file import TrackedRun
from cadence.tracking.upload import Server, UploadError


class Reply(NamedTuple):
    """What a call came to in the other process."""

    value: Any
    error: str | None
    """None = the call returned."""
    cause: str = ""
    """What MLflow said, where it did not take something; empty = it refuses the address."""
    logged: Sequence[tuple[str, int, str]] = ()
    """Logger, level and message of what was logged meanwhile."""


class MlflowProcess:
    """`cadence.tracking.mlflow.server.Mlflow` in a process of its own; see there for its methods.

    Every call raises `UploadError` if the process ends meanwhile; the next one starts another.
    """

    def __init__(self) -> None:
        self._calling = threading.Lock()
        self._opened: tuple[str, str] | None = None
        self._start()

    def _start(self) -> None:
        self._calls, theirs = Pipe()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", f"from {__name__} import serve; serve({theirs.fileno()})"],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the run, which ends it when it has uploaded
            )

    def open(self, uri: str, experiment: str) -> None:
        """Open a server or database.

        Raises:
            ValueError: Nothing answers at ``uri``, or the experiment has no name.
        """
        address.check(uri)  # at once, while the process still imports MLflow
        with self._calling:
            self._exchange("open", uri, experiment)
            self._opened = (uri, experiment)

    def found(self, key: str) -> str | None:
        """Return the id of the run that was made with this key; None = none was."""
        found: str | None = self._call("found", key)
        return found

    def create(self, run: TrackedRun) -> str:
        """Make a run, and return its id."""
        return str(self._call("create", run))

    def take_over(self, run_id: str, run: TrackedRun) -> None:
        """Let a run that is there go on as this one."""
        self._call("take_over", run_id, run)

    def describe(self, run_id: str, run: TrackedRun) -> None:
        """Take the params, tags and texts."""
        self._call("describe", run_id, run)

    def send(self, run_id: str, points: Sequence[LoggedMetric]) -> None:
        """Take points."""
        self._call("send", run_id, points)

    def end(self, run_id: str, run: TrackedRun, files: Sequence[Path]) -> None:
        """Take the files, and how the run ended."""
        self._call("end", run_id, run, files)

    def close(self) -> None:
        """End the process; nothing of what it took is lost."""
        self._calls.close()
        self._process.wait()

    def _call(self, method: str, *arguments: Any) -> Any:
        with self._calling:
            if self._process.poll() is not None and self._opened is not None:
                self._calls.close()
                self._start()
                self._exchange("open", *self._opened)
            return self._exchange(method, *arguments)

    def _exchange(self, method: str, *arguments: Any) -> Any:
        try:
            self._calls.send((method, arguments))
            reply: Reply = self._calls.recv()
        except (EOFError, OSError) as error:
            self._process.wait()
            raise UploadError(
                f"MLflow's process ended with code {self._process.returncode}"
            ) from error
        for name, level, message in reply.logged:
            logging.getLogger(name).log(level, "%s", message)
        if reply.error is None:
            return reply.value
        if reply.cause:
            raise UploadError(reply.error) from RuntimeError(reply.cause)
        raise ValueError(reply.error)


_waiting: list[MlflowProcess] = []
"""The process that was started before its run; the run takes it out."""


def start() -> None:
    """Start MLflow's process, if there will be need of one, before what takes long to import."""
    if "mlflow" not in sys.modules and not _waiting:
        _waiting.append(MlflowProcess())


def opened(uri: str, experiment: str) -> Server:
    """Return an MLflow server or database, in this process where MLflow is imported already.

    Raises:
        ValueError: Nothing answers at ``uri``, or the experiment has no name.
    """
    if "mlflow" in sys.modules:
        from cadence.tracking.mlflow.server import Mlflow

        return Mlflow(uri, experiment)
    start()
    process = _waiting.pop()
    try:
        process.open(uri, experiment)
    except UploadError as error:
        process.close()
        raise address.cannot_log(uri, error) from error
    except ValueError:
        process.close()
        raise
    return process


class _Logged(logging.Handler):
    """Keeps what is logged for the process that asks; it has the log file and the terminal."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.kept: list[tuple[str, int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        self.kept.append((record.name, record.levelno, record.getMessage()))

    def taken(self) -> list[tuple[str, int, str]]:
        """Return what is kept, and keep it no more."""
        taken, self.kept = self.kept, []
        return taken


def serve(pipe: int) -> None:
    """Make the calls that come over a pipe, until its other end is closed or its process dies.

    Args:
        pipe: The number of its file descriptor.
    """
    calls, logged = Connection(pipe), _Logged()
    logging.getLogger().addHandler(logged)
    from cadence.tracking.mlflow.server import Mlflow

    for handler in logging.getLogger("mlflow").handlers:
        handler.setLevel(logging.CRITICAL)  # MLflow's own writes to the terminal beside ours
    server: Mlflow | None = None
    while True:
        try:
            method, arguments = calls.recv()
        except EOFError:
            return
        reply = Reply(None, None)
        try:
            if method == "open":
                server = Mlflow(*arguments)
            else:
                reply = Reply(getattr(server, method)(*arguments), None)
        except UploadError as error:
            reply = Reply(None, str(error), cause=str(error.__cause__ or error))
        except ValueError as error:
            reply = Reply(None, str(error))
        calls.send(reply._replace(logged=logged.taken()))
