"""Why a gradient depends on the split: suspects, each switched off to see whether the error goes.

A suspect is a cause only if, all the others switched off, the error comes back with it.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cadence.certify.compare import Measured, compare_splits, shown
from cadence.certify.sample_mixing import find_mixing
from cadence.certify.trial_passes import TrialPasses, Wrapped, innermost, relative_errors
from cadence.data.batch import Batch, rebatched, sample_count
from cadence.engine.device import device_of
from cadence.objectives import Objective

Kind: TypeAlias = Literal[
    "batch norm",  # normalises over the micro-batch
    "training mode",  # another module that computes otherwise in training mode
    "random",  # dropout, or any other random operation
    "hook",  # a gradient hook, which sees one micro-batch at a time
    "mean",  # a mean where the sum is due
    "sum",  # a sum times its items where a mean times its items is due
    "items",  # a count that does not add up
    "couples samples",  # an objective whose loss of one sample depends on the others
    "module",  # a module that always mixes samples
    "dtype",  # rounding
    "not finite",
    "refused",  # a micro-batch that cannot be computed
    "unknown",
]


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a gradient depends on the split."""

    kind: Kind
    finding: str
    """What the experiments showed, in one line."""
    remedy: str
    """What to do about it, in one line."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """What may be a cause, and how to run a bench without it."""

    cause: Cause
    without: Callable[[TrialPasses], AbstractContextManager[TrialPasses]]
    if_random: Cause | None = None
    """The cause instead, where passes with it depend on the random state; None = they cannot."""


def diagnosed(measured: Measured, sizes: Sequence[int | None]) -> tuple[list[Cause], float | None]:
    """Return the fewest suspects without which every split agrees, and the error then."""
    bench = measured.bench
    suspects = [*_in_training(bench.model), *_hooked(bench), *uncounted(bench, sizes)]
    with _without(bench, suspects) as quiet:
        suspects += _unsummed(quiet, sizes)
    with _without(bench, suspects) as quiet:
        rest = compare_splits(quiet, sizes)
        if not rest.agrees:
            return [_beyond_suspicion(rest, sizes, suspects)], None
    needed = _needed(bench, suspects, [measured.worst_size])
    left = _error_without(bench, needed, sizes)
    if left > bench.tolerance:
        needed = _needed(bench, suspects, sizes)
        left = _error_without(bench, needed, sizes)
    causes = [_cause(bench, suspect, suspects) for suspect in needed]
    if all(cause.kind == "random" for cause in causes):
        but = "; but for the masks the gradient is exact"
        causes = [dataclasses.replace(cause, finding=cause.finding + but) for cause in causes]
    return causes, left


@contextmanager
def _without(bench: TrialPasses, suspects: Sequence[Suspect]) -> Iterator[TrialPasses]:
    with ExitStack() as stack:
        for suspect in suspects:
            bench = stack.enter_context(suspect.without(bench))
        yield bench


def _needed(
    bench: TrialPasses, suspects: Sequence[Suspect], sizes: Sequence[int | None]
) -> list[Suspect]:
    """Drop each suspect whose return brings no error back."""
    needed = list(suspects)
    for suspect in suspects:
        fewer = [other for other in needed if other is not suspect]
        if _error_without(bench, fewer, sizes) <= bench.tolerance:
            needed = fewer
    return needed


def _error_without(
    bench: TrialPasses, suspects: Sequence[Suspect], sizes: Sequence[int | None]
) -> float:
    with _without(bench, suspects) as changed:
        return compare_splits(changed, sizes).largest


def _cause(bench: TrialPasses, suspect: Suspect, suspects: Sequence[Suspect]) -> Cause:
    if suspect.if_random is None:
        return suspect.cause
    with _without(bench, [other for other in suspects if other is not suspect]) as alone:
        return suspect.if_random if _is_random(alone) else suspect.cause


def _is_random(bench: TrialPasses) -> bool:
    """Return whether the same pass differs between two random states."""
    first = bench.gradient(bench.one_pass, seed=0)
    errors = relative_errors(bench.gradient(bench.one_pass, seed=1), first)
    return max(errors.values()) > bench.tolerance


def _in_training(model: nn.Module) -> list[Suspect]:
    """Suspect each class of modules that is in training mode."""
    classes: dict[type[nn.Module], dict[str, nn.Module]] = {}
    for name, module in model.named_modules():
        if module.training or _lacks_statistics(module):
            classes.setdefault(type(module), {})[name] = module
    return [_training_suspect(kind, modules) for kind, modules in classes.items()]


def _lacks_statistics(module: nn.Module) -> TypeGuard[_BatchNorm]:
    """Return whether a module normalises over the micro-batch in evaluation mode as well."""
    return isinstance(module, _BatchNorm) and module.running_mean is None


def _training_suspect(kind: type[nn.Module], modules: Mapping[str, nn.Module]) -> Suspect:
    named = _named(kind, list(modules))
    cause = Cause(
        "training mode",
        f"{named} in training mode: it computes a sample otherwise in other company, or changes "
        "from one pass to the next",
        "keep trainer.microbatch_size=null, so that each mini-batch passes as the loader made it; "
        "or put it in eval()",
    )
    if issubclass(kind, _BatchNorm):
        cause = Cause(
            "batch norm",
            f"{named} normalises over the samples of a micro-batch",
            "keep trainer.microbatch_size=null, so that each mini-batch is normalised as the "
            "loader made it; or use GroupNorm or LayerNorm",
        )
    random_masks = Cause(
        "random",
        f"{named} draws random masks, each split its own",
        "none is needed to train; to see the rest certified, switch it off (model.dropout=0)",
    )
    return Suspect(cause, partial(_evaluated, list(modules.values())), random_masks)


@contextmanager
def _evaluated(modules: Sequence[nn.Module], bench: TrialPasses) -> Iterator[TrialPasses]:
    """Put these modules, and not their children, in evaluation mode."""
    training = [module for module in modules if module.training]
    lacking = [module for module in modules if _lacks_statistics(module)]
    for module in training:
        module.training = False
    for module in lacking:
        zeros = torch.zeros(module.num_features, device=device_of(bench.model), dtype=bench.dtype)
        module.running_mean, module.running_var = zeros, zeros + 1
    try:
        yield bench
    finally:
        for module in training:
            module.training = True
        for module in lacking:
            module.running_mean = module.running_var = None


def _hooked(bench: TrialPasses) -> list[Suspect]:
    """Suspect the hooks on parameters' gradients."""
    hooks = {name: p._backward_hooks for name, p in bench.parameters.items() if p._backward_hooks}
    if not hooks:
        return []
    cause = Cause(
        "hook",
        f"a gradient hook on {_listed(list(hooks))} changes the gradient of each micro-batch, "
        "before they are summed",
        "remove it and change the window's gradient instead: trainer.clip_norm clips that",
    )
    return [Suspect(cause, partial(_unhooked, list(hooks.values())))]


