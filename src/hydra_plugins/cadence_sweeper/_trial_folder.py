"""The state of a trial's run, read from its folder, whichever process began the run."""

from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, Trial

from cadence.checkpoint.folder import has_begun
from cadence.metrics.summary import FILE as SUMMARY
from cadence.metrics.summary import read_summary
from cadence.system.locks import RUNNING, is_running


def summary(trial: FrozenTrial | Trial) -> dict[str, Any]:
    """Return the summary in a run's folder; empty where the folder cannot be seen from here."""
    folder = trial.user_attrs.get("folder")
    file = None if folder is None else Path(folder) / SUMMARY
    return read_summary(file) if file is not None and file.is_file() else {}


def is_going_on(trial: FrozenTrial) -> bool:
    """Return whether a trial's run goes on, whoever began it."""
    folder = trial.user_attrs.get("folder")
    return folder is not None and is_running(Path(folder))


def has_run(trial: FrozenTrial | Trial) -> bool:
    """Return whether a trial's run had begun, whatever became of it."""
    folder = trial.user_attrs.get("folder")
    return folder is not None and (Path(folder) / RUNNING).exists()


def deaths(trial: FrozenTrial, *, interrupted: bool) -> int:
    """Return how often in a row its process died at a trial's point without a new checkpoint.

    Args:
        trial: A trial that was begun, has not ended in the study and does not run.
        interrupted: Whether the process was ended on purpose this time.
    """
    before: int = trial.user_attrs.get("deaths", 0)
    if not has_run(trial) or interrupted:
        return before
    return 0 if has_begun(Path(trial.user_attrs["folder"])) else before + 1
