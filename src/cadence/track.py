"""From a run's numbers to MLflow, without making training wait.

Values are buffered and a background thread writes them, many at a time: one ``log_metric`` costs
some 6 ms, more than a window of a small model. The step axis is samples seen, so that curves of
runs with different step_size (mini-batches per update) lie over each other.
"""

import logging
import socket
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import mlflow
from filelock import FileLock
from mlflow.entities import Metric, Param
from mlflow.exceptions import MlflowException
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from sqlalchemy.engine import make_url

from cadence.clock import Clock
from cadence.record import Fitted
from cadence.update import Outcome

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
"""How long a value may wait before it is written."""

BATCH = 1000
"""Values that MLflow takes in one call."""

EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Makes MLflow's UI open the experiment on model training."""


class Tracker:
    """One MLflow run: a context manager and an observer of training.

    Entering creates the run. Leaving writes what is buffered and ends the run: FINISHED, KILLED
    after an interrupt, FAILED after any other exception, which is never swallowed.

    Args:
        uri: MLflow's tracking URI.
        experiment: Its name; it is made if it is not there.
        run_name: How the UI calls the run.
        params: The flattened config.
        tags: What else to say of the run, by name.
        texts: Files to keep with the run, by name.
        every: Samples between logged points of ``train/*``, at least 1; the first and the last
            window are always among them.
        run_id: A run that is there already, which is taken over; None = make one.
        parent: The run that a new one is a child of; None = of none.

    Raises:
        ValueError: On entering, when nothing answers at ``uri``.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        *,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        texts: Mapping[str, str],
        every: int,
        run_id: str | None = None,
        parent: str | None = None,
    ) -> None:
        self._uri = uri
        self._experiment = experiment
        self._run_name = run_name
        self._params = params
        self._tags = tags
        self._texts = texts
        self._every = every
        self._parent = parent
        self._latest: tuple[Clock, Outcome] | None = None
        self._logged = Clock()
        self._buffer: list[Metric] = []
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._write_until_closing, daemon=True)
        self.run_id = run_id or ""
        """MLflow's id of the run; empty before one is made."""

    def __enter__(self) -> "Tracker":
        """Create the run and start the writer."""
        self._client = open_client(self._uri)
        try:
            self._begin()
            self._log_params()
            for name, text in self._texts.items():
                self._client.log_text(self.run_id, text, name)
            self._monitor = SystemMetricsMonitor(self.run_id, tracking_uri=self._uri)
            self._monitor.start()
            self._writer.start()
        except BaseException as error:
            self._end(error)
            if isinstance(error, MlflowException | OSError):
                raise _cannot_log(self._uri, error) from error
            raise
        return self

    def _begin(self) -> None:
        """Make the run, or take over the one that is there."""
        tags = dict(self._tags)
        if self._parent is not None:
            tags[MLFLOW_PARENT_RUN_ID] = self._parent
        if not self.run_id:
            experiment = experiment_id(self._client, self._uri, self._experiment)
            run = self._client.create_run(experiment, tags=tags, run_name=self._run_name)
            self.run_id = run.info.run_id
            return
        self._client.update_run(self.run_id, status="RUNNING", name=self._run_name)
        for name, value in tags.items():
            self._client.set_tag(self.run_id, name, value)

    def window(self, clock: Clock, outcome: Outcome) -> None:
        """Keep a window's numbers if a point is due."""
        first = self._latest is None
        self._latest = clock, outcome
        if first or clock.passed(self._every, since=self._logged):
            self._log_window(clock, outcome)

    def evaluation(self, clock: Clock, fitted: Fitted) -> None:
        """Keep an evaluation's numbers, and what the run measures so far."""
        metrics = {"val/loss": fitted.val_loss}
        metrics |= {f"val/{name}": value for name, value in fitted.val_metrics.items()}
        self.log(clock, metrics | _measured(fitted))

    def log(self, clock: Clock, metrics: Mapping[str, float]) -> None:
        """Keep some numbers, to be written soon at the clock's samples."""
        now = int(time.time() * 1000)
        points = [Metric(key, value, now, clock.samples) for key, value in metrics.items()]
        with self._lock:
            self._buffer += points

    def finish(self, clock: Clock, fitted: Fitted, files: Sequence[Path]) -> None:
        """Keep the last numbers of a run, and the files that describe it."""
        self.log(clock, _measured(fitted))
        try:
            for file in files:
                self._client.log_artifact(self.run_id, str(file))
        except (MlflowException, OSError) as error:
            log.warning("MLflow did not take %s (%s)", ", ".join(map(str, files)), error)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is left and end the run as it ended."""
        if self._latest is not None and self._latest[0] != self._logged:
            self._log_window(*self._latest)
        self._closing.set()
        self._writer.join()
        try:
            self._monitor.publish_metrics(self._monitor.aggregate_metrics())
            self._monitor.finish()
            self._flush()
        except (MlflowException, OSError) as failure:
            log.warning("MLflow did not take the last metrics of run %s (%s)", self.run_id, failure)
        self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """End the run; a server that is gone by now does not hide how the training ended."""
        if not self.run_id:
            return
        try:
            if error is not None:
                reason = f"{type(error).__name__}: {error}"
                self._client.set_tag(self.run_id, "cadence.reason", reason)
            self._client.set_terminated(self.run_id, status_after(error))
        except (MlflowException, OSError) as failure:
            log.warning("MLflow still takes run %s for running (%s)", self.run_id, failure)

    def _log_window(self, clock: Clock, outcome: Outcome) -> None:
        self._logged = clock
        self.log(
            clock,
            {
                "train/loss": outcome.loss,
                "train/grad_norm": outcome.grad_norm,
                "train/lr": outcome.lr,
                "train/updates": clock.updates,
            },
        )

    def _log_params(self) -> None:
        params = [Param(key, _param_text(value)) for key, value in self._params.items()]
        for start in range(0, len(params), 100):  # MLflow takes 100 in one call
            self._client.log_batch(self.run_id, params=params[start : start + 100])

    def _write_until_closing(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self._flush_or_wait()

    def _flush_or_wait(self) -> None:
        try:
            self._flush()
        except (MlflowException, OSError) as error:
            log.warning("MLflow took no metrics (%s); they wait, training goes on", error)

    def _flush(self) -> None:
        while self._buffer:
            points = self._buffer[:BATCH]
            self._client.log_batch(self.run_id, metrics=points)
            with self._lock:
                del self._buffer[: len(points)]


def status_after(error: BaseException | None) -> str:
    """Return MLflow's word for a run that ended so; None = without an exception."""
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"


