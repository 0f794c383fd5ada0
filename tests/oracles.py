"""What the engine's tests compare with, and the mini-batches they compare on."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

from cadence import Callback, Trainer
from cadence.data.batch import Batch
from cadence.metrics.result import Result, Window
from cadence.plan.clock import Clock

SIZES = (4, 3, 4, 1, 4, 2, 4, 4, 3, 2, 1)
"""Samples in ragged mini-batches: 11 of them, so 2, 3 and 8 at a time leave a short last window."""

STEP_SIZES = (1, 2, 3, 8)

CUDA = pytest.param(
    "cuda",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    ],
)


class Pair(NamedTuple):
    inputs: Tensor
    targets: Tensor


FORMS: dict[str, Callable[[Tensor, Tensor], Batch]] = {
    "tuple": lambda inputs, targets: (inputs, targets),
    "list": lambda inputs, targets: [inputs, targets],
    "named tuple": Pair,
    "dict": lambda inputs, targets: {"targets": targets, "inputs": inputs},
    "dict of other names": lambda inputs, targets: {"x": inputs, "y": targets},
}
"""Every form of a mini-batch that holds two tensors."""


def regression_pair(samples: int, features: int = 3) -> Pair:
    """Return random float64 data that no linear model fits exactly."""
    generator = torch.Generator().manual_seed(samples)
    inputs = torch.randn(samples, features, dtype=torch.float64, generator=generator)
    noise = torch.randn(samples, 1, dtype=torch.float64, generator=generator)
    return Pair(inputs, inputs.sum(1, keepdim=True).tanh() + noise)


def cut(data: Pair, sizes: Sequence[int]) -> list[Pair]:
    """Cut samples into consecutive mini-batches of these sizes."""
    parts = zip(data.inputs.split(list(sizes)), data.targets.split(list(sizes)), strict=True)
    return [Pair(inputs, targets) for inputs, targets in parts]


def gradients(model: nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(found: Iterable[Tensor], expected: Iterable[Tensor]) -> bool:
    """Return whether all tensors are equal, bit for bit."""
    return all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def relative_error(found: Iterable[Tensor], expected: Iterable[Tensor]) -> float:
    """Return the 2-norm of all differences together, as a share of that of what is expected."""
    truth = [tensor.double() for tensor in expected]
    gaps = [tensor.double() - true for tensor, true in zip(found, truth, strict=True)]
    return (_norm(gaps) / _norm(truth)).item()


def plain_sgd(model: nn.Module, minibatches: Sequence[Pair], step_size: int, lr: float) -> None:
    """Train on squared error for one epoch as one would by hand: each window is one big batch."""
    for start in range(0, len(minibatches), step_size):
        inputs, targets = map(torch.cat, zip(*minibatches[start : start + step_size], strict=True))
        loss = nn.functional.mse_loss(model(inputs), targets)
        steps = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for parameter, step in zip(model.parameters(), steps, strict=True):
                parameter -= lr * step


@contextmanager
def as_a_user_calls_it() -> Iterator[None]:
    """Switch off the type checks that only tests have, so that the library's own errors come."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).norm()


class Seen(Callback):
    """Keeps every window and every evaluation of a run."""

    def __init__(self) -> None:
        self.windows: list[tuple[Clock, Window]] = []
        self.evaluations: list[tuple[Clock, Result]] = []

    def on_window_end(self, trainer: Trainer, window: Window) -> None:
        self.windows.append((trainer.clock, window))

    def on_evaluation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self.evaluations.append((trainer.clock, trainer.result))

    @property
    def evaluated_at(self) -> list[int]:
        return [clock.samples for clock, _ in self.evaluations]


class AtBoundaries(Callback):
    """Calls a function wherever a run may be saved or stopped."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._function = function

    def on_window_end(self, trainer: Trainer, window: Window) -> None:
        if not trainer.evaluation_is_due:
            self._function()

    def on_evaluation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        self._function()

    def on_epoch_end(self, trainer: Trainer) -> None:
        self._function()


def watched(trainer: Trainer, *callbacks: Callback) -> Trainer:
    """Return a trainer with these callbacks and no others."""
    trainer.callbacks = list(callbacks)
    return trainer
