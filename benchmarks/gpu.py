"""Measure cadence on a GPU beside hand-written loops, Lightning and Accelerate.

    python -m benchmarks.gpu --out gpu.json
    python -m benchmarks.gpu --device cpu --quick       # a rehearsal without a GPU

All contenders live in one process and take turns, as in benchmarks.throughput; a contender's share
is its samples per second over the tight loop's of the same round, and a turn ends when the device
has. Data lies in page-locked memory on the host, and each contender copies it as its documentation
says. *captured* is the tight loop with a full window's passes and update as one CUDA graph: the
limit for small models. Transformer and ResNet compute in bfloat16 under autocast, the others in
float32. Each job has so many seconds; what does not fit any more is said.
"""

import argparse
import gc
import json
import statistics
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

import lightning
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.figures import Spread, conditions, line, said, spread
from benchmarks.lightning_module import EpochSeconds, Module, silence
from cadence import Trainer
from cadence.data import TensorData, loader
from cadence.models.cnn import cnn
from cadence.models.gpt import GPT
from cadence.models.mlp import mlp
from cadence.objectives import Classification, LanguageModelling, Objective

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 arithmetic of a device per second, as its maker states it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A model and its data, the same for every contender."""

    name: str
    make_model: Callable[[], nn.Module]
    inputs: Tensor
    targets: Tensor
    objective: Objective
    batch_size: int
    is_bf16: bool
    flops_per_sample: float | None = None
    """Arithmetic of a forward and backward of one sample; None = not told."""

    def mean_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, 0-d."""
        return F.cross_entropy(outputs.flatten(0, -2).float(), targets.flatten())


def digits_mlp(*, tiny: bool) -> Job:
    """Return an MLP 64-128-10 on made-up digits, 32 samples a mini-batch."""
    return _images("MLP", lambda: mlp([1, 8, 8], 10), (1, 8, 8), 10, 32 * (8 if tiny else 256), 32)


def small_cnn(*, tiny: bool) -> Job:
    """Return a CNN of 32 and 64 channels on made-up images of 28 by 28, 32 samples a mini-batch."""
    samples = 32 * (8 if tiny else 256)
    return _images("CNN", lambda: cnn([1, 28, 28], 10), (1, 28, 28), 10, samples, 32)


def resnet50_sized(*, tiny: bool) -> Job:
    """Return a bottleneck network of ResNet-50's size on made-up images, in bfloat16."""
    shape, batch, samples = ((3, 32, 32), 2, 16) if tiny else ((3, 224, 224), 64, 64 * 16)
    blocks = (1, 1, 1, 1) if tiny else (3, 4, 6, 3)
    return _images("ResNet-50", lambda: ResNet(blocks), shape, 1000, samples, batch, is_bf16=True)


def gpt2_sized(*, tiny: bool) -> Job:
    """Return a transformer of GPT-2 small's size on made-up tokens, in bfloat16."""
    tokens, context, layers, width, heads = 50257, 1024, 12, 768, 12
    batch, samples = 8, 8 * 32
    if tiny:
        tokens, context, layers, width, heads = 97, 32, 2, 32, 2
        batch, samples = 2, 2 * 8

    def make_model() -> nn.Module:
        return GPT([context], tokens, layers=layers, width=width, heads=heads)

    data = torch.randint(tokens, (samples, context + 1))
    parameters = sum(parameter.numel() for parameter in make_model().parameters())
    return Job(
        name="GPT-2 small",
        make_model=make_model,
        inputs=data[:, :-1].contiguous(),
        targets=data[:, 1:].contiguous(),
        objective=LanguageModelling(),
        batch_size=batch,
        is_bf16=True,
        # Chowdhery et al. 2022, PaLM, appendix B: 6 N + 12 L H Q T a token.
        flops_per_sample=context * (6 * parameters + 12 * layers * width * context),
    )


JOBS: dict[str, Callable[..., Job]] = {
    "mlp": digits_mlp,
    "cnn": small_cnn,
    "gpt": gpt2_sized,
    "resnet": resnet50_sized,
}


