"""What every data set returns, and the data set that lives in memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

Samples = tuple[Tensor, ...]


@runtime_checkable
class MapData(Protocol):
    """A map-style data set: any of torch's, or anything else with a length and an index."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def __getitem__(self, index: int, /) -> Any:
        """Return one sample."""


class TensorData(Dataset[Samples]):
    """Tensors in memory, or mapped into it from a file, that share dimension 0: the samples.

    Args:
        tensors: At least one tensor, each [samples, ...]; a mini-batch is a tuple of some rows of
            each.
        prepare: Applied to the samples gathered at once, a mini-batch or a window, as to widen
            bytes: tensors [gathered, ...] to tensors [gathered, ...], each sample on its own.

    Raises:
        ValueError: There is no tensor, or their lengths differ.
    """

    def __init__(
        self, *tensors: Tensor, prepare: Callable[[Samples], Samples] | None = None
    ) -> None:
        lengths = {len(tensor) for tensor in tensors}
        if len(lengths) != 1:
            raise ValueError(f"tensors of one length are needed; got lengths {sorted(lengths)}")
        self.tensors = tensors
        self._prepare = prepare

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.tensors[0])

    def __getitem__(self, index: int) -> Samples:
        """Return one sample, without the samples dimension."""
        return tuple(part[0] for part in self.gathered(torch.tensor([index])))

    def gathered(self, indices: Int[Tensor, " samples"]) -> Samples:
        """Return some samples as one mini-batch: tensors [samples, ...].

        Args:
            indices: [samples], int64, in any order.
        """
        batch = tuple(tensor.index_select(0, indices) for tensor in self.tensors)
        return batch if self._prepare is None else self._prepare(batch)


@dataclass(frozen=True, slots=True)
class Data:
    """A data set, ready to train on."""

    train: MapData
    """The samples to train on."""
    validation: MapData | None
    """The held-out samples; None means no evaluation."""
    input_shape: tuple[int, ...]
    """The shape of one sample's input, without the samples dimension."""
    outputs: int
    """The width of the model's output: classes, tokens of the vocabulary, or regressed numbers."""
    items_per_sample: int = 1
    """The items in one sample without padding; the effective batch is counted in items."""
