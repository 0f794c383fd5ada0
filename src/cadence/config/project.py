"""Where a command works: the user's project, the conf/ that comes with cadence, and its spelling.

A checkout of cadence is a project of its own: ``python -m src.train`` works there from any folder.
The installed ``cadence`` command works in the nearest folder upwards from the working directory
with a pyproject.toml or a conf/, else in the working directory.
"""

import os
import re
import sys
from pathlib import Path

ROOT_VARIABLE = "CADENCE_ROOT"
"""The environment variable that says the project's root; processes of a run take it over."""

_PACKAGE = Path(__file__).resolve().parents[1]

_CHECKOUT = _PACKAGE.parents[1]

_IS_CHECKOUT = _PACKAGE.parent.name == "src" and (_CHECKOUT / "conf" / "config.yaml").is_file()


def root() -> Path:
    """Return the folder in which mlruns/ and sweeps/ are."""
    chosen = os.environ.get(ROOT_VARIABLE)
    if chosen:
        return Path(chosen)
    return _CHECKOUT if _IS_CHECKOUT else nearest_root(Path.cwd())


def nearest_root(start: Path) -> Path:
    """Return the nearest folder upwards with a pyproject.toml or a conf/, else ``start``."""
    here = start.absolute()
    for folder in (here, *here.parents):
        if (folder / "pyproject.toml").is_file() or (folder / "conf").is_dir():
            return folder
    return here


def conf() -> Path:
    """Return the conf/ that comes with cadence: the checkout's, or that inside the package."""
    return _CHECKOUT / "conf" if _IS_CHECKOUT else _PACKAGE / "conf"


def own_conf() -> Path | None:
    """Return the conf/ of the user's project; None where there is none beside cadence's."""
    folder = root() / "conf"
    if not folder.is_dir() or folder.samefile(conf()):
        return None
    return folder


def enter() -> None:
    """Make the nearest project this process's and its children's, with its modules importable.

    ``python -m`` puts the working directory on the path of modules; an installed command does not.
    """
    os.environ.setdefault(ROOT_VARIABLE, str(nearest_root(Path.cwd())))
    folders = [str(folder) for folder in (root(), root() / "src") if folder.is_dir()]
    sys.path[:0] = folders
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(folders + ([inherited] if inherited else []))


def is_entered() -> bool:
    """Return whether this process was started by the ``cadence`` command, or works for it."""
    return ROOT_VARIABLE in os.environ


def command(name: str) -> str:
    """Return how a command of cadence is typed: as this process was started."""
    return f"cadence {name}" if is_entered() else f"python -m src.{name}"


def as_typed(text: str) -> str:
    """Return a text with each ``python -m src.NAME`` in it as this process was started."""
    return re.sub(r"python -m src\.(\w+)", lambda found: command(found[1]), text)
