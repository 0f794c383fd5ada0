"""Serve MLflow's pages on this machine alone, to compare runs in a browser.

cadence ui
cadence ui --port 5001
"""

import argparse
import os
import sys
from pathlib import Path

from cadence.config import project


def main() -> None:
    """Become MLflow's server of the project's runs; Ctrl-C ends it."""
    parser = argparse.ArgumentParser(
        prog=project.command("ui"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=5000, help="default 5000")
    parser.add_argument("--folder", type=Path, help="where mlflow.db is; default mlruns/")
    given = parser.parse_args()
    folder = (given.folder or project.root() / "mlruns").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    page = f"http://127.0.0.1:{given.port}/#/experiments/1?workflowType=machine_learning"
    print(f"compare the runs at {page}\n(Ctrl-C ends it)", flush=True)
    os.execv(
        sys.executable,
        [
            *(sys.executable, "-m", "mlflow", "ui", "--host", "127.0.0.1"),
            *("--port", str(given.port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
            *("--default-artifact-root", str(folder / "artifacts")),
        ],
    )
