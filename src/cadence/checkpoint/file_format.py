"""A run's state in a file: tensors and plain values, and never code.

The format is torch's own, with a checksum behind it, read by ``weights_only``: an unpickler that
builds tensors and plain values and refuses all else, so that a checkpoint is data and never code.
Anyone can open one with ``torch.load``. safetensors would be as safe, but it holds tensors alone:
an optimizer's nested state, its groups and the clock would have to be flattened and put back, for
no gain in time. With the GPT of pydocs_gpt under AdamW (0.84 M parameters, 10 MB), torch's file
takes 16 to 24 ms to write and sync and safetensors' 17 to 33 ms; on one thread of a 2-core x86-64
virtual machine, torch 2.13.0, safetensors 0.8.0, medians of 20. torch does not notice damage (of
300 single flipped bits it let 293 pass), hence the checksum.
"""

import copy
import hashlib
import io
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, BinaryIO, TypeAlias

import torch
from torch import Tensor

from cadence.checkpoint.state import State, described, first_three
from cadence.plan.clock import Clock

SCHEMA = 1
"""What the fields of `State` mean; another number for every other meaning."""

Snapshot: TypeAlias = dict[str, Any]
"""What goes into a file: tensors in host memory, and plain values."""

_KINDS: dict[str, tuple[type, ...]] = {
    "model": (dict,),
    "optimizer": (dict,),
    "scaler": (dict, NoneType),
    "clock": (dict,),
    "random": (dict,),
    "record": (dict,),
    "config": (dict,),
    "mlflow_run_id": (str, NoneType),
    "objective": (dict, NoneType),
}
"""What each field of `State` is in a file."""

_FOOTER = b"\ncadence checkpoint, sha256:"
_FOOTER_BYTES = len(_FOOTER) + hashlib.sha256().digest_size
_CHUNK = 2**20
"""Bytes that are read at a time."""


# From a state to a file.


def snapshot(state: State) -> Snapshot:
    """Return what goes into a file, with every tensor copied into host memory.

    Args:
        state: The state; it may change as soon as this returns.

    Raises:
        ValueError: It holds something that is neither a tensor nor a plain value.
    """
    contents = {field.name: getattr(state, field.name) for field in fields(state)}
    copies: dict[object, Tensor] = {}
    copied: dict[str, Any] = _copied(contents | {"clock": state.clock._asdict()}, "", copies)
    return {"schema": SCHEMA, **copied}


def write(state: State, file: Path) -> None:
    """Write a state into a file, whole or not at all.

    Raises:
        ValueError: The state holds something that is neither a tensor nor a plain value.
        OSError: The disk does not take it; what was there stays.
    """
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    try:
        write_synced(snapshot(state), part)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)


def write_synced(contents: Snapshot, file: Path) -> None:
    """Write a `snapshot` and its checksum into a new file, and wait until the disk has them.

    Args:
        contents: The snapshot.
        file: It must not exist.

    Raises:
        OSError: It cannot be written, or not whole.
    """
    with file.open("xb") as opened:
        summed = _Checksummed(opened)
        torch.save(contents, summed)  # type: ignore[arg-type]  # it asks for write alone
        summed.finish()
        opened.flush()
        os.fsync(opened.fileno())


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
        f"checkpoint: {where[1:]} is {described(value)}, which could not be read again; keep "
        "tensors, numbers, strings, None, and lists, tuples and dicts of these"
    )


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


# From a file to a state.


def read(file: Path) -> State:
    """Return the state in a file, its tensors in host memory. No code in the file ever runs.

    Args:
        file: What `cadence.checkpoint.folder.Checkpoints` saved.

    Raises:
        ValueError: It is not there, damaged, no checkpoint, or another cadence's.
    """
    try:
        with file.open("rb") as opened:
            _refuse_damage(opened)
            return state_of(_contents(opened))
    except OSError as error:
        problem = f"{error.strerror or error}; give the last.pt of a run's checkpoints folder"
        raise ValueError(f"checkpoint {file}: {problem}") from error
    except ValueError as error:
        raise ValueError(f"checkpoint {file}: {error}") from error


def is_intact(file: Path) -> bool:
    """Return whether a file's bytes are those that were written."""
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


def state_of(contents: Any) -> State:
    """Return the state that was taken a snapshot of; its tensors are the snapshot's own.

    Args:
        contents: What `snapshot` returned, or what is in a file.

    Raises:
        ValueError: It is something else; the message says what is wrong with it.
    """
    if not isinstance(contents, dict) or not isinstance(contents.get("schema"), int):
        raise ValueError("not a checkpoint of cadence; use one that it wrote")
    if contents["schema"] != SCHEMA:
        raise ValueError(
            f"schema {contents['schema']}, and this cadence reads {SCHEMA}; use the cadence that "
            "wrote it"
        )
    values = {key: value for key, value in contents.items() if key != "schema"}
    values.setdefault("objective", None)  # older files have no objective of its own
    _refuse_other_keys(values, _KINDS, "")
    for key, kinds in _KINDS.items():
        if not isinstance(values[key], kinds):
            raise ValueError(f"{key} is {described(values[key])}; use one that cadence wrote")
    _refuse_other_keys(values["clock"], Clock._fields, "clock.")
    values["record"] = _with_callbacks(values["record"])
    return State(**values | {"clock": Clock(**values["clock"])})


def _with_callbacks(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record; an older one's noise scale has become the state of a callback."""
    if "callbacks" in record or not record.get("noise_scale"):
        return record
    return record | {"callbacks": {"NoiseScaleEstimate": record["noise_scale"]}}


def _refuse_other_keys(found: dict[str, Any], expected: Iterable[str], prefix: str) -> None:
    missing = [f"{prefix}{key}" for key in expected if key not in found]
    unknown = [f"{prefix}{key}" for key in found if key not in set(expected)]
    listed = {"lacks": missing, "has the unknown": unknown}
    problems = [f"{verb} {first_three(keys)}" for verb, keys in listed.items() if keys]
    if problems:
        raise ValueError(f"{' and '.join(problems)}; use the cadence that wrote it")
