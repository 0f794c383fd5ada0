"""A sweep's picture: throughput against validation loss, each point with its step_size."""

import html
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import plotly.graph_objects as go  # type: ignore[import-untyped]
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from cadence.display.colours import FRONT, INK, KNEE, PALE, REST
from cadence.sweeps.knee import Comparison
from cadence.sweeps.pareto_front import Measure, PointResult, number, trials_of

WIDTH, HEIGHT = 1200, 750
"""Pixels of the still picture."""

TITLE = "Validation loss against throughput, by step_size (mini-batches per update)"
THROUGHPUT = "throughput (samples/s, log scale)"
VAL_LOSS = "val loss (mean per item)"
BARS = (
    "bars: p10 to p90 of a trial's windows; lowest to highest where a point was run several times"
)

WIDE = 10.0
"""Highest over lowest value from which the loss has a log scale."""


@dataclass(frozen=True, slots=True)
class Caption:
    """The text over a picture."""

    sentence: str
    held_fixed: str


def png(comparison: Comparison, caption: Caption) -> bytes:
    """Draw the still picture, `WIDTH` x `HEIGHT` pixels."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)  # draws it whatever the process's own backend is
    axes = figure.add_axes((0.075, 0.115, 0.9, 0.655))
    _write_caption(figure, caption)
    _scale(axes, comparison.results)
    for layer, kind in enumerate(_kinds(comparison), start=3):
        _draw(axes, kind, layer)
    axes.plot(
        [result.throughput.value for result in comparison.front],
        [result.val_loss.value for result in comparison.front],
        color=FRONT,
        linewidth=2,
        drawstyle="steps-pre",
        zorder=2,
    )
    axes.legend(loc="lower right", bbox_to_anchor=(1.005, 1), ncols=4, frameon=False, fontsize=11)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def page(comparison: Comparison, caption: Caption) -> str:
    """Draw the picture to point at: one HTML page that needs no other file and no network."""
    speeds, losses = _extremes(comparison.results)
    figure = go.Figure()
    figure.add_scatter(
        x=[result.throughput.value for result in comparison.front],
        y=[result.val_loss.value for result in comparison.front],
        mode="lines",
        line={"color": FRONT, "width": 2, "shape": "vh"},
        hoverinfo="skip",
        showlegend=False,
    )
    for kind in _kinds(comparison):
        figure.add_scatter(
            x=[result.throughput.value for result in kind.results],
            y=[result.val_loss.value for result in kind.results],
            error_x=_bars([result.throughput for result in kind.results], kind.edge),
            error_y=_bars([result.val_loss for result in kind.results], kind.edge),
            mode="markers+text",
            text=[_label(result) for result in kind.results],
            textfont={"color": kind.ink, "size": 12},
            hovertext=[_hover(result) for result in kind.results],
            hoverinfo="text",
            name=kind.name,
            marker={
                "size": kind.size,
                "color": kind.fill,
                "line": {"color": kind.edge, "width": 1.5},
            },
        )
    said = "<br>".join(textwrap.wrap(html.escape(caption.sentence), 130))
    fixed = "<br>".join(textwrap.wrap(html.escape(f"held fixed: {caption.held_fixed}"), 160))
    subtitle = f'<span style="font-size:16px;color:{KNEE}">{said}</span><br>{fixed}'
    figure.update_layout(
        title={"text": f"<b>{TITLE}</b>", "subtitle": {"text": subtitle}},
        template="plotly_white",
        margin={"t": 170},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.01, "yanchor": "bottom"},
        hoverlabel={"align": "left"},
    )
    figure.update_xaxes(title=f"{THROUGHPUT}<br><sup>{BARS}</sup>", type="log", tickformat=",")
    figure.update_yaxes(title=VAL_LOSS, type="log" if _is_wide(losses) else "linear")
    if _is_wide(speeds):
        figure.update_xaxes(tickvals=_ticks(speeds), ticktext=[_tick(at) for at in _ticks(speeds)])
    if _is_wide(losses):
        figure.update_yaxes(tickvals=_ticks(losses), ticktext=[_tick(at) for at in _ticks(losses)])
    drawn: str = figure.to_html(
        include_plotlyjs=True,
        default_height="95vh",
        div_id="pareto",
        config={"displaylogo": False, "responsive": True},
    )
    return drawn


@dataclass(frozen=True, slots=True)
class _Kind:
    """Points that look alike."""

    name: str
    results: Sequence[PointResult]
    fill: str
    edge: str
    ink: str
    size: int


def _kinds(comparison: Comparison) -> list[_Kind]:
    marked = trials_of((comparison.knee, comparison.baseline))
    of_front = trials_of(comparison.front)
    rest = [result for result in comparison.results if result.trials not in marked]
    on_front = [result for result in rest if result.trials in of_front]
    beaten = [result for result in rest if result.trials not in of_front]
    baseline = [comparison.baseline] if comparison.baseline is not comparison.knee else []
    kinds = [
        _Kind("dominated by another point", beaten, "white", REST, PALE, 22),
        _Kind("Pareto front", on_front, FRONT, FRONT, "white", 24),
        _Kind("baseline", baseline, INK, INK, "white", 24),
        _Kind("knee", [comparison.knee], KNEE, KNEE, "white", 32),
    ]
    return [kind for kind in kinds if kind.results]


def _label(result: PointResult) -> str:
    return "?" if result.steps is None else textwrap.shorten(result.steps, 16, placeholder="...")


def _extremes(results: Sequence[PointResult]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the lowest and the highest throughput and loss, spreads included."""
    speeds = [end for result in results for end in (result.throughput.low, result.throughput.high)]
    losses = [end for result in results for end in (result.val_loss.low, result.val_loss.high)]
    return (min(speeds), max(speeds)), (min(losses), max(losses))


