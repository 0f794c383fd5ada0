"""Deliver to MLflow what a run's folder holds and MLflow has not: all of it, or what is left.

python -m src.sync mlruns/runs/2026-11-22/16-03-11-000000

For runs with track.offline=true, and for those whose server was away or whose process died. It can
be repeated: what MLflow has is not delivered again.
"""

import argparse
import json
import sys
from contextlib import closing
from pathlib import Path

from cadence.whole import write_whole


def main() -> None:
    """Run the command line; an error is one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(prog="python -m src.sync", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="+", help="a run's folder")
    parser.add_argument("--uri", help="MLflow's tracking URI; default the run's own track.uri")
    given = parser.parse_args()

    from cadence.redaction import redact_logs

    redact_logs()
    whole = [_has_said_what_it_delivered(folder, given.uri) for folder in given.folder]
    sys.exit(0 if all(whole) else 1)


def _has_said_what_it_delivered(folder: Path, uri: str | None) -> bool:
    from cadence.delivery import DeliveryError
    from cadence.redaction import in_one_line

    try:
        print(f"{folder}: {delivered(folder.absolute(), uri)}", flush=True)
    except (DeliveryError, ValueError, OSError) as error:
        print(f"error: {folder}: {in_one_line(error)}", file=sys.stderr)
        return False
    return True


def delivered(folder: Path, uri: str | None) -> str:
    """Deliver what a run's folder holds, and return in one line what that was.

    Args:
        folder: The run's folder.
        uri: MLflow's tracking URI; None = the one that the run was started with.

    Raises:
        ValueError: It is no folder of a tracked run, its run is still going on, its password is
            missing, or nothing answers.
        DeliveryError: MLflow did not take something; what it took is noted.
    """
    from cadence.delivery import Delivery, DeliveryError
    from cadence.journal import FILE as JOURNAL
    from cadence.journal import Journal
    from cadence.lineage import parent_of_folder
    from cadence.manifest import DELIVERED, FILE, Delivered, Manifest
    from cadence.redaction import HIDDEN, redacted
    from cadence.track import Mlflow

    manifest = Manifest.load(folder)
    if manifest is None:
        raise ValueError(f"there is no {FILE} in it; give the folder of a tracked run")
    last_seen = (folder / JOURNAL).stat().st_mtime
    with closing(Journal(folder)) as journal:
        if manifest.status is None:  # and no other process is at work there
            manifest.status, manifest.reason = "KILLED", "its process died"
            manifest.ended = int(last_seen * 1000)
            manifest.save(folder)
        done = Delivered.load(folder)
        if done.ended and done.points == journal.size:
            return f"nothing is left to deliver; it is run {done.run_id}"
        uri = uri or manifest.uri
        if HIDDEN in uri:
            raise ValueError(f"track.uri={uri}: its secret is not kept; give all of it by --uri")
        server = Mlflow(uri, manifest.experiment)
        if manifest.parent is None and manifest.parent_folder is not None:
            group = Path(manifest.parent_folder)
            manifest.parent = parent_of_folder(uri, manifest.experiment, group)
        delivery = Delivery(folder, manifest, journal, server)
        points = 0
        try:
            delivery.begin()
            _name_run(folder / "summary.json", delivery.run_id)
            while sent := delivery.send_batch():
                points += sent
            delivery.end()
        except DeliveryError as error:
            raise DeliveryError(
                f"{error}; what it took is noted: the same command goes on, and without "
                f"{DELIVERED} it begins anew"
            ) from error
    news = f"{points:,} points and that it is {manifest.status}"
    return f"delivered {news} to run {delivery.run_id} at {redacted(uri)}"


def _name_run(summary: Path, run_id: str | None) -> None:
    """Let a run's summary name its run in MLflow."""
    if not summary.exists():
        return
    told = json.loads(summary.read_text())
    if told["mlflow_run_id"] != run_id:
        told["mlflow_run_id"] = run_id
        write_whole(summary, json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
