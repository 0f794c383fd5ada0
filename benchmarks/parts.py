"""Measure where the time of a window goes, by clocks around its parts.

    python -m benchmarks.parts --quick
    python -m benchmarks.parts --step-sizes 1 16

The digits MLP is trained on one thread, in sequence, without tracking. A clock takes half a
microsecond itself, which counts as Python. Of the rounds the one whose windows were quickest is
told: what disturbs a shared machine only ever adds.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.figures import conditions, line, progress, said
from benchmarks.jobs import digits_mlp
from cadence import Trainer
from cadence.data import TensorData, loader
from cadence.data.loading import InMemoryLoader
from cadence.engine import accumulation, update
from cadence.engine import private_torch as direct
from cadence.objectives import Classification
from cadence.system.malloc import keep_memory

PARTS: dict[str, tuple[Any, str]] = {
    "forward and loss": (Classification, "total_loss"),
    "backward": (direct, "backward"),
    "optimizer step": (direct, "step"),
    "gradient norm": (update, "total_norm"),
    "counting items": (accumulation, "items_in"),
    "gather": (InMemoryLoader, "_gathered"),
}
"""Each part, and the function that does it alone."""

Seconds = dict[str, float]


@contextmanager
def clocks() -> Iterator[Seconds]:
    """Add up the seconds of each part."""
    seconds: Seconds = defaultdict(float)

    def clocked(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            start = perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                seconds[part] += perf_counter() - start

        return timed

    with ExitStack() as stack:
        for part, (owner, name) in PARTS.items():
            stack.enter_context(patch.object(owner, name, clocked(part, getattr(owner, name))))
        yield seconds


def parts(step_size: int, epochs: int, rounds: int) -> tuple[Seconds, int]:
    """Return the microseconds of each part of a window in the quickest round, and its windows."""
    job = digits_mlp()
    model = job.model()
    trainer = Trainer(model, job.optimizer(model), job.objective, step_size, "cpu")
    minibatches = loader(TensorData(job.inputs, job.targets), job.batch_size, shuffle_seed=0)
    trainer.fit(minibatches, epochs=epochs)
    found: list[Seconds] = []
    windows = 0
    for number in range(rounds):
        progress(f"step_size {step_size}: round {number + 1} of {rounds}")
        before = trainer.clock.updates
        with clocks() as seconds:
            start = perf_counter()
            trainer.fit(minibatches, epochs=epochs)
            whole = perf_counter() - start
        windows = trainer.clock.updates - before
        told = {part: 1e6 * taken / windows for part, taken in seconds.items()}
        told["cadence's own Python"] = 1e6 * whole / windows - sum(told.values())
        found.append(told)
    progress("")
    return min(found, key=lambda each: sum(each.values())), windows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.parts",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--step-sizes", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--epochs", type=int, default=40, help="of a round")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="2 rounds of 3 epochs")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.epochs = 2, 3
    torch.set_num_threads(1)
    keep_memory(True)
    columns = [parts(step_size, given.epochs, given.rounds) for step_size in given.step_sizes]
    heads = [f"step_size {step_size}, microseconds | share" for step_size in given.step_sizes]
    print(line(["part", *heads]))
    print(line(["---", *["---: | ---:"] * len(heads)]))
    totals = [sum(told.values()) for told, _ in columns]
    for part in (*PARTS, "cadence's own Python"):
        taken = [told[part] for told, _ in columns]
        shares = [f"{t:.0f} | {t / all_:.0%}" for t, all_ in zip(taken, totals, strict=True)]
        print(line([part, *shares]))
    print(line(["all", *[f"{total:,.0f} |" for total in totals]]))
    windows = ", ".join(f"{windows:,}" for _, windows in columns)
    print("", said(conditions(threads=1, rounds=given.rounds, windows=windows)), sep="\n")


if __name__ == "__main__":
    main()
