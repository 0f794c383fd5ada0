"""What a mini-batch is: a tensor, or any nesting of tuples, lists, named tuples and mappings.

All its tensors share dimension 0, the samples. A list of that length whose entries are something
else (ids, texts, tensors of several lengths) has an entry for each sample; whatever else is in a
mini-batch belongs to all its samples. Everything that takes a mini-batch apart or puts one together
is here.
"""

import copy
from collections.abc import (
    Callable,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    Sequence,
)
from typing import Any, TypeAlias

import torch
from torch import Tensor

Batch: TypeAlias = Tensor | Sequence[Any] | Mapping[Any, Any]

_COLLECTIONS = (tuple, list, Mapping)  # the exact types first: asking an ABC takes longer


def tensors(batch: Batch) -> tuple[Tensor, ...]:
    """Return the tensors of a mini-batch that share its samples, in their order: [samples, ...].

    Raises:
        TypeError: ``batch`` is no mini-batch, or holds no tensor.
        ValueError: Its tensors and lists differ in length.
    """
    flat = _flat(batch)
    if flat is not None:
        return flat
    leaves = _leaves(batch, _nested_length(batch))
    return tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))


def _flat(batch: Batch) -> tuple[Tensor, ...] | None:
    """Return the tensors of a mini-batch that holds nothing else; None = it holds more."""
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
            return None
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
    parts = _flat(batch)
    if parts is None:
        return _nested_length(batch)
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
            is_all = start == 0 and stop == length
            pieces.append(batch if is_all else _part(batch, start, stop))
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
    for part in _flat(batch) or _all_tensors(batch):
        if part.device != device:
            break
    else:
        return batch
    return mapped(lambda part: part.to(device, non_blocking=device.type == "cuda"), batch)


def mapped(function: Callable[[Tensor], Tensor], batch: Batch) -> Batch:
    """Return the mini-batch with ``function`` applied to each of its tensors [samples, ...]."""
    parts = _flat(batch)
    if parts is not None:
        return _rebuilt(batch, [function(part) for part in parts])
    mapped_batch: Batch = _everywhere(function, batch)
    return mapped_batch


def _rebuilt(like: Batch, parts: Sequence[Any]) -> Batch:
    """Return a collection of other parts in the form of one; a mapping keeps its type."""
    if isinstance(like, Tensor):
        part: Tensor = parts[0]
        return part
    if type(like) is tuple:  # most are, and asking an ABC takes longer
        return tuple(parts)
    if isinstance(like, Mapping):
        return _rebuilt_mapping(like, dict(zip(like, parts, strict=True)))
    if hasattr(like, "_fields"):  # a named tuple takes its values one by one
        return type(like)(*parts)
    return type(like)(parts)  # type: ignore[call-arg]  # tuple or list


def _rebuilt_mapping(like: Mapping[Any, Any], values: dict[Any, Any]) -> Mapping[Any, Any]:
    if type(like) is dict:
        return values
    if isinstance(like, MutableMapping):  # with its attributes, as transformers' BatchEncoding has
        other = copy.copy(like)
        for key, value in values.items():
            other[key] = value
        return other
    made: Mapping[Any, Any] = type(like)(values)  # type: ignore[call-arg]
    return made


def _part(batch: Batch, start: int, stop: int) -> Batch:
    parts = _flat(batch)
    if parts is not None:
        return _rebuilt(batch, [_cut(part, start, stop) for part in parts])
    length = _nested_length(batch)
    _refuse_ambiguous(batch, length)
    leaves = _leaves(batch, length)
    return _with_leaves(batch, length, [_cut(leaf, start, stop) for leaf in leaves])


def _cut(leaf: Any, start: int, stop: int) -> Any:
    if isinstance(leaf, Tensor) and leaf.layout != torch.strided:
        raise TypeError(
            f"a mini-batch's tensor of layout {leaf.layout} cannot be split into micro-batches; "
            "leave microbatch_size at None, or make it dense in the loader's collate_fn"
        )
    return leaf[start:stop]


def _joined(pieces: Sequence[Batch]) -> Batch:
    if len(pieces) == 1:
        return pieces[0]
    if _flat(pieces[0]) is not None:
        columns = zip(*map(tensors, pieces), strict=True)
        return _rebuilt(pieces[0], [torch.cat(column) for column in columns])
    lengths = [_nested_length(piece) for piece in pieces]
    nested = [_leaves(piece, length) for piece, length in zip(pieces, lengths, strict=True)]
    joined = [_concatenated(column) for column in zip(*nested, strict=True)]
    return _with_leaves(pieces[0], lengths[0], joined)


def _concatenated(column: Sequence[Any]) -> Any:
    if isinstance(column[0], Tensor):
        return torch.cat(list(column))
    return [entry for entries in column for entry in entries]


def _kind(batch: Batch) -> Hashable:
    """Return what two mini-batches must have in common to be joined."""
    parts = _flat(batch)
    if parts is None:
        return _structure(batch, _nested_length(batch), is_top=True)
    keys = tuple(batch) if isinstance(batch, Mapping) else type(batch)
    return keys, tuple(_form(part) for part in parts)


def _form(part: Tensor) -> Hashable:
    return part.shape[1:], part.dtype, part.device


