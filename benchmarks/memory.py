"""Measure how much memory cadence takes as step_size grows, beside one big batch.

    python -m benchmarks.memory --quick
    python -m benchmarks.memory --out docs/memory.png

First the GPT trains a few windows at each step_size, the micro-batch fixed at one mini-batch, each
time in a process of its own; what counts is the peak of the resident memory above the start of
training. Beside it the same windows in one pass each: the plain big batch. All of them take turns,
and the order rotates from round to round.

Then one window of many mini-batches trains under a limit in which one or two of them fit at once:
by cadence, to the same weights as without the limit, and in one pass, which dies.
"""

import argparse
import logging
import multiprocessing
import resource
import statistics
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.figures import conditions, line, progress, said, spread
from benchmarks.jobs import Job, pydocs_gpt
from cadence import Trainer, windows
from cadence.data import TensorData, loader
from cadence.engine.out_of_memory import is_out_of_memory
from cadence.metrics.memory import MIB, PeakMemory
from cadence.sweeps.figures import FRONT, INK, KNEE, PALE
from cadence.system.malloc import keep_memory

P = ParamSpec("P")
T = TypeVar("T")

TARGET = 0.05
"""The share by which the peak may differ from that of step_size 1."""

TIMES_LARGER = 32
"""The effective batch trained under the limit, in mini-batches."""

ROOM = 1.25
"""What the limit leaves free after the warm-up, in peaks of one mini-batch."""

LIMITED_WINDOWS = 3

WIDTH, HEIGHT = 1200, 680
"""Pixels of the picture."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A way to train a window."""

    name: str
    is_whole: bool
    """Whether the whole window goes through in one pass."""
    keeps_memory: bool
    """Whether freed memory is kept for the next pass, as `src.train` has it."""


