"""Deliver to MLflow what a run's folder holds and MLflow has not: all of it, or what is left.

    python -m src.sync mlruns/runs/2026-11-22/16-03-11-000000

For runs with track.offline=true, and for those whose server was away or whose process died. It can
be repeated: what MLflow has is not delivered again.
"""

import argparse
import sys
from pathlib import Path

from cadence.config import project


def main() -> None:
    """Run the command line; an error is one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(
        prog=project.command("sync"),
        description=project.as_typed(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, nargs="+", help="a run's folder")
    parser.add_argument("--uri", help="MLflow's tracking URI; default the run's own track.uri")
    given = parser.parse_args()

    from cadence.system.secrets import redact_logs

    redact_logs()
    whole = [_has_said_what_it_delivered(folder, given.uri) for folder in given.folder]
    sys.exit(0 if all(whole) else 1)


def _has_said_what_it_delivered(folder: Path, uri: str | None) -> bool:
    from cadence.system.secrets import in_one_line
    from cadence.tracking.sync import delivered
    from cadence.tracking.upload import UploadError

    try:
        print(f"{folder}: {delivered(folder.absolute(), uri)}", flush=True)
    except (UploadError, ValueError, OSError) as error:
        print(f"error: {folder}: {in_one_line(error)}", file=sys.stderr)
        return False
    return True
