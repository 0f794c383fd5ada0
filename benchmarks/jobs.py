"""What the contenders train: a model, its data, its loss, and how much of it at a time."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter, thread_time
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset

from cadence.data import Data, TensorData, loader
from cadence.data.digits import digits
from cadence.data.pydocs import pydocs
from cadence.data.synthetic import synthetic
from cadence.models.cnn import cnn
from cadence.models.gpt import GPT
from cadence.models.mlp import mlp
from cadence.objectives import Classification, LanguageModelling, Objective

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> the mean loss, 0-d."""

LoaderName: TypeAlias = Literal["torch", "cadence"]

ClockName: TypeAlias = Literal["wall", "thread"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A model and its data, the same for every contender."""

    name: str
    inputs: Tensor
    targets: Tensor
    make_model: Callable[[], nn.Module]
    mean_loss: Loss
    """What the peers minimise."""
    objective: Objective
    """What cadence minimises: the same, as a sum over items."""
    batch_size: int
    lr: float = 1e-3

    def model(self) -> nn.Module:
        """Return the model with its initial weights, the same each time."""
        torch.manual_seed(0)
        return self.make_model()

    def optimizer(self, model: nn.Module) -> AdamW:
        """Return fused AdamW over the model's parameters."""
        return AdamW(model.parameters(), lr=self.lr, fused=True)

    def in_float64(self, samples: int, batch_size: int) -> "Job":
        """Return the job on its first samples, in float64, where rounding hides no difference."""
        inputs = self.inputs[:samples]
        return replace(
            self,
            inputs=inputs.double() if inputs.is_floating_point() else inputs,
            targets=self.targets[:samples],
            make_model=lambda: self.make_model().double(),
            batch_size=batch_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What one contender does in one go: so many mini-batches of a job, epoch after epoch."""

    job: Job
    step_size: int
    """Mini-batches per update."""
    epochs: int = 1
    batches: int
    """Mini-batches of each epoch; the rest of it is left out."""
    shuffle: bool = True
    loader: LoaderName = "torch"
    """What loads the peers' mini-batches: torch's DataLoader over a TensorDataset, or cadence's."""
    clock: ClockName = "wall"
    """What times it: wall time, or the CPU time of the training thread."""
    scratch: Path
    """A folder for what tracking writes."""

    @property
    def tracking_uri(self) -> str:
        """Return where MLflow's database is."""
        return f"sqlite:///{self.scratch}/mlflow.db"

    def now(self) -> float:
        """Return the clock's seconds."""
        return perf_counter() if self.clock == "wall" else thread_time()

    @property
    def samples(self) -> int:
        """The samples trained on."""
        return self.epochs * min(self.batches * self.job.batch_size, len(self.job.inputs))

    @property
    def epoch_batches(self) -> int:
        """The mini-batches of a whole epoch."""
        return -(-len(self.job.inputs) // self.job.batch_size)

    @property
    def whole_epochs(self) -> bool:
        """Whether no mini-batch of an epoch is left out."""
        return self.batches >= self.epoch_batches

    def torch_loader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the loader that every PyTorch tutorial builds."""
        data = TensorDataset(self.job.inputs, self.job.targets)
        return DataLoader(data, batch_size=self.job.batch_size, shuffle=self.shuffle)

    def cadence_loader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return cadence's loader over the same tensors."""
        data = TensorData(self.job.inputs, self.job.targets)
        seed = 0 if self.shuffle else None
        return loader(data, self.job.batch_size, shuffle_seed=seed)

    def peers_loader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the loader that the peers are given."""
        return self.torch_loader() if self.loader == "torch" else self.cadence_loader()


def digits_mlp() -> Job:
    """Return the MLP 64-128-10 on scikit-learn's digits, 32 samples a mini-batch."""
    data = digits()
    return _classification("digits MLP", data, lambda: mlp(data.input_shape, data.outputs))


def digits_cnn() -> Job:
    """Return the CNN of 32 and 64 channels on scikit-learn's digits, 32 samples a mini-batch."""
    data = digits()
    return _classification("digits CNN", data, lambda: cnn(data.input_shape, data.outputs))


def synthetic_cnn() -> Job:
    """Return a CNN of 32 and 64 channels on 10,000 made-up images, 32 samples a mini-batch."""
    data = synthetic(samples=10_001, shape=(1, 28, 28), validation_share=1e-4)  # one held out
    return _classification("synthetic CNN", data, lambda: cnn(data.input_shape, data.outputs))


def pydocs_gpt() -> Job:
    """Return a GPT of 4 layers, width 128, on the bytes of pydocs, 8 contexts a mini-batch."""
    data = pydocs(context=128)
    inputs, targets = _tensors(data)
    return Job(
        name="pydocs GPT",
        inputs=inputs,
        targets=targets,
        make_model=lambda: GPT(data.input_shape, data.outputs, layers=4, width=128, heads=4),
        mean_loss=_mean_token_loss,
        objective=LanguageModelling(),
        batch_size=8,
    )


JOBS: dict[str, Callable[[], Job]] = {"mlp": digits_mlp, "cnn": synthetic_cnn, "gpt": pydocs_gpt}


def _classification(name: str, data: Data, make_model: Callable[[], nn.Module]) -> Job:
    inputs, targets = _tensors(data)
    return Job(
        name=name,
        inputs=inputs,
        targets=targets,
        make_model=make_model,
        mean_loss=F.cross_entropy,
        objective=Classification(),
        batch_size=32,
    )


def _tensors(data: Data) -> tuple[Tensor, Tensor]:
    assert isinstance(data.train, TensorData)
    inputs, targets = data.train.gathered(torch.arange(len(data.train)))
    return inputs.contiguous(), targets.contiguous()


def _mean_token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())
