"""From a run's folder to a server: what it was not told yet, until it is told.

Every step can be repeated: what was taken is noted in the folder after each answer, and a server
that is sent a point twice, the same in key, value, step and timestamp, keeps it once.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from cadence.tracking.metrics_file import LoggedMetric, MetricsFile
from cadence.tracking.run_file import RunFile, UploadState

log = logging.getLogger(__name__)

BATCH = 1000
"""Points sent at once at most; fewer after a failure, so that a slow server gets through."""

DELIVER_SECONDS = 5.0
"""Between two deliveries while the server takes them."""

RETRY_SECONDS = 1.0
"""Before the first try after a failure; twice as long before each further one."""

DOUBLINGS = 6
"""How often it is doubled at most: up to a minute."""

END_SECONDS = 10.0
"""How long a run's end waits for the server at most. What is left then is for `src.sync`."""


class UploadError(Exception):
    """A server did not take something; the message is one line without secrets."""


@runtime_checkable
class Server(Protocol):
    """Where runs are told. Each method raises `UploadError`, and then it may be called again."""

    def found(self, key: str) -> str | None:
        """Return the id of the run that was made of the manifest of this key; None = none was."""

    def create(self, manifest: RunFile) -> str:
        """Make a run, and return its id."""

    def take_over(self, run_id: str, manifest: RunFile) -> None:
        """Let a run that is there go on as this one."""

    def describe(self, run_id: str, manifest: RunFile) -> None:
        """Take the params, tags and texts, in place of those that are there."""

    def send(self, run_id: str, points: Sequence[LoggedMetric]) -> None:
        """Take at most `BATCH` points; those that are there already are kept once."""

    def end(self, run_id: str, manifest: RunFile, files: Sequence[Path]) -> None:
        """Take the files, and how the run ended."""


class Upload:
    """Tells a server what a run's folder holds.

    Args:
        folder: The run's folder.
        manifest: What the server is to be told.
        journal: The run's points.
        server: Where.
    """

    def __init__(
        self, folder: Path, manifest: RunFile, journal: MetricsFile, server: Server
    ) -> None:
        self._folder = folder
        self._manifest = manifest
        self._journal = journal
        self._server = server
        self._batch = BATCH
        self._noting, self._left = threading.Lock(), False
        self._done = UploadState.load(folder)
        if self._done.sending > journal.size:  # a file lost its end: all of it is sent again
            self._note(sending=journal.size, points=0)

    @property
    def run_id(self) -> str | None:
        """The run's id on the server; None before one is made."""
        return self._done.run_id

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to be told."""
        return self._done.ended and self._done.points == self._journal.size

    def begin(self, *, new: bool = False) -> None:
        """Make the run, or take it over, and describe it, as far as that is not done.

        Args:
            new: Whether no server can have been told of the run: then none is asked for it.
        """
        if self._done.described:
            return
        run_id = self._done.run_id or self._manifest.run_id
        if run_id is None and not new:
            run_id = self._server.found(self._manifest.key)
        if run_id is None:
            run_id = self._server.create(self._manifest)
        else:
            self._server.take_over(run_id, self._manifest)
        self._note(run_id=run_id)
        self._server.describe(run_id, self._manifest)
        self._note(described=True)

    def send_batch(self) -> int:
        """Send the next points, and return how many they were; 0 = there are no more to send."""
        assert self._done.run_id is not None
        points, end = self._journal.read(self._done.points, self._batch)
        if not points:
            return 0
        if not self._note(sending=max(end, self._done.sending)):
            return 0
        try:
            self._server.send(self._done.run_id, points)
        except UploadError:
            self._batch = max(1, self._batch // 2)
            raise
        self._note(points=end)
        self._batch = min(BATCH, 2 * self._batch)
        return len(points)

    def end(self) -> None:
        """Tell how the run ended, if that is not done."""
        assert self._done.run_id is not None
        if not self._done.ended:
            files = [self._folder / name for name in self._manifest.files]
            self._server.end(self._done.run_id, self._manifest, files)
            self._note(ended=True)

    def leave(self) -> None:
        """Leave the folder to whoever delivers the rest: nothing is noted in it any more.

        A call that is answered after it changes nothing: what it told is told again by them.
        """
        with self._noting:
            self._left = True

    def _note(self, **news: str | int | bool) -> bool:
        """Note what is new, and return whether the folder was not left to another yet."""
        with self._noting:
            if not self._left:
                self._done = replace(self._done, **news)  # type: ignore[arg-type]
                self._done.save(self._folder)
            return not self._left


def pause(failures: int) -> float:
    """Return the seconds between two tries, the last of which failed so often in a row."""
    if failures == 0:
        return DELIVER_SECONDS
    return RETRY_SECONDS * float(2 ** min(failures - 1, DOUBLINGS))


class BackgroundUpload:
    """Delivers in the background while a run goes on; a server that is away is tried again.

    That it is away is said once, and that it is back.

    Args:
        delivery: What to deliver; its run has begun.
    """

    def __init__(self, delivery: Upload) -> None:
        self._delivery = delivery
        self._failures = 0
        self._ending, self._given_up = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self._thread.start()

    def finish(self) -> bool:
        """Deliver the rest, and how the run ended; return whether the server has all of it.

        It takes `END_SECONDS` at most: a call that is never answered is left behind.
        """
        self._ending.set()
        self._thread.join(END_SECONDS)
        self._given_up.set()
        self._delivery.leave()
        return self._delivery.is_whole

    def _run(self) -> None:
        while not self._ending.wait(pause(self._failures)):
            self._attempt(self._send)
        while not self._given_up.is_set() and not self._attempt(self._send_rest):
            self._given_up.wait(RETRY_SECONDS)

    def _attempt(self, deliver: Callable[[], None]) -> bool:
        try:
            deliver()
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
        while not self._given_up.is_set() and self._delivery.send_batch():
            pass

    def _send_rest(self) -> None:
        self._send()
        if not self._given_up.is_set():
            self._delivery.end()
