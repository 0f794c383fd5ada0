"""What a user may ask for: a typed schema for each config group, with units and limits.

The values are in conf/*.yaml; `cadence.config.checks` holds the schemas against what a user gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

RESUMABLE = "resumable"
"""Mark of a key that may differ where a run goes on."""

PLACE = "place"
"""Mark of a key that says where a run is kept and not what the run is: no param to compare by."""

SESSION = "session"
"""Mark of a key that may differ between the sessions of one sweep."""

CHOSEN = "chosen"
"""Mark of a group that a sweep's file chooses for its trials, whatever a plain run has."""

SPEED_NEUTRAL = "speed neutral"
"""Mark of a key that leaves the time of a window of given samples alone."""

SAME_ON_ALL = "same on all"
"""Mark of a key that must be the same on each process of a run."""


def setting(
    unit: str, *marks: str, at_least: float | None = None, above: float | None = None,
    at_most: float | None = None, below: float | None = None, choices: Sequence[str] = (),
    null: str = "", auto: str = "", schedule: str = "", condition: int = 0, default: Any = MISSING,
) -> Any:  # fmt: skip
    """Return a dataclass field whose value comes from YAML.

    Args:
        unit: What the number counts, or what the value is.
        marks: What the key is besides, of the marks above.
        at_least: The smallest value allowed; None = any.
        above: A value just too small; None = any.
        at_most: The largest value allowed; None = any.
        below: A value just too large; None = any.
        choices: The values allowed; empty = any.
        null: What null means, where it is allowed.
        auto: What auto means, where it is allowed beside whole numbers.
        schedule: What a mapping means, where it is allowed beside whole numbers.
        default: The value where no YAML gives one.
        condition: The key's place, from 1, among the conditions that a sweep's report names; 0
            means that the key is no condition.
    """
    limits = {"at_least": at_least, "above": above, "at_most": at_most, "below": below}
    words = {"unit": unit, "null": null, "auto": auto, "schedule": schedule}
    uses = {"marks": frozenset(marks), "condition": condition}
    return field(default=default, metadata=words | limits | uses | {"choices": tuple(choices)})


def group(*marks: str) -> Any:
    """Return a dataclass field that is a config group, all keys of which have these marks."""
    return field(default=MISSING, metadata={"marks": frozenset(marks)})


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """How a run trains."""

    step_size: Any = setting(
        "mini-batches per update",
        RESUMABLE,
        SPEED_NEUTRAL,
        at_least=1,
        schedule="{0: 2, 50000: 8} = from how many samples on, how many",
    )
    microbatch_size: Any = setting(
        "samples per forward and backward",
        RESUMABLE,
        condition=10,
        at_least=1,
        null="one mini-batch",
        auto="the fastest that fits",
    )
    allow_batch_coupling: bool = setting(
        "whether micro-batches may split mini-batches whose samples are coupled"
    )
    max_epochs: int | None = setting(
        "epochs", RESUMABLE, at_least=1, null="no such limit", condition=2
    )
    max_samples: int | None = setting(
        "samples", RESUMABLE, at_least=1, null="no such limit", condition=1
    )
    max_seconds: float | None = setting(
        "seconds", RESUMABLE, above=0, null="no such limit", condition=3
    )
    clip_norm: float | None = setting("gradient norm", above=0, null="no clipping")
    evaluate_every: int | None = setting("samples", RESUMABLE, at_least=1, null="once an epoch")
    checkpoint_every: int | None = setting(
        "samples", RESUMABLE, at_least=1, null="once an epoch, where that is cheap"
    )
    patience: int | None = setting(
        "evaluations without a lower validation loss that end the run",
        RESUMABLE,
        at_least=1,
        null="never",
    )
    max_skipped: int = setting("refused updates in a row that are borne", RESUMABLE, at_least=0)
    noise_scale: bool = setting("whether the gradient noise scale is estimated", RESUMABLE)
    detect_anomaly: bool = setting(
        "whether autograd names the operation that made a NaN (slow)", RESUMABLE
    )


