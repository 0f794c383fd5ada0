"""Measure how the cost of training grows with what is asked of it.

    python -m benchmarks.scaling --quick
    python -m benchmarks.scaling --out docs/scaling.png

Seconds against the samples trained on, the model's parameters, step_size at equal samples, and the
numbers that are logged. The sizes of one question take turns, in an order that rotates from round
to round. Through each round's seconds goes a straight line on logarithmic axes; its slope is the
exponent: 1 = twice as much takes twice as long, 0 = it costs nothing.
"""

import argparse
import math
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TypeAlias

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.figures import Spread, conditions, line, progress, said, spread
from benchmarks.jobs import digits_mlp
from benchmarks.memory import minibatches
from cadence import Trainer
from cadence.engine.update import Outcome
from cadence.models.mlp import mlp
from cadence.plan.clock import Clock
from cadence.sweeps.figures import FRONT, INK, KNEE, PALE
from cadence.system.malloc import keep_memory
from cadence.tracking.metrics_file import LoggedMetric, MetricsFile
from cadence.tracking.mlflow.tracker import Tracker

Measurement: TypeAlias = Callable[[int], tuple[float, float]]
"""size -> what it amounts to on the axis, and the seconds it took."""

NAMES = ("train/loss", "train/grad_norm", "train/lr", "train/step_size", "train/updates")
"""What a tracker keeps of a window."""

POINTS_A_WINDOW = len(NAMES)

FIXED_SAMPLES = 4096
"""Trained on where step_size grows; half of it where the parameters do."""

WIDTH, HEIGHT = 1200, 900
"""Pixels of the picture."""


@dataclass(frozen=True, slots=True)
class Question:
    """What grows, and how its cost is measured."""

    name: str
    what: str
    """What grows, with its unit."""
    sizes: Sequence[int]
    measure: Measurement
    is_per_one: bool = True
    """Whether the time of each one means something."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question's rounds came to."""

    question: Question
    amounts: list[float]
    """Of each size."""
    rounds: list[list[float]]
    """The seconds of each size, round by round."""

    def seconds(self, place: int) -> Spread:
        """Return the seconds of one size."""
        return spread([each[place] for each in self.rounds])

    def exponents(self) -> list[float]:
        """Return each round's slope on logarithmic axes."""
        return [slope(self.amounts, each) for each in self.rounds]

    def last_exponent(self) -> float:
        """Return the slope between the medians of the two largest sizes."""
        two = [self.seconds(-2).median, self.seconds(-1).median]
        return slope(self.amounts[-2:], two)


def slope(amounts: Sequence[float], seconds: Sequence[float]) -> float:
    """Return the slope of a straight line through points on logarithmic axes."""
    return float(np.polyfit(np.log(amounts), np.log(seconds), 1)[0])


def by_samples(size: int) -> tuple[float, float]:
    """Train the digits MLP on so many samples."""
    return size, seconds_to_train(size, step_size=2)