@contextmanager
def _unhooked(hooks: Sequence[dict[int, Any]], bench: TrialPasses) -> Iterator[TrialPasses]:
    kept = [dict(found) for found in hooks]
    for found in hooks:
        found.clear()
    try:
        yield bench
    finally:
        for found, before in zip(hooks, kept, strict=True):
            found.update(before)


def uncounted(bench: TrialPasses, sizes: Sequence[int | None]) -> list[Suspect]:
    """Suspect items if those of the micro-batches do not sum to those of one pass."""
    count = bench.objective.items
    whole = sum(map(count, bench.one_pass))
    for size in sizes:
        parts = bench.window if size is None else rebatched(bench.window, size)
        summed = sum(map(count, parts))
        if summed != whole:
            cause = Cause(
                "items",
                f"{_named_objective(bench)}.items does not add up: {whole} in one pass, {summed} "
                f"summed over micro-batches of {shown(size)}",
                "count in items(batch) what total_loss sums over in that batch, such as "
                "cadence.data.batch.sample_count(batch)",
            )
            return [Suspect(cause, partial(_wrapped, _CountsSamples))]
    return []


@dataclass(frozen=True)
class _CountsSamples(Wrapped):
    """Its items are its samples."""

    def items(self, batch: Batch) -> int:
        return sample_count(batch)


@contextmanager
def _wrapped(wrap: Callable[[Objective], Objective], bench: TrialPasses) -> Iterator[TrialPasses]:
    yield dataclasses.replace(bench, objective=wrap(bench.objective))


