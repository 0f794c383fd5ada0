"""The exact gradient of a window, one micro-batch on the device at a time.

For a window of mini-batches the gradient that the update sees is

    sum of grad(total_loss(mini-batch)) / sum of items(mini-batch)

with one divisor: the items truly in the window. It is known before the first forward, because the
window waits on the host, so every backward starts from ``1 / items`` and ``.grad`` only ever
receives its finished share.
"""

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import compress
from typing import NoReturn, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.amp import GradScaler

from cadence.data.batch import Batch, Gathered, moved, rebatched
from cadence.engine import private_torch
from cadence.engine.gradient_sums import GradientSums, MeasuredGradientSums
from cadence.engine.noise_scale import Parts
from cadence.objectives import (
    HALF,
    Items,
    Objective,
    checked_objective,
    items_in,
    with_objective,
)
from cadence.plan.numbers import whole_number

NUMBERS = 3
"""What goes with a window's gradient to other processes: its loss, and its parts' two numbers."""

Summed: TypeAlias = Callable[
    [Float[Tensor, " numbers"], MutableMapping[nn.Parameter, Tensor | None]],
    Float[Tensor, " numbers"],
]
"""Adds what other processes have of a window: see
`cadence.distributed.process_group.ProcessGroup.sum`."""


@dataclass(frozen=True, slots=True)
class Accumulated:
    """What a window's forward and backward passes found."""

    total_loss: Float[Tensor, ""]
    """The sum of the items' losses, detached; on the model's device."""
    items: Items
    """The items in the window, or their weights; 0 = there is nothing to update from, and ``.grad``
    is untouched."""
    parts: Parts | None = None
    """The gradients of its micro-batches; None = they were not measured."""

    @property
    def loss(self) -> Float[Tensor, ""]:
        """The mean loss over the window's items; NaN without any."""
        return self.total_loss / self.items


def accumulate(
    model: nn.Module,
    objective: Objective,
    window: Iterable[Batch],
    microbatch_size: int | None = None,
    *,
    autocast: torch.dtype | None = None,
    scaler: GradScaler | None = None,
) -> Accumulated:
    """Add the exact mean gradient of a window to the ``.grad`` of a model's parameters.

    The result is the same, up to rounding, for every ``microbatch_size``; only models and
    objectives that couple samples (BatchNorm, contrastive losses) depend on it. Gradients are
    summed in the parameters' dtype, or in float32 where that is bfloat16 or float16, and then
    rounded once. With ``.grad`` empty before, it holds exactly this window's gradient after.

    Args:
        model: The model, on any device; it is run as it is (``train()`` or ``eval()``).
        objective: What to count and sum; see `cadence.objectives.Objective`.
        window: The mini-batches of one update, on the host or on the model's device. Each
            micro-batch moves to the device only when its turn comes.
        microbatch_size: Samples in one forward and backward; None = one mini-batch. Mini-batches
            are split, or joined across the window, where their shapes allow.
        autocast: The dtype that eligible operations run in, bfloat16 or float16; None = the
            parameters' own.
        scaler: Multiplies the gradient by its loss scale, which float16 needs; None = no scale.

    Returns:
        The window's loss and its items.

    Raises:
        TypeError: A mini-batch is not one, ``microbatch_size`` is not an int, or the objective is
            none or its items are no number.
        ValueError: ``microbatch_size`` is below 1, a mini-batch's tensors differ in length, the
            items are negative or not finite, or the objective's loss is not a 0-d tensor that
            depends on a parameter.
    """
    accumulator = Accumulator(model, objective, autocast=autocast, scaler=scaler)
    window = window if isinstance(window, Sequence) else list(window)  # it is read twice
    return accumulator(window, checked_microbatch_size(microbatch_size))


