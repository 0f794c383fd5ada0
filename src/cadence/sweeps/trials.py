"""A sweep's study as plain values: what was searched, each trial's result, and why some failed."""

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from cadence.sweeps.definition import STORED, Options

OBJECTIVES = {
    "val_loss": StudyDirection.MINIMIZE,
    "samples_per_second": StudyDirection.MAXIMIZE,
}
"""What a sweep looks for, in the order of a trial's values."""

CONDITIONS = (
    "trainer.max_samples",
    "trainer.max_epochs",
    "trainer.max_seconds",
    "data._target_",
    "data.batch_size",
    "model._target_",
    "optimizer._target_",
    "optimizer.lr",
    "schedule.name",
    "trainer.microbatch_size",
    "device.name",
    "device.precision",
    "distributed.processes",
    "seed",
)
"""The fixed keys that a report names, where they are set."""

CHOSEN = ("scaling", "schedule")
"""The groups that a sweep's file chooses for its trials, whatever a plain run has."""

ENDS = ("trainer.max_samples", "trainer.max_epochs")
"""The keys that end a trial, but for its wall time."""

ABANDONED = "abandoned"
"""The user attribute of a trial that a dead sweep left behind; its point was enqueued again."""

SUMMARY = "summary"
"""The user attribute with the summary of a trial's run; before, each key of it had its own."""

GRID = "grid"
"""The user attribute of a study with the trials of its whole grid, repeats included."""

OVERRIDES = "overrides"
"""The user attribute with the overrides that all trials share; before, each had its own."""


def is_abandoned(trial: FrozenTrial) -> bool:
    """Return whether a dead sweep left a trial behind, whose point was enqueued again."""
    return bool(trial.user_attrs.get(ABANDONED))


def attributes(trial: FrozenTrial) -> dict[str, Any]:
    """Return a trial's user attributes with each key of its summary and overrides by itself."""
    own = trial.user_attrs
    rest = {name: value for name, value in own.items() if name not in (SUMMARY, OVERRIDES)}
    return {**own.get(OVERRIDES, {}), **rest, **own.get(SUMMARY, {})}


class FailedTrial(NamedTuple):
    """A trial without a result to compare."""

    trial: int
    point: str
    """The values of the searched keys; a dash where the trial failed before it had any."""
    reason: str


