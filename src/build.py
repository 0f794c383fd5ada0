"""From a checked config to everything that training needs."""

from typing import TYPE_CHECKING, Any, NamedTuple

from cadence import config as configs
from cadence.window import DEFAULT_STEP_SIZE, StepSizeSchedule

if TYPE_CHECKING:
    import torch

    from cadence import Trainer
    from cadence.data import Data
    from cadence.objectives import Objective
    from cadence.schema import Config


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
    from cadence.device import compile_forward, resolved
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
        compile_forward(model)
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
        scaling=settings.scaling.name,
        noise_scale=settings.trainer.noise_scale,
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
        largest = StepSizeSchedule(settings.trainer.step_size).largest
        check_boundaries(coupled_by, size, [batch_size] * largest)


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
        effective_batch(settings, data),
        settings.scaling.reference or effective_batch(settings, data, DEFAULT_STEP_SIZE),
    )
    optimizer: torch.optim.Optimizer = configs.build(
        "optimizer", arguments, list(model.parameters()), fused=True
    )
    return optimizer


def effective_batch(settings: "Config", data: "Data", step_size: int | None = None) -> int:
    """Return the items of a full update; ``step_size`` None = the config's own, at the start."""
    minibatches = step_size or StepSizeSchedule(settings.trainer.step_size).first
    return int(minibatches * settings.data["batch_size"] * data.items_per_sample)


def _total_samples(settings: "Config", data: "Data") -> int | None:
    limits = settings.trainer
    ends = [limits.max_samples, limits.max_epochs and limits.max_epochs * len(data.train)]
    return min((end for end in ends if end), default=None)
