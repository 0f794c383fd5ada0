"""What a run says on the terminal: facts at the start, progress, a table at the end."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from cadence.engine.noise_scale import LEVEL
from cadence.metrics.evaluation import Evaluation
from cadence.metrics.result import Result, Window
from cadence.metrics.timing import WindowTime
from cadence.training.callback import Callback
from cadence.training.trainer import Trainer

REFRESH_SECONDS = 0.25
"""Between two looks at the progress bar: drawing it takes a millisecond of the training's time."""


def open_console(*, quiet: bool = False) -> Console:
    """Return a console on standard output; in a file or a pipe its lines may be long."""
    width = None if sys.stdout.isatty() else 160
    return Console(highlight=False, soft_wrap=True, quiet=quiet, width=width)


def print_facts(facts: Mapping[str, str], console: Console) -> None:
    """Print named facts, one a line."""
    width = max(map(len, facts), default=0)
    for name, fact in facts.items():
        console.print(f"{name:<{width}}  {fact}", markup=False)


class Display(Callback):
    """Shows a run as it goes: a progress bar on a terminal, a line per evaluation elsewhere.

    Args:
        total_samples: Samples the run is to train on; None = only time ends it.
        console: Where to write; None = standard output.
        quiet: Whether to write nothing, as inside a sweep, which has its own lines.
    """

    def __init__(
        self, total_samples: int | None, console: Console | None = None, *, quiet: bool = False
    ) -> None:
        self._console = console or open_console(quiet=quiet)
        self._total = total_samples
        self._shown = time.perf_counter()
        self._shown_samples = 0
        self._validation = ""
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self._console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("training", total=total_samples, numbers="")

    def facts(self, facts: Mapping[str, str]) -> None:
        """Print named facts, one a line."""
        print_facts(facts, self._console)

    def __enter__(self) -> "Display":
        """Show the progress bar."""
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the progress bar away."""
        self._bar.stop()

    def on_window_end(self, trainer: Trainer, window: Window) -> None:
        """Move the progress bar, a few times a second."""
        clock = trainer.clock
        now = time.perf_counter()
        elapsed = now - self._shown
        if elapsed < REFRESH_SECONDS or not self._console.is_terminal:
            return
        speed = (clock.samples - self._shown_samples) / elapsed
        self._shown, self._shown_samples = now, clock.samples
        numbers = f"loss {window.loss:.4f}  {speed:,.0f} samples/s{self._validation}"
        self._bar.update(self._task, completed=clock.samples, numbers=numbers)
        self._bar.refresh()

    def on_evaluation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Show an evaluation: in the bar, or as a line."""
        means = ((name.replace("/", " ", 1), value) for name, value in metrics.items())
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in means)
        self._validation = f"  {numbers}"
        if not self._console.is_terminal:
            result, clock = trainer.result, trainer.clock
            done = f" of {self._total:,}" if self._total else ""
            self._console.print(
                f"{clock.samples:,}{done} samples  train loss {result.train_loss:.4f}  {numbers}  "
                f"{result.samples_per_second:,.0f} samples/s",
                markup=False,
            )

    def table(self, result: Result, step_sizes: Sequence[int], rows: Mapping[str, str]) -> None:
        """Print what the run came to.

        Args:
            result: What it is.
            step_sizes: Mini-batches per update of each process, as last set.
            rows: Further rows of the caller's.
        """
        numbers = {
            "step_size": _shares(step_sizes),
            "updates": f"{result.updates:,} applied, {result.updates_skipped:,} skipped",
            "samples": f"{result.samples:,}",
            "micro-batch": "one mini-batch"
            if result.microbatch_size is None
            else f"{result.microbatch_size:,} samples per forward and backward",
            "train loss": _number(result.train_loss),
            "val loss": _number(result.val_loss),
            **{f"val {name}": _number(value) for name, value in result.val_metrics.items()},
            **({"noise scale": _noise_scale(result)} if "noise_scale" in result.reported else {}),
            "throughput": f"{result.samples_per_second:,.0f} samples/s "
            f"(a tenth of the windows below {result.samples_per_second_p10:,.0f}, "
            f"a tenth above {result.samples_per_second_p90:,.0f})",
            "window time": _window_time(result.time),
            "peak memory": f"{result.peak_memory_mib:,.0f} MiB above the start",
            "seconds": f"{result.seconds:.1f}",
        }
        self._console.print()
        self.facts(numbers | dict(rows))


def print_evaluation(evaluation: Evaluation, file: Path, samples: int, console: Console) -> None:
    """Print a checkpoint's held-out metrics.

    Args:
        evaluation: What they are.
        file: The checkpoint.
        samples: The samples it was trained on.
        console: Where to write.
    """
    print_facts(
        {
            "checkpoint": f"{file}, after {samples:,} samples",
            "held out": f"{evaluation.samples:,} samples, {evaluation.items:,} items",
            "val loss": _number(evaluation.loss),
            **{f"val {name}": _number(value) for name, value in evaluation.metrics.items()},
        },
        console,
    )


def _shares(step_sizes: Sequence[int]) -> str:
    if len(step_sizes) == 1:
        return f"{step_sizes[0]} mini-batches per update"
    return f"{list(step_sizes)} mini-batches per update, by process"


def _window_time(time: WindowTime) -> str:
    """Say where a window's time goes."""
    if math.isnan(time.samples):
        return "none"
    parts = {
        "data": time.data_ms,
        "compute": time.compute_ms,
        "sync": time.sync_ms,
        "update": time.update_ms,
    }
    said = ", ".join(f"{name} {milliseconds:.3g}" for name, milliseconds in parts.items())
    return f"{said} ms (medians of the windows of {time.samples:,.0f} samples)"


def _number(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "none"


def _noise_scale(result: Result) -> str:
    """Return the estimate as a reader may take it: with its interval, or with what it lacks."""
    ends = ("noise_scale", "noise_scale_low", "noise_scale_high")
    value, low, high = (result.reported[name] for name in ends)
    if math.isnan(value):
        return "unknown: too few windows were measured"
    interval = f"{low:,.0f} to {high:,.0f}" if math.isfinite(high) else f"at least {low:,.0f}"
    said = f"{value:,.0f} items" if math.isfinite(value) else "larger than the windows can tell"
    return f"{said} (an estimate; {100 * LEVEL:g} % interval {interval} items)"