def by_width(size: int) -> tuple[float, float]:
    """Train an MLP of two hidden layers of that width; it amounts to its parameters."""
    model = mlp((1, 8, 8), 10, hidden=(size, size))
    amount = sum(parameter.numel() for parameter in model.parameters())
    return amount, seconds_to_train(FIXED_SAMPLES // 2, step_size=2, model=model)


def by_step_size(size: int) -> tuple[float, float]:
    """Train the digits MLP with that step_size, on the same samples for each."""
    return size, seconds_to_train(FIXED_SAMPLES, step_size=size)


def seconds_to_train(samples: int, step_size: int, model: torch.nn.Module | None = None) -> float:
    """Train on the digits, and return the time of `Trainer.fit`, a first short one left out."""
    job = digits_mlp()
    model = job.model() if model is None else model
    trainer = Trainer(model, job.optimizer(model), job.objective, step_size, "cpu")
    batches = minibatches(job)
    trainer.fit(batches, max_samples=step_size * job.batch_size)
    start = perf_counter()
    trainer.fit(batches, max_samples=samples)
    return perf_counter() - start


def journalled(size: int) -> tuple[float, float]:
    """Write so many points to a run's journal, a window's at a time, until all are in the file."""
    with tempfile.TemporaryDirectory() as folder:
        journal = MetricsFile(Path(folder))
        start = perf_counter()
        for number in range(size // POINTS_A_WINDOW):
            journal.append(
                [LoggedMetric(name, 0.123456789 * number, 32 * number, number) for name in NAMES]
            )
        journal.flush()
        seconds = perf_counter() - start
        journal.close()
    return size, seconds


def tracked(size: int, until_delivered: bool) -> tuple[float, float]:
    """Show a tracker so many points, and let it write them to MLflow on SQLite.

    Args:
        size: Points, `POINTS_A_WINDOW` a window.
        until_delivered: Whether the time is that until MLflow has all of them and the run has
            ended, or that of the training thread's calls alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        tracker = _tracker(Path(folder))
        with tracker:
            start = perf_counter()
            clock = Clock()
            for number in range(1, size // POINTS_A_WINDOW + 1):
                clock = clock.after_window(1, 32, 32, True)
                tracker.window(clock, Outcome(True, 1 / number, 1.0, 0.001))
            called = perf_counter() - start
        ended = perf_counter() - start
    return size, ended if until_delivered else called


def _tracker(folder: Path) -> Tracker:
    return Tracker(
        f"sqlite:///{folder}/mlflow.db",
        "benchmarks",
        "scaling",
        folder=folder / "run",
        params={},
        tags={},
        texts={},
        every=1,
    )


def questions(quick: bool) -> list[Question]:
    """Return what is asked, smaller if it must be quick."""
    calls, delivered = (
        partial(tracked, until_delivered=False),
        partial(tracked, until_delivered=True),
    )
    samples = _doublings(2_048, 4 if quick else 8)
    widths = _doublings(32, 4 if quick else 7)
    points = [10**power for power in range(2, 5 if quick else 7)]
    few = [100, 1_000] if quick else [100, 1_000, 10_000]
    return [
        Question("samples", "samples, digits MLP", samples, by_samples),
        Question("parameters", "parameters, MLP of two hidden layers", widths, by_width),
        Question(
            "step_size",
            "step_size, digits MLP, equal samples",
            _doublings(1, 6),
            by_step_size,
            is_per_one=False,
        ),
        Question("journal", "numbers in the run's journal", points, journalled),
        Question("tracker's calls", "numbers shown to the tracker", few, calls),
        Question("until MLflow has them", "numbers delivered to SQLite", few, delivered),
    ]


def _doublings(first: int, count: int) -> list[int]:
    return [first << times for times in range(count)]


def answered(question: Question, rounds: int) -> Answer:
    """Measure every size of a question, round by round, a warming one left out."""
    places = list(range(len(question.sizes)))
    amounts = [0.0] * len(places)
    found: list[list[float]] = []
    for number in range(-1, rounds):
        first = number % len(places)
        seconds = [math.nan] * len(places)
        for place in places[first:] + places[:first]:
            size = question.sizes[0 if number < 0 else place]
            progress(f"{question.name}: round {number + 1} of {rounds}, {size}")
            amounts[place], seconds[place] = question.measure(size)
            if number < 0:
                break
        if number >= 0:
            found.append(seconds)
    progress("")
    return Answer(question, amounts, found)


def table(answer: Answer) -> Iterator[str]:
    """Yield an answer's table."""
    yield f"**{answer.question.name}**: seconds against {answer.question.what}"
    yield ""
    per_one = answer.question.is_per_one
    yield line([answer.question.name, "seconds", *(["microseconds each"] * per_one)])
    yield line(["---:"] * (2 + per_one))
    for place, amount in enumerate(answer.amounts):
        taken = answer.seconds(place)
        seconds = f"{taken.median:.4g} ({taken.low:.4g} to {taken.high:.4g})"
        each = f"{1e6 * taken.median / amount:,.4g}"
        yield line([f"{amount:,.0f}", seconds, *([each] * per_one)])
    yield ""
    yield f"exponent {exponent(answer)}; between the two largest {answer.last_exponent():.2f}"


def exponent(answer: Answer) -> str:
    """Return an answer's exponent with its spread."""
    found = spread(answer.exponents())
    return f"{found.median:.2f} ({found.low:.2f} to {found.high:.2f})"


def draw(answers: Sequence[Answer], caption: str, out: Path) -> None:
    """Draw the answers in four panels, all of those on logging in the last."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    title = "Seconds as the work grows, with the exponent of a straight line"
    figure.text(0.02, 0.955, title, size=16, weight="bold", color=INK)
    lines = "\n".join(textwrap.wrap(caption, 150, max_lines=2))
    figure.text(0.02, 0.94, lines, size=10, color=PALE, va="top", parse_math=False)
    panels = [figure.add_axes(place) for place in _PLACES]
    for axes, answer in zip(panels, answers[:3], strict=False):
        _plot(axes, answer, FRONT, f"exponent {exponent(answer)}")
        _scale(axes, answer.question.what)
    for answer, colour in zip(answers[3:], (FRONT, KNEE, INK), strict=True):
        _plot(panels[3], answer, colour, f"{answer.question.name}: {exponent(answer)}")
    _scale(panels[3], "numbers logged")
    figure.savefig(out, format="png", dpi=100)


_PLACES = (
    (0.075, 0.53, 0.41, 0.34),
    (0.57, 0.53, 0.41, 0.34),
    (0.075, 0.08, 0.41, 0.34),
    (0.57, 0.08, 0.41, 0.34),
)


def _plot(axes: Axes, answer: Answer, colour: str, label: str) -> None:
    spreads = [answer.seconds(place) for place in range(len(answer.amounts))]
    medians = [each.median for each in spreads]
    below = [each.median - each.low for each in spreads]
    above = [each.high - each.median for each in spreads]
    axes.errorbar(answer.amounts, medians, yerr=[below, above], color=colour, fmt="o", capsize=3,
                  label=label)  # fmt: skip
    fit = np.polyfit(np.log(answer.amounts), np.log(medians), 1)
    line_through = np.exp(np.polyval(fit, np.log(answer.amounts)))
    axes.plot(answer.amounts, line_through, color=colour, linewidth=1, alpha=0.6)


def _scale(axes: Axes, what: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 10 * low:  # a flat one is to look flat
        low, high = math.sqrt(low * high) / 10, math.sqrt(low * high) * 10
    axes.set_ylim(low, high * (high / low) ** 0.25)  # the legend's room
    for axis in (axes.xaxis, axes.yaxis):
        first, last = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if last < 300 * first else (1,)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.9g}"))
    axes.set_xlabel(what, size=11)
    axes.set_ylabel("seconds", size=11)
    axes.legend(loc="upper left", frameon=False, fontsize=10)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=int, default=5, help="times that each size is measured")
    add("--threads", type=int, default=1, help="of one operation")
    add("--quick", action="store_true", help="2 rounds, smaller sizes, at most 10,000 numbers")
    add("--out", type=Path, default=None, help="draw the picture here")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds = 2
    if min(options.rounds, options.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    if options.out is not None and not options.out.parent.is_dir():
        parser.error(f"--out {options.out}: there is no folder {options.out.parent}")
    return options


def main() -> None:
    """Run the command line."""
    options = parsed()
    torch.set_num_threads(options.threads)
    keep_memory(True)
    answers = []
    for question in questions(options.quick):
        answers.append(answered(question, options.rounds))
        print(*table(answers[-1]), "", sep="\n", flush=True)
    facts = conditions(
        batch="32 samples a mini-batch",
        threads=options.threads,
        rounds=options.rounds,
    )
    print(said(facts))
    if options.out is not None:
        draw(answers, said(facts), options.out)


if __name__ == "__main__":
    main()
