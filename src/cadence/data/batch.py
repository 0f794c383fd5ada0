"""What a mini-batch is: a tensor, or a tuple, list, named tuple or dict of tensors.

All its tensors share dimension 0, the samples. Everything that takes a mini-batch apart or puts
one together is here.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

Batch: TypeAlias = Tensor | Sequence[Tensor] | Mapping[str, Tensor]

_COLLECTIONS = (tuple, list, Mapping)  # the exact types first: asking an ABC takes longer


def tensors(batch: Batch) -> tuple[Tensor, ...]:
    """Return the tensors of a mini-batch in their order, each [samples, ...].

    Raises:
        TypeError: ``batch`` is no mini-batch, or holds something that is not a tensor.
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
    """Return the number of samples in a mini-batch: the length of its tensors' dimension 0.

    Args:
        batch: Tensors [samples, ...].

    Raises:
        TypeError: ``batch`` is no mini-batch.
        ValueError: A tensor has no dimension, or their lengths differ.
    """
    parts = tensors(batch)
    try:
        lengths = {part.shape[0] for part in parts}  # len(part) is Python, and slower
    except IndexError as error:
        raise ValueError(
            "a mini-batch's tensors need a dimension 0, the samples; one is 0-d"
        ) from error
    if len(lengths) > 1:
        raise ValueError(
            f"a mini-batch's tensors share dimension 0, the samples; got lengths {sorted(lengths)}"
        )
    return lengths.pop()


class Gathered(Sequence[Batch]):
    """The mini-batches of a window, gathered with one operation and split where they are used.

    Args:
        whole: All samples of the window as one batch: tensors [samples, ...].
        batch_size: Samples in each mini-batch, at least 1; the last may hold fewer.
    """

    def __init__(self, whole: Batch, batch_size: int) -> None:
        self.whole = whole
        self.samples = sample_count(whole)
        self._batch_size = batch_size

    def cut(self, size: int) -> list[Batch]:
        """Return the samples as batches of [size, ...], views; the last may hold fewer."""
        if size >= self.samples:
            return [self.whole]
        columns = [torch.split(part, size) for part in tensors(self.whole)]
        return [_rebuilt(self.whole, parts) for parts in zip(*columns, strict=True)]

    def __len__(self) -> int:
        """Return the number of mini-batches."""
        return -(-self.samples // self._batch_size)

    def __getitem__(self, index: Any) -> Any:
        """Return a mini-batch, or some of them."""
        return self.cut(self._batch_size)[index]

    def __iter__(self) -> Iterator[Batch]:
        """Yield each mini-batch."""
        return iter(self.cut(self._batch_size))


def samples_in(window: Sequence[Batch]) -> int:
    """Return the number of samples in all mini-batches of a window, each [samples, ...]."""
    return window.samples if isinstance(window, Gathered) else sum(map(sample_count, window))


def elements_per_sample(window: Sequence[Batch]) -> int:
    """Return the most elements that a sample of a window has, all its tensors together.

    Args:
        window: Mini-batches of tensors [samples, ...]; the largest mini-batch decides.
    """
    batches = (window.whole,) if isinstance(window, Gathered) else window
    return max(
        sum(part.numel() // max(1, part.shape[0]) for part in tensors(batch)) for batch in batches
    )


def first_samples(minibatches: Iterable[Batch], count: int | None) -> Iterator[Batch]:
    """Yield mini-batches until ``count`` samples are out, cutting the last one short to fit.

    Args:
        minibatches: Any stream of mini-batches, tensors [samples, ...].
        count: Samples to yield; None means all.
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
    """Split and join mini-batches into mini-batches of ``size`` samples, keeping their order.

    Where two cannot be joined, because their tensors differ in number, dtype or any dimension but
    the first, a smaller mini-batch is yielded.

    Args:
        minibatches: Any stream of mini-batches, tensors [samples, ...].
        size: Samples in each mini-batch that is yielded, at least 1; the last may hold fewer.
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
    """Return the mini-batch on ``device``: the same object where all its tensors are there.

    A copy of pinned tensors to a CUDA device overlaps with computation: nothing waits for its end.

    Args:
        batch: Tensors [samples, ...] on any device.
        device: Where the tensors of the result are, with the same shapes.
    """
    for part in tensors(batch):
        if part.device != device:
            break
    else:
        return batch
    return mapped(lambda part: part.to(device, non_blocking=device.type == "cuda"), batch)


def mapped(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Return the mini-batch with ``function`` applied to each of its tensors [samples, ...]."""
    return _rebuilt(batch, [function(part) for part in tensors(batch)])


def _rebuilt(like: Batch, parts: Sequence[Tensor]) -> Batch:
    if isinstance(like, Tensor):
        return parts[0]
    if type(like) is tuple:  # most are, and asking an ABC takes longer
        return tuple(parts)
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
    return _rebuilt(pieces[0], [torch.cat(column) for column in columns])


def _kind(batch: Batch) -> Hashable:
    keys = tuple(batch) if isinstance(batch, Mapping) else type(batch)
    return keys, tuple((part.shape[1:], part.dtype, part.device) for part in tensors(batch))
