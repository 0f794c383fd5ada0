"""Measure how well a probe of a few step_sizes predicts the throughput of all.

    python -m benchmarks.prediction --quick
    python -m benchmarks.prediction --rounds 10

As `python -m src.advise` does, a probe trains turns of step_size 1, 4 and 16 (mini-batches per
update), and a model of their time predicts the throughput of others. In each round every one of
1, 2, 4, 8, 16 and 32 takes a turn of its own beside them, in an order that rotates, and none of
these goes into the model. An error is the prediction over the median of these turns, less 1;
"measured again" is the probe's own turns of that step_size over them, less 1: noise alone. With
``auto`` the micro-batch and the threads of each step_size are found first, outside the clock.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.figures import conditions, line, progress, said
from benchmarks.jobs import JOBS, Job
from benchmarks.memory import minibatches
from cadence import Trainer
from cadence.advise.probe import STEP_SIZES, Turns
from cadence.engine.autotune import Auto
from cadence.metrics.window_time_model import (
    Estimate,
    Forecast,
    Model,
    Round,
    Turn,
    forecast,
    median_turns,
)
from cadence.system.malloc import keep_memory

MEASURED = (1, 2, 4, 8, 16, 32)
"""The step_sizes whose throughput is measured."""

MODES = ("sequential", "auto")


@dataclass(frozen=True, slots=True)
class Row:
    """A step_size, predicted and measured; samples per second."""

    step_size: int
    predicted: Estimate
    measured: float
    again: float | None
    """Measured in the probe's turns, which differ from the others by noise alone; None = it was not
    probed."""

    @property
    def error(self) -> float:
        """The prediction over the measurement, less 1."""
        return self.predicted.value / self.measured - 1


def measured(job: Job, mode: str, rounds: int) -> tuple[Forecast, list[Row]]:
    """Probe a job and measure it, round by round."""
    model = job.model()
    auto: Auto | None = "auto" if mode == "auto" else None
    trainer = Trainer(
        model,
        job.optimizer(model),
        job.objective,
        device="cpu",
        microbatch_size=auto,
        threads=auto,
    )
    loader = minibatches(job)
    turns = Turns(trainer, loader, len(loader))
    progress(f"{job.name}, {mode}: finding settings")
    turns.settle(MEASURED)
    probed: list[Round] = []
    own: list[Round] = []
    plan = [*((True, size) for size in STEP_SIZES), *((False, size) for size in MEASURED)]
    for number in range(rounds):
        progress(f"{job.name}, {mode}: round {number + 1} of {rounds}")
        first = number % len(plan)
        found: dict[bool, dict[int, Turn]] = {True: {}, False: {}}
        for is_probe, size in plan[first:] + plan[:first]:
            found[is_probe][size] = turns.turn(size)
        probed.append(found[True])
        own.append(found[False])
    progress("")
    predicted = forecast(probed, turns.samples)
    typical = median_turns(probed)
    rows = []
    for size in MEASURED:
        seconds = statistics.median(each[size].seconds for each in own)
        estimate = predicted.estimate(partial(Model.throughput, step_size=size))
        again = size * turns.samples / typical[size].seconds if size in typical else None
        rows.append(Row(size, estimate, size * turns.samples / seconds, again))
    return predicted, rows


def table(name: str, mode: str, predicted: Forecast, rows: Sequence[Row]) -> Iterator[str]:
    """Yield the table of one job and mode."""
    yield f"**{name}, {mode}**: passes {predicted.model.shape} in step_size"
    yield ""
    yield line(["step_size", "measured, samples/s", "predicted", "error, %", "measured again, %"])
    yield line(["---:"] * 5)
    for row in rows:
        value, low, high = row.predicted
        said = f"{value:,.0f} ({low:,.0f} to {high:,.0f})"
        name = f"{row.step_size}{'' if row.step_size in STEP_SIZES else ' (not probed)'}"
        again = "-" if row.again is None else f"{100 * (row.again / row.measured - 1):+.1f}"
        yield line([name, f"{row.measured:,.0f}", said, f"{100 * row.error:+.1f}", again])
    yield ""
    yield errors(rows)


def errors(rows: Sequence[Row]) -> str:
    """Return the median and the worst of some errors."""
    sizes = sorted(abs(100 * row.error) for row in rows)
    return f"error: median {statistics.median(sizes):.1f} %, worst {sizes[-1]:.1f} %"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.prediction",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=10, help="turns of each step_size, at least 2")
    add("--jobs", nargs="+", choices=JOBS, default=list(JOBS), help="what is trained")
    add("--modes", nargs="+", choices=MODES, default=list(MODES), help="how a window is run")
    add("--threads", type=int, default=1, help="of one operation, auto's upper limit")
    add("--quick", action="store_true", help="3 rounds of the digits MLP")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.jobs = 3, ["mlp"]
    if options.rounds < 2 or options.threads < 1:
        parser.error("--rounds must be at least 2, --threads at least 1")
    return options


def main() -> None:
    """Run the command line."""
    options = parsed()
    torch.set_num_threads(options.threads)
    keep_memory(True)
    every: list[Row] = []
    for name in options.jobs:
        for mode in options.modes:
            job = JOBS[name]()
            predicted, rows = measured(job, mode, options.rounds)
            every += rows
            print(*table(job.name, mode, predicted, rows), "", sep="\n", flush=True)
    print(f"all: {errors(every)}")
    print(said(conditions(threads=options.threads, rounds=options.rounds)))


if __name__ == "__main__":
    main()
