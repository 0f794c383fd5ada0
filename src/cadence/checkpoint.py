"""Checkpoints: everything a run needs to go on, in files that are whole or not there.

The format is torch's own, with a checksum behind it, read by ``weights_only``: an unpickler that
builds tensors and plain values and refuses all else, so that a checkpoint is data and never code.
Anyone can open one with ``torch.load``. safetensors would be as safe, but it holds tensors alone:
an optimizer's nested state, its groups and the clock would have to be flattened and put back, for
no gain in time. With the GPT of pydocs_gpt under AdamW (0.9 M parameters, 10 MB), torch's file
takes 16 to 24 ms to write and sync and safetensors' 17 to 33 ms; on one thread of a 2-core x86-64
virtual machine, torch 2.13.0, safetensors 0.8.0, medians of 20. torch does not notice damage (of
300 single flipped bits it let 293 pass), hence the checksum.

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
import copy
import hashlib
import io
import logging
import os
import pickle
import random
import re
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from types import NoneType, TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from cadence.clock import Clock

log = logging.getLogger(__name__)

FOLDER = "checkpoints"
"""Where a run's checkpoints are, in its own folder."""

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"

SCHEMA = 1
"""What the fields of `State` mean; another number for every other meaning."""

MAX_SHARE = 0.02
"""The share of a run's wall time that saving may take before `Checkpoints.affordable` says no."""

_PART = ".part"
_FOOTER = b"\ncadence checkpoint, sha256:"
_FOOTER_BYTES = len(_FOOTER) + hashlib.sha256().digest_size
_CHUNK = 2**20
"""Bytes that are read at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Everything that a run needs to go on as if it had never stopped: tensors, plain values."""

    model: dict[str, Any]
    """Its state dict."""
    optimizer: dict[str, Any]
    """Its state dict."""
    scaler: dict[str, Any] | None
    """The loss scale's state dict; None = there is none."""
    clock: Clock
    """With the mini-batches of the present epoch that are already used."""
    random: dict[str, Any]
    """What `random_states` returned, once or more, by name."""
    record: dict[str, Any]
    """The running means."""
    config: dict[str, Any]
    """The flattened config: a key such as ``trainer.step_size`` to its value."""
    mlflow_run_id: str | None
    """None = the run is not tracked."""


_KINDS: dict[str, tuple[type, ...]] = {
    "model": (dict,),
    "optimizer": (dict,),
    "scaler": (dict, NoneType),
    "clock": (dict,),
    "random": (dict,),
    "record": (dict,),
    "config": (dict,),
    "mlflow_run_id": (str, NoneType),
}
"""What each field of `State` is in a file."""


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
        started = perf_counter()
        self.wait()
        self._pending = self._writer.submit(self._write, _snapshot(state), best)
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

    def _write(self, contents: dict[str, Any], best: bool) -> None:
        started = perf_counter()
        last = self.folder / LAST
        part = last.with_name(LAST + _PART)
        try:
            _remove_parts(self.folder)
            _write_synced(contents, part)
            if best:
                _name_too(part, self.folder / BEST)
            if self._last_is_whole is None:
                self._last_is_whole = last.exists() and _is_whole(last)
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


def latest(folder: Path) -> State:
    """Return the state to go on from: that of ``last.pt``.

    Where that cannot be read it is that of ``previous.pt``, with a warning.

    Args:
        folder: What `Checkpoints` saved into.

    Raises:
        ValueError: Neither can be read; the message is about ``last.pt``.
    """
    previous = folder / PREVIOUS
    try:
        return read(folder / LAST)
    except ValueError as error:
        try:
            state = read(previous)
        except ValueError:
            raise error from None
        log.warning("%s; going on from %s", error, previous)
        return state


def read(file: Path) -> State:
    """Return the state in a file, its tensors in host memory. No code in the file ever runs.

    Args:
        file: What `Checkpoints` saved.

    Raises:
        ValueError: It is not there, damaged, no checkpoint, or another cadence's.
    """
    try:
        with file.open("rb") as opened:
            _refuse_damage(opened)
            return _state(_contents(opened))
    except OSError as error:
        problem = f"{error.strerror or error}; give the last.pt of a run's checkpoints folder"
        raise ValueError(f"checkpoint {file}: {problem}") from error
    except ValueError as error:
        raise ValueError(f"checkpoint {file}: {error}") from error


def checked_model_state(model: nn.Module, state: State) -> dict[str, Any]:
    """Return the model's state dict in a checkpoint, if it is of this very model.

    Args:
        model: What is to load it.
        state: What `read` returned.

    Raises:
        ValueError: Names, shapes or dtypes differ.
    """
    here = {name: _described(value) for name, value in model.state_dict().items()}
    there = {name: _described(value) for name, value in state.model.items()}
    _refuse_another("model", here, there)
    return state.model


