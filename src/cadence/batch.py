"""What a mini-batch is: a tensor, or a tuple, list, named tuple or dict of tensors.

All its tensors share dimension 0, the samples. Everything that takes a mini-batch apart or puts
one together is here.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

Batch: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]

_COLLECTIONS = (tuple, list, Mapping)  # the exact types first: asking an ABC takes longer


def tensors(batch: Batch) -> tuple[Tensor, ...]:
    """Return the tensors of a mini-batch in their order.

    Raises:
        TypeError: It is not a mini-batch, or holds something that is not a tensor.
    """
    if isinstance(batch, Tensor):
        return (batch,)
    if not isinstance(batch, _COLLECTIONS):
        raise TypeError(
            f"a mini-batch is a tensor, or a tuple, list, named tuple or dict of tensors, "
            f"not {type(batch).__name__}"
        )
    found = tuple(batch.values() if isinstance(batch, Mapping) else batch)
    for value in found:
        if not isinstance(value, Tensor):
            raise TypeError(
                f"a mini-batch holds tensors only, not {type(value).__name__}; convert it in the "
                "data set or in the loader's collate_fn"
            )
    if not found:
        raise TypeError("a mini-batch holds at least one tensor; this one is empty")
    return found


def sample_count(batch: Batch) -> int:
    """Return the samples in a mini-batch: the length of dimension 0 that its tensors share.

    Raises:
        TypeError: It is not a mini-batch.
        ValueError: A tensor has no dimension, or their lengths differ.
    """
    parts = tensors(batch)
    try:
        lengths = {len(part) for part in parts}
    except TypeError as error:
        raise ValueError(
            "a mini-batch's tensors need a dimension 0, the samples; one is 0-d"
        ) from error
    if len(lengths) > 1:
        raise ValueError(
            f"a mini-batch's tensors share dimension 0, the samples; got lengths {sorted(lengths)}"
        )
    return lengths.pop()


def first_samples(minibatches: Iterable[Batch], count: int | None) -> Iterator[Batch]:
    """Yield mini-batches until ``count`` samples are out, cutting the last one short to fit.

    Args:
        minibatches: A stream of mini-batches.
        count: Samples to yield; None = all of them.
    """
    if count is None:
        yield from minibatches
        return
    stream = iter(minibatches)
    while count > 0 and (batch := next(stream, None)) is not None:
        size = sample_count(batch)
        yield batch if size <= count else _part(batch, 0, count)
        count -= size


def rebatched(minibatches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Split and join mini-batches into ones of ``size`` samples, keeping their order.

    Mini-batches that cannot be joined, because their tensors differ in number, dtype or in any
    dimension but the first, are not: there a smaller one is yielded.

    Args:
        minibatches: A stream of mini-batches.
        size: Samples in each that comes out, at least 1; the last may hold fewer.
    """
    pieces: list[Batch] = []
    kind: Hashable = None
    room = size
    for batch in minibatches:
        if pieces and _kind(batch) != kind:
            yield _joined(pieces)
            pieces, room = [], size
        kind = _kind(batch)
        start, length = 0, sample_count(batch)
        while start < length:
            stop = min(length, start + room)
            pieces.append(_part(batch, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield _joined(pieces)
                pieces, room = [], size
    if pieces:
        yield _joined(pieces)


def moved(batch: Batch, device: torch.device) -> Batch:
    """Return the mini-batch on ``device``; one that is there already comes back as it is.

    A copy to a CUDA device does not wait for its end, so that it overlaps with computation when
    the host tensors are pinned.
    """
    for part in tensors(batch):
        if part.device != device:
            break
    else:
        return batch
    return mapped(lambda part: part.to(device, non_blocking=device.type == "cuda"), batch)


def mapped(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Return the mini-batch with ``function`` applied to each of its tensors."""
    return _rebuilt(batch, [function(part) for part in tensors(batch)])


def _rebuilt(like: Batch, parts: Sequence[Tensor]) -> Batch:
    if isinstance(like, Tensor):
        return parts[0]
    if isinstance(like, Mapping):
        return dict(zip(like, parts, strict=True))
    if hasattr(like, "_fields"):  # a named tuple takes its values one by one
        return type(like)(*parts)
    return type(like)(parts)  # type: ignore[call-arg]  # tuple or list


def _part(batch: Batch, start: int, stop: int) -> Batch:
    return mapped(lambda part: part[start:stop], batch)


def _joined(pieces: Sequence[Batch]) -> Batch:
    if len(pieces) == 1:
        return pieces[0]
    columns = zip(*map(tensors, pieces), strict=True)
    return _rebuilt(pieces[0], [_one_tensor(column) for column in columns])


def _one_tensor(parts: tuple[Tensor, ...]) -> Tensor:
    """Return tensors as one, without a copy where they lie one after another in memory.

    They do where a loader has gathered a whole window at once.
    """
    first = parts[0]
    base, offset, length = first._base, first.storage_offset(), 0
    if base is None or base.requires_grad:
        return torch.cat(parts)
    for part in parts:
        if part._base is not base or part.storage_offset() != offset or not part.is_contiguous():
            return torch.cat(parts)
        offset += part.numel()
        length += len(part)
    return first.as_strided((length, *first.shape[1:]), first.stride())


def _kind(batch: Batch) -> Hashable:
    keys = tuple(batch) if isinstance(batch, Mapping) else type(batch)
    return keys, tuple((part.shape[1:], part.dtype, part.device) for part in tensors(batch))
