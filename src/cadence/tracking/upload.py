"""From a run's folder to a server: what the server does not have yet, until it has all of it.

Every step can be repeated: what was taken is saved in the folder after each answer, and a server
that is sent a point twice, the same in key, value, step and timestamp, keeps it once.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from cadence.tracking.metrics_file import LoggedMetric, MetricsFile
from cadence.tracking.run_file import RunFile, TrackedRun

log = logging.getLogger(__name__)

BATCH = 1000
"""Points sent at once at most; fewer after a failure, so that a slow server gets through."""

UPLOAD_SECONDS = 5.0
"""Between two uploads while the server takes them."""

RETRY_SECONDS = 1.0
"""Before the first try after a failure; twice as long before each further one."""

DOUBLINGS = 6
"""How often the pause is doubled at most: up to a minute."""

END_SECONDS = 10.0
"""How long a run's end waits for the server at most; `src.sync` uploads what is left then."""


class UploadError(Exception):
    """A server did not take something; the message is one line without secrets."""


@runtime_checkable
class Server(Protocol):
    """Where runs are kept. Each method raises `UploadError`, and then it may be called again."""

    def found(self, key: str) -> str | None:
        """Return the id of the run that was made with this key; None = none was."""

    def create(self, run: TrackedRun) -> str:
        """Make a run, and return its id."""

    def take_over(self, run_id: str, run: TrackedRun) -> None:
        """Let a run that is there go on as this one."""

    def describe(self, run_id: str, run: TrackedRun) -> None:
        """Take the params, tags and texts, in place of those that are there."""

    def send(self, run_id: str, points: Sequence[LoggedMetric]) -> None:
        """Take at most `BATCH` points; those that are there already are kept once."""

    def end(self, run_id: str, run: TrackedRun, files: Sequence[Path]) -> None:
        """Take the files, and how the run ended."""


class Upload:
    """Sends what a run's folder holds to a server.

    Args:
        file: The run; what the server has taken is saved there.
        folder: The run's folder.
        metrics: The run's points.
        server: Where the run is kept.
    """

    def __init__(self, file: RunFile, folder: Path, metrics: MetricsFile, server: Server) -> None:
        self._file = file
        self._folder = folder
        self._metrics = metrics
        self._server = server
        self._batch = BATCH
        self._saving, self._left = threading.Lock(), False
        if file.run.upload.sending > metrics.size:  # a file lost its end: all of it is sent again
            self._save(sending=metrics.size, points=0)

    @property
    def run_id(self) -> str | None:
        """The run's id on the server; None before one is made."""
        return self._file.run.run_id

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to send."""
        state = self._file.run.upload
        return state.ended and state.points == self._metrics.size

    def begin(self, *, new: bool = False) -> None:
        """Make the run, or take it over, and describe it, as far as that is not done.

        Args:
            new: Whether no server can have been told of the run: then none is asked for it.
        """
        run = self._file.run
        if run.upload.described:
            return
        run_id = run.run_id
        if run_id is None and not new:
            run_id = self._server.found(run.key)
        if run_id is None:
            run_id = self._server.create(run)
        else:
            self._server.take_over(run_id, run)
        self._save_id(run_id)
        self._server.describe(run_id, run)
        self._save(described=True)

    def send_batch(self) -> int:
        """Send the next points, and return how many they were; 0 = there are no more to send."""
        assert self.run_id is not None
        state = self._file.run.upload
        points, end = self._metrics.read(state.points, self._batch)
        if not points:
            return 0
        if not self._save(sending=max(end, state.sending)):
            return 0
        try:
            self._server.send(self.run_id, points)
        except UploadError:
            self._batch = max(1, self._batch // 2)
            raise
        self._save(points=end)
        self._batch = min(BATCH, 2 * self._batch)
        return len(points)

    def end(self) -> None:
        """Send how the run ended, if the server does not have that."""
        assert self.run_id is not None
        run = self._file.run
        if not run.upload.ended:
            self._server.end(self.run_id, run, [self._folder / name for name in run.files])
            self._save(ended=True)

    def leave(self) -> None:
        """Leave the folder to whoever uploads the rest: nothing is saved in it any more.

        A call that is answered afterwards changes nothing: what it sent is sent again.
        """
        with self._saving:
            self._left = True

    def _save(self, **news: int | bool) -> bool:
        """Save what is new, and return whether the folder was not left to another yet."""
        with self._saving:
            if not self._left:
                self._file.update_upload(**news)
            return not self._left

    def _save_id(self, run_id: str) -> None:
        with self._saving:
            if not self._left:
                self._file.update(run_id=run_id)


def pause(failures: int) -> float:
    """Return the seconds between two tries, the last of which failed so often in a row."""
    if failures == 0:
        return UPLOAD_SECONDS
    return RETRY_SECONDS * float(2 ** min(failures - 1, DOUBLINGS))


class BackgroundUpload:
    """Uploads in the background while a run goes on; a server that is away is tried again.

    One warning says that the server is away, and one that it is back.

    Args:
        upload: What to send; its run has begun.
    """

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        self._failures = 0
        self._ending, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="upload", daemon=True)
        self._thread.start()

    def finish(self) -> bool:
        """Send the rest, and how the run ended; return whether the server has all of it.

        The call takes `END_SECONDS` at most: a request that is never answered is left behind.
        """
        self._ending.set()
        self._thread.join(END_SECONDS)
        self._given_up.set()
        self._upload.leave()
        return self._upload.is_complete

    def _run(self) -> None:
        while not self._ending.wait(pause(self._failures)):
            self._attempt(self._send)
        while not self._given_up.is_set() and not self._attempt(self._send_rest):
            self._given_up.wait(RETRY_SECONDS)

    def _attempt(self, send: Callable[[], None]) -> bool:
        try:
            send()
        except (UploadError, OSError) as error:  # the server's, or the run folder's
            self._failures += 1
            if self._failures == 1:
                self._say(f"{error}; what it is to be told waits in the run folder")
            return False
        if self._failures:
            self._say("MLflow is back, and has taken what waited")
            self._failures = 0
        return True

    def _say(self, news: str) -> None:
        if not self._given_up.is_set():  # later it would stand among another run's lines
            log.warning(news)

    def _send(self) -> None:
        while not self._given_up.is_set() and self._upload.send_batch():
            pass

    def _send_rest(self) -> None:
        self._send()
        if not self._given_up.is_set():
            self._upload.end()
