"""From a checked config to everything that training needs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cadence.config import instantiate
from cadence.config.errors import ConfigError
from cadence.plan.shares import WindowPlan
from cadence.plan.window import DEFAULT_STEP_SIZE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from cadence import Trainer
    from cadence.config.schema import Config, TrainerConfig
    from cadence.data import Data
    from cadence.distributed.process_group import ProcessGroup
    from cadence.objectives import Objective
    from cadence.training.callback import Callback


@dataclass(frozen=True, slots=True)
class Run:
    """Everything that training needs, built."""

    data: "Data"
    batch_size: int
    """Samples of a mini-batch."""
    trainer: "Trainer"
    train_loader: "torch.utils.data.DataLoader[Any]"
    val_loader: "torch.utils.data.DataLoader[Any] | None"
    total_samples: int | None
    """Samples the run is to train on; None = only time ends it."""

    def effective_batch(self, window: int) -> int:
        """Return the items of a full update of so many mini-batches, all processes together."""
        return effective_batch(self.data, self.batch_size, window)


def build(
    settings: "Config",
    processes: "ProcessGroup | None" = None,
    windows: WindowPlan | None = None,
) -> Run:
    """Build what the config asks for, in the order in which one needs the other.

    Args:
        settings: The config.
        processes: Those that train together; None = this one alone.
        windows: The mini-batches of each in every window; None = those of this process alone.

    Raises:
        ConfigError: A ``_target_`` is refused or does not take its arguments, or the model does not
            fit the data.
        ValueError: The device, the data or a combination of values is impossible; the message says
            what to try.
    """
    import torch

    from cadence import Trainer
    from cadence.data import loader
    from cadence.data.loading import samples_of_epoch
    from cadence.engine.device import compile_forward, resolved
    from cadence.engine.without_dynamo import spare_dynamo
    from cadence.objectives import with_objective
    from cadence.plan.schedule import named_schedule
    from cadence.system.malloc import keep_memory

    device = resolved(settings.device.name)
    _seed(settings.seed)
    torch.autograd.set_detect_anomaly(settings.trainer.detect_anomaly)
    keep_memory(settings.device.keep_memory)
    spare_dynamo()

    own = {"batch_size", "workers", "drop_last", "objective"}
    data: Data = instantiate.build(
        "data", {key: value for key, value in settings.data.items() if key not in own}
    )
    objective = _objective(settings.data["objective"])
    model = instantiate.build(
        "model", settings.model, input_shape=list(data.input_shape), outputs=data.outputs
    ).to(device)
    _check_fit(settings.model, data)
    _initialise_lazy(model, objective, data)
    with_objective(model, objective).to(device)  # before the optimizer takes its parameters
    if settings.device.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if settings.device.compile:
        compile_forward(model)
    batch_size, workers = settings.data["batch_size"], settings.data.get("workers", 0)
    drop_last = settings.data.get("drop_last", False)
    epoch = samples_of_epoch(len(data.train), batch_size, drop_last=drop_last)
    total_samples = _total_samples(settings.trainer, epoch)
    chosen = settings.trainer
    _check_coupling(chosen, model, objective, batch_size)
    windows = windows or WindowPlan(chosen.step_size, 1)
    trainer = Trainer(
        model,
        _optimizer(settings, data, model, objective, sum(windows.at(0))),
        objective,
        windows.step_sizes,
        device,
        microbatch_size=chosen.microbatch_size,
        threads=settings.device.threads,
        allow_batch_coupling=chosen.allow_batch_coupling,
        precision=settings.device.precision,
        schedule=named_schedule(
            settings.schedule.name, total_samples, settings.schedule.warmup, settings.schedule.final
        ),
        clip_norm=chosen.clip_norm,
        max_skipped=chosen.max_skipped,
        scaling=settings.scaling.name,
        callbacks=_callbacks(chosen),
        processes=processes,
    )
    pin = device.type == "cuda"
    val_loader = None
    if data.validation is not None:
        val_loader = loader(data.validation, batch_size, workers=workers, pin_memory=pin)
    train_loader = loader(
        data.train,
        batch_size,
        shuffle_seed=settings.seed,
        workers=workers,
        pin_memory=pin,
        drop_last=drop_last,
    )
    return Run(data, batch_size, trainer, train_loader, val_loader, total_samples)


def _callbacks(chosen: "TrainerConfig") -> "list[Callback]":
    """Return the callbacks that every process of the run has."""
    from cadence.training.early_stopping import EarlyStopping
    from cadence.training.noise_scale import NoiseScaleEstimate

    callbacks: list[Callback] = []
    if chosen.noise_scale:
        callbacks.append(NoiseScaleEstimate())
    if chosen.patience is not None:
        callbacks.append(EarlyStopping(chosen.patience))
    return callbacks


def _objective(node: "Mapping[str, Any]") -> "Objective":
    """Build what the data or the user names as objective, and refuse what is none."""
    from cadence.objectives import checked_objective

    try:
        return checked_objective(instantiate.build("data.objective", node))
    except TypeError as error:
        raise ConfigError(f"data.objective._target_={node['_target_']}: {error}") from error


def _initialise_lazy(model: "torch.nn.Module", objective: "Objective", data: "Data") -> None:
    """Run two samples through a model with lazy layers, which have no shapes before."""
    from torch.nn.parameter import is_lazy

    if not any(map(is_lazy, [*model.parameters(), *model.buffers()])):
        return
    import torch

    from cadence.checkpoint.random_state import random_state_kept
    from cadence.data.batch import moved
    from cadence.engine.device import device_of

    device = device_of(model)
    with random_state_kept(device), torch.no_grad():
        objective.total_loss(model, moved(two_samples(data), device))


def two_samples(data: "Data") -> Any:
    """Return the first two training samples as a mini-batch; one where there is no second."""
    from cadence.data import loader

    return next(iter(loader(data.train, min(2, len(data.train)))))


TAKES_TOKENS = {
    "cadence.models.mlp.mlp": False,
    "cadence.models.cnn.cnn": False,
    "cadence.models.gpt.GPT": True,
}
"""Whether a model's inputs are tokens, or else numbers."""


