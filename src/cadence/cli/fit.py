"""Training to the config's limits, with what is kept of it as that goes."""

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cadence.cli.build import Run, two_samples
from cadence.cli.plan import RunPlan
from cadence.system.secrets import with_its_type

if TYPE_CHECKING:
    from torch import Tensor

    from cadence.distributed.process_group import ProcessGroup
    from cadence.metrics.result import Result
    from cadence.tracking.mlflow.tracker import Tracker

log = logging.getLogger(__name__)


def fit_and_keep(
    plan: RunPlan, run: Run, tracker: "Tracker | None", processes: "ProcessGroup"
) -> "Result":
    """Train to the limits, and keep the state in the run's folder as that goes.

    A run that is at its end already is left as it is, with a warning.

    Args:
        plan: What the run will do.
        run: What trains.
        tracker: Flushed before each save, and its run's id is kept; None = the run is not tracked.
        processes: Those that train together, which hear of a signal that comes here.

    Returns:
        What the run came to.

    Raises:
        KeyboardInterrupt: A signal asked to stop; after the first one the state is saved.
        DivergedError: Too many updates in a row were refused; the state is saved.
        OSError: The disk does not take the state.
        Exception: As `cadence.Trainer.fit`.
    """
    from cadence.checkpoint.folder import FOLDER, Checkpoints
    from cadence.engine.update import DivergedError
    from cadence.system.signals import Interruption
    from cadence.training.checkpointing import Checkpointing

    if _is_at_its_end(plan, run):
        log.warning("the run had come to its end; a higher limit, such as trainer.max_epochs, "
                    "trains on")  # fmt: skip
        return run.trainer.result
    shared = processes.count > 1
    with (
        Checkpoints(plan.folder / FOLDER) as checkpoints,
        Interruption(shared=shared) as interruption,
    ):
        processes.watch(interruption)
        checkpointing = Checkpointing(
            checkpoints,
            plan.checkpoint_every,
            config=plan.kept,
            mlflow_run_id=tracker.run_id if tracker else None,
            interruption=interruption,
            before_save=tracker.flush if tracker else None,
        )
        run.trainer.callbacks.append(checkpointing)
        try:
            return fit(plan, run)
        except DivergedError:
            checkpointing.save(run.trainer)  # refused windows left the last good weights alone
            raise


def fit(plan: RunPlan, run: Run) -> "Result":
    """Train to what is left of the limits; a run that is at its end already is left as it is.

    Args:
        plan: What the run will do.
        run: What trains.

    Returns:
        What the run came to.

    Raises:
        Exception: As `cadence.Trainer.fit`, and what a callback raises.
    """
    if _is_at_its_end(plan, run):
        return run.trainer.result
    return run.trainer.fit(
        run.train_loader,
        run.val_loader,
        **_limits_left(plan, run),
        evaluate_every=plan.evaluate_every,
    )


def _is_at_its_end(plan: RunPlan, run: Run) -> bool:
    left = _limits_left(plan, run).values()
    return min((limit for limit in left if limit is not None), default=1) <= 0


def _limits_left(plan: RunPlan, run: Run) -> dict[str, Any]:
    clock = run.trainer.clock
    return plan.limits.left(clock, run.trainer.result.seconds if clock.samples else 0)


def example_to_log(run: Run) -> "Tensor":
    """Return two samples' inputs of the model that is to be logged.

    Raises:
        ValueError: MLflow cannot keep such a model.
    """
    from cadence.checkpoint.random_state import random_state_kept
    from cadence.tracking.mlflow.example import example_inputs

    with random_state_kept(run.trainer.device):
        return example_inputs(run.trainer.model, run.trainer.objective, two_samples(run.data))


def log_model(uri: str, run_id: str, run: Run, folder: Path, example: "Tensor") -> None:
    """Log the run's best model with it in MLflow; the run is what it is, whether or not this works.

    Without held-out data none is the best, and it is the trained model as it is. What goes wrong is
    a warning.

    Args:
        uri: MLflow's tracking URI.
        run_id: The run there.
        run: What was trained; it has the best model's parameters afterwards.
        folder: The run's, where its best checkpoint is.
        example: What `example_to_log` returned.
    """
    try:
        _log_model(uri, run_id, run, folder, example)
    except Exception as error:  # the server's, the disk's, or that of pickling a user's own class
        log.warning(
            "track.log_model=true: MLflow did not take the model (%s); the run and its checkpoints "
            "are whole: python -m src.train resume=%s logs it",
            with_its_type(error),
            shlex.quote(str(folder)),
        )


def _log_model(uri: str, run_id: str, run: Run, folder: Path, example: "Tensor") -> None:
    from cadence.checkpoint.file_format import read
    from cadence.checkpoint.folder import BEST, FOLDER
    from cadence.checkpoint.state import checked_model_state
    from cadence.tracking.mlflow.logged_model import log_model

    model, best = run.trainer.model, folder / FOLDER / BEST
    if best.exists():
        model.load_state_dict(checked_model_state(model, read(best)))
    log_model(uri, run_id, model, example)
