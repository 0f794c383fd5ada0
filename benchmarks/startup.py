"""What a command makes its user wait: its seconds as a multiple of `import torch`'s.

    python -m benchmarks.startup
    python -m benchmarks.startup --tree before=/path/to/another/checkout --rounds 10

Each command runs in a Python of its own, all of them in turn for some rounds, after a first round
that fills caches, makes the database and is not counted. A ratio is taken within a round. On a busy
machine the ratio of the CPU seconds says more than that of the waiting.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.figures import ROOT, conditions, line, progress, said, spread

TRAINING = ("-m", "src.train", "experiment=digits_mlp", "trainer.max_epochs=1")

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "help": ("-m", "src.train", "--help"),
    "config": ("-m", "src.train", "--cfg", "job"),
    "typo": ("-m", "src.train", "trainer.step_sise=4"),
    "untracked": (*TRAINING, "track=none", "hydra.run.dir={folder}/run"),
    "tracked": (
        *TRAINING,
        *("track.uri=sqlite:///{folder}/mlflow.db", "hydra.run.dir={folder}/run"),
    ),
}
"""Arguments of Python by name; ``{folder}`` is one of the checkout's own."""

TARGETS = {"help": 0.35, "config": 0.35, "typo": 0.35, "untracked": 1.8, "tracked": 2.6}
"""The most that a command is meant to take, as a multiple of `import torch`."""

IMPORT = "import torch"


class Seconds(NamedTuple):
    """What a command took."""

    wall: float
    cpu: float
    """User's and system's, of all its threads."""


def taken(arguments: Sequence[str], tree: Path, folder: Path) -> Seconds:
    """Run Python with some arguments and a checkout on its path, and return what that took.

    Raises:
        RuntimeError: The command failed, other than by a typo.
    """
    environment = {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'src'}"}
    command = [sys.executable, *(part.format(folder=folder) for part in arguments)]
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, os.times()
    if done.returncode != (arguments == COMMANDS["typo"]):
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    user, system = after.children_user, after.children_system
    return Seconds(wall, user - before.children_user + system - before.children_system)


def measured(
    trees: Mapping[str, Path], names: Sequence[str], rounds: int, folder: Path
) -> dict[tuple[str, str], list[Seconds]]:
    """Return what each command took in each round, by checkout and command, forth and back."""
    commands = {IMPORT: ("-c", IMPORT), **{name: COMMANDS[name] for name in names}}
    turns = [(tree, name) for tree in trees for name in commands]
    found: dict[tuple[str, str], list[Seconds]] = {turn: [] for turn in turns}
    for tree in trees:
        (folder / tree).mkdir()
    for number in range(rounds + 1):
        for tree, name in turns if number % 2 else reversed(turns):
            progress(f"round {number} of {rounds}: {tree}, {name}")
            seconds = taken(commands[name], trees[tree], folder / tree)
            if number > 0:
                found[tree, name].append(seconds)
    progress("")
    return found


def table(
    found: Mapping[tuple[str, str], Sequence[Seconds]], trees: Sequence[str], names: Sequence[str]
) -> list[str]:
    """Return the lines of a Markdown table: seconds, and ratios to the same round's import."""
    lines = [
        line(["checkout", "command", "seconds", "times import torch", "in CPU seconds", "target"]),
        line(["---", "---", "---:", "---:", "---:", "---:"]),
    ]
    for tree in trees:
        imports = found[tree, IMPORT]
        for name in (IMPORT, *names):
            pairs = list(zip(found[tree, name], imports, strict=True))
            fields = [
                *(tree, name, str(spread([each.wall for each, _ in pairs]))),
                str(spread([each.wall / other.wall for each, other in pairs])),
                str(spread([each.cpu / other.cpu for each, other in pairs])),
                str(TARGETS.get(name, "")),
            ]
            lines.append(line(fields))
    return lines


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.startup",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS), metavar="COMMAND",
        help=f"some of: {', '.join(COMMANDS)}; the digits MLP is trained")  # fmt: skip
    add("--tree", nargs="+", action="extend", default=[], metavar="NAME=FOLDER",
        help="further checkouts to compare with this one")  # fmt: skip
    add("--rounds", type=int, default=5, help="turns of each command that count")
    add("--quick", action="store_true", help="1 round")
    options = parser.parse_args(arguments)
    options.rounds = 1 if options.quick else options.rounds
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    named = [each.partition("=") for each in options.tree]
    if bad := [name for name, _, path in named if not (Path(path) / "src" / "train.py").is_file()]:
        parser.error(f"--tree {bad[0]}=: give the folder of a checkout of cadence")
    options.tree = {**{name: Path(path).absolute() for name, _, path in named}, "here": ROOT}
    return options


def main() -> None:
    """Measure and print."""
    options = parsed()
    with tempfile.TemporaryDirectory() as folder:
        found = measured(options.tree, options.only, options.rounds, Path(folder))
    print("\n".join(table(found, list(options.tree), options.only)))
    packages = ("torch", "hydra-core", "mlflow")
    print("", said(conditions(packages, rounds=options.rounds)), sep="\n")


if __name__ == "__main__":
    main()
