"""What a process has to know of the others of its run, and how it joins them.

They are started by `cadence.cli.launch`, or by torchrun:

    torchrun --nnodes 2 --nproc-per-node 2 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        -m src.train distributed=ddp
"""

import operator
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cadence.cli.secrets import MULTIRUN
from cadence.config.errors import ConfigError
from cadence.config.keys import marked
from cadence.config.schema import SAME_ON_ALL

if TYPE_CHECKING:
    from cadence.cli.build import Run
    from cadence.config.schema import Config, DistributedConfig
    from cadence.distributed.process_group import ProcessGroup

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR")
"""The variables by which one of several processes knows its place."""

WITHOUT_A_TRACE = (
    "hydra.run.dir=.",
    "hydra.output_subdir=null",
    "hydra.job_logging.root.handlers=[console]",
    "~hydra.job_logging.handlers.file",
)
"""Overrides with which Hydra makes no run folder."""

SILENT = "hydra.job_logging.handlers.console.level=CRITICAL"
"""The override with which nothing is logged on the terminal."""


def is_launched() -> bool:
    """Return whether this is one of several processes already, by torchrun or by
    `cadence.cli.launch`."""
    return os.environ.keys() >= {*LAUNCHED} and os.environ["WORLD_SIZE"] != "1"


def check_environment(arguments: Sequence[str]) -> None:
    """Refuse variables of a launcher or a platform that leave open which process this is.

    Args:
        arguments: What the user typed.

    Raises:
        ConfigError: They contradict each other, or some are missing.
    """
    said = {name: os.environ[name] for name in LAUNCHED if name in os.environ}
    size = said.get("WORLD_SIZE", "1")
    if not size.isdecimal() or int(size) < 1:
        raise ConfigError(f"WORLD_SIZE={size}: the processes of a run are 1 or more; unset it")
    if size == "1":
        return
    missing = [name for name in (*LAUNCHED, "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={size}: this would be one of {size} processes, and {missing[0]} is not "
            "set; start them by torchrun, or unset WORLD_SIZE"
        )
    if not said["RANK"].isdecimal() or int(said["RANK"]) >= int(size):
        raise ConfigError(
            f"RANK={said['RANK']}: the {size} processes of WORLD_SIZE={size} are 0 to "
            f"{int(size) - 1}; start them by torchrun, or unset both"
        )
    if MULTIRUN & {*arguments}:
        raise ConfigError(
            "--multirun: torchrun starts the processes of one run; without it each trial of a "
            "sweep starts its own by distributed=ddp distributed.processes= (RANK, WORLD_SIZE and "
            "MASTER_ADDR are set here)"
        )


def has_run_folder() -> bool:
    """Return whether the run's folder is this process's: alone, or as process 0."""
    return not is_launched() or os.environ["RANK"] == "0"


def without_a_trace(arguments: Sequence[str]) -> list[str]:
    """Return a command line; that of a process other than 0 makes no folder and no log."""
    if has_run_folder():
        return list(arguments)
    return [*arguments, *WITHOUT_A_TRACE, SILENT]


def processes_wanted(chosen: "DistributedConfig") -> int:
    """Return how many processes the run has.

    Args:
        chosen: What the config says of them.

    Raises:
        ConfigError: So many are not possible here.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if chosen.name == "none":
        if is_launched():
            raise ConfigError(
                f"distributed=none: torchrun started {started} processes, and each would train "
                "alone; add distributed=ddp"
            )
        return 1
    if is_launched():
        if chosen.processes not in (None, started):
            raise ConfigError(
                f"distributed.processes={chosen.processes}: torchrun started {started}; leave it "
                "out, or start as many"
            )
        return started
    if chosen.processes is None and "TORCHELASTIC_RUN_ID" in os.environ:
        return 1  # torchrun started this one alone
    count = chosen.processes or _cuda_devices()
    if count == 0:
        raise ConfigError(
            "distributed.processes=null: there is no CUDA device here to have one process each; "
            "give a number, such as distributed.processes=2"
        )
    return count


def check_device(name: str, processes: int) -> None:
    """Refuse a device that several processes cannot share out.

    Args:
        name: ``device.name``.
        processes: How many train together.

    Raises:
        ConfigError: It is one certain device, or there are too few.
    """
    if processes == 1 or name == "cpu":
        return
    if name not in ("auto", "cuda"):
        raise ConfigError(
            f"device.name={name}: each process needs a device of its own; try device=cuda, or "
            "device=cpu"
        )
    here = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    devices = _cuda_devices()
    if devices and here > devices:
        raise ConfigError(
            f"distributed.processes={processes}: there are {devices} CUDA devices for {here} "
            f"processes here; use at most {devices}, or device=cpu"
        )


def _cuda_devices() -> int:
    import torch

    return torch.cuda.device_count()


@contextmanager
def joined_processes(settings: "Config", count: int) -> Iterator["ProcessGroup"]:
    """Join the run's other processes, each on its own device and with its share of the cores.

    The device of the config becomes this process's own.
    """
    from cadence.distributed.process_group import SingleProcess
    from cadence.distributed.torch_group import init_process_group

    if count == 1:
        yield SingleProcess()
        return
    import torch

    kind = "cuda" if settings.device.name != "cpu" and torch.cuda.is_available() else "cpu"
    if kind == "cuda" and "LOCAL_RANK" not in os.environ:
        raise ConfigError(
            "LOCAL_RANK is not set, so it is not known which CUDA device is this process's; start "
            "the processes by torchrun, or use device=cpu"
        )
    settings.device.name = f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" else kind
    if not os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(max(1, _cores() // int(os.environ.get("LOCAL_WORLD_SIZE", count))))
    balances = settings.distributed.step_sizes == "auto"
    with init_process_group(
        kind, settings.seed, settings.distributed.timeout, balances=balances
    ) as processes:
        processes.check_same("the config", of_the_training(settings))
        yield processes


def of_the_training(settings: "Config") -> str:
    """Return what of a config must be the same on every process, in words."""
    return repr(
        [operator.attrgetter(key.removesuffix("."))(settings) for key in marked(SAME_ON_ALL)]
    )


def check_same_run(processes: "ProcessGroup", run: "Run") -> None:
    """Refuse processes that would not train the same run, as where one lacks the checkpoint.

    Raises:
        ValueError: They go on from different places, or their data differs in length.
        ProcessLostError: A process is lost.
    """
    processes.check_same("where the run goes on", repr(run.trainer.clock))
    processes.check_same("the number of training samples", str(len(run.data.train)))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