@dataclass(kw_only=True, slots=True)
class DeviceConfig:
    """Where a run computes, and how."""

    name: str = setting("auto, cpu, cuda, cuda:1, mps", RESUMABLE, condition=11)
    precision: str = setting(
        "arithmetic", SAME_ON_ALL, condition=12, choices=("fp32", "bf16", "fp16")
    )
    compile: bool = setting("whether torch.compile translates the model", RESUMABLE)
    channels_last: bool = setting("whether images lie in memory pixel by pixel, the channels last")
    threads: Any = setting(
        "threads of an operation",
        RESUMABLE,
        at_least=1,
        null="by its work",
        auto="the fastest",
    )
    keep_memory: bool = setting(
        "whether freed memory is kept for the next pass (Linux, CPU)", RESUMABLE
    )


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """What every data set has; its own keys are passed to its ``_target_``."""

    _target_: str = setting("a dotted name", condition=4)
    batch_size: int = setting("samples per mini-batch", at_least=1, condition=5)
    workers: int = setting(
        "loading processes; not used for data in memory (all of cadence's own)",
        RESUMABLE,
        at_least=0,
    )
    drop_last: bool = setting(
        "whether an epoch leaves out a last mini-batch that is not full", default=False
    )
    objective: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class DigitsConfig(DataConfig):
    """scikit-learn's handwritten digits."""

    validation_share: float = setting("share held out", above=0, below=1)
    split_seed: int = setting("seed of the split", at_least=0)


@dataclass(kw_only=True, slots=True)
class SyntheticConfig(DataConfig):
    """Made-up classes."""

    samples: int = setting("samples", at_least=2)
    shape: list[int] = setting("shape of one input", at_least=1)
    classes: int = setting("classes", at_least=2)
    noise: float = setting("standard deviation around a class's centre", at_least=0)
    validation_share: float = setting("share held out", above=0, below=1)
    split_seed: int = setting("seed of the samples and the split", at_least=0)


@dataclass(kw_only=True, slots=True)
class ArraysConfig(DataConfig):
    """The user's own arrays."""

    path: str = setting("an .npz file or a folder of .npy files", RESUMABLE)
    inputs: str | None = setting("name of an array", null="found by name")
    targets: str | None = setting("name of an array", null="found by name")
    classes: int | None = setting("classes", at_least=1, null="the largest target + 1")
    validation_share: float = setting("share held out", above=0, below=1)
    split_seed: int = setting("seed of the split", at_least=0)


@dataclass(kw_only=True, slots=True)
class PydocsConfig(DataConfig):
    """The Python language reference, as bytes."""

    context: int = setting("input tokens in a sample", at_least=1)
    validation_share: float = setting("share held out, the tail", above=0, below=1)


@dataclass(kw_only=True, slots=True)
class TextConfig(PydocsConfig):
    """The user's own file, as bytes."""

    path: str = setting("a file", RESUMABLE)


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """What every model is told about the data, unless the user says otherwise."""

    _target_: str = setting("a dotted name", condition=6)
    input_shape: list[int] | None = setting("shape of one input", null="as the data has it")
    outputs: int | None = setting("numbers put out", at_least=1, null="as the data has it")


@dataclass(kw_only=True, slots=True)
class MLPConfig(ModelConfig):
    """A multilayer perceptron."""

    hidden: list[int] = setting("widths of the hidden layers", at_least=1)


@dataclass(kw_only=True, slots=True)
class CNNConfig(ModelConfig):
    """A small convolutional network."""

    channels: list[int] = setting("channels out of each convolution", at_least=1)
    dropout: float = setting("share of features dropped", at_least=0, below=1)


@dataclass(kw_only=True, slots=True)
class GPTConfig(ModelConfig):
    """A small causal transformer."""

    layers: int = setting("transformer blocks", at_least=1)
    width: int = setting("features of a token", at_least=1)
    heads: int = setting("attention heads", at_least=1)
    dropout: float = setting("share of features dropped", at_least=0, below=1)


@dataclass(kw_only=True, slots=True)
class AdamWConfig:
    """AdamW."""

    _target_: str = setting("a dotted name", condition=7)
    lr: float = setting("learning rate", SPEED_NEUTRAL, at_least=0, condition=8)
    betas: list[float] = setting(
        "decay per update of the gradient's two moments", at_least=0, below=1
    )
    eps: float = setting("added to the second moment's root", at_least=0)
    weight_decay: float = setting("decay per update and learning rate", SPEED_NEUTRAL, at_least=0)
    fused: bool | None = setting("one kernel for all parameters", null="where the device can")