def _measured(fitted: Fitted) -> dict[str, float]:
    return {
        "throughput/samples_per_second": fitted.samples_per_second,
        "throughput/samples_per_second_p10": fitted.samples_per_second_p10,
        "throughput/samples_per_second_p90": fitted.samples_per_second_p90,
        "memory/peak_mib": fitted.peak_memory_mib,
    }


def _param_text(value: Any) -> str:
    return "null" if value is None else str(value)[:6000]  # MLflow's longest


def open_client(uri: str) -> mlflow.MlflowClient:
    """Return a client of an MLflow server or database.

    Raises:
        ValueError: Nothing answers at ``uri``.
    """
    _check_reachable(uri)
    _quiet_libraries()
    try:
        with _one_at_a_time(uri), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the migrations that make a new database
            return mlflow.MlflowClient(uri)
    except MlflowException as error:
        raise _cannot_log(uri, error) from error


def _cannot_log(uri: str, error: Exception) -> ValueError:
    return ValueError(
        f"track.uri={uri}: MLflow cannot log there ({error}); correct it, or train without by "
        "track=none"
    )


def _one_at_a_time(uri: str) -> AbstractContextManager[Any]:
    """Keep two processes from making the same SQLite database at once, which MLflow cannot."""
    database = make_url(uri).database if uri.startswith("sqlite:") else None
    return nullcontext() if database is None else FileLock(f"{database}.lock")


def experiment_id(client: mlflow.MlflowClient, uri: str, name: str) -> str:
    """Return the id of an experiment, which is made if it is not there.

    Raises:
        ValueError: It was deleted.
    """
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(client.create_experiment(name, _artifact_folder(uri), EXPERIMENT_TAGS))
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


def _artifact_folder(uri: str) -> str | None:
    """Return where artifacts go: beside an SQLite file; None = where the server says."""
    if not uri.startswith("sqlite:"):
        return None
    database = make_url(uri).database
    return None if database is None else (Path(database).resolve().parent / "artifacts").as_uri()


def _check_reachable(uri: str) -> None:
    """Fail at once where MLflow's own client would retry for minutes."""
    parts = urlsplit(uri)
    if parts.scheme.startswith("sqlite"):
        database = make_url(uri).database
        try:
            Path(database or ".").resolve().parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"track.uri={uri}: its folder cannot be made ({error}); choose "
                             "another, or track=none") from error  # fmt: skip
    elif parts.scheme in ("", "file"):
        raise ValueError(
            f"track.uri={uri}: MLflow 3 keeps runs in a database, not in a folder; try "
            f"track.uri=sqlite:///{Path(parts.path).absolute()}/mlflow.db"
        )
    elif parts.scheme in ("http", "https"):
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname or "", port), timeout=5).close()
        except OSError as error:
            raise ValueError(
                f"track.uri={uri}: no MLflow server answers ({error}); start it, correct the "
                "address, or train without by track=none"
            ) from error


def _quiet_libraries() -> None:
    """Keep the making of MLflow's database, some fifty lines of migrations, off the console."""
    for name in ("alembic", "mlflow.store.db.utils", "mlflow.system_metrics"):
        logging.getLogger(name).setLevel(logging.WARNING)