class Accumulator:
    """`accumulate` for one window after another: it looks the model's parameters up once.

    The arguments are those of `accumulate`. A model whose parameters are replaced or moved needs a
    new one.

    Args:
        summed: Called once for each window, after its last backward, where other processes have a
            part of it; None = all of it is here.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        *,
        autocast: torch.dtype | None = None,
        scaler: GradScaler | None = None,
        summed: Summed | None = None,
    ) -> None:
        self._model = model
        self.objective = checked_objective(objective)
        self._autocast = autocast
        self._scaler = scaler
        self._summed = summed
        parameters = list(with_objective(model, objective).parameters())
        self._device = parameters[0].device if parameters else torch.device("cpu")
        self._half = [parameter for parameter in parameters if parameter.dtype in HALF]
        self._share = torch.ones((), device=self._device)
        self._share_of: Items = 1

    def __call__(
        self,
        window: Sequence[Batch],
        microbatch_size: int | None = None,
        *,
        items: Items | None = None,
        measured: Sequence[nn.Parameter] = (),
    ) -> Accumulated:
        """Accumulate one window; see `accumulate`.

        Args:
            window: Its mini-batches, or this process's part of them, which may be empty.
            microbatch_size: As in `accumulate`.
            items: The items of the whole window, all processes together; None = those in it here.
            measured: The parameters whose gradients by the micro-batches are measured as well, for
                `cadence.engine.noise_scale`; the sum is the same, bit for bit. ``.grad`` must be
                empty before. None of them = nothing is measured.
        """
        objective, device = self.objective, self._device
        items_here, microbatches = _microbatches(objective, window, microbatch_size)
        items = items_here if items is None else items
        if items == 0:
            return Accumulated(torch.zeros((), device=device), items)
        parts = MeasuredGradientSums(measured, items) if measured else None
        half_sums = GradientSums(self._half)
        total_loss: Tensor | None = None
        for microbatch in microbatches:
            with _autocast(device, self._autocast):
                loss = objective.total_loss(self._model, moved(microbatch, device))
            if not isinstance(loss, Tensor) or loss.dim() != 0:
                what = f"shape {list(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
                raise ValueError(
                    f"{type(objective).__name__}.total_loss gave {what}; it must return the sum "
                    'over items, a 0-d tensor: try reduction="sum"'
                )
            if not loss.requires_grad:
                self._refuse_constant()
            if loss.dtype in HALF:
                loss = loss.float()
            private_torch.backward(loss, self._share_like(loss, items))
            if parts is not None:
                parts.measure(items_in(objective, microbatch))
            half_sums.take()
            detached = loss.detach()
            total_loss = detached if total_loss is None else total_loss + detached
        if total_loss is None:  # the window's items are all on other processes
            total_loss = torch.zeros((), device=device)
            if self._scaler is not None:
                self._scaler.scale(total_loss)  # it has no scale before its first tensor
        found = None
        if parts is not None:
            parts.pass_on(half_sums.sums)
            found = parts.found(1.0 if self._scaler is None else self._scaler.get_scale())
        if self._summed is not None:
            total_loss, found = self._with_others(total_loss, found, half_sums.sums)
        half_sums.give()
        return Accumulated(total_loss, items, found)

    def _refuse_constant(self) -> NoReturn:
        """Say why a loss has no gradient."""
        name = type(self.objective).__name__
        trained = with_objective(self._model, self.objective).parameters()
        if not any(parameter.requires_grad for parameter in trained):
            raise ValueError(
                f"no parameter of {type(self._model).__name__} requires a gradient, so there is "
                "nothing to train; set requires_grad of some"
            )
        raise ValueError(
            f"{name}.total_loss gave a tensor that depends on no parameter: it must be computed "
            "from what the model returns, with gradients enabled and without detach()"
        )

    def _with_others(
        self,
        total_loss: Tensor,
        parts: Parts | None,
        half: MutableMapping[nn.Parameter, Tensor | None],
    ) -> tuple[Tensor, Parts | None]:
        """Return the loss and the parts of the whole window, and sum its gradient."""
        assert self._summed is not None
        sums = total_loss.new_zeros(NUMBERS)
        sums[0] = total_loss
        if parts is not None:
            sums[1], sums[2] = parts.count, parts.squares
        sums = self._summed(sums, half)
        if parts is None:
            return sums[0], None
        count, squares = sums[1:].tolist()
        return sums[0], Parts(int(count), squares)

    def _share_like(self, loss: Tensor, items: Items) -> Tensor:
        """Return 1 / items, times the loss scale, to start a backward from.

        Most windows hold as many items as the one before, so the tensor is kept.
        """
        if items != self._share_of or loss.dtype != self._share.dtype:
            self._share = loss.new_full((), 1 / items, requires_grad=False)
            self._share_of = items
        return self._share if self._scaler is None else self._scaler.scale(self._share)


def checked_microbatch_size(microbatch_size: int | None) -> int | None:
    """Return ``microbatch_size`` if it is possible.

    Raises:
        TypeError: It is neither None nor a whole number (a bool is not).
        ValueError: It is below 1.
    """
    if microbatch_size is None:
        return None
    what, remedy = "samples per forward and backward", "use None for one mini-batch"
    return whole_number("microbatch_size", microbatch_size, what, remedy)


def _microbatches(
    objective: Objective, window: Sequence[Batch], size: int | None
) -> tuple[Items, Iterable[Batch]]:
    """Return a window's items, and its micro-batches; those without an item have nothing to add."""
    if size is None:
        batches = list(window)
    elif isinstance(window, Gathered):
        batches = window.cut(size)
    else:  # joined one after another: together they would hold the window in memory a second time
        counted = partial(items_in, objective)
        return sum(map(counted, window)), filter(counted, rebatched(window, size))
    counts = [items_in(objective, batch) for batch in batches]
    return sum(counts), compress(batches, counts)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    # Even disabled, torch.autocast costs microseconds that a small model feels.
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)
