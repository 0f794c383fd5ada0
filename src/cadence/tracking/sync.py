"""From a run's folder to MLflow, after its session: all that MLflow does not have yet.

`cadence.tracking.mlflow.tracker` uploads while a run goes on; this is for runs with
track.offline=true, and for those whose server was away or whose process died.
"""

import json
from contextlib import closing
from pathlib import Path

from cadence.metrics.summary import FILE as SUMMARY
from cadence.system.atomic_write import write_atomically
from cadence.system.secrets import HIDDEN, redacted
from cadence.tracking.metrics_file import FILE as METRICS
from cadence.tracking.metrics_file import MetricsFile
from cadence.tracking.mlflow.server import Mlflow
from cadence.tracking.mlflow.sweep_runs import parent_of_folder
from cadence.tracking.run_file import FILE, RunFile
from cadence.tracking.upload import Upload, UploadError


def delivered(folder: Path, uri: str | None) -> str:
    """Deliver what a run's folder holds, and return in one line what that was.

    Args:
        folder: The run's folder.
        uri: MLflow's tracking URI; None = the one that the run was started with.

    Raises:
        ValueError: It is no folder of a tracked run, its run is still going on, its password is
            missing, or nothing answers.
        UploadError: MLflow did not take something; what it took is noted.
    """
    file = RunFile.load(folder)
    if file is None:
        raise ValueError(f"there is no {FILE} in it; give the folder of a tracked run")
    last_seen = (folder / METRICS).stat().st_mtime
    with closing(MetricsFile(folder)) as metrics:
        if file.run.status is None:  # and no other process is at work there
            file.update(status="KILLED", reason="its process died", ended=int(last_seen * 1000))
        run = file.run
        if run.upload.ended and run.upload.points == metrics.size:
            return f"nothing is left to deliver; it is run {run.run_id}"
        uri = uri or run.uri
        if HIDDEN in uri:
            raise ValueError(f"track.uri={uri}: its secret is not kept; give all of it by --uri")
        server = Mlflow(uri, run.experiment)
        if run.parent is None and run.parent_folder is not None:
            file.update(parent=parent_of_folder(uri, run.experiment, Path(run.parent_folder)))
        # Described again: whoever missed it meanwhile may have said there that it was lost.
        file.update_upload(described=False)
        upload = Upload(file, folder, metrics, server)
        points = 0
        try:
            upload.begin()
            _name_run(folder / SUMMARY, upload.run_id)
            while sent := upload.send_batch():
                points += sent
            upload.end()
        except UploadError as error:
            raise UploadError(
                f"{error}; what it took is noted: the same command goes on, and without run_id and "
                f"upload in {FILE} it begins anew"
            ) from error
    news = f"{points:,} numbers and that it is {run.status}"
    return f"delivered {news} to run {upload.run_id} at {redacted(uri)}"


def _name_run(summary: Path, run_id: str | None) -> None:
    """Let a run's summary name its run in MLflow."""
    if not summary.exists():
        return
    held = json.loads(summary.read_text())
    if held["mlflow_run_id"] != run_id:
        held["mlflow_run_id"] = run_id
        write_atomically(summary, json.dumps(held, indent=2) + "\n")
