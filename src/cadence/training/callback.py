"""What a user adds to a run: callbacks, and the trackers among them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cadence.metrics.result import Result, Window
    from cadence.training.trainer import Trainer


class Callback:
    """Methods that `cadence.Trainer.fit` calls; override the ones you need.

    Callbacks are called in the order of ``trainer.callbacks``, between two windows, and their time
    counts for no window. The progress display, trackers, checkpointing, early stopping and the
    noise scale are callbacks like any other.
    """

    def on_fit_start(self, trainer: Trainer) -> None:
        """Called once, before the first window."""

    def on_window_end(self, trainer: Trainer, window: Window) -> None:
        """Called after each window, with ``trainer.clock`` already counting the window."""

    def on_evaluation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Called after each evaluation, with its means by name, such as ``val/loss``."""

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Called at the end of each epoch, and where a limit ends the run within an epoch."""

    def on_fit_end(self, trainer: Trainer, result: Result) -> None:
        """Called once, after the last evaluation; not where an exception ends the run."""

    def report(self) -> Mapping[str, float]:
        """Return further numbers of the run's result and its summary.json, by name."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint is to keep: tensors and plain values."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""


class Tracker(Callback):
    """A callback that takes what ``trainer.log`` and its relatives are given."""

    def log(self, name: str, value: float, samples: int) -> None:
        """Take a number at that many samples seen."""

    def log_figure(self, name: str, figure: Any, samples: int) -> None:
        """Take a matplotlib figure, or anything else with ``savefig``."""

    def log_artifact(self, path: Path) -> None:
        """Take a file."""
