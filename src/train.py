"""The hall: compose, build, train, return the objectives.

    python -m src.train trainer.step_size=16

Configuration stops here: every room of the library takes plain values. The heavy imports wait
inside the functions, so that ``--help`` and a typo are answered at once.
"""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from cadence import config as configs
from cadence.redaction import redact_files, redact_logs, redacted
from cadence.window import DEFAULT_STEP_SIZE

if TYPE_CHECKING:
    import torch

    from cadence import Trainer
    from cadence.data import Data
    from cadence.objectives import Objective
    from cadence.schema import Config
    from cadence.track import Tracker

TRUSTED_TARGETS = (
    "cadence.data.*",
    "cadence.models.*",
    "cadence.objectives.*",
    "torch.optim.*",
)
"""What a config may name as ``_target_``: configs are code, so everything else is refused. Add the
module of your own model or data set here, such as ``"my_project.models.*"``."""

ROOT = Path(__file__).resolve().parents[1]

_WITH_TRACEBACK = os.environ.get("HYDRA_FULL_ERROR") == "1"

log = logging.getLogger(__name__)
configs.register(ROOT)
redact_logs()


@hydra.main(
    config_path=str(ROOT / "conf"), config_name="config", execution_whitelist=TRUSTED_TARGETS
)
def train(cfg: DictConfig) -> tuple[float, float]:
    """Train as the config says, and return ``(val_loss, samples_per_second)``."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        with _logged_with_traceback():
            return _train(cfg)  # the sweeper wants a failed trial's exception
    with _errors_in_one_line(), _logged_with_traceback():
        return _train(cfg)


def _train(cfg: DictConfig) -> tuple[float, float]:
    _redact_hydra_files()
    settings = configs.checked(cfg)
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if settings.sweep is not None and not in_sweep:
        option = HydraConfig.get().runtime.choices["sweep"]
        raise configs.ConfigError(
            f"sweep={option}: a sweep is many runs; try python -m src.train --multirun "
            f"sweep={option}"
        )
    run = build(settings)

    from cadence.console import Display

    folder = Path(HydraConfig.get().runtime.output_dir)
    display = Display(run.total_samples, quiet=in_sweep)
    display.facts(_facts(settings, run))
    limits = settings.trainer
    with (
        _tracked(cfg, settings, run, folder) as tracker,
        _summarised(settings, run, folder, tracker),
        display,
    ):
        fitted = run.trainer.fit(
            run.train_loader,
            run.val_loader,
            limits.max_epochs,
            max_samples=limits.max_samples,
            max_seconds=limits.max_seconds,
            evaluate_every=limits.evaluate_every,
            observers=[display, tracker] if tracker else [display],
        )
    display.table(fitted, _where_to_look(settings, folder, tracker))
    return fitted.val_loss, fitted.samples_per_second


class Run(NamedTuple):
    """Everything that training needs, built."""

    data: "Data"
    trainer: "Trainer"
    train_loader: "torch.utils.data.DataLoader[Any]"
    val_loader: "torch.utils.data.DataLoader[Any] | None"
    total_samples: int | None
    """Samples the run is to train on; None = only time ends it."""


def build(settings: "Config") -> Run:
    """Build what the config asks for, in the order in which one needs the other."""
    import torch

    from cadence import Trainer
    from cadence.allocator import keep_memory
    from cadence.data import loader
    from cadence.device import resolved
    from cadence.schedule import named_schedule

    device = resolved(settings.device.name)
    _seed(settings.seed)
    torch.autograd.set_detect_anomaly(settings.trainer.detect_anomaly)
    keep_memory(settings.device.keep_memory)

    own = {"batch_size", "workers", "objective"}
    data: Data = configs.build(
        "data", {key: value for key, value in settings.data.items() if key not in own}
    )
    objective = configs.build("data.objective", settings.data["objective"])
    model = configs.build(
        "model", settings.model, input_shape=list(data.input_shape), outputs=data.outputs
    ).to(device)
    if settings.device.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if settings.device.compile:
        model.compile()
    total_samples = _total_samples(settings, data)
    batch_size, workers = settings.data["batch_size"], settings.data.get("workers", 0)
    _check_coupling(settings, model, objective, batch_size)
    trainer = Trainer(
        model,
        _optimizer(settings, data, model),
        objective,
        settings.trainer.step_size,
        device,
        microbatch_size=settings.trainer.microbatch_size,
        threads=settings.device.threads,
        allow_batch_coupling=settings.trainer.allow_batch_coupling,
        precision=settings.device.precision,
        schedule=named_schedule(
            settings.schedule.name, total_samples, settings.schedule.warmup, settings.schedule.final
        ),
        clip_norm=settings.trainer.clip_norm,
        max_skipped=settings.trainer.max_skipped,
    )
    pin = device.type == "cuda"
    val_loader = None
    if data.validation is not None:
        val_loader = loader(data.validation, batch_size, workers=workers, pin_memory=pin)
    train_loader = loader(
        data.train, batch_size, shuffle_seed=settings.seed, workers=workers, pin_memory=pin
    )
    return Run(data, trainer, train_loader, val_loader, total_samples)


def _check_coupling(
    settings: "Config", model: "torch.nn.Module", objective: "Objective", batch_size: int
) -> None:
    """Refuse before anything is written what the trainer would refuse at its first window."""
    from cadence.coupling import check_boundaries, coupling

    size = settings.trainer.microbatch_size
    coupled_by = coupling(model, objective)
    if coupled_by and isinstance(size, int) and not settings.trainer.allow_batch_coupling:
        check_boundaries(coupled_by, size, [batch_size] * settings.trainer.step_size)


def _seed(seed: int) -> None:
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _optimizer(
    settings: "Config", data: "Data", model: "torch.nn.Module"
) -> "torch.optim.Optimizer":
    from cadence.scaling import scaled

    arguments = scaled(
        settings.optimizer,
        settings.scaling.name,
        _effective_batch(settings, data),
        settings.scaling.reference or _effective_batch(settings, data, DEFAULT_STEP_SIZE),
    )
    optimizer: torch.optim.Optimizer = configs.build(
        "optimizer", arguments, list(model.parameters()), fused=True
    )
    return optimizer


def _effective_batch(settings: "Config", data: "Data", step_size: int | None = None) -> int:
    minibatches = step_size or settings.trainer.step_size
    return int(minibatches * settings.data["batch_size"] * data.items_per_sample)


def _total_samples(settings: "Config", data: "Data") -> int | None:
    limits = settings.trainer
    ends = [limits.max_samples, limits.max_epochs and limits.max_epochs * len(data.train)]
    return min((end for end in ends if end), default=None)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let SIGTERM end a run or a sweep as Ctrl-C does: marked KILLED, with nothing lost."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tracked(
    cfg: DictConfig, settings: "Config", run: Run, folder: Path
) -> AbstractContextManager["Tracker | None"]:
    if settings.track.name == "none":
        return nullcontext()

    from cadence.provenance import environment, git_tags
    from cadence.track import Tracker

    choices = HydraConfig.get().runtime.choices
    name = f"step_size={settings.trainer.step_size} {choices['data']} {choices['model']}"
    share = run.total_samples // 100 if run.total_samples else len(run.data.train) // 10
    return Tracker(
        settings.track.uri,
        settings.track.experiment,
        name,
        params=configs.flattened(cfg),
        tags={"cadence.run_folder": str(folder), **git_tags(ROOT)},
        texts={
            "config.yaml": OmegaConf.to_yaml(cfg, resolve=True),
            "environment.json": environment(),
        },
        every=settings.track.every or max(1, share),
        folder=folder,
        run_id=settings.track.run_id,
        parent=_parent(settings),
        offline=settings.track.offline,
    )


def _parent(settings: "Config") -> str | Path | None:
    """Return the MLflow run that groups the jobs of a plain multirun; None = it is no such job.

    Offline it is the multirun's folder, whose run is made on delivery.
    """
    hydra_config = HydraConfig.get()
    if hydra_config.mode != RunMode.MULTIRUN or settings.track.run_id is not None:
        return None
    from cadence.lineage import parent_of_folder

    folder = Path(hydra_config.sweep.dir).absolute()
    if settings.track.offline:
        return folder
    return parent_of_folder(settings.track.uri, settings.track.experiment, folder)


def _redact_hydra_files() -> None:
    """Take the passwords out of what Hydra itself has just written of the config."""
    hydra_config = HydraConfig.get()
    files: list[Path] = []
    if hydra_config.output_subdir is not None:
        written = Path(hydra_config.runtime.output_dir) / hydra_config.output_subdir
        files += written.glob("*.yaml")
    if hydra_config.mode == RunMode.MULTIRUN:
        files += Path(hydra_config.sweep.dir).glob("multirun.yaml")
    redact_files(files)


@contextmanager
def _summarised(
    settings: "Config", run: Run, folder: Path, tracker: "Tracker | None"
) -> Iterator[None]:
    """Leave a summary.json and MLflow's last numbers behind, however the run ends."""
    from cadence.summary import write_summary
    from cadence.track import status_after

    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        fitted = run.trainer.fitted
        summary = write_summary(
            folder,
            fitted,
            effective_batch=_effective_batch(settings, run.data),
            seed=settings.seed,
            mlflow_run_id=tracker.run_id if tracker else None,
            status=status_after(error),
        )
        if tracker:
            tracker.finish(run.trainer.clock, fitted, [summary])


