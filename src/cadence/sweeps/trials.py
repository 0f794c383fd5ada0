"""A sweep's study as plain values: what was asked, what each trial came to, and why some failed."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.engine import make_url
from sqlalchemy.exc import SQLAlchemyError

from cadence.config import schema
from cadence.config.keys import conditions, marked

OBJECTIVES = {
    "val_loss": StudyDirection.MINIMIZE,
    "samples_per_second": StudyDirection.MAXIMIZE,
}
"""What a sweep looks for, in the order of a trial's values."""

CONDITIONS = conditions()
"""The fixed keys that a report names, where they are set."""

CHOSEN = tuple(sorted(group.removesuffix(".") for group in marked(schema.CHOSEN)))
"""The groups that a sweep's file chooses for its trials, whatever a plain run has."""


class FailedTrial(NamedTuple):
    """A trial that came to nothing comparable."""

    trial: int
    point: str
    """Its values of the searched keys; a dash where it failed before it had any."""
    reason: str


@dataclass(frozen=True, slots=True)
class Trials:
    """A sweep so far. Trials that a dead sweep left behind were asked again: they are left out."""

    name: str
    space: Mapping[str, str]
    """The searched keys and where they may lie; empty where the study does not tell."""
    fixed: Mapping[str, Any]
    """Every other key of the config that all trials share; empty where the study does not tell."""
    parent_run: str | None
    """The sweep's run in MLflow; None = it was not tracked."""
    trials: Sequence[FrozenTrial]

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
        told = (trial.user_attrs.get("samples") for trial in self.compared())
        return sorted({int(samples) for samples in told if samples is not None})

    def equal_seconds(self) -> float | None:
        """Return the wall time that every trial was given; None = something else ends them."""
        ends = ("trainer.max_samples", "trainer.max_epochs")
        if any(key in self.space or self.fixed.get(key) is not None for key in ends):
            return None
        seconds: float | None = self.fixed.get("trainer.max_seconds")
        return seconds

    def choices(self) -> dict[str, Any]:
        """Return what a run must be given beside a point to be trained as the trials were.

        It is what a sweep's file chooses; what its user gave is not told apart from the defaults.
        """
        told = {group: self.fixed.get(f"{group}.name") for group in CHOSEN}
        choices = {
            group: name
            for group, name in told.items()
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
        ValueError: The study asks something else than a low loss and a high throughput.
    """
    if study.directions != list(OBJECTIVES.values()):
        asked = ", ".join(direction.name.lower() for direction in study.directions)
        raise ValueError(
            f"study {study.study_name}: its directions are {asked}; a report needs minimize "
            "(val_loss), maximize (samples_per_second), in this order"
        )
    question = study.user_attrs.get("question", {})
    return Trials(
        name=study.study_name,
        space=question.get("space", {}),
        fixed=question.get("fixed", {}),
        parent_run=study.user_attrs.get("mlflow_parent_run_id"),
        trials=[
            trial
            for trial in study.get_trials(deepcopy=False)
            if not trial.user_attrs.get("abandoned")
        ],
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
    for kind, values in (("params", trial.params), ("user_attrs", trial.user_attrs)):
        for key, value in values.items():
            yield f"{kind}_{key}", json.dumps(value) if isinstance(value, dict | list) else value
