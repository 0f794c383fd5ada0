"""Where a run comes from: the code's commit and the versions it ran with."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "optuna", "mlflow", "scikit-learn")

ELSEWHERE = ("GIT_DIR", "GIT_WORK_TREE")
"""By these git would answer for another checkout, as within a git hook."""


@cache
def git_tags(project: Path) -> Mapping[str, str]:
    """Return MLflow's tags for a project's commit, and whether files differ from it.

    It is looked at once, for a process goes on with the code that it began with.

    Args:
        project: A folder; where it is no git checkout, or git is missing, there are no tags. Where
            git cannot say what differs, no tag says so.
    """
    commit = _git(project, "rev-parse", "HEAD")
    if commit is None:
        return {}
    tags = {"mlflow.source.git.commit": commit}
    changes = _git(project, "status", "--porcelain")
    if changes is not None:
        tags["cadence.git.changed"] = str(bool(changes)).lower()
    return tags


@cache
def environment() -> str:
    """Return the versions of Python, the machine and the main packages, as JSON."""
    found = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "packages": {name: version(name) for name in PACKAGES},
    }
    return json.dumps(found, indent=2) + "\n"


def _git(project: Path, *command: str) -> str | None:
    try:
        ran = subprocess.run(
            ["git", *command],
            cwd=project,
            env={name: value for name, value in os.environ.items() if name not in ELSEWHERE},
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.strip()
