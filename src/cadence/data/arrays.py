"""The user's own arrays, mapped from their files instead of read into memory."""

import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cadence.data.split import held_out
from cadence.data.tensors import Data, Samples, TensorData

Array = npt.NDArray[np.generic]

NAMES = (("inputs", "targets"), ("x", "y"), ("X", "y"), ("images", "labels"), ("data", "target"))
"""Pairs of array names that are looked for where the user names none."""

UNINDEXED = tuple(np.dtype(name) for name in ("uint16", "uint32", "uint64"))
"""What torch keeps and cannot gather samples of."""

_CHUNK = 2**22  # numbers looked at together when searching for NaN


def arrays(
    path: str,
    inputs: str | None = None,
    targets: str | None = None,
    classes: int | None = None,
    validation_share: float = 0.1,
    split_seed: int = 0,
) -> Data:
    """Return two arrays as inputs and targets that share dimension 0, the samples.

    Inputs [samples, ...] become float32, bytes in [0, 1]. Whole-number targets are classes and
    become int64, floating-point targets are numbers to regress and become float32. Each mini-batch
    is converted when it is gathered.

    Args:
        path: An .npz file, or a folder of .npy files. An .npz saved uncompressed (``numpy.savez``)
            and .npy files are memory-mapped; a compressed .npz is read into memory.
        inputs: The name of the inputs' array; None means the first of `NAMES` in the file.
        targets: The name of the targets' array; None means the first of `NAMES` in the file.
        classes: Number of classes of whole-number targets; None means the largest target + 1.
        validation_share: Share held out, drawn evenly, in (0, 1).
        split_seed: Chooses the samples held out; apart from the run's seed, so that runs compare.

    Raises:
        ValueError: A file or an array is missing, malformed, empty, of another length, holds NaN
            or infinity, or a target is out of range: the message names the file and the array. Or
            ``validation_share`` is not in (0, 1).
    """
    found = _folder(path) if Path(path).expanduser().is_dir() else _archive(path)
    names = _names(path, found, inputs, targets)
    x, y = (found[name] for name in names)
    _check(path, names, x, y)
    is_classes = np.issubdtype(y.dtype, np.integer)
    outputs = _classes(path, names[1], y, classes) if is_classes else int(np.prod(y.shape[1:]))
    order = np.random.default_rng(split_seed).permutation(len(x))
    tail = held_out(len(x), validation_share)
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    return Data(
        train=_Rows(tensors, order[tail:]),
        validation=_Rows(tensors, order[:tail]),
        input_shape=x.shape[1:],
        outputs=outputs,
        items_per_sample=1,
    )


class _Rows(TensorData):
    """Some rows of mapped tensors [samples, ...], without a copy: the split is a list of rows."""

    def __init__(self, tensors: Samples, rows: npt.NDArray[np.int64]) -> None:
        super().__init__(*tensors, prepare=_prepared)
        self._rows = torch.from_numpy(np.sort(rows))

    def __len__(self) -> int:
        return len(self._rows)

    def gathered(self, indices: Tensor) -> Samples:
        return super().gathered(self._rows[indices])


def _prepared(batch: Samples) -> Samples:
    inputs, targets = batch
    scaled = inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs.float()
    return scaled, targets.float() if targets.is_floating_point() else targets.long()


def _folder(path: str) -> dict[str, Array]:
    files = sorted(Path(path).expanduser().glob("*.npy"))
    if not files:
        raise ValueError(f"data.path={path}: the folder has no .npy file; save inputs.npy and "
                         "targets.npy there, or give an .npz file")  # fmt: skip
    return {file.stem: _mapped(file) for file in files}


def _mapped(file: Path) -> Array:
    try:
        # Copy-on-write: torch wants memory it may write to, and the file stays as it is.
        array: Array = np.load(file, mmap_mode="c", allow_pickle=False)
        return array
    except Exception as error:  # numpy raises what it stumbles on
        raise ValueError(
            f"data.path={file.parent}: {file.name} is no readable .npy array ({_reason(error)}); "
            "save it again with numpy.save"
        ) from error


def _archive(path: str) -> dict[str, Array]:
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(
            f"data.path={path}: there is no such file; give an .npz file or a folder of .npy files"
        )
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f"data.path={path}: not an .npz archive, or cut short; save it again with numpy.savez, "
            "or give a folder of .npy files"
        )
    try:
        with zipfile.ZipFile(file) as archive:
            return {
                Path(member.filename).stem: _member(file, archive, member)
                for member in archive.infolist()
                if member.filename.endswith(".npy")
            }
    except Exception as error:  # zipfile, zlib and numpy raise what they stumble on
        raise ValueError(
            f"data.path={path}: cannot be read ({_reason(error)}); save it again with numpy.savez"
        ) from error