@dataclass(kw_only=True, slots=True)
class SGDConfig:
    """Stochastic gradient descent."""

    _target_: str = setting("a dotted name", condition=7)
    lr: float = setting("learning rate", SPEED_NEUTRAL, at_least=0, condition=8)
    momentum: float = setting("decay per update of the velocity", at_least=0, below=1)
    nesterov: bool = setting("whether to look ahead along the velocity")
    weight_decay: float = setting("decay per update and learning rate", SPEED_NEUTRAL, at_least=0)
    fused: bool | None = setting("one kernel for all parameters", null="where the device can")


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """How the learning rate changes over a run."""

    name: str = setting("shape", condition=9, choices=("constant", "cosine"))
    warmup: int = setting("samples of a straight rise from 0", at_least=0)
    final: float = setting("factor on the learning rate at the end", at_least=0, at_most=1)


@dataclass(kw_only=True, slots=True)
class ScalingConfig:
    """How the learning rate follows the effective batch."""

    name: str = setting("rule", choices=("none", "sqrt", "linear"))
    reference: float | None = setting(
        "items per update for which optimizer.lr was chosen",
        above=0,
        null="those of 2 mini-batches, all processes together",
    )


@dataclass(kw_only=True, slots=True)
class TrackConfig:
    """Where a run's numbers go."""

    name: str = setting("tracker", choices=("mlflow", "none"))
    uri: str = setting("MLflow tracking URI")
    experiment: str = setting("MLflow experiment")
    every: int | None = setting(
        "samples between two logged numbers of each train/*",
        at_least=1,
        null="a hundredth of the run, or a tenth of an epoch where only time ends it",
    )
    run_id: str | None = setting("MLflow run to take over", PLACE, null="a new one")
    offline: bool = setting("whether MLflow is left alone until python -m src.sync delivers")
    log_model: bool = setting("whether the best model is logged as an MLflow model")


@dataclass(kw_only=True, slots=True)
class DistributedConfig:
    """How one run is spread over several processes."""

    name: str = setting("way to train on several processes", choices=("none", "ddp"))
    processes: int | None = setting(
        "processes",
        condition=13,
        at_least=1,
        null="one per CUDA device, or as many as torchrun started",
    )
    step_sizes: Any = setting(
        "mini-batches per update of each process, at least 1, as [4,2]; auto = by their speeds",
        null="trainer.step_size for each",
    )
    timeout: float = setting("seconds that a process waits for the others", above=0)


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    """How a sweep uses its trials; the search itself is in hydra.sweeper."""

    repeats: int = setting("trials of each point, each with its own seed", at_least=1)


@dataclass(kw_only=True, slots=True)
class Config:
    """All that a run is told. A group without a type here may hold a user's own keys."""

    seed: int = setting(
        "seed of weights, shuffling and dropout",
        SAME_ON_ALL,
        condition=14,
        at_least=0,
        below=2**32,
    )
    resume: str | None = setting("a run's folder, or last", RESUMABLE, PLACE, SESSION, null="begin")
    model: Any = group(SAME_ON_ALL)
    data: Any = group(SAME_ON_ALL)
    device: DeviceConfig = MISSING
    trainer: TrainerConfig = group(SAME_ON_ALL)
    optimizer: Any = group(SAME_ON_ALL)
    schedule: ScheduleConfig = group(SAME_ON_ALL, CHOSEN, SPEED_NEUTRAL)
    scaling: ScalingConfig = group(SAME_ON_ALL, CHOSEN, SPEED_NEUTRAL)
    track: TrackConfig = group(RESUMABLE, SESSION)
    distributed: DistributedConfig = group(SAME_ON_ALL, RESUMABLE)
    sweep: SweepConfig | None = field(
        default=None, metadata={"marks": frozenset((RESUMABLE, SESSION))}
    )


SCHEMAS: dict[str, type] = {
    "config": Config,
    "trainer": TrainerConfig,
    "device": DeviceConfig,
    "digits": DigitsConfig,
    "synthetic": SyntheticConfig,
    "arrays": ArraysConfig,
    "pydocs": PydocsConfig,
    "text": TextConfig,
    "mlp": MLPConfig,
    "cnn": CNNConfig,
    "gpt": GPTConfig,
    "adamw": AdamWConfig,
    "sgd": SGDConfig,
    "schedule": ScheduleConfig,
    "scaling": ScalingConfig,
    "track": TrackConfig,
    "distributed": DistributedConfig,
}
"""The schemas by the name that conf/ gives them: `/schema/NAME@_here_`."""

OPTIONS: dict[str, tuple[type, ...]] = {
    "data": (DataConfig, DigitsConfig, SyntheticConfig, ArraysConfig, TextConfig, PydocsConfig),
    "model": (ModelConfig, MLPConfig, CNNConfig, GPTConfig),
    "optimizer": (AdamWConfig, SGDConfig),
}
"""The schemas of the groups whose options differ."""
