"""A sweep as a value: its question, what is finished, what is left, and what to ask next.

Everything is in the Optuna study, so a sweep that died goes on from its database alone. This module
knows Optuna, and neither Hydra nor MLflow.
"""

import itertools
import json
import logging
import math
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages._cached_storage import _CachedStorage
from optuna.storages._rdb.models import TrialUserAttributeModel
from optuna.storages._rdb.storage import _create_scoped_session
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import text

from cadence.config.changes import changes
from cadence.sweeps.trials import OBJECTIVES
from cadence.system.locks import held

Point: TypeAlias = dict[str, Any]
"""A value for each searched key."""

COUNTABLE = 10_000
"""Points up to which a space is counted, so that a sweep can tell when all are done."""

LOCKED_SECONDS = 60.0
"""How long a study waits for another process to unlock its SQLite file; by itself it would be 5."""

DEATHS = 5
"""Deaths of its process in a row, without getting on, at which a point has failed."""

SUSPECTED = 2
"""Such deaths from which a point is asked alone: no other trial of its batch is to die with it."""

TRIES = 100
"""Proposals of the sampler that are looked at for a point that is new."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """What a sweep asks; a study answers one question only."""

    space: Mapping[str, BaseDistribution]
    """The searched keys and where they may lie."""
    directions: Sequence[str]
    """``minimize`` or ``maximize`` for each objective, in their order."""
    fixed: Mapping[str, Any]
    """Every other key of the config that all trials share."""

    def stated(self) -> dict[str, Any]:
        """Return the question as plain JSON values, as a study keeps it."""
        return {
            "space": {name: str(distribution) for name, distribution in self.space.items()},
            "directions": list(self.directions),
            "fixed": json.loads(json.dumps(dict(self.fixed), default=str)),
        }


def open_storage(storage: BaseStorage | str | None) -> BaseStorage:
    """Return where a study is kept.

    A SQLite file that another process has locked is waited for; a connection that a server closed
    meanwhile is made anew.

    Args:
        storage: A URL, or a storage as it is; None = memory.
    """
    if isinstance(storage, str):
        waiting = {"connect_args": {"timeout": LOCKED_SECONDS}}
        options = waiting if storage.startswith("sqlite") else {"pool_pre_ping": True}
        storage = RDBStorage(storage, engine_kwargs=options)
    return optuna.storages.get_storage(storage)


def open_study(
    storage: BaseStorage,
    name: str,
    question: Question,
    may_be_told: Callable[[FrozenTrial], bool] = lambda trial: False,
) -> optuna.Study:
    """Return the study of a question, made or found.

    One that has nothing to show yet takes another question, and drops what it had asked.

    Args:
        storage: Where it is kept.
        name: Its name.
        question: What it is to ask.
        may_be_told: Whether a trial that a dead sweep left running may still come to something.

    Raises:
        ValueError: There is a study of this name that asks something else, and a trial of it has
            ended or may yet be told.
    """
    stated = question.stated()
    if name in optuna.get_all_study_names(storage):
        study = optuna.load_study(study_name=name, storage=storage)
        if "question" not in study.user_attrs:  # it died between its making and this
            study.set_user_attr("question", stated)
        differences = "; ".join(_differences(study.user_attrs["question"], stated))
        if differences and (finished(study) or any(map(may_be_told, running(study)))):
            raise ValueError(
                f"study {name}: it asks another question ({differences}); give the same "
                "one to go on, or another hydra.sweeper.study_name= to begin anew"
            )
        if differences:
            log.warning("study %s: it asks another question now (%s)", name, differences)
            _drop_open_trials(study)
            study.set_user_attr("question", stated)
        _name_objectives(study)
        return study
    directions = [StudyDirection[direction.upper()] for direction in question.directions]
    study = optuna.create_study(study_name=name, storage=storage, directions=directions)
    study.set_user_attr("question", stated)
    _name_objectives(study)
    return study


def study_id(study: optuna.Study) -> str:
    """Return what tells a study from every other one, also of its name, folder and storage."""
    if "id" not in study.user_attrs:
        study.set_user_attr("id", uuid.uuid4().hex)
    return str(study.user_attrs["id"])


def _drop_open_trials(study: optuna.Study) -> None:
    for trial in study.get_trials(states=(TrialState.RUNNING, TrialState.WAITING)):
        note(study, trial, {"abandoned": True})
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)


def _name_objectives(study: optuna.Study) -> None:
    """Let optuna-dashboard call the objectives by their names."""
    if study.metric_names is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            study.set_metric_names(list(OBJECTIVES))


def running(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that are begun and not told, in their order."""
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def note(study: optuna.Study, trial: FrozenTrial, news: Mapping[str, Any]) -> None:
    """Keep user attributes with a trial that is not told yet, though another process began it."""
    for name, value in news.items():
        study._storage.set_trial_user_attr(trial._trial_id, name, value)


