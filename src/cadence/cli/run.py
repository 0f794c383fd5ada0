"""What a run tells as it goes: the terminal's lines, MLflow's run, and its summary."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cadence.cli.build import Run, effective_batch
from cadence.config import checks as configs
from cadence.config import project
from cadence.plan.window import StepSizeSchedule
from cadence.system.secrets import redacted

if TYPE_CHECKING:
    from cadence.checkpoint.state import State
    from cadence.config.schema import Config
    from cadence.tracking.mlflow.tracker import Tracker

ROOT = project.root()
"""The folder of mlruns/ and sweeps/, for a process works in one project."""

OF_NOW = ("resume", "track.run_id")
"""Keys that say where a run is kept and not what it is: no params to compare runs by."""


def in_multirun() -> bool:
    """Return whether this run is one of several that one command starts."""
    return bool(HydraConfig.get().mode == RunMode.MULTIRUN)


def tracked(
    cfg: DictConfig, settings: "Config", run: Run, folder: Path, state: "State | None"
) -> AbstractContextManager["Tracker | None"]:
    """Return what tracks a run in MLflow, as a context; None in it = nothing does.

    Args:
        cfg: The config, whose values are the run's params.
        settings: The same as plain values.
        run: What trains.
        folder: The run's.
        state: What it goes on from; None = it begins.
    """
    if settings.track.name == "none":
        return nullcontext()

    from cadence.tracking import address
    from cadence.tracking.mlflow.tracker import Tracker
    from cadence.tracking.provenance import environment, git_tags

    is_trial = in_multirun() and settings.track.run_id is not None
    if is_trial and not settings.track.offline:
        address.wait(settings.track.uri)  # the sweep made its run there
    choices = HydraConfig.get().runtime.choices
    window = window_in_words(settings, run.trainer.step_sizes)
    share = run.total_samples // 100 if run.total_samples else len(run.data.train) // 10
    return Tracker(
        settings.track.uri,
        settings.track.experiment,
        f"{window} {choices['data']} {choices['model']}",
        params={key: value for key, value in configs.flattened(cfg).items() if key not in OF_NOW},
        tags={"cadence.run_folder": str(folder), **git_tags(ROOT)},
        texts={
            "config.yaml": OmegaConf.to_yaml(cfg, resolve=True),
            "environment.json": environment(),
        },
        every=settings.track.every or max(1, share),
        folder=folder,
        run_id=settings.track.run_id,
        resumed_at=state.clock.samples if state else 0 if settings.resume else None,
        parent=_parent(settings),
        offline=settings.track.offline,
    )


def window_in_words(settings: "Config", step_sizes: Sequence[int]) -> str:
    """Return the mini-batches per update that a run's name tells.

    Args:
        settings: The config. Its step_size is not what trains where each process has a share of its
            own, and where a run goes on with another number of processes.
        step_sizes: Those of each process as the run begins or goes on, which do train; ``auto``
            begins with even ones.
    """
    shares, step_size = settings.distributed.step_sizes, settings.trainer.step_size
    if isinstance(step_size, Mapping) or (shares is None and {*step_sizes} == {step_size}):
        return f"step_size={step_size}"
    if len(step_sizes) == 1:
        return f"step_size={step_sizes[0]}"
    return f"step_sizes=[{','.join(map(str, step_sizes))}]"


def _parent(settings: "Config") -> str | Path | None:
    """Return the MLflow run that groups the jobs of a plain multirun; None = it is no such job.

    Offline it is the multirun's folder, whose run is made on delivery.
    """
    hydra_config = HydraConfig.get()
    if not in_multirun() or settings.track.run_id is not None:
        return None
    from cadence.tracking.mlflow.sweep_runs import parent_of_folder

    folder = Path(hydra_config.sweep.dir).absolute()
    if settings.track.offline:
        return folder
    return parent_of_folder(settings.track.uri, settings.track.experiment, folder)


@contextmanager
def summarised(
    settings: "Config", run: Run, folder: Path, tracker: "Tracker | None"
) -> Iterator[None]:
    """Leave a summary.json and MLflow's last numbers behind, however the run ends.

    Args:
        settings: The config.
        run: What trains.
        folder: The run's.
        tracker: Takes the last numbers and the file, and has the run's id; None = the run is not
            tracked, and its ``mlflow_run_id`` is null.

    Raises:
        OSError: The disk does not take summary.json.
    """
    from cadence.metrics.summary import status_after, write_summary

    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        result = run.trainer.result
        summary = write_summary(
            folder,
            result,
            effective_batch=effective_batch(settings, run.data, sum(run.trainer.step_sizes)),
            step_sizes=run.trainer.step_sizes,
            seed=settings.seed,
            mlflow_run_id=tracker.run_id if tracker else None,
            status=status_after(error),
        )
        if tracker:
            tracker.finish(run.trainer.clock, result, [summary])


def facts(settings: "Config", run: Run) -> dict[str, str]:
    """Return what a run is, a line of words by name."""
    choices = HydraConfig.get().runtime.choices
    data, trainer = run.data, run.trainer
    later = StepSizeSchedule(settings.trainer.step_size).later
    minibatches = len(run.train_loader)
    processes, window = len(trainer.step_sizes), sum(trainer.step_sizes)
    shown = trainer.step_size if processes == 1 else list(trainer.step_sizes)
    beside = "" if processes == 1 else f", on {processes} processes"
    updates = -(-minibatches // window)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    held_out = 0 if data.validation is None else len(data.validation)
    items = "samples" if data.items_per_sample == 1 else "items"
    limits = {
        "epochs": settings.trainer.max_epochs,
        "samples": settings.trainer.max_samples,
        "seconds": settings.trainer.max_seconds,
    }
    ends = " or ".join(f"{limit:,} {unit}" for unit, limit in limits.items() if limit)
    return {
        "model": f"{choices['model']}, {parameters:,} parameters, {settings.device.precision} on "
        f"{trainer.device}",
        "data": f"{choices['data']}, {len(data.train):,} training and {held_out:,} validation "
        "samples",
        "window": f"step_size={shown} mini-batches per update of "
        f"{settings.data['batch_size']} samples{beside}: effective batch "
        f"{effective_batch(settings, data, window):,} {items}"
        + "".join(f"; {step_size} from {samples:,} samples on" for samples, step_size in later),
        "epoch": f"{minibatches:,} mini-batches, {updates:,} updates",
        "run": ends + (f", {run.total_samples:,} samples in all" if run.total_samples else ""),
    }


def where_to_look(settings: "Config", folder: Path, tracker: "Tracker | None") -> dict[str, str]:
    """Return where a run's results are, a place or a command by name.

    Args:
        settings: The config.
        folder: The run's.
        tracker: What tracked it; None = nothing did, so only the folder is told.
    """
    look = {"run folder": str(folder)}
    if tracker and settings.track.offline:
        look["MLflow run"] = f"to be delivered by {project.command('sync')} {folder}"
    elif tracker:
        look["MLflow run"] = f"{tracker.run_id} in experiment {settings.track.experiment}"
        ours = settings.track.uri == f"sqlite:///{ROOT}/mlruns/mlflow.db"
        uri = redacted(settings.track.uri)
        ui = "cadence ui" if project.is_entered() else "make ui"
        command = f"mlflow ui --host 127.0.0.1 --backend-store-uri {uri}"
        look["compare runs"] = ui if ours else command
    return look
