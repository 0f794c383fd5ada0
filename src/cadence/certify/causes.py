"""Why a gradient depends on the split: suspects, each switched off to see whether the error goes.

A suspect is a cause only if, all the others switched off, the error comes back with it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from cadence.certify.cause import Cause, Suspect, listed, named, named_objective
from cadence.certify.compare import Measured, compare_splits
from cadence.certify.hooks import forward_hooks, hooks_as_suspects, unhooked
from cadence.certify.reduction import adds_up, uncounted, unsummed
from cadence.certify.relative_error import relative_errors
from cadence.certify.sample_coupling import find_coupling
from cadence.certify.training_mode import modules_in_training
from cadence.certify.trial_passes import TrialPasses, innermost


def diagnosed(measured: Measured, sizes: Sequence[int | None]) -> tuple[list[Cause], float | None]:
    """Return the fewest suspects without which every split agrees, and the error then."""
    trial = measured.trial
    suspects = [
        *modules_in_training(trial.model),
        *hooks_as_suspects(trial),
        *uncounted(trial, sizes),
    ]
    with _without(trial, suspects) as quiet:
        suspects += unsummed(quiet, sizes)
    with _without(trial, suspects) as quiet:
        rest = compare_splits(quiet, sizes)
        if not rest.agrees:
            return [_beyond_suspicion(rest, sizes, suspects)], None
    needed = _needed(trial, suspects, [measured.worst_size])
    left = _error_without(trial, needed, sizes)
    if left > trial.tolerance:
        needed = _needed(trial, suspects, sizes)
        left = _error_without(trial, needed, sizes)
    causes = [_cause(trial, suspect, suspects) for suspect in needed]
    if all(cause.kind == "random" for cause in causes):
        but = "; but for the masks the gradient is exact"
        causes = [dataclasses.replace(cause, finding=cause.finding + but) for cause in causes]
    return causes, left


@contextmanager
def _without(trial: TrialPasses, suspects: Sequence[Suspect]) -> Iterator[TrialPasses]:
    with ExitStack() as stack:
        for suspect in suspects:
            trial = stack.enter_context(suspect.without(trial))
        yield trial


def _needed(
    trial: TrialPasses, suspects: Sequence[Suspect], sizes: Sequence[int | None]
) -> list[Suspect]:
    """Drop each suspect whose return brings no error back."""
    needed = list(suspects)
    for suspect in suspects:
        fewer = [other for other in needed if other is not suspect]
        if _error_without(trial, fewer, sizes) <= trial.tolerance:
            needed = fewer
    return needed


def _error_without(
    trial: TrialPasses, suspects: Sequence[Suspect], sizes: Sequence[int | None]
) -> float:
    with _without(trial, suspects) as changed:
        return compare_splits(changed, sizes).largest


def _cause(trial: TrialPasses, suspect: Suspect, suspects: Sequence[Suspect]) -> Cause:
    if suspect.if_random is None:
        return suspect.cause
    with _without(trial, [other for other in suspects if other is not suspect]) as others_off:
        return suspect.if_random if _is_random(others_off) else suspect.cause


def _is_random(trial: TrialPasses) -> bool:
    """Return whether the same pass differs between two random states."""
    first = trial.gradient(trial.one_pass, seed=0)
    errors = relative_errors(trial.gradient(trial.one_pass, seed=1), first)
    return max(errors.values()) > trial.tolerance


def _beyond_suspicion(
    rest: Measured, sizes: Sequence[int | None], suspects: Sequence[Suspect]
) -> Cause:
    """Name what still differs with every suspect switched off."""
    trial = rest.trial
    if _is_random(trial):
        return Cause(
            "random",
            "a random operation that eval() does not switch off: two passes with different random "
            "states differ; whether anything else does cannot be told",
            "draw random numbers in training mode only, as torch.nn.Dropout does, or in the data "
            "set",
        )
    coupling = find_coupling(trial, sizes)
    if coupling.module is not None:
        hook = _hook_that_couples(trial, coupling.module, sizes)
        if hook is not None:
            return hook
        kind = type(trial.model.get_submodule(coupling.module))
        return Cause(
            "module",
            f"{named(kind, [coupling.module])} mixes the samples of a micro-batch: it computes the "
            "same samples otherwise in other company",
            "keep trainer.microbatch_size=null; or let it compute each sample by itself, as "
            "LayerNorm and GroupNorm do",
        )
    declared = getattr(innermost(trial.objective), "couples_samples", False)
    if not adds_up(trial, sizes) and (coupling.model_cleared or declared):
        return Cause(
            "couples samples",
            f"{named_objective(trial)} couples samples{', as it declares' if declared else ''}: "
            "its total_loss of the window is not the sum over micro-batches"
            + (", though the model computes each sample alike" if coupling.model_cleared else ""),
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


def _hook_that_couples(trial: TrialPasses, name: str, sizes: Sequence[int | None]) -> Cause | None:
    """Return the forward hooks in a module as the cause, if without them it couples nothing."""
    hooks = forward_hooks(trial.model, name)
    if not hooks:
        return None
    every = [each for found in hooks.values() for each in found]
    try:
        with unhooked(every, trial):
            left = find_coupling(trial, sizes).module
    except Exception:
        return None  # the model needs its hooks, as weight_norm does, so the module is named
    if left == name:
        return None
    return Cause(
        "hook",
        f"a forward hook on {listed(list(hooks))} mixes the samples of a micro-batch",
        "remove it, or let it compute each sample by itself",
    )
