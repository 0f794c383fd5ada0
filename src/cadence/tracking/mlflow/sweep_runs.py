"""A sweep's runs in MLflow: one parent, named after the study, and a child for each trial."""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import mlflow
from mlflow.entities import Run
from mlflow.exceptions import MlflowException

from cadence.system.locks import waited_for
from cadence.system.secrets import in_one_line
from cadence.tracking import address
from cadence.tracking.mlflow.client import REFUSALS, experiment_id, open_client, refused
from cadence.tracking.mlflow.names import PARENT
from cadence.tracking.mlflow.server import REASON

log = logging.getLogger(__name__)

STUDY = "optuna.study_name"
TRIAL = "optuna.trial_number"
STUDY_ID = "cadence.study_id"
FOLDER = "cadence.sweep_folder"
LOCK = ".parent.lock"


class SweepRuns:
    """The parent run of a sweep, which makes its children.

    Children are made before their trial begins, so the links hold however it ends and wherever it
    runs.

    Args:
        uri: MLflow's tracking URI.
        experiment: The experiment's name.
        name: The study's name.
        folder: The sweep's folder.
        study_id: What tells the study from an earlier one of this name in this folder.
        parent: The parent's id in an earlier session; None = make one.

    Raises:
        ValueError: Nothing answers at ``uri``, or MLflow cannot log there.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        name: str,
        folder: Path,
        study_id: str,
        parent: str | None,
    ) -> None:
        self._client = open_client(uri)
        self._uri = uri
        self._name = name
        self._former: Run | None = None
        with refused(uri):
            self._experiment = experiment_id(self._client, uri, experiment)
            self.parent = self._opened(parent, {STUDY_ID: study_id}) or new_run(
                self._client,
                self._experiment,
                name,
                {STUDY: name, FOLDER: str(folder), STUDY_ID: study_id},
            )

    def _opened(self, parent: str | None, tags: dict[str, str]) -> str | None:
        """Return the parent of an earlier session, RUNNING again; None = there is none to go on."""
        if parent is not None and not self._is_usable(parent):
            parent = None
        parent = parent or _found(self._client, self._experiment, tags)
        if parent is not None:
            self._client.update_run(parent, status="RUNNING")
        return parent

    def _is_usable(self, parent: str) -> bool:
        """Return whether a parent is there, in the experiment; if not, say so and keep it."""
        run, place = _known(self._client, parent), self._uri
        if run is None:
            log.warning("%s does not know the sweep's run %s; it gets another there", place, parent)
            return False
        if run.info.lifecycle_stage != "active":
            what = f"was deleted in {place}"
        elif run.info.experiment_id != self._experiment:
            what = f"is in another experiment of {place}"
        else:
            return True
        log.warning("the sweep's run %s %s; it gets another there", parent, what)
        self._former = run
        return False

    def child(self, trial: int) -> str:
        """Make the run of a trial, and return its id; a server that is away is waited for.

        Raises:
            ValueError: MLflow does not answer for `cadence.tracking.address.WAIT_SECONDS`.
        """
        address.wait(self._uri)
        tags = {PARENT: self.parent, STUDY: self._name, TRIAL: str(trial)}
        with refused(self._uri):
            return new_run(self._client, self._experiment, f"trial {trial}", tags)

    def end_child(self, run_id: str, status: str, reason: str) -> None:
        """End a trial's run as its trial ended, if it did not say so itself."""
        with _borne(f"that run {run_id} is {status}"):
            if self._client.get_run(run_id).info.status not in ("FAILED", "KILLED"):
                self._client.set_terminated(run_id, status)
                self._client.set_tag(run_id, REASON, reason)

    def has_finished(self, run_id: str) -> bool:
        """Return whether a trial's run ended by itself, with all its numbers; one must be there.

        Raises:
            ValueError: MLflow does not answer any more.
        """
        with refused(self._uri):
            run = _known(self._client, run_id)
        return run is not None and bool(run.info.status == "FINISHED")

    def end_lost(self, spared: Collection[str] = ()) -> None:
        """End the children that still seem to run and are not spared: their process is dead."""
        with _borne("which trials its dead process left behind"):
            self._end_children(self.parent, self._experiment, spared)
            former = self._former
            if former is None:
                return
            self._end_children(former.info.run_id, former.info.experiment_id, spared)
            is_open = former.info.status == "RUNNING" and former.info.lifecycle_stage == "active"
            if is_open:
                self.end_child(former.info.run_id, "KILLED", f"it goes on as run {self.parent}")
            self._former = None

    def _end_children(self, parent: str, experiment: str, spared: Collection[str]) -> None:
        lost = f"tags.`{PARENT}` = '{parent}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([experiment], lost):
            if run.info.run_id not in spared:
                self.end_child(run.info.run_id, "KILLED", "its sweep died")

    def end(self, status: str, files: Sequence[Path]) -> None:
        """Keep the report with the parent and end it."""
        with _borne(f"that the sweep is {status}"):
            for file in files:
                self._client.log_artifact(self.parent, str(file))
            self._client.set_terminated(self.parent, status)


def parent_of_folder(uri: str, experiment: str, folder: Path) -> str:
    """Return the parent run of a plain multirun's folder, made by the first of its jobs.

    It only groups them: no process stays to see the last one end, so it is FINISHED at once.

    Raises:
        ValueError: Nothing answers at ``uri``, or MLflow cannot log there.
    """
    client = open_client(uri)
    # Jobs begin at once. Where a folder is not, nothing but a delivery asks.
    one_at_a_time = waited_for(folder / LOCK) if folder.is_dir() else nullcontext()
    with one_at_a_time, refused(uri):
        experiment_of_runs = experiment_id(client, uri, experiment)
        tags = {FOLDER: str(folder)}
        parent = _found(client, experiment_of_runs, tags)
        if parent is None:
            parent = new_run(client, experiment_of_runs, f"multirun {folder.name}", tags)
            client.set_terminated(parent)
        return parent


@contextmanager
def _borne(news: str) -> Iterator[None]:
    """Let a sweep go on, and say so, where MLflow cannot be told how something ended."""
    try:
        yield
    except REFUSALS as error:
        log.warning("MLflow was not told %s (%s)", news, in_one_line(error))


def _known(client: mlflow.MlflowClient, run_id: str) -> Run | None:
    """Return a run, deleted or not; None = there is none of this id."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _found(client: mlflow.MlflowClient, experiment: str, tags: dict[str, str]) -> str | None:
    """Return the newest run that has all these tags; None = there is none."""
    wanted = " and ".join(f"tags.`{name}` = '{value}'" for name, value in tags.items())
    runs: Sequence[Run] = client.search_runs([experiment], wanted, max_results=1)
    return str(runs[0].info.run_id) if runs else None


def new_run(client: mlflow.MlflowClient, experiment: str, name: str, tags: dict[str, str]) -> str:
    """Make a run and return its id."""
    return str(client.create_run(experiment, tags=tags, run_name=name).info.run_id)
