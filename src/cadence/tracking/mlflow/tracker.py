"""From a run's folder to MLflow, without making training wait for it, or end for it.

Every number goes into the folder first (`cadence.tracking.metrics_logger`), and from there to
MLflow in the background (`cadence.tracking.upload`): one ``log_metric`` costs some 6 ms, more than
a window of a small model, and a server may be slow, restart, or never answer.
"""

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import uuid4

from cadence.config.project import command
from cadence.engine.update import Outcome
from cadence.metrics.result import Result, Window
from cadence.metrics.summary import status_after
from cadence.plan.clock import Clock
from cadence.system.atomic_write import copy_atomically
from cadence.system.secrets import shortened, with_its_type
from cadence.tracking.address import cannot_log
from cadence.tracking.machine import Machine
from cadence.tracking.metrics_file import MetricsFile
from cadence.tracking.metrics_logger import MetricsLogger, milliseconds
from cadence.tracking.mlflow.names import NAME_LENGTH, param_text
from cadence.tracking.mlflow.server_process import MlflowProcess, opened
from cadence.tracking.run_file import (
    UNKNOWN,
    DamagedRunFileError,
    RunFile,
    TrackedRun,
    UploadState,
)
from cadence.tracking.upload import BackgroundUpload, Server, Upload, UploadError
from cadence.training import callback
from cadence.training.trainer import Trainer

log = logging.getLogger(__name__)


class Tracker(callback.Tracker):
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
        run = TrackedRun(
            key=uuid4().hex,
            uri=uri,
            experiment=experiment,
            name=shortened(run_name, NAME_LENGTH),
            params={name: param_text(value) for name, value in params.items()},
            tags=dict(tags),
            texts=dict(texts),
            run_id=run_id,
            parent=parent if isinstance(parent, str) else None,
            parent_folder=str(parent) if isinstance(parent, Path) else None,
        )
        self._artifacts: list[Path] = []
        self._file = RunFile(folder, run)
        self._server: Server | None = None
        self._upload: BackgroundUpload | None = None

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None before one is made."""
        return self._file.run.run_id

    def __enter__(self) -> "Tracker":
        """Begin the run, in its folder and in MLflow."""
        if not self._offline:
            self._server = opened(self._uri, self._file.run.experiment)
        try:
            self._metrics = MetricsFile(self._folder)
        except BaseException:
            self._close_server()
            raise
        try:
            self._open_folder()
            if self._server is not None:
                self._begin(self._server)
            self._logger = MetricsLogger(
                self._metrics, Machine().state, every=self._every, resumed_at=self._resumed_at
            )
        except BaseException:
            self._metrics.close()
            self._close_server()
            raise
        return self

    def _close_server(self) -> None:
        if isinstance(self._server, MlflowProcess):
            self._server.close()

    def _open_folder(self) -> None:
        """Begin a run in the folder, or go on with the one that is there."""
        new, began = self._resumed_at is None, milliseconds()
        earlier = self._earlier()
        state = earlier.upload if earlier else UploadState()
        if new:
            if self._metrics.size > state.points:
                raise ValueError(
                    f"{self._folder}: numbers of an earlier run wait there for MLflow; deliver "
                    f"them by {_sync(self._folder)}, or choose another hydra.run.dir="
                )
            self._metrics.clear()
            self._file.update(began=began)
            return
        self._metrics.rewind(self._resumed_at or 0, keep=state.sending)
        state = replace(state, described=False, ended=False)
        if earlier is None:
            self._file.update(began=began, upload=state)
        else:
            self._file.update(
                key=earlier.key,
                began=earlier.began or began,
                run_id=earlier.run_id or self._file.run.run_id,
                upload=state,
            )

    def _earlier(self) -> TrackedRun | None:
        """Return the run that the folder holds; None = none is there.

        A session that goes on needs no more of a damaged file than that a server may have all.
        """
        try:
            earlier = RunFile.load(self._folder)
        except DamagedRunFileError as error:
            if self._resumed_at is None:
                raise
            log.warning("%s; MLflow is sent again what it may have been sent already", error)
            return replace(self._file.run, upload=UNKNOWN)
        return None if earlier is None else earlier.run

    def _begin(self, server: Server) -> None:
        upload = Upload(self._file, self._folder, self._metrics, server)
        try:
            upload.begin(new=self._resumed_at is None)
        except BaseException as error:
            self._end(error)
            if upload.run_id is not None:
                BackgroundUpload(upload).finish()
            if isinstance(error, UploadError):
                raise cannot_log(self._uri, error.__cause__ or error) from error
            raise
        self._upload = BackgroundUpload(upload)

    def on_window_end(self, trainer: Trainer, window: Window) -> None:
        """Keep a window's numbers if a point is due."""
        self.window(trainer.clock, window)

    def on_evaluation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Keep an evaluation's numbers, and what the run measures so far."""
        self.evaluation(trainer.clock, trainer.result)

    def window(self, clock: Clock, outcome: Outcome | Window) -> None:
        """Keep a window's numbers if a point is due."""
        self._logger.window(clock, outcome)

    def evaluation(self, clock: Clock, result: Result) -> None:
        """Keep an evaluation's numbers, and what the run measures so far."""
        self._logger.evaluation(clock, result)

    def log(self, name: str, value: float, samples: int) -> None:
        """Keep a number at that many samples seen."""
        self._logger.log(Clock(samples=samples), {name: value})

    def log_figure(self, name: str, figure: Any, samples: int) -> None:
        """Keep a figure as ``figures/NAME-SAMPLES.png``, for MLflow too at the run's end."""
        file = self._folder / "figures" / f"{name.replace('/', '_')}-{samples}.png"
        file.parent.mkdir(exist_ok=True)
        figure.savefig(file)
        self._artifacts.append(file)

    def log_artifact(self, path: Path) -> None:
        """Keep a copy of a file in ``artifacts/``, for MLflow too at the run's end."""
        file = self._folder / "artifacts" / path.name
        file.parent.mkdir(exist_ok=True)
        copy_atomically(path, file)
        self._artifacts.append(file)

    def flush(self) -> None:
        """Write what waits in memory into the run's folder.

        Raises:
            OSError: The disk does not take it.
        """
        self._logger.flush()

    def finish(self, clock: Clock, result: Result, files: Sequence[Path]) -> None:
        """Keep the last numbers of a run, and the files in its folder that describe it."""
        self._logger.measured(clock, result)
        kept = dict.fromkeys([*self._artifacts, *files])
        self._file.update(files=[str(file.relative_to(self._folder)) for file in kept])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is left, deliver it, and end the run as it ended."""
        try:
            self._logger.close(goes_on=isinstance(error, KeyboardInterrupt))
        finally:
            self._end(error)
            if self._upload is None or self._upload.finish():
                self._close_server()
            else:
                log.warning(
                    "MLflow has not taken all of this run; when it answers, deliver the rest by %s",
                    _sync(self._folder),
                )
            self._metrics.close()

    def _end(self, error: BaseException | None) -> None:
        reason = None if error is None else with_its_type(error)
        self._file.update(ended=milliseconds(), status=status_after(error), reason=reason)


def _sync(folder: Path) -> str:
    return f"{command('sync')} {shlex.quote(str(folder))}"