def close_abandoned(
    study: optuna.Study,
    result: Callable[[FrozenTrial], tuple[float, float] | None],
    deaths: Callable[[FrozenTrial], int],
    *,
    spared: Collection[int] = (),
) -> list[tuple[FrozenTrial, str | None]]:
    """Close the trials that a dead sweep left running, and ask their points again.

    Args:
        study: The study; no other process may be running it.
        result: A trial's values if its training came to its end before the sweep died, which only
            remains to be told; None = it did not.
        deaths: How many times in a row the process died at a trial's point and got nowhere, this
            time included. At `DEATHS` the trial has failed, and its point is not asked again.
        spared: Numbers of trials that stay as they are.

    Returns:
        The trials that were closed, and why they failed; None = not for a reason of their own: they
        have the user attribute ``abandoned``. Each is FAIL.
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
            note(study, trial, {"reason": reason})
            study.tell(trial.number, state=TrialState.FAIL)
            closed.append((trial, reason))
            continue
        note(study, trial, {"abandoned": True})
        study.tell(trial.number, state=TrialState.FAIL)
        point = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if point:  # one that died before it had a point has nothing to ask again
            study.enqueue_trial(point, user_attrs=_carried(trial) | {"deaths": died})
        closed.append((trial, None))
    return closed


def keep(trial: Trial, attributes: Mapping[str, Any]) -> None:
    """Keep user attributes with a running trial, in a database all at once.

    Optuna waits for the disk with each of them, and a run's summary has twenty.
    """
    database = _database(trial.storage)
    if database is None:
        for name, value in attributes.items():
            trial.set_user_attr(name, value)
        return
    with _create_scoped_session(database.scoped_session) as session:
        for name, value in attributes.items():
            database._set_trial_attr_without_commit(
                session, TrialUserAttributeModel, trial._trial_id, name, value
            )


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that ended by themselves, completed or failed, in their order."""
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
    return [trial for trial in ended if not trial.user_attrs.get("abandoned")]


def waiting(study: optuna.Study) -> list[FrozenTrial]:
    """Return the trials that are asked and not begun, in their order."""
    return study.get_trials(deepcopy=False, states=(TrialState.WAITING,))


def batch_size(study: optuna.Study, most: int) -> int:
    """Return how many trials to run at once, at most ``most``: 1 while a deadly point waits."""
    deaths = (trial.user_attrs.get("deaths", 0) for trial in waiting(study))
    return 1 if max(deaths, default=0) >= SUSPECTED else most


def next_points(
    study: optuna.Study,
    space: Mapping[str, BaseDistribution],
    sampler: Callable[[int], BaseSampler] | None,
    *,
    count: int,
    repeats: int = 1,
) -> list[tuple[Point, int]]:
    """Return the points to ask next, each with its replicate's number from 0.

    A point that is finished, begun or asked ``repeats`` times is not among them. What is returned
    depends on the study alone, so a sweep that was killed goes on as if it had not been.

    Args:
        study: The trials so far.
        space: The searched keys and where they may lie.
        sampler: ``seed -> sampler``, whose every point is repeated before the next; None = the
            space's own order, which must be countable, one whole round after another.
        count: Points wanted, at least 1.
        repeats: Trials of each point, at least 1.

    Returns:
        At most ``count`` points; fewer when the space has no more.
    """
    past = [trial for trial in study.get_trials(deepcopy=False) if _counts(trial)]
    asked = [_point(trial, space) for trial in past]
    chosen: list[tuple[Point, int]] = []
    for number in range(count):
        done = asked + [point for point, _ in chosen]
        repeated = _unrepeated(done, repeats)
        seeded = sampler and sampler(len(past) + number)
        if seeded is None:  # in rounds, so that a slow quarter of an hour hits no point alone
            point = _new_point(study, space, None, done) or repeated
        else:
            point = repeated or _new_point(study, space, seeded, done)
        if point is None:
            return chosen
        chosen.append((point, done.count(point)))
    return chosen


def too_many_failed(study: optuna.Study, share: float, total: int) -> list[str]:
    """Return the reasons of a sweep's failed trials if they are too many; else nothing.

    Args:
        study: The trials so far.
        share: The share of ``total`` that may fail, in [0, 1].
        total: The trials that the sweep is to have.
    """
    failed = [trial for trial in finished(study) if trial.state == TrialState.FAIL]
    if len(failed) <= share * total:
        return []
    return [f"trial {trial.number}: {trial.user_attrs.get('reason', '?')}" for trial in failed]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep a second process out of a sweep's folder: it would take the first one's trials for dead.

    Args:
        folder: The sweep's folder; it is made.

    Raises:
        ValueError: Another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / ".lock", str(_in_use(str(folder)))):
        yield


@contextmanager
def alone_with_study(storage: BaseStorage, name: str) -> Iterator[None]:
    """Keep other hosts, whose folders are their own, out of a study in PostgreSQL.

    Other storages are not locked: the folder's lock is all that guards them.

    Raises:
        ValueError: Another process is at work on it.
    """
    database = _database(storage)
    if database is None or database.engine.dialect.name != "postgresql":
        yield
        return
    with database.engine.connect() as connection:
        # A transaction would stay open for as long as the sweep runs.
        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
        # The server releases the lock when the connection ends, however its process does.
        lock = text("select pg_try_advisory_lock(hashtext(:study))")
        if not connection.execute(lock, {"study": f"cadence {name}"}).scalar():
            raise _in_use(f"study {name}")
        yield


