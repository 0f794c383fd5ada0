"""Flat buffers that gradients are summed in: a second copy of the gradients in memory."""

from collections.abc import Iterable, MutableMapping, Sequence
from itertools import compress
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cadence.distributed.lost import lost_process
from cadence.engine.accumulation import NUMBERS
from cadence.engine.private_torch import copy_each, zero_each
from cadence.objectives import HALF

BUCKET_BYTES = 25 * 2**20
"""Bytes of gradients that are summed at once, about: enough for the full speed of a network."""


class _Part(NamedTuple):
    """A parameter's place in a bucket."""

    parameter: nn.Parameter
    number: int
    """Which parameter of the model it is, from 0."""
    view: Tensor


class Buckets:
    """Flat buffers through which gradients are summed, kept from one update to the next.

    The first bucket of the widest dtype starts with the numbers and, for each parameter, how many
    processes have a gradient of it: one that none has keeps ``.grad`` None, as on one process.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, parameter in enumerate(parameters):
            groups.setdefault((parameter.device, _wide(parameter.dtype)), []).append(index)
        device = parameters[0].device
        with_numbers = (
            device,
            torch.float64 if (device, torch.float64) in groups else torch.float32,
        )
        groups.setdefault(with_numbers, [])
        self._flat: list[Tensor] = []
        self._parts: list[_Part] = []
        for (place, dtype), indices in groups.items():
            first = NUMBERS + len(parameters) if (place, dtype) == with_numbers else 0
            for bucket in _cut(indices, parameters, torch.empty((), dtype=dtype).itemsize):
                size = first + sum(parameters[index].numel() for index in bucket)
                flat = torch.zeros(size, dtype=dtype, device=place)
                if first:
                    self._numbers, self._users = flat[:NUMBERS], flat[NUMBERS:first]
                self._flat.append(flat)
                at, first = first, 0
                for index in bucket:
                    parameter = parameters[index]
                    view = flat[at : at + parameter.numel()].view(parameter.shape)
                    self._parts.append(_Part(parameter, index, view))
                    at += parameter.numel()
        self._parts.sort(key=lambda part: part.number)
        self._views = [part.view for part in self._parts]

    def sum(self, numbers: Tensor, wide: MutableMapping[nn.Parameter, Tensor | None]) -> Tensor:
        """Put this process's gradients and numbers in, sum them with the others', take them out."""
        parts = self._parts
        gradients = [wide.get(part.parameter, part.parameter.grad) for part in parts]
        if any(gradient is not None and gradient.is_sparse for gradient in gradients):
            raise ValueError(
                "model: it has sparse gradients, which several processes cannot sum up here; try "
                "sparse=False in its Embedding layers, or distributed=none"
            )
        uses = [gradient is not None for gradient in gradients]
        self._numbers.copy_(numbers)
        self._users.copy_(torch.tensor(uses))
        found = [gradient for gradient in gradients if gradient is not None]
        if found:
            copy_each([*compress(self._views, uses)], found)
        if not all(uses):
            zero_each([*compress(self._views, (not used for used in uses))])
        with lost_process():
            sums = [dist.all_reduce(flat, async_op=True) for flat in self._flat]
            for each in sums:
                each.wait()
            for flat in self._flat:
                finish(flat)  # NCCL's wait lets the stream wait, and returns
        if found:
            copy_each(found, [*compress(self._views, uses)])
        if not all(uses):
            self._take_from_others(uses, wide)
        return self._numbers.to(numbers.dtype, copy=True)

    def _take_from_others(
        self, uses: Sequence[bool], wide: MutableMapping[nn.Parameter, Tensor | None]
    ) -> None:
        """Take the gradients of parameters that other processes alone have used."""
        for part, here, users in zip(self._parts, uses, self._users.tolist(), strict=True):
            if here or users == 0:
                continue
            if part.parameter in wide:
                wide[part.parameter] = part.view.clone()
            else:
                part.parameter.grad = torch.empty_like(part.parameter).copy_(part.view)


def _cut(
    indices: Iterable[int], parameters: Sequence[nn.Parameter], itemsize: int
) -> list[list[int]]:
    """Return the parameters of each bucket: at least one bucket, and one parameter in each."""
    buckets: list[list[int]] = [[]]
    filled = 0
    for index in indices:
        size = parameters[index].numel() * itemsize
        if filled and filled + size > BUCKET_BYTES:
            buckets.append([])
            filled = 0
        buckets[-1].append(index)
        filled += size
    return buckets


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALF else dtype


def finish(tensor: Tensor) -> None:
    """Wait until all is computed that was begun on a tensor's device."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
