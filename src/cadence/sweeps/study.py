"""A sweep's study: opened or made, its trials by state, and what a dead sweep left behind.

Everything is in the Optuna study, so a sweep that died goes on from its database alone. This module
knows Optuna, and neither Hydra nor MLflow.
"""

import logging
import uuid
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cadence.sweeps.definition import STORED, SearchDefinition, differences
from cadence.sweeps.trials import ABANDONED, OBJECTIVES, is_abandoned

LOCKED_SECONDS = 60.0
"""How long a study waits for another process to unlock its SQLite file; by itself it would be 5."""

DEATHS = 5
"""Deaths of its process in a row, without a new checkpoint, at which a point has failed."""

SUSPECTED = 2
"""Such deaths from which a point runs without others: none of its batch is to die with it."""

log = logging.getLogger(__name__)


def open_storage(storage: BaseStorage | str | None) -> BaseStorage:
    """Return the storage of a study.

    A SQLite file that another process has locked is waited for; a connection that a server closed
    meanwhile is made anew.

    Args:
        storage: A URL, or a storage as it is; None means memory.
    """
    if isinstance(storage, str):
        waiting = {"connect_args": {"timeout": LOCKED_SECONDS}}
        options = waiting if storage.startswith("sqlite") else {"pool_pre_ping": True}
        storage = RDBStorage(storage, engine_kwargs=options)
    return optuna.storages.get_storage(storage)


def open_study(
    storage: BaseStorage,
    name: str,
    definition: SearchDefinition,
    may_have_result: Callable[[FrozenTrial], bool] = lambda trial: False,
) -> optuna.Study:
    """Return the study of a search definition, made or found.

    A study without any result takes another definition, and drops its open trials.

    Args:
        storage: Where the study is kept.
        name: The study's name.
        definition: What the study is to search.
        may_have_result: Whether a trial that a dead sweep left running may still have a result.

    Raises:
        ValueError: A study of this name has another search definition, and a trial of it has ended
            or may still have a result.
    """
    sampler = RandomSampler(seed=0)  # every point is chosen before it is enqueued
    stored = definition.as_json()
    if name not in optuna.get_all_study_names(storage):
        directions = [StudyDirection[direction.upper()] for direction in definition.directions]
        study = optuna.create_study(
            study_name=name, storage=storage, sampler=sampler, directions=directions
        )
        study.set_user_attr(STORED, stored)
        _name_objectives(study)
        return study
    study = optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    was = study.user_attrs.get(STORED, stored)  # absent where the process died before storing it
    changed = "; ".join(differences(was, stored))
    if changed and (finished(study) or any(map(may_have_result, running(study)))):
        raise ValueError(
            f"study {name}: its search definition has changed ({changed}); give the same one to "
            "go on, or another hydra.sweeper.study_name= to begin anew"
        )
    if changed:
        log.warning("study %s: it has another search definition now (%s)", name, changed)
        _drop_open_trials(study, storage)
    if was != stored or STORED not in study.user_attrs:
        study.set_user_attr(STORED, stored)
    _name_objectives(study)
    return study


def study_id(study: optuna.Study) -> str:
    """Return what tells a study from every other one, also of its name, folder and storage."""
    if "id" not in study.user_attrs:
        study.set_user_attr("id", uuid.uuid4().hex)
    return str(study.user_attrs["id"])


def running(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that are begun and not ended, in order."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def waiting(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that are enqueued and not begun, in order."""
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING,))


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that ended by themselves, completed or failed, in order."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [trial for trial in ended if not is_abandoned(trial)]


def set_user_attrs(
    study: optuna.Study, storage: BaseStorage, trial: FrozenTrial, attributes: Mapping[str, Any]
) -> None:
    """Set user attributes of a trial that has not ended, also where another process began it."""
    trial_id = _trial_id(study, storage, trial)
    for name, value in attributes.items():
        storage.set_trial_user_attr(trial_id, name, value)


def close_abandoned(
    study: optuna.Study,
    storage: BaseStorage,
    result: Callable[[FrozenTrial], tuple[float, float] | None],
    deaths: Callable[[FrozenTrial], int],
    *,
    spared: Collection[int] = (),
) -> list[tuple[FrozenTrial, str | None]]:
    """Close the trials that a dead sweep left running, and enqueue their points again.

    Args:
        study: The study; no other process may be running it.
        storage: Where the study is kept.
        result: A trial's values where its training came to its end before the sweep died, else
            None.
        deaths: How many times in a row the process died at a trial's point without a new
            checkpoint, this time included. At `DEATHS` the trial has failed, and its point is not
            enqueued again.
        spared: Numbers of trials that stay as they are.

    Returns:
        The trials that were closed, each FAIL, and why they failed; None means no reason of their
        own: they have the user attribute ``abandoned``.
    """
    closed: list[tuple[FrozenTrial, str | None]] = []
    for trial in running(study):
        if trial.number in spared:
            continue
        values = result(trial)
        if values is not None:
            study.tell(trial.number, list(values))
            continue
        died = deaths(trial)
        if died >= DEATHS:
            reason = f"its process died {died} times at this point"
            set_user_attrs(study, storage, trial, {"reason": reason})
            study.tell(trial.number, state=TrialState.FAIL)
            closed.append((trial, reason))
            continue
        set_user_attrs(study, storage, trial, {ABANDONED: True})
        study.tell(trial.number, state=TrialState.FAIL)
        point = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if point:  # a trial that died before it had a point has none to enqueue again
            study.enqueue_trial(point, user_attrs=_inherited(trial) | {"deaths": died})
        closed.append((trial, None))
    return closed


def batch_size(study: optuna.Study, most: int) -> int:
    """Return how many trials to run at once, at most ``most``: 1 while a deadly point waits."""
    deaths = (trial.user_attrs.get("deaths", 0) for trial in waiting(study))
    return 1 if max(deaths, default=0) >= SUSPECTED else most


def too_many_failed(study: optuna.Study, share: float, total: int) -> list[str]:
    """Return the reasons of a sweep's failed trials if there are too many; else nothing.

    Args:
        study: The trials so far.
        share: The share of ``total`` that may fail, in [0, 1].
        total: The trials that the sweep is to have.
    """
    failed = [trial for trial in finished(study) if trial.state == TrialState.FAIL]
    if len(failed) <= share * total:
        return []
    return [f"trial {trial.number}: {trial.user_attrs.get('reason', '?')}" for trial in failed]


def _trial_id(study: optuna.Study, storage: BaseStorage, trial: FrozenTrial) -> int:
    study_number = storage.get_study_id_from_name(study.study_name)
    return storage.get_trial_id_from_study_id_trial_number(study_number, trial.number)


def _drop_open_trials(study: optuna.Study, storage: BaseStorage) -> None:
    for trial in [*running(study), *waiting(study)]:
        set_user_attrs(study, storage, trial, {ABANDONED: True})
        storage.set_trial_state_values(_trial_id(study, storage, trial), TrialState.FAIL)


def _name_objectives(study: optuna.Study) -> None:
    """Let optuna-dashboard call the objectives by their names."""
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(OBJECTIVES))


def _inherited(trial: FrozenTrial) -> dict[str, Any]:
    """Return what a point that is enqueued again keeps: its replicate, and its earlier folders."""
    kept = {name: trial.user_attrs[name] for name in ("replicate",) if name in trial.user_attrs}
    folders = [trial.user_attrs[name] for name in ("folder",) if name in trial.user_attrs]
    return kept | {"earlier_folders": folders + trial.user_attrs.get("earlier_folders", [])}
