"""From a checked config to everything that training needs."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from cadence.config import instantiate
from cadence.config.errors import ConfigError
from cadence.plan.shares import Plan, SharedStepSizes, even
from cadence.plan.window import DEFAULT_STEP_SIZE, StepSizeSchedule

if TYPE_CHECKING:
    import torch

    from cadence import Trainer
    from cadence.config.schema import Config
    from cadence.data import Data
    from cadence.distributed.process_group import ProcessGroup
    from cadence.objectives import Objective
    from cadence.training.callback import Callback

WINDOW = "distributed.window"
"""Mini-batches per update, all processes together, as a checkpoint keeps it beside the config."""

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """Everything that training needs, built."""

    data: "Data"
    trainer: "Trainer"
    train_loader: "torch.utils.data.DataLoader[Any]"
    val_loader: "torch.utils.data.DataLoader[Any] | None"
    total_samples: int | None
    """Samples the run is to train on; None = only time ends it."""


def build(
    settings: "Config",
    processes: "ProcessGroup | None" = None,
    step_sizes: SharedStepSizes | None = None,
) -> Run:
    """Build what the config asks for, in the order in which one needs the other.

    Args:
        settings: The config.
        processes: Those that train together; None = this one alone.
        step_sizes: Mini-batches per update of each; None = the config's step_size alone.

    Raises:
        ConfigError: A ``_target_`` is refused or does not take its arguments, or the model does not
            fit the data.
        ValueError: The device, the data or a combination of values is impossible; the message says
            what to try.
    """
    import torch

    from cadence import Trainer
    from cadence.data import loader
    from cadence.engine.device import compile_forward, resolved
    from cadence.engine.without_dynamo import spare_dynamo
    from cadence.plan.schedule import named_schedule
    from cadence.system.malloc import keep_memory

    device = resolved(settings.device.name)
    _seed(settings.seed)
    torch.autograd.set_detect_anomaly(settings.trainer.detect_anomaly)
    keep_memory(settings.device.keep_memory)
    spare_dynamo()

    own = {"batch_size", "workers", "objective"}
    data: Data = instantiate.build(
        "data", {key: value for key, value in settings.data.items() if key not in own}
    )
    objective = instantiate.build("data.objective", settings.data["objective"])
    model = instantiate.build(
        "model", settings.model, input_shape=list(data.input_shape), outputs=data.outputs
    ).to(device)
    _check_fit(settings, data)
    if settings.device.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if settings.device.compile:
        compile_forward(model)
    total_samples = _total_samples(settings, data)
    batch_size, workers = settings.data["batch_size"], settings.data.get("workers", 0)
    _check_coupling(settings, model, objective, batch_size)
    step_sizes = step_sizes or settings.trainer.step_size
    first = Plan(step_sizes, 1 if processes is None else processes.count).at(0)
    trainer = Trainer(
        model,
        _optimizer(settings, data, model, sum(first)),
        objective,
        step_sizes,
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
        callbacks=_callbacks(settings),
        processes=processes,
    )
    pin = device.type == "cuda"
    val_loader = None
    if data.validation is not None:
        val_loader = loader(data.validation, batch_size, workers=workers, pin_memory=pin)
    train_loader = loader(
        data.train, batch_size, shuffle_seed=settings.seed, workers=workers, pin_memory=pin
    )
    return Run(data, trainer, train_loader, val_loader, total_samples)


def _callbacks(settings: "Config") -> "list[Callback]":
    """Return the callbacks that every process of the run has."""
    from cadence.training.early_stopping import EarlyStopping
    from cadence.training.noise_scale import NoiseScaleEstimate

    callbacks: list[Callback] = []
    if settings.trainer.noise_scale:
        callbacks.append(NoiseScaleEstimate())
    if settings.trainer.patience is not None:
        callbacks.append(EarlyStopping(settings.trainer.patience))
    return callbacks


TAKES_TOKENS = {
    "cadence.models.mlp.mlp": False,
    "cadence.models.cnn.cnn": False,
    "cadence.models.gpt.GPT": True,
}
"""Whether a model's inputs are tokens, or else numbers."""


