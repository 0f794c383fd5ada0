"""Whether the gradient of a window depends on how the window is split, and if so, why.

A user's own model, objective and mini-batches are put to the test: the gradient by micro-batches of
several sizes is held against that of one pass over the whole window. Causes are found by
experiment, never by a name alone: with all suspects switched off the error must vanish, and it must
come back with each cause that is named. Random masks alone, as dropout's, are no failure: they are
noted, and the rest is certified without them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cadence.certify.cause import Cause
from cadence.certify.causes import diagnosed
from cadence.certify.compare import Measured, SplitComparison, compare_splits, shown
from cadence.certify.copies import set_up
from cadence.certify.precision import TOLERANCES
from cadence.certify.reduction import uncounted
from cadence.certify.relative_error import is_finite, relative_errors
from cadence.certify.trial_passes import TrialPasses, in_one_pass
from cadence.data.batch import Batch, sample_count
from cadence.engine.device import is_compiled
from cadence.engine.preserve import preserved
from cadence.objectives import Items, Objective, items_in
from cadence.system.secrets import with_its_type

SMALL_WINDOW = 64
"""Samples up to which a window is also split into single samples."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """What comparing a window's gradient by micro-batches with that of one pass came to."""

    minibatches: int
    samples: int
    items: float
    microbatch_sizes: tuple[int | None, ...]
    """The sizes compared, in samples; None = the mini-batches as they are."""
    comparisons: tuple[SplitComparison, ...]
    """One for each optimizer group and precision."""
    causes: tuple[Cause, ...]
    """Why it failed; empty = it passed."""
    error_without_causes: float | None
    """The largest relative error with the causes switched off; None = there are none, or none that
    can be switched off."""
    notes: tuple[str, ...]
    """What could not be compared, and why."""

    @property
    def passed(self) -> bool:
        """Whether the gradient is the same for every split, up to rounding."""
        return not self.causes


def certify(
    model: nn.Module,
    objective: Objective,
    window: Sequence[Batch],
    optimizer: Optimizer | Sequence[Mapping[str, Any]] | None = None,
    *,
    autocast: torch.dtype | None = None,
    microbatch_size: int | None = None,
) -> Certificate:
    """Compare a window's gradient by micro-batches with that of one pass, and explain a difference.

    It computes in the run's own precision and, where the model can, in float64; on copies, so that
    the model, its gradients, its buffers and every random state stay as they are. A model that
    cannot be copied is run itself, in its own precision only, and put back.

    Args:
        model: The model, on any device, in the mode to certify: ``train()``, as a rule.
        objective: What to count and sum; see `cadence.objectives.Objective`.
        window: The mini-batches of one update; all of them must fit into one pass.
        optimizer: An optimizer or its parameter groups, each reported on its own; None = the
            model's parameters as one group.
        autocast: As in `cadence.accumulate`.
        microbatch_size: One more size to compare, in samples; None = only the usual ones: 1 (in a
            large window a 64th of it), one that does not divide the window, a mini-batch, half of
            one, the mini-batches as they are, and the whole window.

    Returns:
        The comparisons, and the causes of what differs with their remedies.

    Raises:
        TypeError: A mini-batch is not one.
        ValueError: There is nothing to compare (one sample, or no item), one pass over the window
            fails, or the optimizer holds none of the model's parameters.
        MemoryError: One pass over the window takes more memory than there is.
    """
    items = _checked_items(objective, window)
    groups = _groups(model, optimizer)
    sizes = _sizes(window, microbatch_size)
    notes = _notes(model, window, optimizer)
    with preserved(model):
        make = partial(set_up, model, objective, window, groups, autocast)
        found = _examined(make, sizes)
        if found.causes and all(cause.modules for cause in found.causes):
            notes += [cause.finding for cause in found.causes]
            _switch_off(model, found.causes)
            found = _examined(make, sizes)
    return Certificate(
        minibatches=len(window),
        samples=sum(map(sample_count, window)),
        items=items,
        microbatch_sizes=sizes,
        comparisons=tuple(
            measured.worst_of(names, group)
            for group, names in groups.items()
            for measured in found.measured
        ),
        causes=tuple(found.causes),
        error_without_causes=found.error_without_causes,
        notes=tuple(dict.fromkeys(notes + found.notes)),
    )


@dataclass(frozen=True, slots=True)
class _Examined:
    measured: list[Measured]
    """By precision, the finest first and the run's own last."""
    causes: list[Cause]
    error_without_causes: float | None
    notes: list[str]


def _examined(make: Callable[..., TrialPasses], sizes: Sequence[int | None]) -> _Examined:
    """Compare the splits in every precision, and explain a difference."""
    own = make()
    finer, notes = _finer(own, make)
    measured = [compare_splits(trial, sizes) for trial in finer]
    truth = measured[0] if measured and measured[0].agrees else None
    measured.append(compare_splits(own, sizes, truth))
    causes, left = _explained(measured[0], measured[-1], sizes, make)
    for each in measured:
        notes += each.notes
    return _Examined(measured, causes, left, notes)


def _switch_off(model: nn.Module, causes: Sequence[Cause]) -> None:
    """Put the modules that draw masks in evaluation mode, and not their children."""
    for cause in causes:
        for name in cause.modules:
            model.get_submodule(name).training = False


