"""Commands without the seconds of their imports: forked from a Python that has done them.

Each command is a process of its own, as ``python -m MODULE`` is: it imports ``src`` itself, has its
own standard streams, environment and limits, and ends as an interpreter does: threads are waited
for, exit functions run, streams are flushed. Only the objects of half a gigabyte of imports are not
taken apart one by one, which took longer than most commands.
"""

import atexit
import gc
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.plugins import Plugins

ROOT = Path(__file__).resolve().parents[1]

COMMAND_SECONDS = float(os.environ.get("COMMAND_SECONDS", "550"))
"""How long a command may take; CI has more patience, on a machine that may be slow."""

IMPORTED = (
    *("torch", "mlflow.pytorch", "optuna", "matplotlib.pyplot", "plotly"),
    *(
        "cadence.display.terminal",
        "cadence.training.checkpointing",
        "cadence.tracking.mlflow.sweep_runs",
        "cadence.sweeps.report",
        "cadence.tracking.mlflow.tracker",
    ),
    "hydra_plugins.cadence_sweeper._trial_loop",
)
"""What takes long to import, and what no test replaces."""


class Warm:
    """The Python that commands are forked from; a context manager."""

    def __init__(self) -> None:
        self._path = {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **self._path},
        )

    def __enter__(self) -> "Warm":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(
        self,
        module: str,
        arguments: Sequence[str],
        folder: Path,
        *,
        environment: Mapping[str, str] | None = None,
        timeout: float = COMMAND_SECONDS,
        file_bytes: int | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        """Run ``python -m MODULE`` in a folder, and wait for its end.

        Args:
            module: The module.
            arguments: What the user typed.
            folder: Where.
            environment: Variables beside those of the tests.
            timeout: Seconds after which it is killed by SIGALRM.
            file_bytes: The largest file that it may write; None = any.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {
            "module": module,
            "arguments": arguments,
            "folder": str(folder),
            "environment": {**os.environ, **self._path, **(environment or {})},
            "timeout": timeout,
            "file_bytes": file_bytes,
        }
        print(json.dumps(request), file=self._process.stdin, flush=True)
        ended = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess(list(arguments), **ended)


def serve() -> None:
    """Fork a process for each request, and tell how it ended."""
    for line in sys.stdin:
        request = json.loads(line)
        streams = [os.memfd_create(name) for name in ("stdout", "stderr")]
        child = os.fork()
        if child == 0:
            end(become(request, *streams))
        _, status = os.waitpid(child, 0)
        said = []
        for stream in streams:
            with open(stream, encoding="utf-8") as file:  # noqa: PTH123
                file.seek(0)
                said.append(file.read())
        ended = {"returncode": os.waitstatus_to_exitcode(status)}
        print(json.dumps({**ended, "stdout": said[0], "stderr": said[1]}), flush=True)


def become(request: dict[str, Any], stdout: int, stderr: int) -> int:
    """Be the process that was asked for, run its module, and return the status it ends with."""
    with open(os.devnull) as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 0)
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if request["file_bytes"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_bytes"],) * 2)
    signal.setitimer(signal.ITIMER_REAL, request["timeout"])
    sys.argv = [request["module"], *request["arguments"]]
    sys.path[0] = request["folder"]
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    except SystemExit as told:
        if told.code is None or isinstance(told.code, int):
            return told.code or 0
        print(told.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def end(status: int) -> NoReturn:
    """End this process as an interpreter would, by a signal where the status is below zero."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status & 0xFF)


if __name__ == "__main__":
    for name in IMPORTED:
        import_module(name)
    Plugins.instance()  # Hydra looks through all plugins once a process
    gc.freeze()  # a command that ends need not look at all this again
    serve()
