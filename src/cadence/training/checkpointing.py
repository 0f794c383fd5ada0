"""When a run's state is saved: in time, at its best, at its end, and when it is interrupted."""

from collections.abc import Callable, Mapping
from typing import Any

from cadence.checkpoint.file_format import Snapshot, snapshot
from cadence.checkpoint.folder import Checkpoints
from cadence.checkpoint.state import State
from cadence.metrics.result import Result, Window
from cadence.system.signals import Interruption
from cadence.training.callback import Callback
from cadence.training.trainer import Trainer


class Checkpointing(Callback):
    """Saves a trainer's state between windows, and stops the run there when asked.

    Where an evaluation follows on a window, the state is saved after the evaluation.

    Args:
        checkpoints: Where the state is saved.
        every: Samples between saves, at least 1; None means once an epoch, where that takes no more
            than `cadence.checkpoint.folder.MAX_SHARE` of the run's time.
        config: The flattened config, kept with the state.
        mlflow_run_id: The run in MLflow; None means not tracked.
        interruption: What asks the run to stop.
        before_save: Called before each save; None means nothing.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        every: int | None,
        *,
        config: Mapping[str, Any],
        mlflow_run_id: str | None,
        interruption: Interruption,
        before_save: Callable[[], None] | None = None,
    ) -> None:
        self._checkpoints = checkpoints
        self._every = every
        self._config = config
        self._mlflow_run_id = mlflow_run_id
        self._interruption = interruption
        self._before_save = before_save
        self._best_waiting: Snapshot | None = None

    def on_fit_start(self, trainer: Trainer) -> None:
        """Take what the run starts from as saved."""
        self._saved = trainer.clock
        self._samples_of_best = trainer.clock.samples

    def on_window_end(self, trainer: Trainer, window: Window) -> None:
        """Save if that is due, or stop if that is asked; see `save_if_due`."""
        if not trainer.evaluation_is_due:
            self.save_if_due(trainer)

    def on_evaluation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Save if that is due, or stop if that is asked; see `save_if_due`."""
        self.save_if_due(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Save if that is due, or stop if that is asked; see `save_if_due`."""
        self.save_if_due(trainer)

    def on_fit_end(self, trainer: Trainer, result: Result) -> None:
        """Save the state as it is at the end."""
        self.save(trainer)

    def save_if_due(self, trainer: Trainer) -> None:
        """Save if that is due, or stop if that is asked.

        Raises:
            KeyboardInterrupt: A signal asked to stop; the state is saved.
            OSError: The disk does not take the state.
        """
        if self._interruption.requested:
            self.save(trainer)
            self._interruption.check()
        samples = trainer.clock.samples
        is_new_best = trainer.is_best and samples > self._samples_of_best
        if self._is_due(trainer) or (is_new_best and self._may_save()):
            self._save(trainer)
        elif is_new_best:
            self._best_waiting = None  # so that there is one copy at a time
            self._best_waiting = snapshot(self._state(trainer))
            self._samples_of_best = samples

    def save(self, trainer: Trainer) -> None:
        """Save the state as it is now, and wait until the disk has it.

        Raises:
            OSError: The disk does not take the state.
        """
        self._save(trainer)
        self._checkpoints.wait()

    def _is_due(self, trainer: Trainer) -> bool:
        clock = trainer.clock
        if self._every is not None:
            return clock.passed(self._every, since=self._saved)
        return clock.epoch > self._saved.epoch and self._checkpoints.affordable()

    def _may_save(self) -> bool:
        return self._every is not None or self._checkpoints.affordable()

    def _save(self, trainer: Trainer) -> None:
        if self._before_save is not None:
            self._before_save()
        is_best = trainer.is_best
        if self._best_waiting is not None and not is_best:
            self._checkpoints.save_snapshot(self._best_waiting, best=True)
        self._checkpoints.save(self._state(trainer), best=is_best)
        self._saved, self._best_waiting = trainer.clock, None
        if is_best:
            self._samples_of_best = self._saved.samples

    def _state(self, trainer: Trainer) -> State:
        return trainer.state(self._config, self._mlflow_run_id)


class StopsWhenInterrupted(Callback):
    """Stops a process that saves nothing, where the process that saves stops too.

    Args:
        interruption: What asks the run to stop.
    """

    def __init__(self, interruption: Interruption) -> None:
        self._interruption = interruption

    def on_window_end(self, trainer: Trainer, window: Window) -> None:
        """Stop if that is asked.

        Raises:
            KeyboardInterrupt: A signal asked to stop.
        """
        self._interruption.check()

    def on_epoch_end(self, trainer: Trainer) -> None:
        """Stop if that is asked; see `on_window_end`."""
        self._interruption.check()

    def on_fit_end(self, trainer: Trainer, result: Result) -> None:
        """Stop if that is asked; see `on_window_end`."""
        self._interruption.check()