def checked_optimizer_state(optimizer: Optimizer, state: State) -> dict[str, Any]:
    """Return the optimizer's state dict in a checkpoint, if it is of this very kind.

    torch itself takes AdamW's state into an SGD without a word. The values of the options may
    differ: only their names are compared, and the parameters in each group.

    Args:
        optimizer: What is to load it.
        state: What `read` returned.

    Raises:
        ValueError: They differ.
    """
    here = _options(optimizer.state_dict()["param_groups"])
    there = _options(state.optimizer.get("param_groups", []))
    _refuse_another("optimizer", here, there)
    return state.optimizer


def random_states() -> dict[str, Any]:
    """Return the state of every global random generator: Python's, numpy's, torch's per device.

    Where CUDA was not used yet, its devices have none.
    """
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": _replaced(numpy_state, np.ndarray, lambda array: torch.from_numpy(array.copy())),
        "torch": torch.get_rng_state(),
        "cuda": _cuda_states(),
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put every global random generator back to where it was.

    Those of devices that this machine lacks are left out, with a warning.

    Args:
        states: What `random_states` returned.
    """
    random.setstate(states["python"])
    np.random.set_state(_replaced(states["numpy"], Tensor, Tensor.numpy))
    torch.set_rng_state(states["torch"])
    present = torch.cuda.device_count()
    for index, cuda in enumerate(states["cuda"][:present]):
        torch.cuda.set_rng_state(cuda, index)
    has_mps = torch.backends.mps.is_available()
    if states["mps"] is not None and has_mps:
        torch.mps.set_rng_state(states["mps"])
    if len(states["cuda"]) > present or (states["mps"] is not None and not has_mps):
        log.warning(
            "the checkpoint holds random states of devices that this machine lacks: what is drawn "
            "there differs from an undisturbed run"
        )


# From a state to a file.


class _Checksummed(io.RawIOBase):
    """Passes bytes on to a file and sums them up.

    An OSError is kept for `finish`: torch would go on, and report that as another error.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self._error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data)
        if self._error is None:
            try:
                self._file.write(view)
                self._sum.update(view)
            except OSError as error:
                self._error = error
        return view.nbytes

    def finish(self) -> None:
        if self._error is not None:
            raise self._error
        self._file.write(_FOOTER + self._sum.digest())


def _snapshot(state: State) -> dict[str, Any]:
    """Return what goes into a file, with every tensor copied into host memory."""
    contents = {field.name: getattr(state, field.name) for field in fields(state)}
    copies: dict[object, Tensor] = {}
    copied: dict[str, Any] = _copied(contents | {"clock": state.clock._asdict()}, "", copies)
    return {"schema": SCHEMA, **copied}


def _copied(value: Any, where: str, copies: dict[object, Tensor]) -> Any:
    """Copy a tree of tensors and plain values, and refuse anything that could not be read again.

    Args:
        value: The tree.
        where: What leads to it, such as ``.optimizer.param_groups``.
        copies: The copies so far; tensors that are one (tied weights) have one copy.
    """
    if isinstance(value, Tensor):
        key = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if key not in copies:
            copies[key] = value.detach().to("cpu", copy=True)
        return copies[key]
    if isinstance(value, float):
        return float(value)  # numpy's float64 is one, and could not be read again
    kind = type(value)
    if kind in (bool, int, str, NoneType):
        return value
    if kind in (list, tuple):
        return kind(_copied(part, f"{where}[{i}]", copies) for i, part in enumerate(value))
    if kind in (dict, OrderedDict):
        tree = copy.copy(value)  # with a state dict's _metadata, the versions of its modules
        tree.clear()
        for key, part in value.items():
            kept = _copied(key, f"{where}'s key {key}", copies)
            tree[kept] = _copied(part, f"{where}.{key}", copies)
        return tree
    raise ValueError(
        f"checkpoint: {where[1:]} is {_described(value)}, which could not be read again; keep "
        "tensors, numbers, strings, None, and lists, tuples and dicts of these"
    )


def _write_synced(contents: dict[str, Any], file: Path) -> None:
    with file.open("xb") as opened:
        summed = _Checksummed(opened)
        torch.save(contents, summed)  # type: ignore[arg-type]  # it asks for write alone
        summed.finish()
        opened.flush()
        os.fsync(opened.fileno())


def _name_too(file: Path, other: Path) -> None:
    """Give a file a second name, in place of what had it; a copy where the disk has no links."""
    part = other.with_name(other.name + _PART)
    try:
        part.hardlink_to(file)
    except OSError:
        with file.open("rb") as source, part.open("xb") as copied:
            shutil.copyfileobj(source, copied, _CHUNK)
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


# From a file to a state.


