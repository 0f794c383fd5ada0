"""How many threads an operation on the CPU gets where the caller names no number.

The threads of an operation wait for the slowest of them. On a busy machine one of them now and
then waits for its core, a few milliseconds: an operation of microseconds is then a hundred times as
slow, and one of milliseconds loses no more than the share of the core that the neighbour takes. So
each thread must have enough to do. The work is read off the shapes, never off a clock: a run that
is begun again, or goes on, has the same threads at the same window, and the same bits.

The work of a micro-batch's typical operation is the mean, over the model's weight matrices, of the
multiply-adds in one forward: a matrix's numbers times the positions that it is applied at. Where a
matrix is applied at more positions than the shapes say (a linear layer on patches of an image), it
is an underestimate, and fewer threads. benchmarks/threads.py measures it.
"""

import os
from collections.abc import Sequence
from math import prod

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from cadence.data.batch import Batch, Gathered, samples_in, tensors
from cadence.engine.device import device_of

LEAST_WORK = 2**24
"""Multiply-adds of an operation that are worth a thread: an estimate, not measured yet."""

NAMED_BY = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""The environment variables by which a user names the number."""


class DefaultThreads:
    """The threads of an operation by its work, at most those that torch has when this is made."""

    def __init__(self) -> None:
        self._most = torch.get_num_threads()
        self._is_named = any(os.environ.get(name) for name in NAMED_BY)
        self._weights: list[tuple[int, bool]] = []

    def take(self, model: nn.Module) -> None:
        """Take a model whose operations they are for."""
        self._weights = []
        if device_of(model).type == "cpu" and not self._is_named and self._most > 1:
            self._weights = [
                (weight.numel(), weight.dim() > 2)
                for weight in model.parameters()
                if weight.dim() > 1
            ]

    def for_window(self, window: Sequence[Batch], microbatch_size: int | None) -> int:
        """Return the threads for a window's operations.

        Args:
            window: At least one mini-batch.
            microbatch_size: Samples per forward and backward; None = one mini-batch.
        """
        if not self._weights:
            return self._most
        total = samples_in(window)
        samples = -(-total // len(window)) if microbatch_size is None else microbatch_size
        batch = window.whole if isinstance(window, Gathered) else window[0]
        work = min(samples, total) * self._work_of_sample(_inputs(batch))
        return min(self._most, max(1, work // LEAST_WORK))

    def _work_of_sample(self, inputs: Shaped[Tensor, " samples *rest"]) -> int:
        """Return the multiply-adds of a typical operation on one sample."""
        pixels = prod(inputs.shape[2:])
        tokens = 1 if inputs.is_floating_point() else prod(inputs.shape[1:])
        every = sum(numel * (pixels if convolves else tokens) for numel, convolves in self._weights)
        return every // len(self._weights)


def _inputs(batch: Batch) -> Shaped[Tensor, " samples *rest"]:
    """Return the largest tensor of a mini-batch, the first of several."""
    return max(tensors(batch), key=Tensor.numel)
