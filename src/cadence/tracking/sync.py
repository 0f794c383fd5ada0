"""From a run's folder to MLflow, after its session: all that it was not told yet.

`cadence.tracking.mlflow.tracker` delivers while a run goes on; this is for runs with
track.offline=true, and for those whose server was away or whose process died.
"""

import json
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from cadence.metrics.summary import FILE as SUMMARY
from cadence.system.atomic_write import write_atomically
from cadence.system.secrets import HIDDEN, redacted
from cadence.tracking.metrics_file import FILE as JOURNAL
from cadence.tracking.metrics_file import MetricsFile
from cadence.tracking.mlflow.sweep_runs import parent_of_folder
from cadence.tracking.mlflow.tracker import Mlflow
from cadence.tracking.run_file import DELIVERED, RunFile, UploadState
from cadence.tracking.run_file import FILE as MANIFEST
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
    manifest = RunFile.load(folder)
    if manifest is None:
        raise ValueError(f"there is no {MANIFEST} in it; give the folder of a tracked run")
    last_seen = (folder / JOURNAL).stat().st_mtime
    with closing(MetricsFile(folder)) as journal:
        if manifest.status is None:  # and no other process is at work there
            manifest.status, manifest.reason = "KILLED", "its process died"
            manifest.ended = int(last_seen * 1000)
            manifest.save(folder)
        done = UploadState.load(folder)
        if done.ended and done.points == journal.size:
            return f"nothing is left to deliver; it is run {done.run_id}"
        uri = uri or manifest.uri
        if HIDDEN in uri:
            raise ValueError(f"track.uri={uri}: its secret is not kept; give all of it by --uri")
        server = Mlflow(uri, manifest.experiment)
        if manifest.parent is None and manifest.parent_folder is not None:
            group = Path(manifest.parent_folder)
            manifest.parent = parent_of_folder(uri, manifest.experiment, group)
        # Described again: whoever missed it meanwhile may have said there that it was lost.
        replace(done, described=False).save(folder)
        delivery = Upload(folder, manifest, journal, server)
        points = 0
        try:
            delivery.begin()
            _name_run(folder / SUMMARY, delivery.run_id)
            while sent := delivery.send_batch():
                points += sent
            delivery.end()
        except UploadError as error:
            raise UploadError(
                f"{error}; what it took is noted: the same command goes on, and without "
                f"{DELIVERED} it begins anew"
            ) from error
    news = f"{points:,} numbers and that it is {manifest.status}"
    return f"delivered {news} to run {delivery.run_id} at {redacted(uri)}"


def _name_run(summary: Path, run_id: str | None) -> None:
    """Let a run's summary name its run in MLflow."""
    if not summary.exists():
        return
    told = json.loads(summary.read_text())
    if told["mlflow_run_id"] != run_id:
        told["mlflow_run_id"] = run_id
        write_atomically(summary, json.dumps(told, indent=2) + "\n")
