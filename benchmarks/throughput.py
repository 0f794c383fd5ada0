"""Measure how fast cadence trains beside a tight loop, Lightning, Fabric and Accelerate.

    python -m benchmarks.throughput --quick
    python -m benchmarks.throughput --rounds 20 --out throughput.json

All contenders live in one process and take turns. In each round every one trains the same number
of mini-batches once, from the same weights; the order rotates from round to round. A contender's
share is its samples per second over the tight loop's of the same round, so that whatever slows the
machine for a while slows both. The first round warms up and is thrown away.

Building models, loaders and trainers is outside the clock. For Lightning, whose `fit` sets itself
up anew each time, the clock runs from the start of the first epoch to the end of the last.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch.testing import assert_close

from benchmarks.figures import Spread, conditions, line, progress, said, spread
from benchmarks.jobs import JOBS, ClockName, Job, LoaderName, Workload
from benchmarks.lightning_module import silence
from benchmarks.peers import (
    CONTENDERS,
    AutoCadence,
    Cadence,
    Contender,
    Lightning,
    Limit,
    Tight,
    TrackedCadence,
)
from cadence.system.malloc import keep_memory

CHECKED_WINDOWS = 3
CHECKED_BATCH = 4
"""Samples in a mini-batch of the check."""

CALIBRATION_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Cell:
    """One contender's turn in one round."""

    job: str
    step_size: int
    contender: str
    round: int
    samples: int
    seconds: float


def check(workload: Workload) -> None:
    """Train a few full windows with each contender, and compare the weights with the tight loop's.

    The samples are those of ``workload``, in their own order and in float64: what differs then is
    not rounding.

    Raises:
        AssertionError: A contender does not train what the tight loop trains.
    """
    batches = CHECKED_WINDOWS * workload.step_size
    job = workload.job.in_float64(batches * CHECKED_BATCH, CHECKED_BATCH)
    short = replace(workload, job=job, epochs=1, batches=batches, shuffle=False)
    tight = Tight(short)
    tight.train()
    before, after = job.model().state_dict(), tight.model.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in after), "a weight stood still"
    for kind in CONTENDERS:
        with kind(short) as contender:
            contender.reset()
            contender.train()
        assert_close(
            contender.model.state_dict(),
            after,
            rtol=1e-9,
            atol=1e-12,
            msg=lambda text, name=kind.name: f"{name} does not end where tight ends: {text}",
        )


def seconds_per_batch(workload: Workload) -> float:
    """Return how long the tight loop takes for a mini-batch, roughly."""
    batches = workload.step_size
    while True:
        tight = Tight(replace(workload, epochs=1, batches=batches))
        seconds = tight.seconds()
        if seconds > CALIBRATION_SECONDS or tight.workload.whole_epochs:
            return seconds / min(batches, workload.epoch_batches)
        batches *= 4


def sized(workload: Workload, batches: float) -> Workload:
    """Return the workload with about so many mini-batches: epochs, or windows of one, but whole."""
    epoch, step_size = workload.epoch_batches, workload.step_size
    if batches >= epoch:
        return replace(workload, epochs=round(batches / epoch), batches=epoch)
    windows = max(1, round(batches / step_size))
    return replace(workload, epochs=1, batches=min(epoch, windows * step_size))


def measured(
    kinds: Sequence[type[Contender]], workload: Workload, rounds: int, name: str
) -> Iterator[Cell]:
    """Yield every contender's turn of every round, the warming round left out."""
    with ExitStack() as stack:
        contenders = [stack.enter_context(kind(workload)) for kind in kinds]
        for contender in (one for one in contenders if one.setting):
            print(f"{name} step_size={workload.step_size}: {contender.name}: {contender.setting}",
                  file=sys.stderr)  # fmt: skip
        for number in range(-1, rounds):
            first = number % len(contenders)
            for contender in contenders[first:] + contenders[:first]:
                contender.reset()
                gc.collect()
                seconds = contender.seconds()
                if number >= 0:
                    yield Cell(
                        name,
                        workload.step_size,
                        contender.name,
                        number,
                        workload.samples,
                        seconds,
                    )


def speeds(cells: Sequence[Cell], contender: str) -> list[float]:
    """Return a contender's samples per second, round by round."""
    return [cell.samples / cell.seconds for cell in cells if cell.contender == contender]


def share(cells: Sequence[Cell], contender: str, of: str) -> Spread:
    """Return a contender's speed as a share of another's in the same round."""
    pairs = zip(speeds(cells, contender), speeds(cells, of), strict=True)
    return spread([mine / other for mine, other in pairs])


@dataclass(frozen=True, slots=True)
class Turns:
    """All turns of one job and step_size."""

    contest: list[Cell]
    """Of every contender."""
    tracking: list[Cell]
    """Of cadence with tracking on and off, each long enough for MLflow's writers to come by."""