def _images(
    name: str,
    make_model: Callable[[], nn.Module],
    shape: tuple[int, ...],
    classes: int,
    samples: int,
    batch_size: int,
    *,
    is_bf16: bool = False,
) -> Job:
    return Job(
        name=name,
        make_model=make_model,
        inputs=torch.randn(samples, *shape),
        targets=torch.randint(classes, (samples,)),
        objective=Classification(),
        batch_size=batch_size,
        is_bf16=is_bf16,
    )


class Bottleneck(nn.Module):
    """A residual block of three convolutions, the middle one over width / 4 channels."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        inner = width // 4
        self.body = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            nn.GroupNorm(8, inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, 1, bias=False),
            nn.GroupNorm(8, inner),
            nn.ReLU(),
            nn.Conv2d(inner, width, 1, bias=False),
            nn.GroupNorm(8, width),
        )
        same = stride == 1 and channels == width
        self.short: nn.Module = nn.Identity() if same else nn.Conv2d(channels, width, 1, stride)

    def forward(self, images: Tensor) -> Tensor:
        """Return features [samples, width, height / stride, breadth / stride]."""
        return F.relu(self.body(images) + self.short(images))


class ResNet(nn.Module):
    """ResNet-50's shape, with GroupNorm, whose samples do not depend on one another.

    Args:
        blocks: Blocks of each of the four stages.
    """

    def __init__(self, blocks: Sequence[int]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        channels = 64
        for stage, count in enumerate(blocks):
            width = 256 << stage
            for number in range(count):
                layers.append(Bottleneck(channels, width, 2 if stage and number == 0 else 1))
                channels = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 1000)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [samples, 1000] of images [samples, 3, height, breadth]."""
        return self.head(self.features(images).mean((2, 3)))


@dataclass(frozen=True, slots=True)
class Workload:
    """What one contender does in one go: the job's data once, in their own order."""

    job: Job
    step_size: int
    device: torch.device

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward."""
        if self.job.is_bf16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    def pinned(self, tensor: Tensor) -> Tensor:
        """Return a tensor in page-locked memory where the device copies from such."""
        return tensor.pin_memory() if self.device.type == "cuda" else tensor

    def torch_loader(self) -> DataLoader[tuple[Tensor, ...]]:
        """Return the loader that every PyTorch tutorial builds."""
        data = TensorDataset(self.job.inputs, self.job.targets)
        pin = self.device.type == "cuda"
        return DataLoader(data, batch_size=self.job.batch_size, pin_memory=pin)


class Contender(ABC):
    """Something that trains a workload, again and again."""

    name: ClassVar[str]

    def __init__(self, workload: Workload) -> None:
        self.work, self.job, self.device = workload, workload.job, workload.device
        torch.manual_seed(0)
        self.model = self.job.make_model().to(self.device)
        fused = self.device.type == "cuda"
        self.optimizer = AdamW(self.model.parameters(), lr=1e-4, fused=fused)

    @abstractmethod
    def train(self) -> None:
        """Train on the job's data once."""

    def seconds(self) -> float:
        """Train, and return the time until the device has done all of it."""
        synchronise(self.device)
        start = perf_counter()
        self.train()
        synchronise(self.device)
        return perf_counter() - start


class Tight(Contender):
    """A hand-written loop that slices whole mini-batches and copies them without waiting."""

    name = "tight"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.inputs = workload.pinned(self.job.inputs)
        self.targets = workload.pinned(self.job.targets)

    def train(self) -> None:
        """Train on the job's data once."""
        size = self.job.batch_size
        count = size * self.work.step_size
        for first in range(0, len(self.inputs), count):
            last = min(first + count, len(self.inputs))
            for start in range(first, last, size):
                stop = min(start + size, last)
                inputs = self.inputs[start:stop].to(self.device, non_blocking=True)
                targets = self.targets[start:stop].to(self.device, non_blocking=True)
                with self.work.autocast():
                    loss = self.job.mean_loss(self.model(inputs), targets)
                (loss * ((stop - start) / (last - first))).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