KINDS = (
    Kind("cadence, memory kept", False, True),
    Kind("cadence, given back", False, False),
    Kind("big batch, memory kept", True, True),
    Kind("big batch, given back", True, False),
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of training under a limit."""

    error: str | None
    """What ended it; None = nothing."""
    microbatch_size: int | None
    """Samples per forward and backward at the end; None = one mini-batch."""
    weights: Tensor
    """All weights after it, one after another."""
    room: float
    """MiB that the limit left free; without a limit, what it would have left."""


def alone(function: Callable[P, T], /, *args: P.args, **named: P.kwargs) -> T:
    """Call a function of this module in a process of its own, and return what it returns."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(function, *args, **named).result()


def peak(kind: Kind, step_size: int, count: int, threads: int) -> float:
    """Return the most MiB that some windows take above the start of training."""
    torch.set_num_threads(threads)
    keep_memory(kind.keeps_memory)
    job = pydocs_gpt()
    model = job.model()
    optimizer = job.optimizer(model)
    if kind.is_whole:
        memory = PeakMemory(torch.device("cpu"))
        memory.begin()
        big_batches(job, model, optimizer, step_size, count)
        return memory.mib()
    trainer = Trainer(model, optimizer, job.objective, step_size, "cpu")
    samples = count * step_size * job.batch_size
    return trainer.fit(minibatches(job), max_samples=samples).peak_memory_mib


def minibatches(job: Job) -> Any:
    """Return cadence's loader over a job's mini-batches."""
    return loader(TensorData(job.inputs, job.targets), job.batch_size, shuffle_seed=0)


def big_batches(
    job: Job, model: nn.Module, optimizer: Optimizer, step_size: int, count: int
) -> None:
    """Train windows by hand, all mini-batches of each in one pass."""
    for window in islice(windows(minibatches(job), step_size), count):
        inputs, targets = (torch.cat(parts) for parts in zip(*window, strict=True))
        job.mean_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()


def peaks(options: argparse.Namespace) -> dict[tuple[str, int], list[float]]:
    """Return the peaks of all rounds, by the kind's name and step_size."""
    places = [(kind, step_size) for kind in KINDS for step_size in options.step_sizes]
    found: dict[tuple[str, int], list[float]] = {(kind.name, at): [] for kind, at in places}
    for number in range(options.rounds):
        first = number * len(places) // options.rounds
        for kind, step_size in places[first:] + places[:first]:
            progress(f"round {number + 1} of {options.rounds}: {kind.name}, step_size {step_size}")
            taken = alone(peak, kind, step_size, options.windows, options.threads)
            found[kind.name, step_size].append(taken)
    progress("")
    return found


def under_limit(how: str, limited: bool, threads: int) -> Outcome:
    """Train a few windows of `TIMES_LARGER` mini-batches, under a limit or without one.

    Args:
        how: ``null`` = cadence by one mini-batch at a time; ``whole`` = cadence, asked for the
            whole window at once; or a number: by hand, windows of so many mini-batches in one pass.
        limited: Whether the process may take no more than it has after a warm-up, and `ROOM`.
        threads: Threads of an operation.
    """
    torch.set_num_threads(threads)
    logging.getLogger("cadence").setLevel(logging.ERROR)
    keep_memory(False)  # so the limit counts what passes take, not what an earlier one left
    job = pydocs_gpt()
    model = job.model()
    optimizer = job.optimizer(model)
    samples = TIMES_LARGER * job.batch_size
    size = samples if how == "whole" else None
    trainer = Trainer(model, optimizer, job.objective, TIMES_LARGER, "cpu", microbatch_size=size)
    room = ROOM * warm_up(job)
    error = None
    before = resource.getrlimit(resource.RLIMIT_AS)
    if limited:
        most = address_space() + int(room * MIB)
        resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        if how.isdecimal():
            big_batches(job, model, optimizer, int(how), LIMITED_WINDOWS)
        else:
            trainer.fit(minibatches(job), max_samples=LIMITED_WINDOWS * samples)
    except (RuntimeError, MemoryError) as refused:
        if not is_out_of_memory(refused):
            raise
        error = str(refused).splitlines()[0] or type(refused).__name__
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    weights = nn.utils.parameters_to_vector(model.parameters()).detach()
    return Outcome(error, trainer.result.microbatch_size, weights, room)


def warm_up(job: Job) -> float:
    """Train another model by single mini-batches, and return the MiB that it took at most."""
    model = job.model()
    trainer = Trainer(model, job.optimizer(model), job.objective, 2, "cpu")
    return trainer.fit(minibatches(job), max_samples=4 * job.batch_size).peak_memory_mib


def address_space() -> int:
    """Return the bytes that this process has mapped: what the limit counts (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def limited_lines(threads: int) -> Iterator[str]:
    """Yield what becomes of a batch that does not fit at once, as lines of a table."""
    free = alone(under_limit, "null", False, threads)
    batch = pydocs_gpt().batch_size
    yield line(["under the limit", "samples at once", "outcome"])
    yield line(["---", "---:", "---"])
    for count in (1, 2, TIMES_LARGER):
        outcome = alone(under_limit, str(count), True, threads)
        yield line(["one pass a window", str(count * batch), outcome.error or "trains"])
    for how, name in (("null", "cadence"), ("whole", "cadence, asked for all at once")):
        outcome = alone(under_limit, how, True, threads)
        size = outcome.microbatch_size or batch
        error = float((outcome.weights - free.weights).norm() / free.weights.norm())
        trained = (
            f"trains {TIMES_LARGER * batch} samples an update ({TIMES_LARGER * batch // size} x "
            f"{size}); relative error of the weights, with and without the limit: {error:.1e}"
        )
        yield line([name, str(size), outcome.error or trained])
    yield ""
    yield f"The limit leaves {free.room:.0f} MiB, {ROOM:g} times the peak of one mini-batch."


def table(found: dict[tuple[str, int], list[float]], step_sizes: Sequence[int]) -> Iterator[str]:
    """Yield the peaks' table."""
    yield "**Peak memory above the start of training, MiB**"
    yield ""
    yield line(["step_size", *(f"{kind.name} | of step_size 1" for kind in KINDS)])
    yield line(["---:"] * (1 + 2 * len(KINDS)))
    for step_size in step_sizes:
        fields = [str(step_size)]
        for kind in KINDS:
            one = spread(found[kind.name, step_size])
            base = statistics.median(found[kind.name, step_sizes[0]])
            fields += [f"{one.median:.1f} ({one.low:.1f} to {one.high:.1f})",
                       f"{one.median / base:.3f}"]  # fmt: skip
        yield line(fields)


def verdicts(found: dict[tuple[str, int], list[float]], sizes: Sequence[int]) -> Iterator[str]:
    """Yield how far the peak is from flat, and what of that is the gradient's own size."""
    model = pydocs_gpt().model()
    gradient = sum(each.numel() * each.element_size() for each in model.parameters()) / MIB
    for kind in (kind for kind in KINDS if not kind.is_whole):
        medians = [statistics.median(found[kind.name, at]) for at in sizes]
        most = max(abs(each / medians[0] - 1) for each in medians)
        more = max(abs(each / medians[1] - 1) for each in medians[1:])
        yield (
            f"{kind.name}: at most {100 * most:.1f} % from step_size {sizes[0]} "
            f"({'within' if most <= TARGET else 'NOT within'} {100 * TARGET:.0f} %), "
            f"at most {100 * more:.1f} % from step_size {sizes[1]}"
        )
    yield (
        "from the second mini-batch of a window on, its gradient waits while others run: "
        f"{gradient:.1f} MiB"
    )


def draw(
    found: dict[tuple[str, int], list[float]], sizes: Sequence[int], caption: str, out: Path
) -> None:
    """Draw the peaks against step_size, `WIDTH` x `HEIGHT` pixels."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.075, 0.11, 0.9, 0.68))
    title = "Peak memory of training against step_size (mini-batches per update)"
    figure.text(0.02, 0.945, title, size=16, weight="bold", color=INK)
    lines = "\n".join(textwrap.wrap(caption, 150, max_lines=3))
    figure.text(0.02, 0.925, lines, size=10, color=PALE, va="top", parse_math=False)
    for kind in KINDS:
        spreads = [spread(found[kind.name, at]) for at in sizes]
        colour = KNEE if kind.is_whole else FRONT
        axes.errorbar(
            sizes,
            [each.median for each in spreads],
            yerr=[
                [each.median - each.low for each in spreads],
                [each.high - each.median for each in spreads],
            ],
            color=colour,
            marker="o",
            markerfacecolor=colour if kind.keeps_memory else "white",
            linestyle="-" if kind.keeps_memory else "--",
            linewidth=2,
            capsize=3,
            label=kind.name,
        )
    _scale(axes, sizes)
    axes.legend(loc="lower right", bbox_to_anchor=(1.005, 1), ncols=4, frameon=False, fontsize=11)
    figure.savefig(out, format="png", dpi=100)


def _scale(axes: Axes, sizes: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylim(bottom=20)
    axes.set_xlabel("step_size (mini-batches per update, log scale)", size=12)
    axes.set_ylabel("peak above the start of training (MiB, log scale)", size=12)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--step-sizes", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32, 64],
        help="the first is what the others are compared with")  # fmt: skip
    add("--rounds", type=int, default=3, help="times that each is measured")
    add("--windows", type=int, default=3, help="trained each time; the optimizer's state is there "
        "from the second on")  # fmt: skip
    add("--threads", type=int, default=1, help="of one operation")
    add("--quick", action="store_true", help="1 round of 2 windows at step_size 1 and 4")
    add("--out", type=Path, default=None, help="draw the picture here")
    options = parser.parse_args(arguments)
    if options.quick:
        options.step_sizes, options.rounds, options.windows = [1, 4], 1, 2
    if min([options.rounds, options.windows, options.threads, *options.step_sizes]) < 1:
        parser.error("--rounds, --windows, --threads and --step-sizes must be at least 1")
    if len(options.step_sizes) < 2:
        parser.error("--step-sizes: name at least two")
    if options.out is not None and not options.out.parent.is_dir():
        parser.error(f"--out {options.out}: there is no folder {options.out.parent}")
    return options


def main() -> None:
    """Run the command line."""
    options = parsed()
    found = peaks(options)
    print(*table(found, options.step_sizes), "", sep="\n", flush=True)
    print(*verdicts(found, options.step_sizes), "", sep="\n", flush=True)
    for each in limited_lines(options.threads):
        print(each, flush=True)
    job = pydocs_gpt()
    facts = conditions(
        job=f"{job.name}, {job.batch_size} samples a mini-batch, micro-batch one mini-batch",
        threads=options.threads,
        rounds=f"{options.rounds} of {options.windows} windows, each in a process of its own",
    )
    print("", said(facts), sep="\n")
    if options.out is not None:
        draw(found, options.step_sizes, said(facts), options.out)


if __name__ == "__main__":
    main()
