"""An MLflow server or database as `cadence.tracking.upload` sees it."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException

from cadence.system.secrets import in_one_line, shortened
from cadence.tracking.metrics_file import LoggedMetric
from cadence.tracking.mlflow.client import REFUSALS, experiment_id, open_client
from cadence.tracking.mlflow.names import BATCH, PARENT, can_be_named
from cadence.tracking.run_file import TrackedRun
from cadence.tracking.upload import UploadError

log = logging.getLogger(__name__)

RUN_KEY = "cadence.run_key"
"""The tag by which a run is found again; see `cadence.tracking.run_file.TrackedRun.key`."""

REASON = "cadence.reason"
"""The tag that tells why a run did not finish."""


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
        with _uploading():
            experiment = experiment_id(self._client, self._uri, self._experiment)
            wanted = f"tags.`{RUN_KEY}` = '{key}'"
            runs = self._client.search_runs([experiment], wanted, max_results=1)
            return str(runs[0].info.run_id) if runs else None

    def create(self, run: TrackedRun) -> str:
        """Make a run in the experiment."""
        with _uploading():
            experiment = experiment_id(self._client, self._uri, self._experiment)
            tags = _tags(run)
            made = self._client.create_run(experiment, run.began, tags, run.name)
            return str(made.info.run_id)

    def take_over(self, run_id: str, run: TrackedRun) -> None:
        """Let the run be RUNNING, under its new name."""
        with _uploading():
            self._client.update_run(run_id, "RUNNING", run.name)

    def describe(self, run_id: str, run: TrackedRun) -> None:
        """Take what is new. MLflow never changes a param: a tag tells which ones a resume did."""
        with _uploading():
            there = self._client.get_run(run_id).data
            known, wanted, tags = there.params, run.params, _tags(run)
            if changed := [name for name in known if wanted.get(name, known[name]) != known[name]]:
                changes = (f"{name}: {known[name]} -> {wanted[name]}" for name in changed)
                tags["cadence.changed_params"] = "; ".join(changes)
            unknown = (name for name in wanted if name not in known)
            new = [Param(name, wanted[name]) for name in unknown if can_be_named(name, "param")]
            log_batch = partial(self._client.log_batch, run_id)
            taken([RunTag(*tag) for tag in tags.items()], lambda some: log_batch(tags=some))
            for start in range(0, len(new), BATCH):
                taken(new[start : start + BATCH], lambda some: log_batch(params=some))
            if REASON in there.tags:  # why the session ended that goes on now
                self._client.delete_tag(run_id, REASON)
            for name, text in run.texts.items():
                self._client.log_text(run_id, text, name)

    def send(self, run_id: str, points: Sequence[LoggedMetric]) -> None:
        """Take points; those with a name that MLflow cannot have stay in the folder alone."""
        metrics = [
            Metric(point.key, point.value, point.timestamp, point.step)
            for point in points
            if can_be_named(point.key, "metric")
        ]
        with _uploading():
            taken(metrics, partial(self._client.log_batch, run_id))

    def end(self, run_id: str, run: TrackedRun, files: Sequence[Path]) -> None:
        """Keep the files as artifacts, and end the run."""
        with _uploading():
            for file in files:
                self._client.log_artifact(run_id, str(file))
            self._client.set_terminated(run_id, run.status, run.ended)
            if run.reason is not None:  # last: nothing in it keeps the run from its end
                log_batch = partial(self._client.log_batch, run_id)
                taken([RunTag(REASON, run.reason)], lambda some: log_batch(tags=some))


def taken(parts: Sequence[Any], send: Callable[[Sequence[Any]], object]) -> None:
    """Let a server take metrics, params or tags, however few it takes at once.

    What it refuses for good is sent in halves. A single one is sent once more with a shorter text,
    and then left out, with a warning: it stays in the run's folder.

    Args:
        parts: MLflow's own, of one kind.
        send: Sends some of them.
    """
    if not parts:
        return
    try:
        send(parts)
        return
    except MlflowException as error:
        if error.get_http_status_code() != BAD_REQUEST:  # type: ignore[no-untyped-call]
            raise
        refusal = error
    if len(parts) > 1:
        middle = len(parts) // 2
        taken(parts[:middle], send)
        taken(parts[middle:], send)
        return
    (part,) = parts
    if isinstance(part.value, str) and len(part.value) > SHORT:
        taken([type(part)(part.key, shortened(part.value, SHORT))], send)
        return
    log.warning(
        "%s: MLflow does not take it (%s); it stays in the run folder",
        part.key,
        in_one_line(refusal),
    )


BAD_REQUEST = 400
"""The HTTP status of what a server refuses whenever it is asked."""

SHORT = 250
"""Characters of a text that every server takes."""


@contextmanager
def _uploading() -> Iterator[None]:
    try:
        yield
    except REFUSALS as error:
        raise UploadError(f"MLflow takes nothing ({in_one_line(error)})") from error


def _tags(run: TrackedRun) -> dict[str, str]:
    tags = {**run.tags, RUN_KEY: run.key}
    if run.parent is not None:
        tags[PARENT] = run.parent
    return tags
