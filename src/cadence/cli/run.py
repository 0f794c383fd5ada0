"""What a run tells as it goes: the terminal's lines, MLflow's run, and its summary."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from cadence.cli.build import Run
from cadence.cli.compose import in_multirun
from cadence.cli.plan import RunPlan
from cadence.config import checks as configs
from cadence.config import project
from cadence.config.keys import marked
from cadence.config.schema import PLACE
from cadence.system.secrets import redacted

if TYPE_CHECKING:
    from cadence.config.schema import TrackConfig
    from cadence.tracking.mlflow.tracker import Tracker

ROOT = project.root()
"""The folder of mlruns/ and sweeps/, for a process works in one project."""

OF_NOW = marked(PLACE)
"""Keys that say where a run is kept and not what it is: no params to compare runs by."""


def tracked(plan: RunPlan, run: Run) -> AbstractContextManager["Tracker | None"]:
    """Return what tracks a run in MLflow, as a context; None in it = nothing does.

    Args:
        plan: What the run will do; the values of its config are the run's params.
        run: What trains.
    """
    track = plan.tracking
    if track is None:
        return nullcontext()

    from cadence.tracking import address
    from cadence.tracking.mlflow.tracker import Tracker
    from cadence.tracking.provenance import environment, git_tags

    is_trial = in_multirun() and track.run_id is not None
    if is_trial and not track.offline:
        address.wait(track.uri)  # the sweep made its run there
    choices = HydraConfig.get().runtime.choices
    share = run.total_samples // 100 if run.total_samples else len(run.data.train) // 10
    params = configs.flattened(plan.composed)
    return Tracker(
        track.uri,
        track.experiment,
        f"{plan.window_name} {choices['data']} {choices['model']}",
        params={key: value for key, value in params.items() if key not in OF_NOW},
        tags={"cadence.run_folder": str(plan.folder), **git_tags(ROOT)},
        texts={
            "config.yaml": OmegaConf.to_yaml(plan.composed, resolve=True),
            "environment.json": environment(),
        },
        every=track.every or max(1, share),
        folder=plan.folder,
        run_id=track.run_id,
        resumed_at=plan.state.clock.samples if plan.state else 0 if plan.resume else None,
        parent=_parent(track),
        offline=track.offline,
    )


def _parent(track: "TrackConfig") -> str | Path | None:
    """Return the MLflow run that groups the jobs of a plain multirun; None = it is no such job.

    Offline it is the multirun's folder, whose run is made on delivery.
    """
    if not in_multirun() or track.run_id is not None:
        return None
    from cadence.tracking.mlflow.sweep_runs import parent_of_folder

    folder = Path(HydraConfig.get().sweep.dir).absolute()
    return folder if track.offline else parent_of_folder(track.uri, track.experiment, folder)


@contextmanager
def summarised(plan: RunPlan, run: Run, tracker: "Tracker | None") -> Iterator[None]:
    """Leave a summary.json and MLflow's last numbers behind, however the run ends.

    Args:
        plan: What the run will do.
        run: What trains.
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
            plan.folder,
            result,
            effective_batch=run.effective_batch(sum(run.trainer.step_sizes)),
            step_sizes=run.trainer.step_sizes,
            seed=plan.seed,
            mlflow_run_id=tracker.run_id if tracker else None,
            status=status_after(error),
        )
        if tracker:
            tracker.finish(run.trainer.clock, result, [summary])


def facts(plan: RunPlan, run: Run) -> dict[str, str]:
    """Return what a run is, a line of words by name."""
    choices = HydraConfig.get().runtime.choices
    data, trainer = run.data, run.trainer
    minibatches = len(run.train_loader)
    processes, window = len(trainer.step_sizes), sum(trainer.step_sizes)
    shown = trainer.step_size if processes == 1 else list(trainer.step_sizes)
    beside = "" if processes == 1 else f", on {processes} processes"
    updates = -(-minibatches // window)
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    held_out = 0 if data.validation is None else len(data.validation)
    items = "samples" if data.items_per_sample == 1 else "items"
    limits = plan.limits._asdict().items()
    ends = " or ".join(f"{limit:,} {unit}" for unit, limit in limits if limit)
    return {
        "model": f"{choices['model']}, {parameters:,} parameters, {plan.precision} on "
        f"{trainer.device}",
        "data": f"{choices['data']}, {len(data.train):,} training and {held_out:,} validation "
        "samples",
        "window": f"step_size={shown} mini-batches per update of "
        f"{run.batch_size} samples{beside}: effective batch "
        f"{run.effective_batch(window):,} {items}"
        + "".join(
            f"; {step_size} from {samples:,} samples on"
            for samples, step_size in plan.windows.later
        ),
        "epoch": f"{minibatches:,} mini-batches, {updates:,} updates",
        "run": ends + (f", {run.total_samples:,} samples in all" if run.total_samples else ""),
    }


def where_to_look(plan: RunPlan, tracker: "Tracker | None") -> dict[str, str]:
    """Return where a run's results are, a place or a command by name.

    Args:
        plan: What the run did.
        tracker: What tracked it; None = nothing did, so only the folder is told.
    """
    look, track = {"run folder": str(plan.folder)}, plan.tracking
    if tracker is None or track is None:
        return look
    if track.offline:
        look["MLflow run"] = f"to be delivered by {project.command('sync')} {plan.folder}"
        return look
    look["MLflow run"] = f"{tracker.run_id} in experiment {track.experiment}"
    ours = track.uri == f"sqlite:///{ROOT}/mlruns/mlflow.db"
    ui = "cadence ui" if project.is_entered() else "make ui"
    command = f"mlflow ui --host 127.0.0.1 --backend-store-uri {redacted(track.uri)}"
    look["compare runs"] = ui if ours else command
    return look