def _database(storage: BaseStorage) -> RDBStorage | None:
    """Return the database behind a storage; None = it is none."""
    backend = storage._backend if isinstance(storage, _CachedStorage) else storage
    return backend if isinstance(backend, RDBStorage) else None


def _in_use(what: str) -> ValueError:
    return ValueError(
        f"{what}: another process is running this sweep; wait for it, or choose another "
        "hydra.sweeper.study_name="
    )


def left(
    study: optuna.Study, space: Mapping[str, BaseDistribution], repeats: int = 1
) -> int | None:
    """Return how many trials a space's points lack until each has finished ``repeats`` times.

    None = the points are too many to count.
    """
    every = points(space)
    if every is None:
        return None
    ended = Counter(_key(_point(trial, space)) for trial in finished(study))
    return sum(max(0, repeats - ended[_key(point)]) for point in every)


def check_grid(space: Mapping[str, BaseDistribution]) -> None:
    """Refuse a space that cannot be gone through in order.

    Raises:
        ValueError: A key has no end of values, or there are too many points; the message says so.
    """
    sizes = {name: _size(distribution) for name, distribution in space.items()}
    endless = [name for name, size in sizes.items() if size is None]
    if endless:
        raise ValueError(
            f"{', '.join(endless)} has no end of values; give choice() or range(), or choose tpe, "
            "random or gp"
        )
    count = math.prod(size for size in sizes.values() if size is not None)
    if count > COUNTABLE:
        raise ValueError(
            f"the search space has {count:,} points, a grid at most {COUNTABLE:,}; search fewer, "
            "or choose tpe, random or gp"
        )


def points(space: Mapping[str, BaseDistribution]) -> list[Point] | None:
    """Return every point of a space once, in its order; None = there are too many to count."""
    sizes = [_size(distribution) for distribution in space.values()]
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes) or math.prod(known) > COUNTABLE:
        return None
    axes = [_values(distribution) for distribution in space.values()]
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*axes)]


def _key(point: Point) -> tuple[Any, ...]:
    return tuple(point.values())


def _size(distribution: BaseDistribution) -> int | None:
    """Return how many values there are; None = no end of them."""
    if isinstance(distribution, CategoricalDistribution | IntDistribution):
        return len(_values(distribution))
    if isinstance(distribution, FloatDistribution) and distribution.step is not None:
        return round((distribution.high - distribution.low) / distribution.step) + 1
    return None


def _values(distribution: BaseDistribution) -> Sequence[Any]:
    """Return the values of what has a size."""
    if isinstance(distribution, CategoricalDistribution):
        return list(dict.fromkeys(distribution.choices))
    if isinstance(distribution, IntDistribution):
        return range(distribution.low, distribution.high + 1, distribution.step)
    assert isinstance(distribution, FloatDistribution)
    assert distribution.step is not None
    low, high, step = distribution.low, distribution.high, distribution.step
    size = _size(distribution) or 0
    return [min(low + index * step, high) for index in range(size)]  # rounding may pass the end


def _new_point(
    study: optuna.Study,
    space: Mapping[str, BaseDistribution],
    sampler: BaseSampler | None,
    done: Sequence[Point],
) -> Point | None:
    every = points(space)
    new = None if every is None else [point for point in every if point not in done]
    if new is not None and not new:
        return None
    if sampler is None:
        assert new is not None  # see `check_grid`
        return new[0]
    # The sampler proposes on a copy, where a proposal that is not wanted leaves no trace.
    copy = optuna.create_study(directions=study.directions, sampler=sampler)
    copy.add_trials([trial for trial in study.get_trials() if trial.state.is_finished()])
    for _ in range(TRIES):
        trial = copy.ask(dict(space))
        if trial.params not in done:
            return trial.params
    return None if new is None else new[len(done) % len(new)]


def _unrepeated(done: Sequence[Point], repeats: int) -> Point | None:
    """Return the point with the fewest trials; None = each has its repeats."""
    fewest = min(done, key=done.count, default=None)
    return fewest if fewest is not None and done.count(fewest) < repeats else None


def _counts(trial: FrozenTrial) -> bool:
    return not trial.user_attrs.get("abandoned")


def _point(trial: FrozenTrial, space: Mapping[str, BaseDistribution]) -> Point:
    asked = trial.system_attrs.get("fixed_params", {})
    values = {**asked, **trial.params}
    return {name: values[name] for name in space if name in values}


def _carried(trial: FrozenTrial) -> dict[str, Any]:
    """Return what a point that is asked again keeps: its replicate, and the folders it was in."""
    kept = {name: trial.user_attrs[name] for name in ("replicate",) if name in trial.user_attrs}
    folders = [trial.user_attrs[name] for name in ("folder",) if name in trial.user_attrs]
    return kept | {"earlier_folders": folders + trial.user_attrs.get("earlier_folders", [])}


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    if was["directions"] != now["directions"]:
        yield f"directions: was {was['directions']}, now {now['directions']}"
    for part in ("space", "fixed"):
        yield from changes(was[part], now[part])
