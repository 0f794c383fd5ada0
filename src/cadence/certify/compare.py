"""The gradient by micro-batches of several sizes, held against that of one pass."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cadence.certify.relative_error import Gradient, relative_errors
from cadence.certify.trial_passes import TrialPasses, errors_explained
from cadence.system.secrets import with_its_type

ONE_PASS_ROUNDING = 4
"""Beyond that, a micro-batch's gradient may differ from that of one pass by this many times the
distance of the one pass from float64: long sums of bfloat16 are off by half of what they are, and
splitting them, if anything, helps."""


@dataclass(frozen=True, slots=True)
class SplitComparison:
    """The parameter tensor of one optimizer group that differs most, in one precision."""

    group: str
    """The group's ``name`` if it has one, else its number."""
    precision: str
    """The dtype computed in; the coarsest of several."""
    error: float
    """The 2-norm of the difference as a share of the gradient's; infinite = not finite, or a
    micro-batch could not be computed."""
    tolerance: float
    """The largest error that is rounding."""
    parameter: str
    microbatch_size: int | None
    """Samples per micro-batch where it differs most; None = the mini-batches as they are."""

    @property
    def agrees(self) -> bool:
        """Whether the error is no more than rounding."""
        return self.error <= self.tolerance


@dataclass(frozen=True, slots=True)
class Measured:
    """What one precision came to."""

    trial: TrialPasses
    one_pass: Gradient
    tolerances: dict[str, float]
    """By parameter."""
    errors: dict[int | None, dict[str, float]]
    """By micro-batch size and parameter."""
    failures: dict[int | None, str]
    """Why the micro-batches of a size could not be computed."""

    @property
    def worst_size(self) -> int | None:
        """The micro-batch size whose largest error is the largest."""
        return max(self.errors, key=lambda size: max(self.errors[size].values()))

    @property
    def largest(self) -> float:
        """The largest error of all sizes and parameters."""
        return max(self.errors[self.worst_size].values())

    @property
    def agrees(self) -> bool:
        """Whether no error is more than rounding."""
        return self.worst_of(self.tolerances).agrees

    @property
    def notes(self) -> list[str]:
        """What could not be computed, and how much rounding was tolerated beyond the usual."""
        worst = self.worst_of(self.tolerances)
        notes = list(self.failures.values())
        if worst.tolerance > self.trial.tolerance:
            rounding = worst.tolerance / ONE_PASS_ROUNDING
            notes.append(
                f"{worst.parameter}: in {worst.precision} rounding alone puts one pass off by "
                f"{rounding:.1e}; {ONE_PASS_ROUNDING} times that is tolerated"
            )
        return notes

    def worst_of(self, names: Iterable[str], group: str = "") -> SplitComparison:
        """Return the comparison that is farthest beyond its tolerance, or nearest to it."""
        found = (
            SplitComparison(
                group, self.trial.precision, errors[name], self.tolerances[name], name, size
            )
            for name in names
            for size, errors in self.errors.items()
        )
        return max(found, key=lambda comparison: comparison.error / comparison.tolerance)


def compare_splits(
    trial: TrialPasses, sizes: Sequence[int | None], truth: Measured | None = None
) -> Measured:
    """Compare the gradient by micro-batches of these sizes with that of one pass.

    ``truth`` is the same in a finer precision, from which rounding is told; None = not known.
    """
    with errors_explained():
        one_pass = trial.gradient(trial.one_pass)
    tolerances = dict.fromkeys(one_pass, trial.tolerance)
    roundings = {} if truth is None else relative_errors(one_pass, truth.one_pass)
    for name, rounding in roundings.items():
        if rounding < math.inf:
            tolerances[name] = max(trial.tolerance, ONE_PASS_ROUNDING * rounding)
    measured = Measured(trial, one_pass, tolerances, {}, {})
    for seed, size in enumerate(sizes, 1):  # each with random numbers of its own, as in training
        _measure(measured, size, seed)
    return measured


def _measure(measured: Measured, size: int | None, seed: int) -> None:
    trial = measured.trial
    try:
        found = trial.gradient(trial.window, size, seed=seed)
    except Exception as error:
        measured.errors[size] = dict.fromkeys(measured.one_pass, math.inf)
        measured.failures[size] = f"microbatch_size={shown(size)} fails: {with_its_type(error)}"
    else:
        measured.errors[size] = relative_errors(found, measured.one_pass)


def shown(size: int | None) -> str:
    """Return a micro-batch size as the config writes it."""
    return "null" if size is None else str(size)