class Captured(Tight):
    """The tight loop, a full window of which is one CUDA graph; other windows run as they are."""

    name = "captured"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self.optimizer = AdamW(self.model.parameters(), lr=1e-4, capturable=True, fused=True)
        count = self.job.batch_size * workload.step_size
        self._inputs = self.inputs[:count].to(self.device)
        self._targets = self.targets[:count].to(self.device)
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(side):  # a capture wants what is made at first use to be there
            for _ in range(3):
                self._window()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._window()

    def _window(self) -> None:
        self.optimizer.zero_grad()
        size = self.job.batch_size
        for inputs, targets in zip(
            self._inputs.split(size), self._targets.split(size), strict=True
        ):
            with self.work.autocast():
                loss = self.job.mean_loss(self.model(inputs), targets)
            (loss / self.work.step_size).backward()
        self.optimizer.step()

    def train(self) -> None:
        """Train on the job's data once."""
        count = len(self._inputs)
        for start in range(0, len(self.inputs) - count + 1, count):
            self._inputs.copy_(self.inputs[start : start + count], non_blocking=True)
            self._targets.copy_(self.targets[start : start + count], non_blocking=True)
            self._graph.replay()


class Cadence(Contender):
    """cadence's trainer and loader, one mini-batch a pass."""

    name = "cadence"
    chosen: ClassVar[dict[str, Any]] = {}

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        pin = workload.device.type == "cuda"
        data = TensorData(self.job.inputs, self.job.targets)
        self._loader = loader(data, self.job.batch_size, pin_memory=pin)
        self._trainer = Trainer(
            self.model,
            self.optimizer,
            self.job.objective,
            workload.step_size,
            workload.device,
            precision="bf16" if self.job.is_bf16 else "fp32",
            **self.chosen,
        )

    def train(self) -> None:
        """Train on the job's data once."""
        self._trainer.fit(self._loader, epochs=1)


class AutoCadence(Cadence):
    """cadence, which chooses the samples of a pass by measuring."""

    name = "cadence auto"
    chosen: ClassVar[dict[str, Any]] = {"microbatch_size": "auto"}

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        for _ in range(20):
            self._trainer.fit(self._loader, epochs=1)
            if not self._trainer.is_tuning:
                break


class DataLoaderLoop(Contender):
    """The loop of the tutorials: a DataLoader and gradient accumulation by counting."""

    name = "DataLoader loop"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._loader = workload.torch_loader()

    def train(self) -> None:
        """Train on the job's data once."""
        last = len(self._loader)
        for number, (inputs, targets) in enumerate(self._loader, start=1):
            inputs = inputs.to(self.device, non_blocking=True)
            targets = targets.to(self.device, non_blocking=True)
            with self.work.autocast():
                loss = self.job.mean_loss(self.model(inputs), targets)
            (loss / self.work.step_size).backward()
            if number % self.work.step_size == 0 or number == last:
                self.optimizer.step()
                self.optimizer.zero_grad()


class Lightning(Contender):
    """Lightning's Trainer in its barebones mode, set-up outside the clock."""

    name = "Lightning"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._loader = workload.torch_loader()
        self._module = Module(self.model, self.optimizer, self.job.mean_loss)
        self._clock = EpochSeconds(lambda: synchronise(self.device))

    def train(self) -> None:
        """Train on the job's data once."""
        trainer = lightning.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=1,
            precision="bf16-mixed" if self.job.is_bf16 else "32-true",
            accumulate_grad_batches=self.work.step_size,
            callbacks=[self._clock],
            barebones=True,
        )
        trainer.fit(self._module, self._loader)

    def seconds(self) -> float:
        """Train, and return the time from the epoch's start to its end."""
        self.train()
        return self._clock.seconds


class Accelerate(Contender):
    """Hugging Face Accelerate, which divides and counts by itself."""

    name = "Accelerate"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._accelerator = Accelerator(
            cpu=self.device.type == "cpu",
            gradient_accumulation_steps=workload.step_size,
            mixed_precision="bf16" if self.job.is_bf16 else "no",
        )
        self._wrapped, self._step, self._loader = self._accelerator.prepare(
            self.model, self.optimizer, workload.torch_loader()
        )

    def train(self) -> None:
        """Train on the job's data once."""
        for inputs, targets in self._loader:
            with self._accelerator.accumulate(self._wrapped):
                loss = self.job.mean_loss(self._wrapped(inputs), targets)
                self._accelerator.backward(loss)
                self._step.step()
                self._step.zero_grad()


def contenders(device: torch.device) -> list[type[Contender]]:
    """Return those that can run on a device, the tight loop first."""
    captured: list[type[Contender]] = [Captured] if device.type == "cuda" else []
    return [Tight, *captured, Cadence, AutoCadence, DataLoaderLoop, Lightning, Accelerate]


