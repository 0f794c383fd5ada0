"""Search the step_size (mini-batches per update) that is worth choosing, in many short runs.

    cadence sweep
    cadence sweep step_size_grid experiment=digits_mlp hydra.sweeper.n_trials=8

The first word is an option of the config group ``sweep``; without one it is step_size. All else is
given to each run, as to ``cadence train``. The same command goes on with a sweep that was stopped.
"""

import sys
from collections.abc import Sequence

from cadence.cli import train
from cadence.cli.secrets import MULTIRUN
from cadence.cli.usage import with_own_help

DEFAULT = "step_size"
"""The sweep that is run where none is named."""

USAGE = "usage: cadence sweep [NAME] [overrides]"


def as_multirun(arguments: Sequence[str]) -> list[str]:
    """Return the command line of ``train`` that runs a sweep.

    Args:
        arguments: What the user typed after ``cadence sweep``.
    """
    given = [argument for argument in arguments if argument not in MULTIRUN]
    if given and "=" not in given[0] and not given[0].startswith(("-", "~")):
        given[0] = f"sweep={given[0]}"
    elif not any(argument.startswith("sweep=") for argument in given):
        given.insert(0, f"sweep={DEFAULT}")
    return ["--multirun", *given]


def main() -> None:
    """Run the command line."""
    sys.argv[1:] = as_multirun(with_own_help(sys.argv[1:], f"{__doc__}\n{USAGE}\n"))
    train.main()