@dataclass(frozen=True, slots=True)
class Trials:
    """A sweep so far, without the trials that a dead sweep left behind."""

    name: str
    space: Mapping[str, str]
    """The searched keys and their distributions; empty where the study has none stored."""
    fixed: Mapping[str, Any]
    """Every other key of the config that all trials share; empty where the study has none."""
    parent_run: str | None
    """The sweep's run in MLflow; None means a sweep without tracking."""
    trials: Sequence[FrozenTrial]
    options: Options = field(default_factory=dict)
    """What the options of searched config groups decide; none in studies of before."""
    grid: int | None = None
    """The trials of a whole grid, repeats included; None means another sampler."""

    def compared(self) -> list[FrozenTrial]:
        """Return the trials with a finite loss and a finite throughput above 0, in their order."""
        return [trial for trial in self.trials if _is_comparable(trial)]

    def failures(self) -> list[FailedTrial]:
        """Return the trials that failed, and those that completed with nothing to compare."""
        return [
            FailedTrial(trial.number, _point(trial), _reason(trial))
            for trial in self.trials
            if trial.state.is_finished() and not _is_comparable(trial)
        ]

    def open(self) -> int:
        """Return how many trials are running or waiting."""
        return sum(not trial.state.is_finished() for trial in self.trials)

    def samples(self) -> list[int]:
        """Return the different numbers of samples that compared trials were trained on."""
        known = (attributes(trial).get("samples") for trial in self.compared())
        return sorted({int(samples) for samples in known if samples is not None})

    def equal_seconds(self) -> float | None:
        """Return the seconds that every trial was given; None means that something else ends them.

        What an option of a searched group decides is not given to every trial.
        """
        decided = self.decided()
        if any(key in self.space or self.fixed.get(key) is not None for key in ENDS):
            return None
        if any(value is not None for key in ENDS for value in decided.get(key, ())):
            return None
        seconds: float | None = self.fixed.get("trainer.max_seconds")
        return seconds

    def decided(self) -> dict[str, list[Any]]:
        """Return the keys that options decide, each with its values."""
        values: defaultdict[str, list[Any]] = defaultdict(list)
        for options in self.options.values():
            for decided in options.values():
                for key, value in decided.items():
                    values[key].append(value)
        return values

    def config_of(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the known config of a point: what all trials share, and what its options decide.

        Args:
            params: The searched keys and their values.
        """
        config = dict(self.fixed)
        for group, options in self.options.items():
            config |= options.get(str(params.get(group)), {})
        return config

    def choices(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a run must be given beside a point to be trained as the trials were.

        The choices are those of a sweep's file; what its user gave is no other than the defaults.

        Args:
            params: The point: the searched keys and their values.
        """
        config = self.config_of(params)
        names = {group: config.get(f"{group}.name") for group in CHOSEN}
        choices = {
            group: name
            for group, name in names.items()
            if name is not None and group not in self.space
        }
        if (seconds := self.equal_seconds()) is not None:
            choices |= {"trainer.max_epochs": "null", "trainer.max_samples": "null"}
            choices["trainer.max_seconds"] = f"{seconds:g}"
        return choices

    def conditions(self) -> dict[str, str]:
        """Return what held for every trial: samples or seconds, lr scaling and `CONDITIONS`."""
        conditions = {}
        samples, seconds = self.samples(), self.equal_seconds()
        if seconds is not None:
            seen = f", for {samples[0]:,} to {samples[-1]:,} samples" if samples else ""
            conditions["seconds"] = f"{seconds:g} of wall time{seen}"
        elif len(samples) == 1:
            conditions["samples"] = f"{samples[0]:,}"
        rule = self.fixed.get("scaling.name")
        if rule == "none":
            is_same = "optimizer.lr" in self.fixed
            conditions["lr scaling"] = "none" + is_same * " (the same lr at every effective batch)"
        elif rule is not None:
            reference = self.fixed.get("scaling.reference")
            start = "2 mini-batches per update, all processes together"
            start = start if reference is None else f"{reference:g} items per update"
            conditions["lr scaling"] = f"{rule} from {start}"
        named = [key for key in CONDITIONS if self.fixed.get(key) is not None]
        conditions |= {key: str(self.fixed[key]) for key in named}
        replicates = {trial.user_attrs.get("replicate", 0) for trial in self.compared()}
        if "seed" in conditions and max(replicates, default=0) > 0:
            conditions["seed"] += f" to {self.fixed['seed'] + max(replicates)}, by repeat"
        return conditions

    def conditions_by_option(self) -> list[tuple[str, str, str]]:
        """Return the conditions that options decide, as (option, condition, value)."""
        return [
            (f"{group}={option}", key, str(decided[key]))
            for group, options in self.options.items()
            for option, decided in options.items()
            for key in ("scaling.name", *CONDITIONS)
            if decided.get(key) is not None
        ]

    def csv(self) -> str:
        """Return the trials as CSV with Optuna's names: number, state, values_*, params_*, ...

        What a trial lacks is empty; lists and dicts are JSON.
        """
        rows = [dict(_cells(trial)) for trial in self.trials]
        columns = {"number": None, "state": None, **{f"values_{name}": None for name in OBJECTIVES}}
        for kind in ("params_", "user_attrs_"):
            columns |= {key: None for row in rows for key in row if key.startswith(kind)}
        text = io.StringIO()
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()


def read(study: optuna.Study) -> Trials:
    """Read a study of any storage; trials and the study may lack any attribute.

    Raises:
        ValueError: The study searches for something else than a low loss and a high throughput.
    """
    if study.directions != list(OBJECTIVES.values()):
        found = ", ".join(direction.name.lower() for direction in study.directions)
        raise ValueError(
            f"study {study.study_name}: its directions are {found}; a report needs minimize "
            "(val_loss), maximize (samples_per_second), in this order"
        )
    about = study.user_attrs
    definition = about.get(STORED, {})
    return Trials(
        name=study.study_name,
        space=definition.get("space", {}),
        fixed=definition.get("fixed", {}),
        parent_run=about.get("mlflow_parent_run_id"),
        trials=[trial for trial in study.get_trials(deepcopy=False) if not is_abandoned(trial)],
        options=definition.get("options", {}),
        grid=about.get(GRID),
    )


def load(storage_url: str, study_name: str) -> optuna.Study:
    """Return a study that is there.

    Args:
        storage_url: An SQLAlchemy URL, such as ``sqlite:///sweeps/step_size/study.db``. A database
            file that is not there is not made.
        study_name: The study's name.

    Raises:
        ValueError: There is no such database, nothing answers there, or it has no such study.
    """
    try:
        url = make_url(storage_url)
        if url.get_backend_name() == "sqlite" and not Path(url.database or "").is_file():
            raise ValueError(f"{storage_url}: there is no such file; run the sweep first")
        names = optuna.get_all_study_names(storage_url)
        if study_name in names:
            return optuna.load_study(study_name=study_name, storage=storage_url)
    except (SQLAlchemyError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"the study's storage cannot be opened: {reason}") from error
    there = f"there are {', '.join(sorted(names))}" if names else "there is none yet"
    raise ValueError(f"{study_name}: no study of this name in {url}; {there}")


def shown(value: Any) -> str:
    """Return a searched key's value as a reader needs it."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_comparable(trial: FrozenTrial) -> bool:
    if trial.state != TrialState.COMPLETE:
        return False
    val_loss, samples_per_second = trial.values
    return math.isfinite(val_loss) and 0 < samples_per_second < math.inf


def _point(trial: FrozenTrial) -> str:
    return ", ".join(f"{key} {shown(value)}" for key, value in trial.params.items()) or "-"


def _reason(trial: FrozenTrial) -> str:
    if trial.state == TrialState.COMPLETE:
        values = zip(OBJECTIVES, trial.values, strict=True)
        return "nothing to compare: " + ", ".join(f"{name} {value}" for name, value in values)
    return str(trial.user_attrs.get("reason") or "no reason was kept")


def _cells(trial: FrozenTrial) -> Iterator[tuple[str, Any]]:
    yield "number", trial.number
    yield "state", trial.state.name
    for name, value in zip(OBJECTIVES, trial.values or (), strict=False):
        yield f"values_{name}", value
    for kind, values in (("params", trial.params), ("user_attrs", attributes(trial))):
        for key, value in values.items():
            yield f"{kind}_{key}", json.dumps(value) if isinstance(value, dict | list) else value
