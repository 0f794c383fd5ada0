"""The processes of a run, started and ended by torch's elastic launcher.

    python -m src.train distributed=ddp distributed.processes=2

The first process, which composed the config, starts the others and gives it to each; it does not
train itself. It hands signals on, shows the one error that ended the others, and marks a run whose
process 0 could not do so any more.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import psutil
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, setup_globals
from hydra.utils import execution_whitelist
from omegaconf import DictConfig

from cadence.config import trust
from cadence.config.errors import explained
from cadence.system.signals import SIGNALS

if TYPE_CHECKING:
    from cadence.config.schema import Config, TrackConfig

GRACE_SECONDS = 15.0
"""How long the others have to end by themselves when a process is gone."""

Trained: TypeAlias = Callable[[DictConfig, "Config", int], tuple[float, float]]
"""Trains as a config says on so many processes, and returns the objectives."""

log = logging.getLogger(__name__)


class ProcessFailedError(RuntimeError):
    """One of a run's processes failed; the message is its own."""


class ProcessFailure(NamedTuple):
    """Why a process ended a run."""

    rank: int
    when: float
    """Seconds since 1970."""
    is_own: bool
    """Whether the process itself failed; else it noticed that another one was lost."""
    kind: str
    """The error's type, by its name."""
    text: str
    """The error in one line."""
    trace: str


def launched(
    trained: Trained, cfg: DictConfig, settings: "Config", count: int
) -> tuple[float, float]:
    """Train on processes of their own, and return what process 0 does.

    Args:
        trained: Trains in one of them; a function of a module, which each of them imports.
        cfg: The composed config, which each of them is given.
        settings: The same as plain values.
        count: How many they are.

    Raises:
        ProcessFailedError: One of them failed.
        KeyboardInterrupt: They were interrupted.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch").setLevel(logging.CRITICAL)  # its banners; our own line says why
    folder = Path(HydraConfig.get().runtime.output_dir)
    before = _traces(folder)
    with (
        tempfile.TemporaryDirectory(prefix="cadence-") as failures,
        _handing_on() as signals,
        _ending_all_with_one(),
    ):
        launch = elastic_launch(
            LaunchConfig(
                min_nodes=1,
                max_nodes=1,
                nproc_per_node=count,
                run_id=uuid.uuid4().hex,
                rdzv_backend="c10d",
                rdzv_endpoint="localhost:0",  # any free port
                local_addr="127.0.0.1",
                logs_specs=DefaultLogsSpecs(log_dir=failures),
                max_restarts=0,
                start_method="spawn",
                signals_to_handle="SIGQUIT",  # the others are handed on here
            ),
            _work,
        )
        try:
            training = partial(trained, cfg, settings, count)
            returned = launch(training, HydraConfig.instance().cfg, Path(failures))
        except ChildFailedError as error:
            failure = _first(Path(failures), error)
            status = "KILLED" if signals else "FAILED"
            if _traces(folder) != before:
                reason = f"{failure.kind}: {failure.text}"
                _mark(folder, status, reason, seed=settings.seed, track=settings.track)
            if signals:
                raise KeyboardInterrupt(signals[0]) from error
            raise ProcessFailedError(failure.text) from RuntimeError(failure.trace)
    interrupts = [each for each in returned.values() if isinstance(each, int)]
    if interrupts:
        raise KeyboardInterrupt(interrupts[0])
    objectives: tuple[float, float] = returned[0]
    return objectives


@contextmanager
def _handing_on() -> Iterator[list[int]]:
    """Hand signals on to the processes that were started, and collect them."""
    import multiprocessing

    signals: list[int] = []

    def hand_on(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        children = multiprocessing.active_children()
        if not children:
            raise KeyboardInterrupt(number)
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child.pid or 0, number)

    before = {number: signal.signal(number, hand_on) for number in SIGNALS}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _ending_all_with_one() -> Iterator[None]:
    """Kill the other processes some seconds after one is gone, whatever they are waiting in.

    torch gives them 30 seconds. One that is done waits for the others, so none is gone before.
    """
    done = threading.Event()

    def watch() -> None:
        started: set[psutil.Process] = set()
        while not done.wait(0.2):
            started |= {each for each in psutil.Process().children() if _is_at_work(each)}
            if not all(map(_is_at_work, started)):
                break
        if not done.wait(GRACE_SECONDS):
            for each in filter(_is_at_work, started):
                each.kill()

    watcher = threading.Thread(target=watch, name="watcher", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _is_at_work(process: psutil.Process) -> bool:
    """Return whether a process trains: it is alive, and not multiprocessing's own helper."""
    with suppress(psutil.NoSuchProcess):
        is_alive = process.status() != psutil.STATUS_ZOMBIE
        return is_alive and "spawn_main" in " ".join(process.cmdline())
    return False


