"""Tell what a run's best model is worth on its held-out data.

    python -m src.evaluate run=mlruns/runs/2026-11-22/16-27-19-882000
    python -m src.evaluate run=last device=cuda

run= takes a run's folder, or last: the run begun or resumed last. Further overrides win over those
that the run began with.
"""

import logging
import sys
from pathlib import Path

from cadence.cli.build import build
from cadence.cli.compose import composed
from cadence.cli.conf_folders import with_conf_folders
from cadence.cli.errors import command_line
from cadence.cli.overrides import with_one_schedule
from cadence.cli.resume import began_with, run_folder
from cadence.cli.run import ROOT
from cadence.cli.usage import HELP
from cadence.config import project
from cadence.config.checks import checked
from cadence.config.errors import ConfigError

USAGE = "usage: python -m src.evaluate run=<run folder, or last> [overrides]"


def evaluate(folder: Path, overrides: list[str]) -> None:
    """Print the held-out metrics of a run's best checkpoint, or of its latest where none is best.

    One that is damaged is passed over, with a warning.

    Raises:
        ConfigError: The config is impossible, or has no held-out data.
        ValueError: The checkpoint cannot be read, or is of another model.
    """
    from cadence.checkpoint.folder import FOLDER, best
    from cadence.display.terminal import open_console, print_evaluation

    typed = [*began_with(folder), *overrides]
    run = build(checked(composed(with_one_schedule(with_conf_folders(typed, folder)))))
    if run.val_loader is None:
        raise ConfigError("data: there is no held-out data to evaluate on")
    state, file = best(folder / FOLDER)
    run.trainer.restore(state)
    evaluation = run.trainer.evaluate(run.val_loader)
    print_evaluation(evaluation, file, state.clock.samples, open_console())


def main() -> None:
    """Run the command line; an error is one line on stderr and exit code 1."""
    given = sys.argv[1:]
    if HELP & {*given}:
        print(project.as_typed(f"{__doc__}\n{USAGE}"))
        return
    runs = [argument.removeprefix("run=") for argument in given if argument.startswith("run=")]
    logging.basicConfig(
        level=logging.WARNING, format="[%(asctime)s] %(levelname)s: %(message)s", force=True
    )
    with command_line():
        if not runs:
            raise ConfigError(f"run= is missing; {USAGE}")
        overrides = [argument for argument in given if not argument.startswith("run=")]
        folder = run_folder("run", runs[-1], ROOT / "mlruns" / "runs")
        evaluate(folder, overrides)
