"""The contenders: cadence, what it is measured against, and the tight loop that is the measure.

Each is written as its own documentation says, and trains the same model with the same optimizer.
Where an epoch ends within a window, each does what it does of its own accord: cadence and the
tight loop divide by the mini-batches there are, the others by step_size.
"""

import logging
import tempfile
from abc import abstractmethod
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, ClassVar

import lightning
import torch
from accelerate import Accelerator

from benchmarks.jobs import Workload
from benchmarks.lightning_module import Module
from cadence import Trainer
from cadence.tracking.mlflow.tracker import Tracker

TRIED_WINDOWS = 8
TRIED_ROUNDS = 5
"""Windows and rounds in which the limit's settings are compared."""

PROBING_FITS = 100
"""Fits of ten epochs within which cadence must have chosen."""


class Contender(AbstractContextManager["Contender"]):
    """Something that trains a workload, again and again from the same weights.

    It is built, and entered, outside the clock.
    """

    name: ClassVar[str]
    setting: Any = None
    """What it has chosen for itself; None = nothing."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.job = workload.job
        self.model = self.job.model()
        self.optimizer = self.job.optimizer(self.model)
        self._initial = {name: value.clone() for name, value in self.model.state_dict().items()}

    def reset(self) -> None:
        """Go back to the initial weights and a new optimizer's state."""
        self.model.load_state_dict(self._initial)
        self.optimizer.state.clear()

    def seconds(self) -> float:
        """Train the workload, and return the time of that alone."""
        start = self.workload.now()
        self.train()
        return self.workload.now() - start

    @abstractmethod
    def train(self) -> None:
        """Train the workload."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave nothing behind."""


class Tight(Contender):
    """A hand-written loop that indexes whole mini-batches and does nothing else."""

    name = "tight"

    def train(self) -> None:
        """Train the workload."""
        self.run(self.workload, at_once=1)

    def run(self, work: Workload, at_once: int) -> None:
        """Train with so many mini-batches in one forward and backward."""
        job, model, optimizer = self.job, self.model, self.optimizer
        inputs, targets, mean_loss = job.inputs, job.targets, job.mean_loss
        for _ in range(work.epochs):
            order = torch.randperm(len(inputs)) if work.shuffle else torch.arange(len(inputs))
            order = order[: work.batches * job.batch_size]
            for window in order.split(job.batch_size * work.step_size):
                parts = window.split(job.batch_size * at_once)
                for indices in parts:
                    loss = mean_loss(model(inputs[indices]), targets[indices])
                    (loss if len(parts) == 1 else loss * (len(indices) / len(window))).backward()
                optimizer.step()
                optimizer.zero_grad()


