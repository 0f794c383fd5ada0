"""The ``cadence`` command: one word for each thing to do, and what follows is that command's own.

Only the command that is asked for is imported, so that ``cadence --help`` is answered at once.
"""

import importlib
import sys

from cadence.config import project

COMMANDS = {
    "train": "train a model:                cadence train trainer.step_size=16",
    "sweep": "search step_size:             cadence sweep step_size experiment=digits_mlp",
    "evaluate": "evaluate the best model:      cadence evaluate run=last",
    "advise": "predict which step_size pays: cadence advise experiment=digits_mlp",
    "certify": "prove the gradient exact:     cadence certify experiment=digits_mlp",
    "report": "draw a sweep's report again:  cadence report STUDY",
    "sync": "upload what MLflow lacks:     cadence sync RUN_FOLDER",
    "ui": "serve MLflow's pages here:    cadence ui",
}
"""Each command and what is typed; the module of a command in `cadence.cli` has its name."""

HEAD = """usage: cadence COMMAND [--help] ...

Train PyTorch models with the mini-batches per update (trainer.step_size) as an exact dial.
"""

FOOT = """
mlruns/ and sweeps/ are made in the project: the nearest folder upwards with a pyproject.toml or a
conf/, else the working directory. A conf/ there is found beside cadence's own."""


def main() -> None:
    """Run the command that is named first; an unknown name is one line and exit code 1."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(HEAD)
        for command, words in COMMANDS.items():
            print(f"  {command:10}{words}")
        print(FOOT)
        return
    if name not in COMMANDS:
        sys.exit(f"error: {name}: there is no such command; choose one of {', '.join(COMMANDS)}")
    project.enter()
    sys.argv = [f"cadence {name}", *rest]
    importlib.import_module(f"cadence.cli.{name}").main()