def _check_fit(model: "Mapping[str, Any]", data: "Data") -> None:
    """Refuse a model of cadence whose inputs are of another kind than the data's.

    One that has no output for some class is refused as well: a GPU would die of it, not complain.
    """
    import torch

    from cadence.data import TensorData

    target = model["_target_"]
    takes_tokens = TAKES_TOKENS.get(target)
    if takes_tokens is not None and isinstance(data.train, TensorData):
        inputs = data.train.gathered(torch.tensor([0]))[0]
        if inputs.is_floating_point() == takes_tokens:
            kinds = ("tokens", "numbers", "mlp") if takes_tokens else ("numbers", "tokens", "gpt")
            raise ConfigError(
                "model._target_={}: it takes {}, the data has {}; try model={}".format(
                    target, *kinds
                )
            )
    outputs = model.get("outputs")
    if outputs is not None and outputs < data.outputs:
        raise ConfigError(f"model.outputs={outputs}: the data needs {data.outputs}; null = as many")


def _check_coupling(
    chosen: "TrainerConfig", model: "torch.nn.Module", objective: "Objective", batch_size: int
) -> None:
    """Refuse before anything is written what the trainer would refuse at its first window."""
    from cadence.engine.coupling import check_boundaries, coupling

    size = chosen.microbatch_size
    coupled_by = coupling(model, objective)
    if coupled_by and isinstance(size, int) and not chosen.allow_batch_coupling:
        check_boundaries(coupled_by, size, [batch_size] * chosen.step_size.largest)


def _seed(seed: int) -> None:
    import random

    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _optimizer(
    settings: "Config",
    data: "Data",
    model: "torch.nn.Module",
    objective: "Objective",
    window: int,
) -> "torch.optim.Optimizer":
    from cadence.objectives import with_objective
    from cadence.plan.scaling import scaled

    batch_size, scaling = settings.data["batch_size"], settings.scaling
    arguments = scaled(
        settings.optimizer,
        scaling.name,
        effective_batch(data, batch_size, window),
        scaling.reference or effective_batch(data, batch_size, DEFAULT_STEP_SIZE),
    )
    if scaling.name != "none" and "lr" not in settings.optimizer:
        raise ConfigError(
            f"scaling={scaling.name}: the optimizer has no lr to scale; give optimizer.lr (by "
            "+optimizer.lr= where its YAML has none)"
        )
    parameters = list(with_objective(model, objective).parameters())
    optimizer: torch.optim.Optimizer = instantiate.build(
        "optimizer", arguments, parameters, fused=_can_be_fused(parameters, model) or None
    )
    return optimizer


def _can_be_fused(parameters: "Sequence[torch.nn.Parameter]", model: "torch.nn.Module") -> bool:
    """Return whether torch's fused optimizers take a model: its gradients are real and dense."""
    is_sparse = any(getattr(module, "sparse", False) for module in model.modules())
    return not is_sparse and all(each.is_floating_point() for each in parameters)


def effective_batch(data: "Data", batch_size: int, window: int) -> int:
    """Return the items of a full update of so many mini-batches, all processes together.

    A window ends with its epoch, so it holds no more than one.
    """
    samples = min(window * batch_size, len(data.train))
    return int(samples * data.items_per_sample)


def _total_samples(limits: "TrainerConfig", epoch: int) -> int | None:
    """Return the samples of a run whose epochs have so many; None = only time ends it."""
    ends = [limits.max_samples, limits.max_epochs and limits.max_epochs * epoch]
    return min((end for end in ends if end), default=None)
