"""``python -m MODULE`` in a fork of a process that has imported the large libraries once.

They take seconds to import, and the tests run the command line a hundred times. What a start from
cold does (what is imported when, and how soon ``--help`` answers) has tests of its own, and so have
the README's commands.
"""

import atexit
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

LIBRARIES = ("torch", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "optuna", "hydra")

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(list(LIBRARIES))


def run(
    module: str,
    arguments: Sequence[str],
    *,
    folder: Path,
    environment: Mapping[str, str],
    timeout: float,
) -> "subprocess.CompletedProcess[str]":
    """Run a module as the command line does, and return what it printed.

    Args:
        module: Its name.
        arguments: The words after it.
        folder: The working directory.
        environment: All of the environment variables.
        timeout: Seconds after which it is killed.

    Raises:
        subprocess.TimeoutExpired: It took longer.
    """
    said, complained = folder / ".stdout", folder / ".stderr"
    process = _server.Process(
        target=_run, args=(module, list(arguments), folder, dict(environment), said, complained)
    )
    process.start()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise subprocess.TimeoutExpired([module, *arguments], timeout)
    stdout, stderr = said.read_text(), complained.read_text()
    said.unlink()
    complained.unlink()
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, stdout, stderr)


def _run(
    module: str,
    arguments: list[str],
    folder: Path,
    environment: dict[str, str],
    said: Path,
    complained: Path,
) -> None:
    for number, file in ((1, said), (2, complained)):
        with file.open("wb") as opened:
            os.dup2(opened.fileno(), number)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:0] = [str(folder), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()
