"""From a run's folder to MLflow, without making training wait for it, or end for it.

Every number goes into the folder first (`cadence.tracking.metrics_logger`), and from there to
MLflow in the background (`cadence.tracking.upload`): one ``log_metric`` costs some 6 ms, more than
a window of a small model, and a server may be slow, restart, or never answer.
"""

import logging
import os
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

import mlflow
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from mlflow.utils.validation import (
    MAX_ENTITY_KEY_LENGTH,
    MAX_PARAM_VAL_LENGTH,
    MAX_PARAMS_TAGS_PER_BATCH,
    path_not_unique,
    validate_param_and_metric_name,
)
from sqlalchemy.exc import SQLAlchemyError

from cadence.config.project import command
from cadence.engine.update import Outcome
from cadence.metrics.record import Result
from cadence.plan.clock import Clock
from cadence.system.secrets import in_one_line, redacted
from cadence.tracking import address
from cadence.tracking.metrics_file import LoggedMetric, MetricsFile
from cadence.tracking.metrics_logger import MetricsLogger, milliseconds
from cadence.tracking.mlflow import database
from cadence.tracking.run_file import RunFile, UploadState
from cadence.tracking.upload import BackgroundUpload, Upload, UploadError

log = logging.getLogger(__name__)

RUN_KEY = "cadence.run_key"
"""The tag by which a run is found again; see `cadence.tracking.run_file.RunFile.key`."""

REASON = "cadence.reason"
"""The tag that tells why a run did not finish."""

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's UI open the experiment on model training."""

ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # with its own 7 a dead server is noticed in 4 minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # seconds
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # the URL may hold a password
}
"""What MLflow's client reads from the environment alone; what a user sets there stays."""

REFUSALS = (MlflowException, SQLAlchemyError, OSError)
"""What MLflow's client raises when a server or a database does not take something."""


class Tracker:
    """One run in MLflow: a context manager and an observer of training.

    Entering makes the run. Leaving writes what is left, gives MLflow
    `cadence.tracking.upload.END_SECONDS` to take it, and ends the run: FINISHED, KILLED after an
    interrupt, FAILED after any other exception, which is never swallowed. Everything is in the
    run's folder before MLflow has it; what MLflow did not take, ``python -m src.sync`` delivers.

    Args:
        uri: MLflow's tracking URI.
        experiment: Its name; it is made if it is not there.
        run_name: How the UI calls the run.
        folder: The run's folder.
        params: The flattened config.
        tags: What else to say of the run, by name.
        texts: Files to keep with the run, by name.
        every: Samples between logged numbers of ``train/*``, at least 1; the first and the last
            window are always among them.
        run_id: A run that is there already, which is taken over; None = make one.
        parent: The run that a new one is a child of. A folder: a multirun's, whose run is found or
            made on delivery. None = of none.
        offline: Whether to leave MLflow alone, so that all of it waits for ``src.sync``.
        resumed_at: The samples from where the session goes on that left this folder. What that
            logged after them is dropped if MLflow cannot have it, and else not logged again.
            None = the run begins.

    Raises:
        ValueError: On entering, when nothing answers at ``uri``, another process is at work in the
            folder, or points of another run wait there.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        *,
        folder: Path,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        texts: Mapping[str, str],
        every: int,
        run_id: str | None = None,
        parent: str | Path | None = None,
        offline: bool = False,
        resumed_at: int | None = None,
    ) -> None:
        self._uri = uri
        self._folder = folder
        self._every = every
        self._offline = offline
        self._resumed_at = resumed_at
        self._manifest = RunFile(
            key=uuid4().hex,
            uri=redacted(uri),
            experiment=experiment,
            name=run_name,
            params={name: redacted(param_text(value)) for name, value in params.items()},
            tags={name: redacted(value) for name, value in tags.items()},
            texts={name: redacted(text) for name, text in texts.items()},
            run_id=run_id,
            parent=parent if isinstance(parent, str) else None,
            parent_folder=str(parent) if isinstance(parent, Path) else None,
        )
        self._courier: BackgroundUpload | None = None
        self.run_id = run_id
        """MLflow's id of the run; None before one is made."""

    def __enter__(self) -> "Tracker":
        """Begin the run, in its folder and in MLflow."""
        server = None if self._offline else Mlflow(self._uri, self._manifest.experiment)
        self._journal = MetricsFile(self._folder)
        try:
            self._open_folder()
            if server is not None:
                self._begin(server)
            self._logbook = MetricsLogger(
                self._journal, _Machine().state, every=self._every, resumed_at=self._resumed_at
            )
        except BaseException:
            self._journal.close()
            raise
        return self

    def _open_folder(self) -> None:
        """Begin a run in the folder, or go on with the one that is there."""
        done, earlier = UploadState.load(self._folder), RunFile.load(self._folder)
        self._manifest.began = milliseconds()
        if self._resumed_at is None:
            if self._journal.size > done.points:
                raise ValueError(
                    f"{self._folder}: numbers of an earlier run wait there for MLflow; deliver "
                    f"them by {_sync(self._folder)}, or choose another hydra.run.dir="
                )
            self._journal.clear()
            done = UploadState()
        else:
            self._journal.rewind(self._resumed_at, keep=done.sending)
            done = replace(done, described=False, ended=False)
            if earlier is not None:
                self._manifest.key, self._manifest.began = earlier.key, earlier.began
        done.save(self._folder)
        self._manifest.save(self._folder)

    def _begin(self, server: "Mlflow") -> None:
        delivery = Upload(self._folder, self._manifest, self._journal, server)
        try:
            delivery.begin(new=self._resumed_at is None)
        except BaseException as error:
            self._end(error)
            if delivery.run_id is not None:
                BackgroundUpload(delivery).finish()
            if isinstance(error, UploadError):
                raise _cannot_log(self._uri, error.__cause__ or error) from error
            raise
        self.run_id = delivery.run_id
        self._courier = BackgroundUpload(delivery)

    def window(self, clock: Clock, outcome: Outcome) -> None:
        """Keep a window's numbers if a point is due."""
        self._logbook.window(clock, outcome)

    def evaluation(self, clock: Clock, result: Result) -> None:
        """Keep an evaluation's numbers, and what the run measures so far."""
        self._logbook.evaluation(clock, result)

    def log(self, clock: Clock, metrics: Mapping[str, float]) -> None:
        """Keep some numbers at the clock's samples."""
        self._logbook.log(clock, metrics)

    def flush(self) -> None:
        """Write what waits in memory into the run's folder.

        Raises:
            OSError: The disk does not take it.
        """
        self._logbook.flush()

    def finish(self, clock: Clock, result: Result, files: Sequence[Path]) -> None:
        """Keep the last numbers of a run, and the files in its folder that describe it."""
        self._logbook.measured(clock, result)
        self._manifest.files = [str(file.relative_to(self._folder)) for file in files]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is left, deliver it, and end the run as it ended."""
        try:
            self._logbook.close(goes_on=isinstance(error, KeyboardInterrupt))
        finally:
            self._end(error)
            if self._courier is not None and not self._courier.finish():
                log.warning(
                    "MLflow has not taken all of this run; when it answers, deliver the rest by %s",
                    _sync(self._folder),
                )
            self._journal.close()

    def _end(self, error: BaseException | None) -> None:
        self._manifest.ended = milliseconds()
        self._manifest.status = status_after(error)
        if error is not None:
            self._manifest.reason = redacted(f"{type(error).__name__}: {error}")
        self._manifest.save(self._folder)


def status_after(error: BaseException | None) -> str:
    """Return MLflow's word for a run that ended so; None = without an exception."""
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


