"""From a window's gradient to new weights: unscale, refuse, clip, step, schedule, zero.

Each of these happens once per window, here and nowhere else.
"""

import logging
import math
from inspect import Parameter, signature
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.linalg import vector_norm
from torch.nn.utils import clip_grads_with_norm_
from torch.optim import Optimizer

from cadence.engine import private_torch
from cadence.engine.accumulation import Accumulated
from cadence.engine.gradient_sums import dense, wide
from cadence.plan.clock import Clock
from cadence.plan.numbers import number_above_0, whole_number
from cadence.plan.scaling import check_rule, scaled
from cadence.plan.schedule import Schedule
from cadence.plan.window import DEFAULT_STEP_SIZE

log = logging.getLogger(__name__)


class DivergedError(RuntimeError):
    """Too many windows in a row had a non-finite loss or gradient."""


class Outcome(NamedTuple):
    """What became of a window's gradient."""

    applied: bool
    """Whether the optimizer stepped."""
    loss: float
    """The window's mean loss over its items; NaN without any."""
    grad_norm: float
    """The gradient's 2-norm over all parameters, before clipping; NaN without any item."""
    lr: float
    """The learning rate of the first parameter group that the update used, or would have."""
    step_size: int = DEFAULT_STEP_SIZE
    """Mini-batches of a full window then, all processes together."""


