"""What a server is to be told of a run, and what it was told: two small files in the run's folder.

With the journal they are enough to make the run on a server that never heard of it. No secret is in
them.
"""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cadence.system.atomic_write import write_atomically

log = logging.getLogger(__name__)

T = TypeVar("T")

FILE = "tracking.json"
DELIVERED = "delivered.json"


@dataclass(kw_only=True, slots=True)
class RunFile:
    """What a server is to be told of a run, its points apart."""

    key: str
    """The run's own name for itself, by which a server that made it is asked for it."""
    uri: str
    """Where it is told, redacted."""
    experiment: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    texts: dict[str, str]
    """Files to keep with the run, by name."""
    run_id: str | None = None
    """A run on the server to take over; None = make one."""
    parent: str | None = None
    """The run on the server that a new one is a child of; None = of none."""
    parent_folder: str | None = None
    """The folder of the multirun whose run is the parent, not made yet; None = there is none."""
    began: int = 0
    """Milliseconds since 1970, as in `ended`."""
    ended: int | None = None
    """None = it is running, or its process died."""
    status: str | None = None
    """FINISHED, FAILED or KILLED; None = it is running, or its process died."""
    reason: str | None = None
    """Why it did not finish; None = it did, or nothing is known."""
    files: list[str] = field(default_factory=list)
    """Files that describe how it ended, by their path in the run's folder."""

    def save(self, folder: Path) -> None:
        """Keep it in the run's folder, whole or not at all."""
        _write(folder / FILE, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "RunFile | None":
        """Return what the run's folder keeps; None = nothing.

        Raises:
            ValueError: It is damaged, or names files elsewhere, which are no server's business.
        """
        file = folder / FILE
        if not file.exists():
            return None
        manifest = _read(cls, file)
        home = folder.resolve()
        for name in manifest.files:
            if not (folder / name).resolve().is_relative_to(home):
                raise ValueError(f"{file}: {name} is not in the run's folder; take it out of files")
        return manifest


@dataclass(frozen=True, slots=True)
class UploadState:
    """How much of a run a server has taken."""

    run_id: str | None = None
    """The run's id there; None = it is not there, as far as is known."""
    described: bool = False
    """Whether it has the params, tags and texts."""
    sending: int = 0
    """Bytes of the journal that it may have taken: some were sent, and no answer is noted."""
    points: int = 0
    """Bytes of the journal that it has taken."""
    ended: bool = False
    """Whether it knows how the run ended, and has the files that describe it."""

    def save(self, folder: Path) -> None:
        """Keep it in the run's folder, whole or not at all."""
        _write(folder / DELIVERED, asdict(self))

    @classmethod
    def load(cls, folder: Path) -> "UploadState":
        """Return what the run's folder keeps; nothing was taken where there is nothing.

        Where it is damaged, the server may have taken anything: it is told all of it again.
        """
        file = folder / DELIVERED
        if not file.exists():
            return cls()
        try:
            return _read(cls, file)
        except ValueError:
            log.warning("%s: damaged; MLflow is told anew what it may have been told already", file)
            return cls(sending=sys.maxsize)


def _read(kind: Callable[..., T], file: Path) -> T:
    try:
        return kind(**json.loads(file.read_text()))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{file}: damaged ({error}); without it the run cannot be told, and its numbers are in "
            "metrics.jsonl"
        ) from error


def _write(file: Path, told: dict[str, Any]) -> None:
    write_atomically(file, json.dumps(told, indent=2) + "\n")