class Mlflow:
    """Where `cadence.tracking.upload` tells runs: an MLflow server or database.

    Args:
        uri: MLflow's tracking URI.
        experiment: Its name; it is made if it is not there.

    Raises:
        ValueError: Nothing answers at ``uri``, or the experiment has no name.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        if not experiment.strip():
            raise ValueError("track.experiment=: an experiment needs a name, such as cadence")
        self._client = open_client(uri)
        self._uri = uri
        self._experiment = experiment

    def found(self, key: str) -> str | None:
        """Look for the run by its tag; for this and the others see
        `cadence.tracking.upload.Server`."""
        with _delivering():
            experiment = experiment_id(self._client, self._uri, self._experiment)
            wanted = f"tags.`{RUN_KEY}` = '{key}'"
            runs = self._client.search_runs([experiment], wanted, max_results=1)
            return str(runs[0].info.run_id) if runs else None

    def create(self, manifest: RunFile) -> str:
        """Make a run in the experiment."""
        with _delivering():
            experiment = experiment_id(self._client, self._uri, self._experiment)
            tags = _tags(manifest)
            run = self._client.create_run(experiment, manifest.began, tags, manifest.name)
            return str(run.info.run_id)

    def take_over(self, run_id: str, manifest: RunFile) -> None:
        """Let the run be RUNNING, under its new name."""
        with _delivering():
            self._client.update_run(run_id, "RUNNING", manifest.name)

    def describe(self, run_id: str, manifest: RunFile) -> None:
        """Take what is new. MLflow never changes a param: a tag tells which ones a resume did."""
        with _delivering():
            there = self._client.get_run(run_id).data
            known, wanted, tags = there.params, manifest.params, _tags(manifest)
            if changed := [name for name in known if wanted.get(name, known[name]) != known[name]]:
                changes = (f"{name}: {known[name]} -> {wanted[name]}" for name in changed)
                tags["cadence.changed_params"] = "; ".join(changes)
            unknown = (name for name in wanted if name not in known)
            new = [Param(name, wanted[name]) for name in unknown if can_be_named(name, "param")]
            for start in range(0, max(1, len(new)), MAX_PARAMS_TAGS_PER_BATCH):
                some = new[start : start + MAX_PARAMS_TAGS_PER_BATCH]
                told = [RunTag(*tag) for tag in tags.items()]
                self._client.log_batch(run_id, params=some, tags=told)
            if REASON in there.tags:  # why the session ended that goes on now
                self._client.delete_tag(run_id, REASON)
            for name, text in manifest.texts.items():
                self._client.log_text(run_id, text, name)

    def send(self, run_id: str, points: Sequence[LoggedMetric]) -> None:
        """Take points; those with a name that MLflow cannot have stay in the folder alone."""
        metrics = [
            Metric(point.key, point.value, point.timestamp, point.step)
            for point in points
            if can_be_named(point.key, "metric")
        ]
        with _delivering():
            self._client.log_batch(run_id, metrics)

    def end(self, run_id: str, manifest: RunFile, files: Sequence[Path]) -> None:
        """Keep the files as artifacts, and end the run."""
        with _delivering():
            for file in files:
                self._client.log_artifact(run_id, str(file))
            if manifest.reason is not None:
                self._client.set_tag(run_id, REASON, manifest.reason)
            self._client.set_terminated(run_id, manifest.status, manifest.ended)


@contextmanager
def _delivering() -> Iterator[None]:
    try:
        yield
    except REFUSALS as error:
        raise UploadError(f"MLflow takes nothing ({in_one_line(error)})") from error


def _tags(manifest: RunFile) -> dict[str, str]:
    tags = {**manifest.tags, RUN_KEY: manifest.key}
    if manifest.parent is not None:
        tags[MLFLOW_PARENT_RUN_ID] = manifest.parent
    return tags


@cache
def can_be_named(key: str, kind: str) -> bool:
    """Return whether MLflow takes a param or metric of this name; one it does not is told once."""
    takes = (
        len(key) <= MAX_ENTITY_KEY_LENGTH
        and validate_param_and_metric_name(key)
        and not path_not_unique(key)
    )
    if not takes:
        log.warning("%s: MLflow takes no %s of this name; it stays in the run folder", key, kind)
    return bool(takes)


def param_text(value: Any) -> str:
    """Return a param's value as MLflow takes it: None is null, and nothing is too long."""
    return "null" if value is None else str(value)[:MAX_PARAM_VAL_LENGTH]