def synchronise(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True, slots=True)
class Turns:
    """All turns of one job and step_size, by contender."""

    seconds: dict[str, list[float]]
    peak_mib: dict[str, float]

    def share(self, name: str, of: str = Tight.name) -> Spread:
        """Return a contender's speed as a share of another's in the same round."""
        pairs = zip(self.seconds[of], self.seconds[name], strict=True)
        return spread([other / mine for other, mine in pairs])


def turns(workload: Workload, rounds: int) -> Turns:
    """Let all contenders take turns; the first round, which warms up, is not counted."""
    found: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    built: list[Contender] = []
    for kind in contenders(workload.device):
        if workload.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(workload.device)
            before = torch.cuda.memory_allocated(workload.device)
        built.append(kind(workload))
        built[-1].seconds()
        if workload.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(workload.device) - before
            peaks[kind.name] = peak / 2**20
    for number in range(rounds):
        first = number % len(built)
        for contender in built[first:] + built[:first]:
            gc.collect()
            found.setdefault(contender.name, []).append(contender.seconds())
    return Turns(found, peaks)


def rows(workload: Workload, found: Turns) -> Iterator[list[str]]:
    """Yield a table row for each contender."""
    samples = len(workload.job.inputs)
    for name, seconds in found.seconds.items():
        speed = samples / statistics.median(seconds)
        peak = f"{found.peak_mib[name]:,.0f}" if name in found.peak_mib else "-"
        used = _share_of_peak(workload, speed)
        yield [
            workload.job.name,
            str(workload.step_size),
            name,
            f"{speed:,.0f}",
            str(found.share(name)),
            peak,
            used,
        ]


def _share_of_peak(workload: Workload, samples_per_second: float) -> str:
    if workload.job.flops_per_sample is None or workload.device.type != "cuda":
        return "-"
    device = torch.cuda.get_device_name(workload.device)
    peaks = [peak for name, peak in PEAK_FLOPS.items() if name in device]
    if not peaks:
        return "-"
    return f"{samples_per_second * workload.job.flops_per_sample / peaks[0]:.1%}"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--jobs", nargs="+", choices=list(JOBS), default=list(JOBS))
    add("--step-sizes", nargs="+", type=int, default=[1, 2, 8, 16])
    add("--rounds", type=int, default=5, help="turns of each contender that count")
    add("--seconds", type=float, default=50.0, help="for each job; then the next one begins")
    add("--device", default="cuda")
    add("--quick", action="store_true", help="1 round of tiny models at step_size 2")
    add("--out", type=Path, default=None, help="write every turn as JSON here")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.step_sizes = 1, [2]
    if min([options.rounds, *options.step_sizes]) < 1:
        parser.error("--rounds and --step-sizes must be at least 1")
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; rehearse with --device cpu --quick")
    return options


def main() -> None:
    """Run the command line."""
    options = parsed()
    silence()
    device = torch.device(options.device)
    torch.set_float32_matmul_precision("high")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "the CPU"
    facts = conditions(("torch",), device=name, rounds=options.rounds)
    print(said(facts), flush=True)
    head = ["job", "step_size", "contender", "samples/s", "of tight", "peak MiB", "of the peak"]
    print(line(head), line(["---"] * len(head)), sep="\n", flush=True)
    raw: list[dict[str, Any]] = []
    for job_name in options.jobs:
        began, job = perf_counter(), JOBS[job_name](tiny=options.quick)
        for step_size in options.step_sizes:
            if perf_counter() - began > options.seconds:
                print(f"{job.name}: no time left for step_size={step_size}", file=sys.stderr)
                continue
            workload = Workload(job, step_size, device)
            found = turns(workload, options.rounds)
            for row in rows(workload, found):
                print(line(row), flush=True)
            raw.append({"job": job.name, "step_size": step_size, "seconds": found.seconds,
                        "peak_mib": found.peak_mib})  # fmt: skip
            if options.out is not None:  # as it goes: the machine may be taken away at any time
                options.out.write_text(json.dumps({"conditions": facts, "turns": raw}) + "\n")
            del found
            gc.collect()


if __name__ == "__main__":
    main()