def _unsummed(bench: TrialPasses, sizes: Sequence[int | None]) -> list[Suspect]:
    """Suspect the reduction if losses add up only once they are multiplied or divided."""
    if _adds_up(bench, sizes):
        return []
    for count in (sample_count, bench.objective.items):
        for power, cause in ((1, _mean_cause(bench)), (-1, _sum_cause(bench))):
            without = partial(_wrapped, partial(_Reweighted, count=count, power=power))
            with without(bench) as changed:
                if _adds_up(changed, sizes):
                    return [Suspect(cause, without)]
    return []


def _adds_up(bench: TrialPasses, sizes: Sequence[int | None]) -> bool:
    """Return whether the micro-batches' total losses sum to that of one pass."""
    whole = sum(bench.total(batch) for batch in bench.one_pass)
    for size in sizes:
        try:
            totals = [bench.total(part) for part in bench.parts(size)]
        except Exception:
            continue  # a size that cannot be computed says nothing about the others
        if abs(sum(totals) - whole) > bench.tolerance * sum(map(abs, totals)):
            return False
    return True


def _mean_cause(bench: TrialPasses) -> Cause:
    return Cause(
        "mean",
        f"{_named_objective(bench)}.total_loss returns a mean: that of the window is the mean, not "
        "the sum, of those of its micro-batches",
        'return the sum over items (reduction="sum"), or make the mean an objective with '
        "cadence.objectives.MeanLoss",
    )


def _sum_cause(bench: TrialPasses) -> Cause:
    return Cause(
        "sum",
        f"{_named_objective(bench)}.total_loss returns a sum multiplied by its items: only divided "
        "by them does it add up",
        'give MeanLoss a mean (reduction="mean"), or return the sum alone',
    )


@dataclass(frozen=True)
class _Reweighted(Wrapped):
    """Its total loss is multiplied by a power of what a mini-batch counts."""

    count: Callable[[Batch], int]
    power: int

    def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return self.objective.total_loss(model, batch) * float(self.count(batch)) ** self.power


def _beyond_suspicion(
    rest: Measured, sizes: Sequence[int | None], suspects: Sequence[Suspect]
) -> Cause:
    """Name what still differs with every suspect switched off."""
    bench = rest.bench
    if _is_random(bench):
        return Cause(
            "random",
            "a random operation that eval() does not switch off: two passes with different random "
            "states differ; whether anything else does cannot be told",
            "draw random numbers in training mode only, as torch.nn.Dropout does, or in the data "
            "set",
        )
    mixing = find_mixing(bench, sizes)
    if mixing.module is not None:
        kind = type(bench.model.get_submodule(mixing.module))
        return Cause(
            "module",
            f"{_named(kind, [mixing.module])} mixes the samples of a micro-batch: it computes the "
            "same samples otherwise in other company",
            "keep trainer.microbatch_size=null; or let it compute each sample by itself, as "
            "LayerNorm and GroupNorm do",
        )
    declared = getattr(innermost(bench.objective), "couples_samples", False)
    if not _adds_up(bench, sizes) and (mixing.model_cleared or declared):
        return Cause(
            "couples samples",
            f"{_named_objective(bench)} couples samples{', as it declares' if declared else ''}: "
            "its total_loss of the window is not the sum over micro-batches"
            + (", though the model computes each sample alike" if mixing.model_cleared else ""),
            "keep trainer.microbatch_size=null and choose data.batch_size as the samples that are "
            "to see each other" + ("" if declared else "; declare it with couples_samples = True"),
        )
    if rest.failures:
        return Cause(
            "refused",
            next(iter(rest.failures.values())),
            "keep to a trainer.microbatch_size that the model computes",
        )
    excluded = dict.fromkeys(["random operations", *(suspect.cause.kind for suspect in suspects)])
    return Cause(
        "unknown",
        "some operation mixes the samples of a micro-batch; excluded by experiment: "
        f"{', '.join(excluded)}",
        "keep trainer.microbatch_size=null, so that each mini-batch passes as the loader made it",
    )


def _named_objective(bench: TrialPasses) -> str:
    return type(innermost(bench.objective)).__name__


def _named(kind: type[nn.Module], names: Sequence[str]) -> str:
    return kind.__name__ if "" in names else f"{kind.__name__} ({_listed(names)})"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