def _sync(folder: Path) -> str:
    return f"{command('sync')} {shlex.quote(str(folder))}"


class _Machine(SystemMetricsMonitor):
    """MLflow's measurements of the machine, without its thread and its client."""

    def __init__(self) -> None:
        _quiet_libraries()
        gpus = self._initialize_gpu_monitor()
        self.monitors = [CPUMonitor(), DiskMonitor(), NetworkMonitor(), *([gpus] if gpus else [])]
        self.state()  # the first percentage of a processor's time has no beginning

    def state(self) -> dict[str, float]:
        """Return what is measured since the last call, by MLflow's names."""
        self.collect_metrics()
        state = {f"system/{name}": value for name, value in self.aggregate_metrics().items()}
        for monitor in self.monitors:
            monitor.clear_metrics()
        return state


def open_client(uri: str) -> mlflow.MlflowClient:
    """Return a client of an MLflow server or database.

    Raises:
        ValueError: Nothing answers at ``uri``.
    """
    address.check(uri)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _quiet_libraries()
    with refused(uri), database.one_at_a_time(uri), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of the migrations that make a new database
        database.make_whole(uri)
        return mlflow.MlflowClient(uri)


def _quiet_libraries() -> None:
    """Keep migrations, retries and tracebacks of what is told in one line off the console."""
    for chatty in ("alembic", "mlflow.system_metrics"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


@contextmanager
def refused(uri: str) -> Iterator[None]:
    """Turn what MLflow's client raises into a ValueError that names the key and a remedy."""
    try:
        yield
    except REFUSALS as error:
        raise _cannot_log(uri, error) from error


def _cannot_log(uri: str, error: BaseException) -> ValueError:
    return ValueError(
        f"track.uri={redacted(uri)}: MLflow cannot log there ({in_one_line(error)}); correct it, "
        "or train without by track=none"
    )


def experiment_id(client: mlflow.MlflowClient, uri: str, name: str) -> str:
    """Return the id of an experiment, which is made if it is not there.

    Raises:
        ValueError: It was deleted.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            folder = address.artifact_folder(uri)
            return str(client.create_experiment(name, folder, EXPERIMENT_TAGS))
        except MlflowException:  # another run may have made it just now
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        raise ValueError(f"track.experiment={name}: it was deleted in MLflow; restore it there, or "
                         "choose another name")  # fmt: skip
    for key, value in EXPERIMENT_TAGS.items():
        if experiment.tags.get(key) != value:
            client.set_experiment_tag(experiment.experiment_id, key, value)
    return str(experiment.experiment_id)