# Mini-batches of collections within collections.


def _nested_length(batch: Batch) -> int:
    """Return the samples of a nested mini-batch.

    The tensors outside of lists say it; where all are in lists, those do if they agree, and else
    the lists have an entry for each sample.
    """
    ways = (_lengths(batch, into_lists=False), _lengths(batch, into_lists=True), _entries(batch))
    lengths: set[int] = set()
    for way in ways:
        found = set(way)
        lengths |= found
        if len(found) == 1:
            return found.pop()
        if found and way is ways[0]:
            break
    if not lengths:
        raise TypeError("a mini-batch holds at least one tensor; this one has none")
    raise ValueError(
        "a mini-batch's tensors share dimension 0, the samples, and lists have an entry for each; "
        f"got lengths {sorted(lengths)}"
    )


def _lengths(node: Any, *, into_lists: bool, is_top: bool = True) -> Iterator[int]:
    """Yield the length of each tensor's dimension 0."""
    if isinstance(node, Tensor):
        if node.dim() == 0:
            raise ValueError("a mini-batch's tensors need a dimension 0, the samples; one is 0-d")
        yield node.shape[0]
    elif isinstance(node, _COLLECTIONS) and (into_lists or is_top or type(node) is not list):
        for value in node.values() if isinstance(node, Mapping) else node:
            yield from _lengths(value, into_lists=into_lists, is_top=False)


def _entries(node: Any, *, is_top: bool = True) -> Iterator[int]:
    """Yield the length of each outermost list within a mini-batch that has tensors."""
    if type(node) is list and not is_top:
        yield len(node)
    elif isinstance(node, _COLLECTIONS):
        for value in node.values() if isinstance(node, Mapping) else node:
            yield from _entries(value, is_top=False)


def _is_entries(node: Any, length: int, *, is_top: bool) -> bool:
    """Return whether a node is a list with an entry for each sample, and no nesting of tensors."""
    if type(node) is not list or is_top or len(node) != length:
        return False
    return not _could_be_both(node, length)


def _could_be_both(node: list[Any], length: int) -> bool:
    """Return whether a list with as many entries as samples holds tensors of that length alone."""
    held = list(_all_tensors(node))
    return bool(held) and all(part.dim() > 0 and part.shape[0] == length for part in held)


def _refuse_ambiguous(node: Any, length: int, *, is_top: bool = True) -> None:
    """Refuse to split a list that may hold either what belongs to each sample, or some tensors.

    Raises:
        TypeError: It does.
    """
    if not isinstance(node, _COLLECTIONS):
        return
    if type(node) is list and not is_top and len(node) == length and _could_be_both(node, length):
        raise TypeError(
            f"a mini-batch of {length} samples has a list of {length} tensors of that length: they "
            "may be one for each sample, or each of all samples; put them into a tuple (each of "
            "all samples), or leave microbatch_size at None"
        )
    for value in node.values() if isinstance(node, Mapping) else node:
        _refuse_ambiguous(value, length, is_top=False)


def _leaves(node: Any, length: int, *, is_top: bool = True) -> list[Any]:
    """Return what is split along the samples, in order: tensors, and lists of entries."""
    if isinstance(node, Tensor) or _is_entries(node, length, is_top=is_top):
        return [node]
    if not isinstance(node, _COLLECTIONS):
        return []
    values = node.values() if isinstance(node, Mapping) else node
    return [leaf for value in values for leaf in _leaves(value, length, is_top=False)]


def _with_leaves(batch: Batch, length: int, leaves: Sequence[Any]) -> Batch:
    """Return a nested mini-batch with other leaves, in the order of `_leaves`."""
    rest = iter(leaves)

    def rebuilt(node: Any, *, is_top: bool = False) -> Any:
        if isinstance(node, Tensor) or _is_entries(node, length, is_top=is_top):
            return next(rest)
        if not isinstance(node, _COLLECTIONS):
            return node
        values = node.values() if isinstance(node, Mapping) else node
        return _rebuilt(node, [rebuilt(value) for value in values])

    made: Batch = rebuilt(batch, is_top=True)
    return made


def _structure(node: Any, length: int, *, is_top: bool = False) -> Hashable:
    if isinstance(node, Tensor):
        return _form(node)
    if type(node) is list and not is_top and len(node) == length:
        return id(node) if _could_be_both(node, length) else "entries"
    if not isinstance(node, _COLLECTIONS):
        return node if isinstance(node, Hashable) else id(node)
    keys = tuple(node) if isinstance(node, Mapping) else ()
    values = node.values() if isinstance(node, Mapping) else node
    return type(node), keys, tuple(_structure(value, length) for value in values)


def _everywhere(function: Callable[[Tensor], Tensor], node: Any) -> Any:
    """Return a node with each tensor replaced, those of single samples as well."""
    if isinstance(node, Tensor):
        return function(node)
    if not isinstance(node, _COLLECTIONS):
        return node
    values = node.values() if isinstance(node, Mapping) else node
    return _rebuilt(node, [_everywhere(function, value) for value in values])


def _all_tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, _COLLECTIONS):
        for value in node.values() if isinstance(node, Mapping) else node:
            yield from _all_tensors(value)
