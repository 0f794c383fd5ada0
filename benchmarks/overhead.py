"""What a sweep and its tracking add to a trial: the difference of medians, in seconds.

    python -m benchmarks.overhead

The same training, again and again: first as trials of a real sweep, tracked, then as plain calls of
the library in this process; the two take turns for some rounds.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise

import optuna

from cadence.cli.build import build
from cadence.cli.compose import composed
from cadence.cli.run import ROOT
from cadence.config.checks import checked

TRAINING = ("experiment=digits_mlp", "trainer.max_epochs=5", "trainer.step_size=4")


def sweep_seconds(trials: int) -> list[float]:
    """Return the time from one trial's start to the next one's, in a real sweep, tracked."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = [
            *("--multirun", "sweep=step_size", "experiment=digits_mlp", "trainer.max_epochs=5"),
            *(f"hydra.sweep.dir={folder}/sweep", f"track.uri=sqlite:///{folder}/mlflow.db"),
            *(f"sweep.repeats={trials}", f"hydra.sweeper.n_trials={trials}"),
            "hydra.sweeper.params={trainer.step_size:'choice(4)'}",
        ]
        subprocess.run(
            [sys.executable, "-m", "src.train", *overrides],
            cwd=ROOT,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (study,) = optuna.get_all_study_summaries(f"sqlite:///{folder}/sweep/study.db")
        found = optuna.load_study(
            study_name=study.study_name, storage=f"sqlite:///{folder}/sweep/study.db"
        )
        starts = [t.datetime_start for t in found.trials if t.datetime_start is not None]
    # The first trial pays for imports, as the first plain call does.
    return [(b - a).total_seconds() for a, b in pairwise(starts[1:])]


def plain_seconds(runs: int) -> list[float]:
    """Return the time of the same training by the library alone: build, fit, nothing else."""
    settings = checked(composed([*TRAINING, "scaling=sqrt"]))
    seconds = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        run = build(settings)
        run.trainer.fit(run.train_loader, run.val_loader, settings.trainer.max_epochs)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def described(seconds: list[float]) -> str:
    """Return a median with its spread."""
    low, *_, high = statistics.quantiles(seconds, n=10)
    return f"{statistics.median(seconds):.3f} s ({low:.3f} to {high:.3f}, n={len(seconds)})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--trials", type=int, default=12, help="trials in a round")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each of the two")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    swept: list[float] = []
    plain: list[float] = []
    for _ in range(given.rounds):
        swept += sweep_seconds(given.trials)
        plain += plain_seconds(given.trials)
    print(f"a trial of a tracked sweep: {described(swept)}")
    print(f"the same training alone:    {described(plain)}")
    print(
        f"difference of medians:      {statistics.median(swept) - statistics.median(plain):.3f} s"
    )


if __name__ == "__main__":
    main()
