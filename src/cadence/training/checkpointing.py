"""When a run's state is saved: in time, at its best, at its end, and when it is interrupted."""

from collections.abc import Callable, Mapping
from typing import Any

from cadence.checkpoint.file_format import Snapshot, snapshot
from cadence.checkpoint.folder import Checkpoints
from cadence.checkpoint.state import State
from cadence.system.signals import Interruption
from cadence.training.trainer import Trainer


class Checkpointing:
    """Saves a trainer's state at the boundaries of its windows, and stops it there when asked.

    Args:
        trainer: What is saved; its `fit` is to call `at_boundary`.
        checkpoints: Where it is saved.
        every: Samples between saves, at least 1; None = once an epoch, where that takes no more
            than `cadence.checkpoint.folder.MAX_SHARE` of the run's time.
        config: The flattened config, kept with the state.
        mlflow_run_id: The run in MLflow; None = it is not tracked.
        interruption: What asks it to stop.
        before_save: Called before each save; None = nothing.
    """

    def __init__(
        self,
        trainer: Trainer,
        checkpoints: Checkpoints,
        every: int | None,
        *,
        config: Mapping[str, Any],
        mlflow_run_id: str | None,
        interruption: Interruption,
        before_save: Callable[[], None] | None = None,
    ) -> None:
        self._trainer = trainer
        self._checkpoints = checkpoints
        self._every = every
        self._config = config
        self._mlflow_run_id = mlflow_run_id
        self._interruption = interruption
        self._before_save = before_save
        self._saved = trainer.clock
        self._samples_of_best = trainer.clock.samples
        self._best_waiting: Snapshot | None = None

    def at_boundary(self) -> None:
        """Save if that is due, or stop if that is asked.

        Raises:
            KeyboardInterrupt: A signal asked to stop; the state is saved.
            OSError: The disk does not take it.
        """
        if self._interruption.requested:
            self.finish()
            self._interruption.check()
        samples = self._trainer.clock.samples
        is_new_best = self._trainer.is_best and samples > self._samples_of_best
        if self._is_due() or (is_new_best and self._may_save()):
            self._save()
        elif is_new_best:
            self._best_waiting = None  # so that there is one copy at a time
            self._best_waiting = snapshot(self._state())
            self._samples_of_best = samples

    def finish(self) -> None:
        """Save the state as it is now, and wait until the disk has it.

        Raises:
            OSError: The disk does not take it.
        """
        self._save()
        self._checkpoints.wait()

    def _is_due(self) -> bool:
        clock = self._trainer.clock
        if self._every is not None:
            return clock.passed(self._every, since=self._saved)
        return clock.epoch > self._saved.epoch and self._checkpoints.affordable()

    def _may_save(self) -> bool:
        return self._every is not None or self._checkpoints.affordable()

    def _save(self) -> None:
        if self._before_save is not None:
            self._before_save()
        is_best = self._trainer.is_best
        if self._best_waiting is not None and not is_best:
            self._checkpoints.save_snapshot(self._best_waiting, best=True)
        self._checkpoints.save(self._state(), best=is_best)
        self._saved, self._best_waiting = self._trainer.clock, None
        if is_best:
            self._samples_of_best = self._saved.samples

    def _state(self) -> State:
        return self._trainer.state(self._config, self._mlflow_run_id)
