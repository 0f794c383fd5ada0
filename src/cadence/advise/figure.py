"""An advice's picture: throughput and the time to the same loss, by step_size."""

import textwrap
from collections.abc import Sequence
from io import BytesIO

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from cadence.advise.advice import Advice
from cadence.display.colours import FRONT, INK, KNEE, PALE, REST
from cadence.metrics.window_time_model import Estimate, Round

WIDTH, HEIGHT = 1200, 600
"""Pixels."""

TITLE = "What step_size (mini-batches per update) costs and buys, predicted from a probe"


def advice_png(advice: Advice, turns: Round, held_fixed: str) -> bytes:
    """Draw the picture, `WIDTH` x `HEIGHT` pixels.

    Args:
        advice: What to draw.
        turns: What was measured.
        held_fixed: What was probed.
    """
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(0.02, 0.935, TITLE, size=16, weight="bold", color=INK)
    said = "\n".join(textwrap.wrap(advice.sentence, 130, max_lines=2))
    figure.text(0.02, 0.915, said, size=12, color=KNEE, va="top", parse_math=False)
    figure.text(0.02, 0.025, held_fixed, size=9, color=PALE, parse_math=False)
    _draw_throughput(figure.add_axes((0.075, 0.15, 0.4, 0.63)), advice, turns)
    _draw_time(figure.add_axes((0.575, 0.15, 0.4, 0.63)), advice)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _draw_throughput(axes: Axes, advice: Advice, turns: Round) -> None:
    model = advice.forecast.model
    sizes = [row.step_size for row in advice.rows]
    _draw_predicted(axes, sizes, [row.throughput for row in advice.rows], FRONT)
    measured = [size * model.samples / turn.seconds for size, turn in turns.items()]
    axes.plot(list(turns), measured, "o", color=INK, label="measured in the probe")
    axes.axhline(model.ceiling, color=REST, linestyle="--", linewidth=1, label="ceiling")
    _finish(axes, sizes, "throughput (samples/s)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _draw_time(axes: Axes, advice: Advice) -> None:
    sizes = [row.step_size for row in advice.rows]
    _draw_predicted(axes, sizes, [row.time for row in advice.rows], KNEE)
    axes.axvspan(*advice.flat, color=REST, alpha=0.15, label="within 5 % of the best")
    axes.axhline(1, color=REST, linestyle="--", linewidth=1)
    _finish(axes, sizes, "time to the same loss (1 = step_size 1)")


def _draw_predicted(
    axes: Axes, sizes: list[int], estimates: Sequence[Estimate], color: str
) -> None:
    """Draw a line, and its interval as a band."""
    low, high = [each.low for each in estimates], [each.high for each in estimates]
    axes.fill_between(sizes, low, high, color=color, alpha=0.2, linewidth=0)
    axes.plot(sizes, [each.value for each in estimates], color=color, label="predicted")


def _finish(axes: Axes, sizes: list[int], what: str) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("step_size (log scale)", size=11)
    axes.set_ylabel(what, size=11)
    axes.legend(loc="best", frameon=False, fontsize=10)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