class Limit(Tight):
    """The tight loop at its best: with the mini-batches in one pass and the threads that suit it.

    Which these are is measured when it is entered, in turns, on windows like those to come.
    """

    name = "limit"

    def __enter__(self) -> "Limit":
        """Choose the mini-batches in one pass, and the threads."""
        work = self.workload
        windows = min(TRIED_WINDOWS, -(-work.batches // work.step_size))
        short = replace(work, epochs=1, batches=windows * work.step_size)
        sizes = [1 << times for times in range(work.step_size.bit_length())]
        most = torch.get_num_threads()
        seconds: dict[tuple[int, int], list[float]] = {
            (at_once, threads): [] for at_once in sizes for threads in {1, most}
        }
        for _ in range(TRIED_ROUNDS):
            for (at_once, threads), taken in seconds.items():
                torch.set_num_threads(threads)
                self.run(replace(short, batches=work.step_size), at_once)  # settles threads
                start = work.now()
                self.run(short, at_once)
                taken.append(work.now() - start)
        torch.set_num_threads(most)
        self.setting = min(seconds, key=lambda setting: median(seconds[setting]))
        return self

    def train(self) -> None:
        """Train the workload."""
        at_once, threads = self.setting
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        self.run(self.workload, at_once)
        torch.set_num_threads(before)


class Cadence(Contender):
    """cadence's own trainer and loader, without an observer."""

    name = "cadence"
    chosen: ClassVar[dict[str, Any]] = {}

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._loader = workload.cadence_loader()
        self._trainer = Trainer(
            self.model, self.optimizer, self.job.objective, workload.step_size, "cpu", **self.chosen
        )

    def train(self) -> None:
        """Train the workload."""
        if self.workload.whole_epochs:
            limit = {"epochs": self.workload.epochs}
        else:
            limit = {"max_samples": self.workload.samples}
        self._trainer.fit(self._loader, **limit)


class TrackedCadence(Cadence):
    """cadence with a tracker that writes to MLflow over SQLite, as often as `src.train` has it."""

    name = "cadence, tracked"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._tracker = Tracker(
            workload.tracking_uri,
            "benchmarks",
            f"step_size={workload.step_size} {self.job.name}",
            folder=Path(tempfile.mkdtemp(dir=workload.scratch)),
            params={"trainer.step_size": workload.step_size},
            tags={},
            texts={},
            every=max(1, workload.samples // 100),
        )
        self._trainer.callbacks = [self._tracker]

    def __enter__(self) -> "TrackedCadence":
        """Begin the MLflow run, with its threads."""
        self._tracker.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the MLflow run."""
        self._tracker.__exit__(kind, error, trace)


class AutoCadence(TrackedCadence):
    """cadence, tracked, with the micro-batch and the threads that it chooses by itself.

    It is entered by training until it has chosen.
    """

    name = "cadence auto, tracked"
    chosen: ClassVar[dict[str, Any]] = {"microbatch_size": "auto", "threads": "auto"}

    def __enter__(self) -> "AutoCadence":
        """Begin the MLflow run, and let cadence choose."""
        super().__enter__()
        chosen: list[str] = []
        handler = _Keeps(chosen)
        tuning = logging.getLogger("cadence.engine.autotune")
        tuning.setLevel(logging.INFO)
        tuning.addHandler(handler)
        for _ in range(PROBING_FITS):
            self._trainer.fit(self._loader, epochs=10)
            if not self._trainer.is_tuning:
                break
        tuning.removeHandler(handler)
        self.setting = chosen[-1] if chosen else "not chosen"
        return self


class _Keeps(logging.Handler):
    def __init__(self, messages: list[str]) -> None:
        super().__init__()
        self._messages = messages

    def emit(self, record: logging.LogRecord) -> None:
        self._messages.append(record.getMessage())


class DataLoaderLoop(Contender):
    """The loop of the tutorials: a DataLoader and gradient accumulation by counting."""

    name = "DataLoader loop"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._loader = workload.peers_loader()

    def train(self) -> None:
        """Train the workload."""
        work, model, optimizer = self.workload, self.model, self.optimizer
        mean_loss, last = self.job.mean_loss, work.batches
        for _ in range(work.epochs):
            for number, (inputs, targets) in enumerate(islice(self._loader, last), start=1):
                loss = mean_loss(model(inputs), targets)
                (loss / work.step_size).backward()
                if number % work.step_size == 0 or number == last:
                    optimizer.step()
                    optimizer.zero_grad()


class Lightning(Contender):
    """Lightning's Trainer in its barebones mode, which leaves out all that can be left out.

    The clock runs from the start of the first epoch to the end of the last, so Lightning's set-up
    is not in it.
    """

    name = "Lightning"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._loader = workload.peers_loader()
        self._module = Module(self.model, self.optimizer, self.job.mean_loss)
        self._clock = _EpochClock(workload)

    def seconds(self) -> float:
        """Train the workload, and return the time from the first epoch's start."""
        self.train()
        return self._clock.seconds

    def train(self) -> None:
        """Train the workload."""
        self._clock.started = None
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=self.workload.epochs,
            limit_train_batches=self.workload.batches,
            accumulate_grad_batches=self.workload.step_size,
            callbacks=[self._clock],
            barebones=True,
        )
        trainer.fit(self._module, self._loader)


class _EpochClock(lightning.Callback):
    started: float | None
    seconds: float

    def __init__(self, workload: Workload) -> None:
        self._now = workload.now

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        if self.started is None:
            self.started = self._now()

    def on_train_epoch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        assert self.started is not None
        self.seconds = self._now() - self.started


class Fabric(Contender):
    """Lightning Fabric: the user's own loop over a model, optimizer and loader it has set up."""

    name = "Fabric"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._fabric = lightning.Fabric(accelerator="cpu", devices=1)
        self._fabric.launch()
        self._wrapped, self._wrapped_optimizer = self._fabric.setup(self.model, self.optimizer)
        self._loader = self._fabric.setup_dataloaders(workload.peers_loader())

    def train(self) -> None:
        """Train the workload."""
        work, fabric, model, optimizer = (
            self.workload,
            self._fabric,
            self._wrapped,
            self._wrapped_optimizer,
        )
        mean_loss, last = self.job.mean_loss, work.batches
        for _ in range(work.epochs):
            for number, (inputs, targets) in enumerate(islice(self._loader, last), start=1):
                accumulating = number % work.step_size != 0 and number != last
                with fabric.no_backward_sync(model, enabled=accumulating):
                    loss = mean_loss(model(inputs), targets)
                    fabric.backward(loss / work.step_size)
                if not accumulating:
                    optimizer.step()
                    optimizer.zero_grad()


class Accelerate(Contender):
    """Hugging Face Accelerate, which divides and counts by itself."""

    name = "Accelerate"

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=workload.step_size, mixed_precision="no"
        )
        self._wrapped, self._wrapped_optimizer, self._loader = self._accelerator.prepare(
            self.model, self.optimizer, workload.peers_loader()
        )

    def train(self) -> None:
        """Train the workload."""
        work, accelerator, model, optimizer = (
            self.workload,
            self._accelerator,
            self._wrapped,
            self._wrapped_optimizer,
        )
        mean_loss = self.job.mean_loss
        for _ in range(work.epochs):
            for inputs, targets in islice(self._loader, work.batches):
                with accelerator.accumulate(model):
                    loss = mean_loss(model(inputs), targets)
                    accelerator.backward(loss)
                    optimizer.step()
                    optimizer.zero_grad()


CONTENDERS: tuple[type[Contender], ...] = (
    Tight,
    Limit,
    Cadence,
    TrackedCadence,
    AutoCadence,
    DataLoaderLoop,
    Lightning,
    Fabric,
    Accelerate,
)