class Update:
    """Applies one window's gradient after another, and refuses those that are not finite.

    Args:
        optimizer: Any torch optimizer; each group's present ``lr`` is what the schedule scales, and
            so is every ``lr`` that its owner, or a torch scheduler, sets later.
        schedule: The factor on it by samples; it is read at the middle of each window, so that its
            sum over the samples of a run is the same for every step_size.
        clip_norm: The largest gradient norm let through, above 0; None = any.
        scaler: The loss scale that `cadence.accumulate` applied; None = none.
        step_size: The mini-batches per update that the optimizer's options were chosen for.
        scaling: How they follow another step_size; see `cadence.plan.scaling`.

    Raises:
        TypeError: ``clip_norm`` is not a number (a bool is not).
        ValueError: ``clip_norm`` is not above 0, there is no such ``scaling``, or the optimizer
            runs the model by itself.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        schedule: Schedule,
        clip_norm: float | None = None,
        scaler: GradScaler | None = None,
        step_size: int = DEFAULT_STEP_SIZE,
        scaling: str = "none",
    ) -> None:
        check_rule(scaling)
        _check_steps_alone(optimizer)
        self.optimizer = optimizer
        self._step_size = self._chosen_for = step_size
        self._scaling = scaling
        self._schedule = schedule
        self._clip_norm = _checked_clip_norm(clip_norm)
        self._scaler = scaler
        self._chosen: list[dict[str, Any]] = []
        self._base_lrs: list[Any] = []
        self._written_lrs: list[float] = []
        self._has_warned = False
        self._take_groups()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The parameters that are updated."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def follow(self, step_size: int) -> None:
        """Let learning rate and beta2 follow the effective batch of that many mini-batches."""
        self._take_groups()
        self._take_owners_lrs()
        if step_size == self._step_size:
            return
        self._step_size = step_size
        for index in range(len(self._chosen)):
            self._scale(index)

    def _take_groups(self) -> None:
        """Take the options of parameter groups that were added since the last update."""
        for group in self.optimizer.param_groups[len(self._chosen) :]:
            self._chosen.append({name: group[name] for name in ("lr", "betas") if name in group})
            self._base_lrs.append(group["lr"])
            self._written_lrs.append(float(group["lr"]))
            self._scale(len(self._chosen) - 1)

    def _scale(self, index: int) -> None:
        if self._scaling == "none":
            return
        ratio = self._step_size / self._chosen_for
        options = scaled(self._chosen[index], self._scaling, ratio, 1.0)
        self._base_lrs[index] = options["lr"]
        self._written_lrs[index] = float(options["lr"])
        self.optimizer.param_groups[index].update(options)

    def _take_owners_lrs(self) -> None:
        """Take each learning rate that is not the one written last: its owner has set it."""
        for index, group in enumerate(self.optimizer.param_groups):
            lr = group["lr"]
            if float(lr) == self._written_lrs[index]:
                continue
            scale = scaled({"lr": 1.0}, self._scaling, self._step_size / self._chosen_for, 1.0)
            self._chosen[index]["lr"] = lr / scale["lr"]
            self._base_lrs[index] = lr
            if not self._has_warned:
                self._has_warned = True
                log.warning(
                    "the learning rate of the optimizer's group %d was set to %g outside the "
                    "trainer: that is what the schedule scales from here on, as every other that "
                    "is set so",
                    index,
                    float(lr),
                )

    def apply(self, accumulated: Accumulated, clock: Clock, samples: int) -> Outcome:
        """Make the update that a window asks for, or refuse it, and leave ``.grad`` empty.

        Args:
            accumulated: What `cadence.accumulate` returned; its gradient is in ``.grad``.
            clock: The run before this window.
            samples: The samples in this window.

        Returns:
            What became of it.

        Raises:
            ValueError: The schedule's factor is negative or not finite.
        """
        lr = self._set_lr(self._factor(clock.samples_applied + samples / 2))
        if accumulated.items == 0:
            log.warning("samples=%d: a window without any item; no update", clock.samples)
            return Outcome(False, math.nan, math.nan, lr, self._step_size)
        if self._scaler is not None:
            self._scaler.unscale_(self.optimizer)
        parameters = self.parameters
        gradients = [each.grad for each in parameters if each.grad is not None]
        loss, grad_norm = accumulated.total_loss.item() / accumulated.items, total_norm(gradients)
        applied = math.isfinite(loss) and math.isfinite(grad_norm)
        if applied:
            self._step(parameters, grad_norm)
        if self._scaler is not None:
            self._scaler.update()
        _zero(parameters)
        if not applied:
            log.warning(
                "samples=%d: loss %g, gradient norm %g; the update is refused, the weights stay",
                clock.samples,
                loss,
                grad_norm,
            )
        return Outcome(applied, loss, grad_norm, lr, self._step_size)

    def _factor(self, samples: float) -> float:
        factor = self._schedule(samples)
        if not (math.isfinite(factor) and factor >= 0):
            raise ValueError(
                f"the learning-rate schedule gave {factor} at {samples:g} samples; it must give a "
                "finite factor, at least 0"
            )
        return factor

    def _set_lr(self, factor: float) -> float:
        groups = self.optimizer.param_groups
        for group, base in zip(groups, self._base_lrs, strict=True):
            group["lr"] = base * factor
        self._written_lrs = [float(group["lr"]) for group in groups]
        return self._written_lrs[0]

    def _step(self, parameters: list[nn.Parameter], grad_norm: float) -> None:
        if self._clip_norm is not None:
            has_float64 = all(parameter.device.type != "mps" for parameter in parameters)
            norm = torch.tensor(grad_norm, dtype=torch.float64 if has_float64 else torch.float32)
            clip_grads_with_norm_(parameters, self._clip_norm, norm)
        if self._scaler is None:
            private_torch.step(self.optimizer)
        else:
            self._scaler.step(self.optimizer)


def _zero(parameters: list[nn.Parameter]) -> None:
    # What optimizer.zero_grad() does, without the profiler's hooks around it (5 microseconds of
    # each window of the digits MLP).
    for parameter in parameters:
        parameter.grad = None


def _checked_clip_norm(clip_norm: float | None) -> float | None:
    if clip_norm is None:
        return None
    what, remedy = "the largest gradient norm", "use None for no clipping"
    return number_above_0("clip_norm", clip_norm, what, remedy)


def _check_steps_alone(optimizer: Optimizer) -> None:
    closure = signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is Parameter.empty:
        raise ValueError(
            f"{type(optimizer).__name__} runs the model by itself, several times an update, and "
            "cadence runs it once for each window; try torch.optim.AdamW or torch.optim.SGD"
        )


def checked_max_skipped(max_skipped: int) -> int:
    """Return ``max_skipped`` if so many refused updates in a row can be borne.

    Raises:
        TypeError: It is not a whole number (a bool is not).
        ValueError: It is below 0.
    """
    what = "refused updates in a row that are borne"
    return whole_number("max_skipped", max_skipped, what, "use 0 to bear none", at_least=0)


def stop_if_diverged(clock: Clock, outcome: Outcome, max_skipped: int) -> None:
    """End a run whose updates are refused one after another.

    Args:
        clock: The run after the last window.
        outcome: What became of that window.
        max_skipped: Refused updates in a row that are borne, at least 0.

    Raises:
        DivergedError: There were more.
    """
    if clock.refused_in_a_row > max_skipped:
        raise DivergedError(
            f"samples={clock.samples}: loss {outcome.loss:g}, gradient norm {outcome.grad_norm:g}: "
            f"{clock.refused_in_a_row} windows in a row were refused because their loss or "
            "gradient is not finite; begin anew with a lower optimizer.lr, trainer.clip_norm=1, or "
            "device.precision=fp32"
        )


def total_norm(gradients: list[Tensor]) -> float:
    """Return the 2-norm of all gradients together; 0 without any.

    The same as ``torch.nn.utils.get_total_norm``, which sorts the tensors by device and dtype
    first and takes several times as long on a small model; but in float32 where they are bfloat16
    or float16, in which a norm overflows.
    """
    if not gradients:
        return 0.0
    if gradients[0].device.type == "cpu":  # where torch has no joint kernel, and reading is free
        return math.hypot(*[vector_norm(wide(dense(each))).item() for each in gradients])
    norms = private_torch.norms([wide(dense(each)) for each in gradients])
    device = norms[0].device
    return math.hypot(*torch.stack([norm.to(device) for norm in norms]).tolist())
