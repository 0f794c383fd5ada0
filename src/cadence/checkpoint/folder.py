"""A run's folder of checkpoints: files that are whole or not there.

A folder holds ``last.pt``, ``previous.pt`` (the last but one) and ``best.pt``. A save goes by steps
that each leave a whole ``last.pt`` as soon as there was one, wherever a kill, a full disk or a
power cut comes between:

1. ``last.pt.part`` is written and synced to the disk. Leftovers of a killed process were removed
   before, never written over: they may share their bytes with ``best.pt``.
2. ``best.pt`` becomes a second name of it, if it is the best.
3. ``previous.pt`` becomes a second name of ``last.pt``, if that is whole.
4. ``last.pt.part`` is renamed to ``last.pt``, and the folder is synced.

A name changes by one rename, so a reader sees the old file or the new one. The best comes before
the last, so that no run goes on from a ``last.pt`` whose best was lost: killed between the two, it
goes on from before, and finds that best again.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from time import perf_counter
from types import TracebackType

from cadence.checkpoint.file_format import Snapshot, is_intact, read, snapshot, write_synced
from cadence.checkpoint.state import State

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
"""Where a run's checkpoints are, in its own folder."""

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"

MAX_SHARE = 0.02
"""The share of a run's wall time that saving may take before `Checkpoints.affordable` says no."""

_PART = ".part"


class Checkpoints:
    """Saves a run's states into one folder, without making training wait for the disk.

    `save` copies the tensors into host memory and returns; a background thread writes the copy. At
    most one write is under way, so memory holds at most one copy: a save that comes too early waits
    for the one before. An error of a write is raised once, by the next `save`, `wait` or `close`.

    A save holds its caller for 0.5 ms with the MLP of digits_mlp and for 2.7 ms with the GPT of
    pydocs_gpt, each with AdamW's state; the file is on the disk after 2.5 and 56 ms (medians of 60
    and 15 on one thread of a busy 2-core x86-64 virtual machine, torch 2.13.0).

    As a context manager it closes at the end; where an exception ends the block, an error of the
    last write is logged instead of taking its place. One process may save into a folder at a time.

    Args:
        folder: Where the files are to be; it is made if it is not there.

    Raises:
        OSError: The folder cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_saved(folder, error) from error
        self._started = perf_counter()
        self._stalled_seconds = self._writing_seconds = 0.0
        self._last_is_whole: bool | None = None  # None = not looked at yet
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Checkpoints":
        """Return it."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        if error is None:
            self.close()
            return
        try:
            self.close()
        except Exception as lost:
            log.error("%s", lost)

    def save(self, state: State, *, best: bool) -> None:
        """Save a state as ``last.pt``; what was there becomes ``previous.pt``.

        The state may change as soon as this returns.

        Args:
            state: What to save.
            best: Whether it is to be ``best.pt`` too.

        Raises:
            ValueError: The state holds something that is neither a tensor nor a plain value.
            OSError: The write before this one failed; this one was not begun. What the folder
                held is still there, and still whole.
        """
        with self._stalling():
            self.wait()
            self._pending = self._writer.submit(self._write, snapshot(state), best)

    def save_snapshot(self, taken: Snapshot, *, best: bool) -> None:
        """Save what was a run's state when the snapshot was taken; see `save`.

        Args:
            taken: What `cadence.checkpoint.file_format.snapshot` returned.
            best: Whether it is to be ``best.pt`` too.

        Raises:
            OSError: As in `save`.
        """
        with self._stalling():
            self.wait()
            self._pending = self._writer.submit(self._write, taken, best)

    @contextlib.contextmanager
    def _stalling(self) -> Iterator[None]:
        started = perf_counter()
        yield
        self._stalled_seconds += perf_counter() - started

    def wait(self) -> None:
        """Wait until what was saved is on the disk.

        Raises:
            OSError: It could not be written.
        """
        if self._pending is not None:
            wait([self._pending])
            written, self._pending = self._pending, None
            written.result()

    def close(self) -> None:
        """Wait until what was saved is on the disk, and end the thread.

        Raises:
            OSError: It could not be written.
        """
        try:
            self.wait()
        finally:
            self._writer.shutdown()

    def affordable(self) -> bool:
        """Return whether saves and writes took at most `MAX_SHARE` of the wall time so far.

        That bounds what they cost: training cannot lose more than the time in which they ran. While
        a write is under way the answer is no. An epoch of a small model can be as short as a save
        (5 ms on the digits), so a save that no one asked for should wait until this is true.
        """
        if self._pending is not None and not self._pending.done():
            return False
        took = self._stalled_seconds + self._writing_seconds
        return took <= MAX_SHARE * (perf_counter() - self._started)

    def _write(self, contents: Snapshot, best: bool) -> None:
        started = perf_counter()
        last = self.folder / LAST
        part = last.with_name(LAST + _PART)
        try:
            _remove_parts(self.folder)
            write_synced(contents, part)
            if best:
                _name_too(part, self.folder / BEST)
            if self._last_is_whole is None:
                self._last_is_whole = last.exists() and is_intact(last)
            if self._last_is_whole:
                _name_too(last, self.folder / PREVIOUS)
            part.replace(last)
            self._last_is_whole = True
            _sync_folder(self.folder)
        except OSError as error:
            raise _not_saved(last, error) from error
        finally:
            with contextlib.suppress(OSError):
                _remove_parts(self.folder)
            self._writing_seconds += perf_counter() - started


