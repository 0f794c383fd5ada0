"""The one file of a run's folder that holds its id on the server, its status and its upload state.

With the metrics file it is enough to make the run on a server that never heard of it. Whatever is
put in is redacted there, once for the file and for the server, which is sent what the file holds.
"""

import json
import logging
import sys
import threading
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from cadence.system.atomic_write import write_atomically
from cadence.system.secrets import redacted_tree

log = logging.getLogger(__name__)

FILE = "run.json"

FORMER, FORMER_UPLOAD = "tracking.json", "delivered.json"
"""The two files in which a run's folder held the same before; they are read, and replaced."""


class DamagedRunFileError(ValueError):
    """The file of a run cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UploadState:
    """How much of a run a server has taken."""

    described: bool = False
    """Whether it has the params, tags and texts."""
    sending: int = 0
    """Bytes of the metrics file that it may have taken: some were sent, and no answer is saved."""
    points: int = 0
    """Bytes of the metrics file that it has taken."""
    ended: bool = False
    """Whether it knows how the run ended, and has the files that describe the end."""


UNKNOWN = UploadState(sending=sys.maxsize)
"""The server may have taken anything: all of the run is sent again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackedRun:
    """A run as a server is to have it, its points apart, and how much of it is there."""

    key: str
    """The run's own name for itself, by which a server that made it is asked for it."""
    uri: str
    """The tracking URI, without its secrets once a `RunFile` holds it."""
    experiment: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    texts: dict[str, str]
    """Files to keep with the run, by name."""
    run_id: str | None = None
    """The run's id on the server, made or to be taken over; None = as far as is known, none is."""
    parent: str | None = None
    """The run on the server that a new one is a child of; None = of none."""
    parent_folder: str | None = None
    """The folder of the multirun whose run is the parent, not made yet; None = there is none."""
    began: int = 0
    """Milliseconds since 1970, as in `ended`."""
    ended: int | None = None
    """None = the run goes on, or its process died."""
    status: str | None = None
    """FINISHED, FAILED or KILLED; None = the run goes on, or its process died."""
    reason: str | None = None
    """Why the run did not finish; None = it did, or nothing is known."""
    files: list[str] = field(default_factory=list)
    """Files that describe how the run ended, by their path in its folder."""
    upload: UploadState = UploadState()


class RunFile:
    """A run in its folder: every change is on the disk, whole or not at all, when it returns.

    Any thread may call any method. In another process only one that holds the lock of the run's
    `cadence.tracking.metrics_file.MetricsFile` changes the file.

    Passwords and tokens are taken out of whatever is put in.

    Args:
        folder: The run's folder; it must be there before the first change.
        run: What the file holds, or is to hold from the first change on.
    """

    def __init__(self, folder: Path, run: TrackedRun) -> None:
        self._folder = folder
        self._run = _redacted(run, {each.name: getattr(run, each.name) for each in fields(run)})
        self._changing = threading.RLock()

    @property
    def run(self) -> TrackedRun:
        """The run as it is now."""
        return self._run

    def update(self, **changes: Any) -> None:
        """Change fields of the run.

        Raises:
            OSError: The disk does not take the file; the run in memory is changed nevertheless.
        """
        with self._changing:
            self._run = _redacted(self._run, changes)
            write_atomically(self._folder / FILE, json.dumps(asdict(self._run), indent=2) + "\n")
            for former in (FORMER, FORMER_UPLOAD):
                (self._folder / former).unlink(missing_ok=True)

    def update_upload(self, **changes: Any) -> None:
        """Change fields of the run's upload state.

        Raises:
            OSError: As `update`.
        """
        with self._changing:
            self.update(upload=replace(self._run.upload, **changes))

    @classmethod
    def load(cls, folder: Path) -> "RunFile | None":
        """Return the run of a folder; None = no tracked run is there.

        Raises:
            DamagedRunFileError: The file is damaged.
            ValueError: The file names files elsewhere, which are no server's business.
        """
        file = folder / FILE
        if file.exists():
            held = _read(file)
            held["upload"] = _upload_state(held.get("upload", {}), file)
        elif (file := folder / FORMER).exists():
            held = _read(file)
            held["upload"], run_id = _former_upload_state(folder / FORMER_UPLOAD)
            held["run_id"] = run_id or held.get("run_id")
        else:
            return None
        try:
            run = TrackedRun(**held)
        except TypeError as error:
            raise _damaged(file, error) from error
        home = folder.resolve()
        for name in run.files:
            if not (folder / name).resolve().is_relative_to(home):
                raise ValueError(f"{file}: {name} is not in the run's folder; take it out of files")
        return cls(folder, run)


def _redacted(run: TrackedRun, changes: dict[str, Any]) -> TrackedRun:
    return replace(run, **redacted_tree(changes))


def _read(file: Path) -> dict[str, Any]:
    try:
        held = json.loads(file.read_text())
    except ValueError as error:
        raise _damaged(file, error) from error
    if not isinstance(held, dict):
        raise _damaged(file, f"a {type(held).__name__}")
    return held


def _damaged(file: Path, problem: object) -> DamagedRunFileError:
    return DamagedRunFileError(
        f"{file}: damaged ({problem}); without it the run cannot be uploaded, and its numbers are "
        "in metrics.jsonl"
    )


def _upload_state(held: Any, file: Path) -> UploadState:
    """Return how much a server has taken; all of it may have been where that is damaged."""
    try:
        return UploadState(**held)
    except TypeError:
        log.warning("%s: damaged; MLflow is sent again what it may have been sent already", file)
        return UNKNOWN


def _former_upload_state(file: Path) -> tuple[UploadState, str | None]:
    """Return the same of a folder that was made before, and the run's id on the server."""
    if not file.exists():
        return UploadState(), None
    try:
        held = _read(file)
    except DamagedRunFileError:
        held = {"damaged": True}
    run_id = held.pop("run_id", None)
    return _upload_state(held, file), run_id