def _check_fit(settings: "Config", data: "Data") -> None:
    """Refuse a model of cadence whose inputs are of another kind than the data's.

    One that has no output for some class is refused as well: a GPU would die of it, not complain.
    """
    import torch

    from cadence.data import TensorData

    target = settings.model["_target_"]
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
    outputs = settings.model.get("outputs")
    if outputs is not None and outputs < data.outputs:
        raise ConfigError(f"model.outputs={outputs}: the data needs {data.outputs}; null = as many")


def _check_coupling(
    settings: "Config", model: "torch.nn.Module", objective: "Objective", batch_size: int
) -> None:
    """Refuse before anything is written what the trainer would refuse at its first window."""
    from cadence.engine.coupling import check_boundaries, coupling

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
    settings: "Config", data: "Data", model: "torch.nn.Module", window: int
) -> "torch.optim.Optimizer":
    from cadence.plan.scaling import scaled

    arguments = scaled(
        settings.optimizer,
        settings.scaling.name,
        effective_batch(settings, data, window),
        settings.scaling.reference or effective_batch(settings, data, DEFAULT_STEP_SIZE),
    )
    optimizer: torch.optim.Optimizer = instantiate.build(
        "optimizer", arguments, list(model.parameters()), fused=_can_be_fused(model) or None
    )
    return optimizer


def _can_be_fused(model: "torch.nn.Module") -> bool:
    """Return whether torch's fused optimizers take a model: its gradients are real and dense."""
    is_sparse = any(getattr(module, "sparse", False) for module in model.modules())
    return not is_sparse and all(each.is_floating_point() for each in model.parameters())


def effective_batch(settings: "Config", data: "Data", window: int) -> int:
    """Return the items of a full update of so many mini-batches, all processes together.

    A window ends with its epoch, so it holds no more than one.
    """
    samples = min(window * settings.data["batch_size"], len(data.train))
    return int(samples * data.items_per_sample)


def planned_step_sizes(
    settings: "Config", processes: int, began_with: Mapping[str, Any] | None
) -> SharedStepSizes:
    """Return the mini-batches per update of each process.

    A run that goes on keeps its window, on however many processes and however it is shared out,
    unless it is asked for another one.

    Args:
        settings: The config.
        processes: How many there are.
        began_with: The flattened config that the run was saved with; None = it begins.

    Raises:
        ValueError: The shares are impossible; the message says what to try.
    """
    asked, step_size = settings.distributed.step_sizes, settings.trainer.step_size
    is_scheduled = isinstance(step_size, Mapping)
    if is_scheduled and asked is not None:
        raise ValueError(
            f"distributed.step_sizes={asked}: a schedule of trainer.step_size is the same for each "
            "process; leave distributed.step_sizes null, or give trainer.step_size one number"
        )
    each: SharedStepSizes = asked if isinstance(asked, list) else step_size
    if began_with is None or _asks_for_another_window(settings, began_with):
        return Plan(each, processes).step_sizes
    was = began_with.get("distributed.processes", 1)
    if is_scheduled and was == processes:
        return Plan(each, processes).step_sizes
    if is_scheduled:
        raise ValueError(
            f"distributed.processes={processes}: the run has a schedule of trainer.step_size for "
            f"each of {was} processes; go on with {was}, or give another trainer.step_size"
        )
    window = began_with.get(WINDOW, step_size)
    if isinstance(asked, list) and (len(asked), sum(asked)) == (processes, window):
        return asked
    shares = even(window, processes)
    if (processes, asked) != (was, began_with.get("distributed.step_sizes")):
        log.warning(
            "resume: the %d mini-batches of an update are shared out as %s now",
            window,
            list(shares),
        )
    return shares


def _asks_for_another_window(settings: "Config", began_with: Mapping[str, Any]) -> bool:
    """Return whether another step_size is asked for, or others for each process.

    ``auto`` and null ask for no window: they say how the one there is gets shared out.
    """
    asked, step_size = settings.distributed.step_sizes, settings.trainer.step_size
    now = str(step_size) if isinstance(step_size, Mapping) else step_size  # as it is flattened
    is_other_list = isinstance(asked, list) and asked != began_with.get("distributed.step_sizes")
    return is_other_list or bool(now != began_with["trainer.step_size"])


def _total_samples(settings: "Config", data: "Data") -> int | None:
    limits = settings.trainer
    ends = [limits.max_samples, limits.max_epochs and limits.max_epochs * len(data.train)]
    return min((end for end in ends if end), default=None)