def _apart(extremes: tuple[float, float]) -> tuple[float, float]:
    """Return the extremes, moved apart where they are equal."""
    low, high = extremes
    room = 0.0 if low < high else 0.1 * abs(low) or 1.0
    return low - room, high + room


def _is_wide(extremes: tuple[float, float]) -> bool:
    low, high = extremes
    return low > 0 and high > WIDE * low


def _ticks(extremes: tuple[float, float]) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten from about the lowest to the highest value."""
    first, last = (math.floor(math.log10(end)) for end in extremes)
    return [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]


def _tick(value: float) -> str:
    return f"{value:,.6g}" if value < 1e6 else f"{value:,.0f}"


def _write_caption(figure: Figure, caption: Caption) -> None:
    """Write the title, what was found, and what was held fixed, without reading ``$`` as maths."""
    figure.text(0.02, 0.955, TITLE, size=16, weight="bold", color=INK)
    said = textwrap.wrap(caption.sentence, 125, max_lines=2)
    fixed = textwrap.wrap(f"held fixed: {caption.held_fixed}", 165, max_lines=2)
    figure.text(0.02, 0.935, "\n".join(said), size=13, color=KNEE, va="top", parse_math=False)
    below = 0.935 - 0.03 * len(said) - 0.008
    figure.text(0.02, below, "\n".join(fixed), size=10, color=PALE, va="top", parse_math=False)
    figure.text(0.975, 0.015, BARS, size=9, color=PALE, ha="right")


def _scale(axes: Axes, results: Sequence[PointResult]) -> None:
    speeds, losses = _extremes(results)
    axes.set_xscale("log")
    axes.set_yscale("log" if _is_wide(losses) else "linear")
    for axis, extremes in ((axes.xaxis, speeds), (axes.yaxis, losses)):
        steps = (
            LogLocator(subs=(1, 2, 5))
            if _is_wide(extremes)
            else MaxNLocator(8, steps=[1, 2, 5, 10])
        )
        axis.set_major_locator(steps)
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.margins(0.06, 0.09)
    # Set before anything is drawn: from a first point alone matplotlib cannot make limits.
    axes.update_datalim(list(zip(_apart(speeds), _apart(losses), strict=True)))
    axes.set_xlabel(THROUGHPUT, size=12)
    axes.set_ylabel(VAL_LOSS, size=12)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _draw(axes: Axes, kind: _Kind, layer: int) -> None:
    """Draw points one over another, so that of two that overlap one can be read."""
    axes.errorbar(
        [result.throughput.value for result in kind.results],
        [result.val_loss.value for result in kind.results],
        xerr=_lengths([result.throughput for result in kind.results]),
        yerr=_lengths([result.val_loss for result in kind.results]),
        fmt="none",
        ecolor=kind.edge,
        elinewidth=1,
        capsize=3,
        alpha=0.6,
        zorder=2.5,
    )
    axes.scatter([], [], s=130, color=kind.fill, edgecolors=kind.edge, label=kind.name)
    for rank, result in enumerate(kind.results):
        place = (result.throughput.value, result.val_loss.value)
        above = layer + rank / len(kind.results)
        area = (0.72 * kind.size) ** 2
        axes.scatter(*place, s=area, color=kind.fill, edgecolors=kind.edge, zorder=above)
        axes.annotate(
            _label(result),
            place,
            color=kind.ink,
            size=0.4 * kind.size,
            weight="bold",
            ha="center",
            va="center_baseline",
            zorder=above,
        )


def _lengths(measures: Sequence[Measure]) -> list[list[float]]:
    below = [measure.value - measure.low for measure in measures]
    above = [measure.high - measure.value for measure in measures]
    return [below, above]


def _bars(measures: Sequence[Measure], colour: str) -> dict[str, object]:
    below, above = _lengths(measures)
    is_known = any(measure.has_spread for measure in measures)
    look = {"color": colour, "thickness": 1, "width": 4, "visible": is_known}
    return look | {"type": "data", "symmetric": False, "array": above, "arrayminus": below}


def _hover(result: PointResult) -> str:
    known = {
        "val loss": str(result.val_loss),
        "samples/s": str(result.throughput),
        "updates": number(result.updates),
        "effective batch": f"{number(result.effective_batch)} items per update",
        "peak memory": f"{number(result.peak_memory_mib)} MiB",
        "seconds": number(result.seconds),
        "trials": ", ".join(map(str, result.trials)),
    }
    lines = [html.escape(f"{name}: {value}") for name, value in known.items()]
    return f"<b>{html.escape(result.name)}</b><br>" + "<br>".join(lines)
