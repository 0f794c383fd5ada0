"""Counts and reductions that do not add up over micro-batches, as suspects."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from cadence.certify.cause import Cause, Suspect, named_objective, wrapped
from cadence.certify.compare import shown
from cadence.certify.trial_passes import TrialPasses, Wrapped
from cadence.data.batch import Batch, rebatched, sample_count, tensors
from cadence.objectives import IGNORED, Objective, items_in


def uncounted(trial: TrialPasses, sizes: Sequence[int | None]) -> list[Suspect]:
    """Return items as a suspect if those of the micro-batches do not sum to those of one pass."""
    count = trial.objective.items
    together = sum(map(count, trial.one_pass))
    for size in sizes:
        parts = trial.window if size is None else rebatched(trial.window, size)
        summed = sum(map(count, parts))
        if summed != together:
            cause = Cause(
                "items",
                f"{named_objective(trial)}.items does not add up: {together} in one pass, {summed} "
                f"summed over micro-batches of {shown(size)}",
                "count in items(batch) what total_loss sums over in that batch, such as "
                "cadence.data.batch.sample_count(batch)",
            )
            return [Suspect(cause, partial(wrapped, _CountsSamples))]
    return []


@dataclass(frozen=True)
class _CountsSamples(Wrapped):
    """Its items are its samples."""

    def items(self, batch: Batch) -> int:
        return sample_count(batch)


def unsummed(trial: TrialPasses, sizes: Sequence[int | None]) -> list[Suspect]:
    """Return the reduction as a suspect if losses add up only if multiplied or divided."""
    if adds_up(trial, sizes):
        return []
    counts = sample_count, partial(items_in, trial.objective)
    for count in counts:
        for power, cause in ((1, _mean_cause(trial)), (-1, _sum_cause(trial))):
            without = partial(wrapped, partial(_Reweighted, count=count, power=power))
            with without(trial) as changed:
                if adds_up(changed, sizes):
                    return [Suspect(cause, without)]
    for what, counted in _counts(trial.one_pass[0]):
        for cause, weight in (
            (_mean_over(what, trial), counted),
            (_miscounted(what, trial), partial(_per_item, counted, trial.objective)),
        ):
            without = partial(wrapped, partial(_Reweighted, count=weight, power=1))
            with without(trial) as changed:
                if adds_up(changed, sizes):
                    return [Suspect(cause, without)]
    return []


def _counts(batch: Batch) -> Iterator[tuple[str, Callable[[Batch], float]]]:
    """Yield what else a mean may be over, in words, and how to count it in a mini-batch."""
    for index, tensor in enumerate(tensors(batch)):
        starts = {0: "", 1: " after the first of each sequence"} if tensor.dim() > 1 else {0: ""}
        for start, where in starts.items():
            if tensor.is_floating_point():
                yield f"the weights in its tensor {index}{where}", partial(_weight, index, start)
                continue
            yield f"targets other than {IGNORED}{where}", partial(_targets, index, start)
            yield f"unmasked tokens{where}", partial(_unmasked, index, start)


def _weight(index: int, start: int, batch: Batch) -> float:
    return float(_from(index, start, batch).sum())


def _targets(index: int, start: int, batch: Batch) -> float:
    return float((_from(index, start, batch) != IGNORED).sum())


def _unmasked(index: int, start: int, batch: Batch) -> float:
    return float(_from(index, start, batch).count_nonzero())


def _from(index: int, start: int, batch: Batch) -> Tensor:
    tensor = tensors(batch)[index]
    return tensor[..., start:] if start else tensor


def _per_item(counted: Callable[[Batch], float], objective: Objective, batch: Batch) -> float:
    return counted(batch) / items_in(objective, batch)


def _mean_over(what: str, trial: TrialPasses) -> Cause:
    return Cause(
        "mean",
        f"{named_objective(trial)}.total_loss returns a mean over {what}, not their sum",
        "multiply it by their count, and let items(batch) return that count",
    )


def _miscounted(what: str, trial: TrialPasses) -> Cause:
    return Cause(
        "mean",
        f"{named_objective(trial)}.total_loss returns a mean over {what}, multiplied by its items, "
        "which are others",
        "let items(batch) return the count that the mean is over",
    )


def adds_up(trial: TrialPasses, sizes: Sequence[int | None]) -> bool:
    """Return whether the micro-batches' total losses sum to that of one pass."""
    together = sum(trial.total(batch) for batch in trial.one_pass)
    for size in sizes:
        try:
            totals = [trial.total(part) for part in trial.parts(size)]
        except Exception:
            continue  # a size that cannot be computed says nothing about the others
        if abs(sum(totals) - together) > trial.tolerance * sum(map(abs, totals)):
            return False
    return True


def _mean_cause(trial: TrialPasses) -> Cause:
    return Cause(
        "mean",
        f"{named_objective(trial)}.total_loss returns a mean: that of the window is the mean, not "
        "the sum, of those of its micro-batches",
        'return the sum over items (reduction="sum"), or make the mean an objective with '
        "cadence.objectives.MeanLoss",
    )


def _sum_cause(trial: TrialPasses) -> Cause:
    return Cause(
        "sum",
        f"{named_objective(trial)}.total_loss returns a sum multiplied by its items: only divided "
        "by them does it add up",
        'give MeanLoss a mean (reduction="mean"), or return the sum alone',
    )


@dataclass(frozen=True)
class _Reweighted(Wrapped):
    """Its total loss is multiplied by a power of what a mini-batch counts."""

    count: Callable[[Batch], float]
    power: int

    def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.objective.total_loss(model, batch) * float(self.count(batch)) ** self.power