def turns(workload: Workload, name: str, options: argparse.Namespace) -> Turns:
    """Check a job, then measure it."""
    check(workload)
    each = seconds_per_batch(workload)
    contest = measured(CONTENDERS, sized(workload, options.seconds / each), options.rounds, name)
    pair = (Cadence, TrackedCadence)
    long = sized(workload, options.tracking_seconds / each)
    tracking = measured(pair, long, options.tracking_rounds, name)
    return Turns(list(contest), list(tracking) if options.tracking_rounds else [])


def row(step_size: int, found: Turns) -> list[str]:
    """Return a job's table row of one step_size."""
    tight = statistics.median(speeds(found.contest, Tight.name))
    shares = [str(share(found.contest, kind.name, Tight.name)) for kind in CONTENDERS[1:]]
    pair = TrackedCadence.name, Cadence.name
    on_off = str(share(found.tracking, *pair)) if found.tracking else "-"
    of_limit = str(share(found.contest, AutoCadence.name, Limit.name))
    of_lightning = str(share(found.contest, AutoCadence.name, Lightning.name))
    return [str(step_size), f"{tight:,.0f}", *shares, of_limit, of_lightning, on_off]


def heading(job: Job) -> list[str]:
    """Return the lines above a job's rows."""
    parameters = sum(parameter.numel() for parameter in job.model().parameters())
    title = f"**{job.name}**, {parameters:,} parameters, {job.batch_size} samples a mini-batch"
    peers = [kind.name for kind in CONTENDERS[1:]]
    ratios = ["auto / limit", "auto / Lightning", "tracking on / off"]
    head = ["step_size", "tight, samples/s", *peers, *ratios]
    return [title, "", line(head), line(["---:"] * len(head))]


def setting(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the numbers depend on."""
    return conditions(
        ("torch", "lightning", "accelerate", "mlflow"),
        threads=torch.get_num_threads(),
        rounds=f"{options.rounds} of {options.seconds:g} s",
        **{
            "tracking on / off": f"{options.tracking_rounds} of {options.tracking_seconds:g} s",
            "freed memory": "given back" if options.give_memory_back else "kept",
            "clock": options.clock,
            "peers' loader": options.loader,
        },
    )


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    add("--step-sizes", nargs="+", type=int, default=[1, 2, 8, 16])
    add("--rounds", type=int, default=20, help="turns of each contender that count")
    add("--seconds", type=float, default=0.5, help="the tight loop's share of a round")
    add("--tracking-seconds", type=float, default=11.0, help="a turn of tracking on / off: long "
        "enough for MLflow's writers to come by")  # fmt: skip
    add("--tracking-rounds", type=int, default=5, help="0 = leave tracking on / off out")
    add("--loader", choices=get_args(LoaderName), default="torch", help="what the peers load with")
    add("--clock", choices=get_args(ClockName), default="wall", help="thread = the training "
        "thread's CPU time, for a machine that is shared; only with --threads 1")  # fmt: skip
    add("--threads", type=int, default=None, help="of one operation; default: torch's own choice")
    add("--give-memory-back", action="store_true", help="leave glibc's allocator as it is, "
        "instead of keeping freed memory for all alike")  # fmt: skip
    add("--quick", action="store_true", help="3 rounds of 0.1 s, tracking in turns of 1 s")
    add("--out", type=Path, default=None, help="write every turn as JSON here")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = 3, 0.1
        options.tracking_rounds, options.tracking_seconds = 2, 1.0
    if min([options.rounds, *options.step_sizes]) < 1:
        parser.error("--rounds and --step-sizes must be at least 1")
    if options.clock == "thread" and options.threads != 1:
        parser.error("--clock thread counts one thread only: add --threads 1")
    if options.out is not None and not options.out.parent.is_dir():
        parser.error(f"--out {options.out}: there is no folder {options.out.parent}")
    return options


def main() -> None:
    """Run the command line."""
    options = parsed()
    silence()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    keep_memory(not options.give_memory_back)
    facts = setting(options)
    found: list[Turns] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.jobs:
            job = JOBS[name]()
            print(*heading(job), sep="\n", flush=True)
            for step_size in options.step_sizes:
                progress(f"{name} step_size={step_size}")
                work = Workload(
                    job=job,
                    step_size=step_size,
                    batches=step_size,
                    loader=options.loader,
                    clock=options.clock,
                    scratch=Path(folder),
                )
                found.append(turns(work, name, options))
                progress("")
                print(line(row(step_size, found[-1])), flush=True)
            print()
    facts["load after"] = round(os.getloadavg()[0], 1)
    print(said(facts))
    if options.out is not None:
        raw = {"conditions": facts, "turns": [asdict(each) for each in found]}
        options.out.write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main()