def _first(failures: Path, error: Any) -> ProcessFailure:
    """Return the failure that the others came from."""
    told = [ProcessFailure(**json.loads(file.read_text())) for file in failures.glob("*.failure")]
    own = sorted((each for each in told if each.is_own), key=lambda each: each.when)
    if own:
        return own[0]
    rank, failed = min(error.failures.items(), key=lambda each: each[1].timestamp)
    for noticed in told:
        if noticed.rank == rank:  # the one that it waited for hangs, and has not ended
            return noticed
    how = f"by {failed.signal_name()}" if failed.exitcode < 0 else f"with code {failed.exitcode}"
    if failed.exitcode == -signal.SIGKILL:
        how += " (was memory short?)"
    text = f"process {rank} of the run was ended {how}; resume= goes on from the last checkpoint"
    return ProcessFailure(rank, 0.0, True, ProcessFailedError.__name__, text, text)


def _traces(folder: Path) -> dict[str, int]:
    """Return when each file was written that tells of a session: a new one has changed some."""
    from cadence.checkpoint.folder import FOLDER
    from cadence.metrics.summary import FILE as SUMMARY
    from cadence.tracking.run_file import FILE as RUN

    files = (folder / RUN, folder / SUMMARY, folder / FOLDER, *(folder / FOLDER).glob("*.pt"))
    return {str(file): file.stat().st_mtime_ns for file in files if file.exists()}


def _mark(folder: Path, status: str, reason: str, *, seed: int, track: "TrackConfig") -> None:
    """Say in the run's folder and in MLflow how it ended, if it had begun."""
    from cadence.checkpoint.folder import FOLDER
    from cadence.metrics.summary import mark_ended
    from cadence.tracking.metrics_logger import milliseconds
    from cadence.tracking.run_file import RunFile
    from cadence.tracking.sync import delivered
    from cadence.tracking.upload import UploadError

    file = RunFile.load(folder)
    if file is not None:
        file.update(status=status, reason=reason, ended=milliseconds())
    if file is not None or (folder / FOLDER).exists():
        run_id = file.run.run_id if file else None
        mark_ended(folder, seed=seed, mlflow_run_id=run_id, status=status)
    if file is None or track.offline:
        return
    file.update_upload(ended=False)
    try:
        delivered(folder, track.uri)
    except (UploadError, ValueError, OSError) as error:
        log.warning("MLflow was not told that the run is %s (%s)", status, error)


# The processes that it starts.


def _work(
    training: Callable[[], tuple[float, float]], hydra: Any, failures: Path
) -> tuple[float, float] | int:
    """Train as one of several processes; return the objectives, or the signal that ended it."""
    from cadence.distributed.lost import ProcessLostError

    os.setsid()  # Ctrl-C in a terminal comes once, by the process that hands it on
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    rank = int(os.environ["RANK"])
    setup_globals()
    HydraConfig.instance().cfg = hydra
    try:
        if rank == 0:
            with execution_whitelist(trust.patterns()):  # of the log's handlers as well
                configure_log(hydra.hydra.job_logging, hydra.hydra.verbose)
        else:
            logging.getLogger().addHandler(logging.NullHandler())
        return training()
    except KeyboardInterrupt as interrupt:
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        _leave_if_orphaned(number)
        return int(number)
    except Exception as error:
        failure = ProcessFailure(
            rank,
            time.time(),
            not isinstance(error, ProcessLostError),
            type(error).__name__,
            explained(error),
            traceback.format_exc(),
        )
        with suppress(KeyboardInterrupt):  # told to end: so it does
            _tell(failure, failures)
            if not failure.is_own:
                time.sleep(GRACE_SECONDS)  # torch names one ended process: let it be the lost one
        os._exit(1)  # what torch would take down in good order waits for processes that are gone


def _tell(failure: ProcessFailure, failures: Path) -> None:
    """Leave a failure, whole or not at all, to the process that started this one."""
    file = failures / f"{failure.rank}.failure"
    part = file.with_suffix(".part")
    part.write_text(json.dumps(failure._asdict()))
    part.replace(file)
    logging.shutdown()
    sys.stdout.flush()


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt(number)


def _leave_if_orphaned(number: int) -> None:
    """End at once where nobody is left to be told how it went."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is None or not parent.is_alive():
        sys.exit(128 + number)