def has_begun(run: Path) -> bool:
    """Return whether there is a state to go on from in a run's folder."""
    return any((run / FOLDER / name).exists() for name in (LAST, PREVIOUS))


def forget(run: Path) -> None:
    """Remove the states that are in a run's folder."""
    for name in (LAST, PREVIOUS, BEST):
        (run / FOLDER / name).unlink(missing_ok=True)


def latest(folder: Path) -> State:
    """Return the state to go on from: that of ``last.pt``.

    Where that cannot be read it is that of ``previous.pt``, with a warning.

    Args:
        folder: What `Checkpoints` saved into.

    Raises:
        ValueError: Neither can be read; the message is about ``last.pt``.
    """
    return _first_whole([folder / LAST, folder / PREVIOUS])[0]


def best(folder: Path) -> tuple[State, Path]:
    """Return the state with the lowest validation loss, and its file; the latest if none is best.

    Where that cannot be read it is the next of best, last and previous, with a warning.

    Args:
        folder: What `Checkpoints` saved into.

    Raises:
        ValueError: None can be read; the message is about the first that was wanted.
    """
    found = [folder / BEST] if (folder / BEST).exists() else []
    return _first_whole([*found, folder / LAST, folder / PREVIOUS])


def _first_whole(files: Sequence[Path]) -> tuple[State, Path]:
    """Return the state in the first of some files that can be read, and which that is."""
    refusals: list[ValueError] = []
    for file in files:
        try:
            state = read(file)
        except ValueError as error:
            refusals.append(error)
            continue
        if refusals:
            log.warning("%s; going on from %s", refusals[0], file)
        return state, file
    raise refusals[0]


def _name_too(file: Path, other: Path) -> None:
    """Give a file a second name, in place of what had it; a copy where the disk has no links."""
    part = other.with_name(other.name + _PART)
    try:
        part.hardlink_to(file)
    except OSError:
        with file.open("rb") as source, part.open("xb") as copied:
            shutil.copyfileobj(source, copied)
            copied.flush()
            os.fsync(copied.fileno())
    part.replace(other)


def _remove_parts(folder: Path) -> None:
    for part in folder.glob(f"*.pt{_PART}"):
        part.unlink()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_saved(file: Path, error: OSError) -> OSError:
    return OSError(
        f"checkpoint {file}: not saved ({error.strerror or error}); free some space or choose "
        "another run folder; what was saved before is still whole"
    )
