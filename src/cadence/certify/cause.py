"""A cause of a gradient that depends on the split, and a suspect that can be switched off."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import nn

from cadence.certify.trial_passes import TrialPasses, innermost
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
    modules: tuple[str, ...] = ()
    """Paths of the modules that draw random masks; empty = another kind of cause."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """What may be a cause, and how to run a trial without it."""

    cause: Cause
    without: Callable[[TrialPasses], AbstractContextManager[TrialPasses]]
    if_random: Cause | None = None
    """The cause instead, where passes with it depend on the random state; None = they cannot."""


@contextmanager
def wrapped(wrap: Callable[[Objective], Objective], trial: TrialPasses) -> Iterator[TrialPasses]:
    """Run a trial with the objective wrapped."""
    yield dataclasses.replace(trial, objective=wrap(trial.objective))


def named_objective(trial: TrialPasses) -> str:
    """Return the class name of the user's own objective."""
    return type(innermost(trial.objective)).__name__


def named(kind: type[nn.Module], names: Sequence[str]) -> str:
    """Return the name of a class of modules with the paths of its modules in the model."""
    return kind.__name__ if "" in names else f"{kind.__name__} ({listed(names)})"


def listed(names: Sequence[str]) -> str:
    """Return the first name and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