def _reason(error: Exception) -> str:
    """Return numpy's message about a file, without its advice to unpickle what is no array."""
    message = str(error)
    if "pickle" in message or "Python objects" in message:
        return "it holds Python objects, which are never unpickled"
    is_meant_for_readers = isinstance(error, ValueError | EOFError | OSError | zipfile.BadZipFile)
    return message if is_meant_for_readers else "it is damaged"


def _member(file: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Array:
    """Map one array of an .npz at its place in the file; a compressed array is read."""
    with archive.open(member) as stream:
        if member.compress_type != zipfile.ZIP_STORED:
            return np.lib.format.read_array(stream, allow_pickle=False)
        version = np.lib.format.read_magic(stream)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran_order, dtype = read_header(stream)
        header = stream.tell()
    if dtype.hasobject:
        raise ValueError(f"{member.filename} holds Python objects")
    with file.open("rb") as raw:  # the local header's name and extra field come before the data
        raw.seek(member.header_offset + 26)
        name_length, extra_length = np.frombuffer(raw.read(4), dtype="<u2").tolist()
    offset = member.header_offset + 30 + name_length + extra_length + header
    mapped: Array = np.memmap(
        file, dtype=dtype, mode="c", offset=offset, shape=shape, order="F" if fortran_order else "C"
    )
    return mapped


def _names(
    path: str, found: dict[str, Array], inputs: str | None, targets: str | None
) -> tuple[str, str]:
    for pair in NAMES:
        names = inputs or pair[0], targets or pair[1]
        if names[0] in found and names[1] in found:
            return names
    raise ValueError(
        f"data.path={path}: no arrays {inputs or 'inputs'!r} and {targets or 'targets'!r} in it, "
        f"only {', '.join(found) or 'nothing'}; name them by data.inputs= and data.targets="
    )


def _check(path: str, names: tuple[str, str], x: Array, y: Array) -> None:
    for name, array in zip(names, (x, y), strict=True):
        where = f"data.path={path}: {name}"
        if array.ndim == 0 or len(array) < 2:
            raise ValueError(f"{where} has fewer than 2 samples, one to train and one to hold out")
        if array.size == 0:
            raise ValueError(f"{where} has samples of no numbers, {list(array.shape)}; correct it")
        if array.dtype.kind not in "iuf":
            raise ValueError(f"{where} holds {array.dtype}, not real numbers; convert it")
        if array.dtype in UNINDEXED or not array.dtype.isnative:
            raise ValueError(
                f"{where} holds {array.dtype.str}, which torch cannot index; convert it, such as "
                "by .astype('int64') or .astype('float32')"
            )
        if np.issubdtype(array.dtype, np.floating):
            _check_finite(where, array)
    if x.ndim == 1:
        raise ValueError(
            f"data.path={path}: {names[0]} has one dimension, the samples; give it the features' "
            f"too, such as by .reshape({len(x)}, 1)"
        )
    if len(x) != len(y):
        raise ValueError(
            f"data.path={path}: {names[0]} has {len(x)} samples and {names[1]} has {len(y)}; "
            "they must share dimension 0"
        )


def _check_finite(where: str, array: Array) -> None:
    rows = max(1, _CHUNK // max(1, int(np.prod(array.shape[1:]))))
    for start in range(0, len(array), rows):
        with np.errstate(over="ignore"):  # what float32 cannot hold is infinite when it trains
            finite = np.isfinite(array[start : start + rows].astype(np.float32)).reshape(-1)
        if not finite.all():
            width = finite.size // len(array[start : start + rows])
            row = start + int(finite.argmin()) // width
            raise ValueError(
                f"{where} holds NaN, infinity or more than float32 can, first in sample {row}; "
                "drop, fill or scale such samples"
            )


def _classes(path: str, name: str, y: Array, classes: int | None) -> int:
    low, high = int(y.min()), int(y.max())
    limit = high + 1 if classes is None else classes
    if low < 0 or high >= limit:
        raise ValueError(
            f"data.path={path}: {name} holds {low if low < 0 else high}, out of range for classes "
            f"0 to {limit - 1}; correct it, or set data.classes="
        )
    return limit
