"""What a trial's folder tells of its run, whichever process began it."""

from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, Trial

from cadence.checkpoint.folder import has_begun
from cadence.metrics.summary import FILE as SUMMARY
from cadence.metrics.summary import read_summary
from cadence.system.locks import FILE as LOCK
from cadence.system.locks import is_running


def summary(trial: FrozenTrial | Trial) -> dict[str, Any]:
    """Return what a run left in its folder; nothing if that cannot be seen from here."""
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
    return folder is not None and (Path(folder) / LOCK).exists()


def deaths(trial: FrozenTrial, *, interrupted: bool) -> int:
    """Return how often in a row its process died at a trial's point without a new checkpoint.

    Args:
        trial: One that was begun, and neither told nor going on.
        interrupted: Whether this time it was ended on purpose.
    """
    before: int = trial.user_attrs.get("deaths", 0)
    if not has_run(trial) or interrupted:
        return before
    return 0 if has_begun(Path(trial.user_attrs["folder"])) else before + 1