def _is_whole(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            _refuse_damage(opened)
    except (OSError, ValueError):
        return False
    return True


def _refuse_damage(opened: BinaryIO) -> None:
    """Read a file once, up to its checksum, and leave it at its start.

    Raises:
        ValueError: It has no checksum, or another.
    """
    size = opened.seek(0, os.SEEK_END)
    opened.seek(max(0, size - _FOOTER_BYTES))
    footer = opened.read()
    opened.seek(0)
    if not footer.startswith(_FOOTER):
        raise ValueError(
            "truncated, or not a checkpoint of cadence: its end is missing; try the previous.pt "
            "beside it"
        )
    found = hashlib.sha256()
    for left in range(size - _FOOTER_BYTES, 0, -_CHUNK):
        found.update(opened.read(min(_CHUNK, left)))
    opened.seek(0)
    if found.digest() != footer[len(_FOOTER) :]:
        raise ValueError(
            "damaged: its bytes do not match their checksum; try the previous.pt beside it"
        )


def _contents(opened: BinaryIO) -> Any:
    try:
        return torch.load(opened, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its text advises to run the code
        raise ValueError(
            "refused: it holds more than tensors and plain values, which could run code; use a "
            "checkpoint that cadence wrote"
        ) from error
    except Exception as error:  # torch raises what it stumbles on
        reason = re.split(r"\.\s|\n", str(error))[0] or type(error).__name__
        raise ValueError(
            f"it cannot be loaded ({reason}); try the previous.pt beside it"
        ) from error


def _state(contents: Any) -> State:
    """Return the state that a file's contents are, or say what is wrong with them."""
    if not isinstance(contents, dict) or not isinstance(contents.get("schema"), int):
        raise ValueError("not a checkpoint of cadence; use one that it wrote")
    if contents["schema"] != SCHEMA:
        raise ValueError(
            f"schema {contents['schema']}, and this cadence reads {SCHEMA}; use the cadence that "
            "wrote it"
        )
    values = {key: value for key, value in contents.items() if key != "schema"}
    _refuse_other_keys(values, _KINDS, "")
    for key, kinds in _KINDS.items():
        if not isinstance(values[key], kinds):
            raise ValueError(f"{key} is {_described(values[key])}; use one that cadence wrote")
    _refuse_other_keys(values["clock"], Clock._fields, "clock.")
    return State(**values | {"clock": Clock(**values["clock"])})


def _refuse_other_keys(found: dict[str, Any], expected: Iterable[str], prefix: str) -> None:
    missing = [f"{prefix}{key}" for key in expected if key not in found]
    unknown = [f"{prefix}{key}" for key in found if key not in set(expected)]
    listed = {"lacks": missing, "has the unknown": unknown}
    problems = [f"{verb} {_first_three(keys)}" for verb, keys in listed.items() if keys]
    if problems:
        raise ValueError(f"{' and '.join(problems)}; use the cadence that wrote it")


def _described(value: Any) -> str:
    """Return what a value is in a word or two, such as ``float32[3, 4]``."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return f"of type {type(value).__name__}"


def _options(groups: list[dict[str, Any]]) -> dict[str, str]:
    """Return the options of all parameter groups, by group where there are several."""
    prefixes = [f"group {index}: " if len(groups) > 1 else "" for index in range(len(groups))]
    described: dict[str, str] = {}
    for prefix, group in zip(prefixes, groups, strict=True):
        described |= {f"{prefix}{name}": "" for name in sorted(group)}
        described[f"{prefix}params"] = f"{len(group['params'])} tensors"
    return described


def _refuse_another(what: str, here: dict[str, str], there: dict[str, str]) -> None:
    """Refuse a checkpoint whose parts, by name, are not those that there are here.

    Raises:
        ValueError: They differ.
    """
    differing = [
        f"{name} is {there[name]} there and {here[name]} here"
        for name in here
        if name in there and here[name] != there[name]
    ]
    missing = [f"{name} {here[name]}".rstrip() for name in here if name not in there]
    extra = [f"{name} {there[name]}".rstrip() for name in there if name not in here]
    listed = {"differ": differing, "it lacks": missing, "it has too": extra}
    problems = [f"{verb} {_first_three(names)}" for verb, names in listed.items() if names]
    if problems:
        raise ValueError(
            f"the checkpoint is of another {what}: {'; '.join(problems)}; choose the {what} "
            "options that it was trained with"
        )


def _first_three(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


# Random generators.


def _cuda_states() -> list[Tensor]:
    used: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.get_rng_state_all() if used else []


def _replaced(tree: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    """Return nested dicts with each value of a kind converted."""
    if isinstance(tree, dict):
        return {key: _replaced(value, kind, convert) for key, value in tree.items()}
    return convert(tree) if isinstance(tree, kind) else tree
