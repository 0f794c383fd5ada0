"""Sums of gradients beside ``.grad``: in float32 where autograd would round, or to be measured."""

from collections.abc import Iterable, MutableMapping, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from cadence.engine import private_torch
from cadence.engine.noise_scale import Parts
from cadence.objectives import HALF


class GradientSums:
    """Sums of gradients, in float32 where the parameters are kept in half precision.

    Autograd adds each micro-batch's gradient to ``.grad`` in the parameter's dtype, where small
    terms vanish beside a large sum. So each is taken away after its backward, and the sum is given
    back, rounded once, at the end.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.sums: dict[nn.Parameter, Tensor | None] = dict.fromkeys(parameters)
        """What each has so far; None = no gradient yet."""
        self.take()

    def take(self) -> None:
        """Add each parameter's ``.grad`` to its sum, and leave ``.grad`` empty."""
        for parameter, total in self.sums.items():
            if parameter.grad is not None:
                gradient = wide(parameter.grad)
                # In place, as autograd adds: the first one is nobody else's.
                self.sums[parameter] = gradient if total is None else total.add_(gradient)
                parameter.grad = None

    def give(self) -> None:
        """Put each sum, rounded once to its parameter's dtype, into ``.grad``."""
        for parameter, total in self.sums.items():
            if total is not None:
                parameter.grad = total.to(parameter.dtype)


class MeasuredGradientSums(GradientSums):
    """Takes each micro-batch's gradient away and measures it."""

    def __init__(self, parameters: Iterable[nn.Parameter], items: float) -> None:
        super().__init__(parameters)
        self._items = items
        self._counts: list[float] = []
        self._norms: list[Sequence[Tensor]] = []

    def measure(self, items: float) -> None:
        """Measure and take a micro-batch of that many items."""
        gradients = [wide(dense(each.grad)) for each in self.sums if each.grad is not None]
        self._counts.append(items)
        self._norms.append(private_torch.norms(gradients) if gradients else ())
        self.take()

    def pass_on(self, half: MutableMapping[nn.Parameter, Tensor | None]) -> None:
        """Give the sums back, but those of parameters in half precision to the sums of these."""
        for parameter, total in self.sums.items():
            if parameter in half:
                half[parameter] = total
            else:
                parameter.grad = total

    def found(self, scale: float) -> Parts:
        """Return what was measured of gradients that were multiplied by a loss scale."""
        # Read at once, and only now: on CUDA a reading waits for the device.
        every = [norm for norms in self._norms for norm in norms]
        on_one = [norm.to(every[0].device) for norm in every]
        read = iter(torch.stack(on_one).tolist() if on_one else ())
        squares = 0.0
        for items, norms in zip(self._counts, self._norms, strict=True):
            squares += sum(norm**2 for norm in islice(read, len(norms))) / items
        return Parts(len(self._counts), squares * (self._items / scale) ** 2)


def dense(gradient: Tensor) -> Tensor:
    """Return the numbers of a gradient: of a sparse one those that are not zero, each once."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 where it is in half precision; else as it is."""
    return tensor.float() if tensor.dtype in HALF else tensor