def _facts(settings: "Config", run: Run) -> dict[str, str]:
    choices = HydraConfig.get().runtime.choices
    data, trainer = run.data, run.trainer
    minibatches = len(run.train_loader)
    updates = -(-minibatches // trainer.step_size)
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
        "window": f"step_size={trainer.step_size} mini-batches per update of "
        f"{settings.data['batch_size']} samples: effective batch "
        f"{_effective_batch(settings, data):,} {items}",
        "epoch": f"{minibatches:,} mini-batches, {updates:,} updates",
        "run": ends + (f", {run.total_samples:,} samples in all" if run.total_samples else ""),
    }


def _where_to_look(settings: "Config", folder: Path, tracker: "Tracker | None") -> dict[str, str]:
    look = {"run folder": str(folder)}
    if tracker and settings.track.offline:
        look["MLflow run"] = f"to be delivered by python -m src.sync {folder}"
    elif tracker:
        look["MLflow run"] = f"{tracker.run_id} in experiment {settings.track.experiment}"
        ours = settings.track.uri == f"sqlite:///{ROOT}/mlruns/mlflow.db"
        uri = redacted(settings.track.uri)
        command = f"mlflow ui --host 127.0.0.1 --backend-store-uri {uri}"
        look["compare runs"] = "make ui" if ours else command
    return look


@contextmanager
def _logged_with_traceback() -> Iterator[None]:
    """Leave an error's traceback in the run folder's train.log."""
    try:
        yield
    except Exception:
        log.info("failed", exc_info=True)
        raise


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Turn an error into one line on stderr and exit code 1, an interrupt into 128 + the signal.

    ``HYDRA_FULL_ERROR=1`` shows the traceback.
    """
    try:
        yield
    except KeyboardInterrupt as interrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(128 + (interrupt.args[0] if interrupt.args else signal.SIGINT))
    except Exception as error:
        if _WITH_TRACEBACK:
            raise
        sys.exit(f"error: {configs.explained(error)}")


def main() -> None:
    """Run the command line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands errors on instead of printing its own
    with _errors_in_one_line(), _interruptible():
        train()


if __name__ == "__main__":
    main()
