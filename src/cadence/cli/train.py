"""Train a PyTorch model as a config says: compose, build, train, return the objectives.

    python -m src.train trainer.step_size=16

Configuration stops here: every module of the library takes plain values. The heavy imports wait
inside the functions, so that ``--help`` and a typo are answered at once.
"""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cadence.cli.build import Run, build
from cadence.cli.compose import in_multirun, run_task
from cadence.cli.errors import command_line, errors_in_one_line, logged_with_traceback
from cadence.cli.fit import example_to_log, fit, fit_and_keep, log_model
from cadence.cli.launch import launched
from cadence.cli.overrides import with_one_schedule
from cadence.cli.plan import RunPlan, planned, planned_windows
from cadence.cli.processes import (
    check_device,
    check_environment,
    check_same_run,
    has_run_folder,
    is_launched,
    joined_processes,
    processes_wanted,
    without_a_trace,
)
from cadence.cli.resume import take_along, take_over, with_resume
from cadence.cli.run import ROOT, facts, summarised, tracked, where_to_look
from cadence.cli.secrets import with_secrets_in_environment
from cadence.config.checks import checked
from cadence.config.errors import ConfigError, SweepError
from cadence.system.locks import run_lock
from cadence.system.secrets import redact_files

if TYPE_CHECKING:
    from cadence.config.schema import Config
    from cadence.distributed.process_group import ProcessGroup


def train(cfg: DictConfig) -> tuple[float, float]:
    """Train as the config says, and return ``(val_loss, samples_per_second)``."""
    # In a multirun the sweeper wants a failed trial's exception.
    with nullcontext() if in_multirun() else errors_in_one_line(), logged_with_traceback():
        return _train(cfg)


def _train(cfg: DictConfig) -> tuple[float, float]:
    _redact_hydra_files()
    settings = checked(cfg)
    if settings.sweep is not None and settings.resume is None and not in_multirun():
        option = HydraConfig.get().runtime.choices["sweep"]
        raise ConfigError(
            f"sweep={option}: a sweep is many runs; try python -m src.train --multirun "
            f"sweep={option}"
        )
    if settings.track.log_model and settings.track.offline:
        raise ConfigError(
            "track.log_model=true: a model goes to MLflow at once; not with track.offline=true"
        )
    if settings.track.name == "mlflow" and not settings.track.offline:
        _start_mlflow(settings.distributed.name)
    folder = Path(HydraConfig.get().runtime.output_dir)
    with run_lock(folder) if has_run_folder() else nullcontext():
        return _on_processes(cfg, settings)


def _start_mlflow(distributed: str) -> None:
    """Let MLflow be imported beside torch, in a process of its own, where this one trains."""
    from cadence.tracking.mlflow import server_process

    if distributed == "none" and not in_multirun() and not is_launched():
        server_process.start()


def _on_processes(cfg: DictConfig, settings: "Config") -> tuple[float, float]:
    """Train in this process, or in those that it starts."""
    count = processes_wanted(settings.distributed)
    check_device(settings.device.name, count)
    if count == 1 or is_launched():
        return trained(cfg, settings, count)
    if settings.resume is None:
        planned_windows(settings.trainer.step_size, settings.distributed.step_sizes, count, None)
    return launched(trained, cfg, settings, count)


def trained(cfg: DictConfig, settings: "Config", count: int) -> tuple[float, float]:
    """Train in this process, alone or beside others, and return what `train` does.

    Args:
        cfg: The composed config.
        settings: The same as plain values.
        count: How many processes train together.
    """
    with joined_processes(settings, count) as processes:
        plan = planned(cfg, settings, count)
        run = build(settings, processes, plan.windows)
        if settings.sweep is not None and run.val_loader is None and in_multirun():
            raise SweepError(
                "data: a sweep looks for a low validation loss, and this data has nothing held "
                "out; give it validation data, such as by data.validation_share=0.1"
            )
        if plan.state is not None:
            run.trainer.restore(plan.state)
        check_same_run(processes, run)
        if processes.rank > 0:
            return _train_beside(plan, run, processes)
        return _train_and_show(plan, run, processes)


def _train_beside(plan: RunPlan, run: Run, processes: "ProcessGroup") -> tuple[float, float]:
    """Train beside process 0, which evaluates, writes and shows."""
    from cadence.system.signals import Interruption
    from cadence.training.checkpointing import StopsWhenInterrupted

    with Interruption(shared=True) as interruption:
        processes.watch(interruption)
        run.trainer.callbacks.append(StopsWhenInterrupted(interruption))
        result = fit(plan, run)
    return result.val_loss, result.samples_per_second


def _train_and_show(plan: RunPlan, run: Run, processes: "ProcessGroup") -> tuple[float, float]:
    """Train with all that process 0 keeps, tracks and shows of a run."""
    track = plan.tracking
    example = example_to_log(run) if track and track.log_model else None
    if plan.state is not None and plan.resume is not None:
        take_along(plan.resume, plan.folder)

    from cadence.display.log_file import LogFile
    from cadence.display.terminal import Display

    display, said = Display(run.total_samples, quiet=in_multirun()), facts(plan, run)
    display.facts(said)
    with (
        tracked(plan, run) as tracker,
        summarised(plan, run, tracker),
        display,
    ):
        take_over(plan.folder, plan.composed, begins=plan.state is None)
        run.trainer.callbacks += [display, LogFile(said), *([tracker] if tracker else [])]
        result = fit_and_keep(plan, run, tracker, processes)
    display.table(result, run.trainer.step_sizes, where_to_look(plan, tracker))
    if track and tracker and tracker.run_id and example is not None:
        log_model(track.uri, tracker.run_id, run, plan.folder, example)
    return result.val_loss, result.samples_per_second


def _redact_hydra_files() -> None:
    """Take the passwords out of what Hydra itself has just written of the config."""
    hydra_config = HydraConfig.get()
    files: list[Path] = []
    if hydra_config.output_subdir is not None:
        written = Path(hydra_config.runtime.output_dir) / hydra_config.output_subdir
        files += written.glob("*.yaml")
    if in_multirun():
        files += Path(hydra_config.sweep.dir).glob("multirun.yaml")
    redact_files(files)


def main() -> None:
    """Run the command line."""
    with command_line():
        check_environment(sys.argv[1:])
        arguments = with_one_schedule(with_resume(sys.argv[1:], ROOT / "mlruns" / "runs"))
        sys.argv[1:] = without_a_trace(with_secrets_in_environment(arguments))
        run_task(train)