def _checked_items(objective: Objective, window: Sequence[Batch]) -> Items:
    samples = sum(map(sample_count, window))
    if samples < 2:
        raise ValueError(
            f"the window holds {samples or 'no'} sample: there is nothing to split, so nothing to "
            "compare; try a larger data.batch_size or trainer.step_size"
        )
    items = sum(items_in(objective, batch) for batch in window)
    if items == 0:
        raise ValueError(
            "the window holds no item, so it makes no update and there is nothing to compare; try "
            "a larger trainer.step_size"
        )
    if len(in_one_pass(window)) == samples:
        raise ValueError(
            f"the {samples} samples of the window have {samples} shapes, so no two can share a "
            "micro-batch and there is nothing to compare; try a larger trainer.step_size"
        )
    return items


def _groups(
    model: nn.Module, optimizer: Optimizer | Sequence[Mapping[str, Any]] | None
) -> dict[str, list[str]]:
    """Return the names of the model's parameters by the optimizer's groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    every = [{"name": "all", "params": list(model.parameters())}]
    found: dict[str, list[str]] = {}
    for number, group in enumerate(every if optimizer is None else _param_groups(optimizer)):
        owned = [names[id(parameter)] for parameter in group["params"] if id(parameter) in names]
        if owned:
            found.setdefault(str(group.get("name", number)), []).extend(owned)
    if not found:
        raise ValueError(
            "there is no parameter to compare: the model has none, or the optimizer none of the "
            "model's; make it from model.parameters()"
        )
    return found


def _param_groups(
    optimizer: Optimizer | Sequence[Mapping[str, Any]],
) -> Sequence[Mapping[str, Any]]:
    return optimizer.param_groups if isinstance(optimizer, Optimizer) else optimizer


def _sizes(window: Sequence[Batch], microbatch_size: int | None) -> tuple[int | None, ...]:
    samples = sum(map(sample_count, window))
    minibatch = sample_count(window[0])
    smallest = -(-samples // SMALL_WINDOW)
    indivisible = (size for size in range(max(2, samples // 3), samples) if samples % size)
    sizes = {
        smallest,
        next(indivisible, smallest),
        max(1, minibatch // 2),
        minibatch,
        samples,
        microbatch_size or samples,
    }
    return (*sorted(sizes), None)


def _notes(
    model: nn.Module,
    window: Sequence[Batch],
    optimizer: Optimizer | Sequence[Mapping[str, Any]] | None,
) -> list[str]:
    notes = []
    passes = len(in_one_pass(window))
    if passes > 1:
        notes.append(
            "the mini-batches differ in shape and cannot be joined into one pass; compared with "
            f"{passes} passes instead"
        )
    owned = {id(parameter) for parameter in model.parameters()}
    groups = [] if optimizer is None else _param_groups(optimizer)
    foreign = sum(id(parameter) not in owned for group in groups for parameter in group["params"])
    if foreign:
        notes.append(f"{foreign} of the optimizer's tensors are not the model's; not compared")
    if is_compiled(model):
        notes.append("the model is certified as it is without torch.compile")
    return notes


def _finer(
    own: TrialPasses, make: Callable[[torch.dtype], TrialPasses]
) -> tuple[list[TrialPasses], list[str]]:
    """Return the run in float64, or else in float32, where that is finer; and why not float64."""
    notes: list[str] = []
    for dtype in (torch.float64, torch.float32):
        name = str(dtype).removeprefix("torch.")
        if TOLERANCES[dtype] >= own.tolerance:
            break
        try:
            return [make(dtype)], notes
        except Exception as error:
            notes.append(f"{name} is left out: {with_its_type(error.__cause__ or error)}")
    return [], notes


def _explained(
    finest: Measured, own: Measured, sizes: Sequence[int | None], make: Callable[..., TrialPasses]
) -> tuple[list[Cause], float | None]:
    """Return the causes, and the largest error once they are switched off."""
    causes: list[Cause] = []
    left = None
    if not is_finite(finest.one_pass):
        causes = [_not_finite(finest)]
    elif not finest.agrees:
        with _without_cudnn():
            causes, left = diagnosed(finest, sizes)
    elif not own.agrees:
        causes, left = [_rounding(own, finest, sizes, make)], finest.largest
    if all(cause.kind != "items" for cause in causes):
        causes += [suspect.cause for suspect in uncounted(finest.trial, sizes)]
    return causes, left


def _not_finite(measured: Measured) -> Cause:
    return Cause(
        "not finite",
        f"the gradient of one pass is not finite in {measured.trial.precision}",
        "look for NaN in the data and in the initial weights; debug=default names the operation",
    )


def _rounding(
    own: Measured, finest: Measured, sizes: Sequence[int | None], make: Callable[..., TrialPasses]
) -> Cause:
    worst = own.worst_of(own.tolerances)
    off = relative_errors(own.one_pass, finest.one_pass)[worst.parameter]
    remedy = "scale the inputs or the loss so that fewer large numbers cancel in the gradient"
    if (
        own.trial.tolerance > TOLERANCES[torch.float32]
        and compare_splits(make(torch.float32), sizes).agrees
    ):
        remedy = "device.precision=fp32 and float32 parameters, with which every split agrees"
    return Cause(
        "dtype",
        f"rounding in {worst.precision}: in {finest.trial.precision} every split agrees; one pass "
        f"is off by {off:.1e} there, micro-batches of {shown(worst.microbatch_size)} by "
        f"{worst.error:.1e} more ({worst.parameter})",
        remedy,
    )


@contextmanager
def _without_cudnn() -> Iterator[None]:
    """Leave cuDNN out: its recurrent layers have no backward in evaluation mode."""
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before
