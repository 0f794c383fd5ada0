"""The training loop, flat, in the order things happen."""

import logging
from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from cadence import device as devices
from cadence.batch import Batch, first_samples, sample_count
from cadence.clock import Clock, Limits
from cadence.measure import Evaluation, evaluate
from cadence.objectives import Objective
from cadence.passes import Passes
from cadence.record import Fitted, Observer, Record
from cadence.schedule import Schedule, constant
from cadence.tuning import Auto
from cadence.update import Update, stop_if_diverged
from cadence.window import DEFAULT_STEP_SIZE, checked_step_size, windows

log = logging.getLogger(__name__)


class Trainer:
    """Trains a model by windows of ``step_size`` mini-batches, with their exact gradient.

    Args:
        model: Any module; it moves to the device.
        optimizer: Any torch optimizer over its parameters.
        objective: See `cadence.objectives`.
        step_size: Mini-batches per update, at least 1. It can be read and set between epochs.
        device: ``auto`` (CUDA, else MPS, else CPU), or any torch device.
        microbatch_size: Samples per forward and backward, at least 1; None = one mini-batch;
            ``auto`` = the fastest, measured while training, so two runs may differ by rounding.
        threads: Threads of an operation on the CPU while training, at least 1; None = as torch has
            it; ``auto`` = the fastest number up to that, measured while training.
        allow_batch_coupling: Whether micro-batches may split and join mini-batches even where that
            changes what is trained, as with BatchNorm.
        precision: ``fp32`` (the parameters' own dtype), or autocast in ``bf16`` or ``fp16``.
        schedule: The factor on the learning rates by samples; see `cadence.schedule`.
        clip_norm: The largest gradient norm, above 0; None = any.
        max_skipped: Updates refused in a row that are borne; one more stops the run.

    Raises:
        TypeError, ValueError: An argument is not possible; the message says what to try.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: Objective,
        step_size: int = DEFAULT_STEP_SIZE,
        device: str | torch.device = "auto",
        *,
        microbatch_size: int | Auto | None = None,
        threads: int | Auto | None = None,
        allow_batch_coupling: bool = False,
        precision: str = "fp32",
        schedule: Schedule | None = None,
        clip_norm: float | None = None,
        max_skipped: int = 20,
    ) -> None:
        self.step_size = step_size
        self.device = devices.resolved(device)
        self.model = model.to(self.device)
        self.optimizer = optimizer
        self.objective = objective
        self.clock = Clock()
        self._max_skipped = max_skipped
        self._autocast = devices.autocast_dtype(precision, self.device)
        self._scaler = devices.grad_scaler(precision, self.device)
        self._passes = Passes(
            microbatch_size,
            threads,
            allow_batch_coupling=allow_batch_coupling,
            autocast=self._autocast,
            scaler=self._scaler,
        )
        self._record = Record(self.device, ())
        self._update = Update(
            optimizer,
            schedule=schedule or constant(),
            clip_norm=clip_norm,
            scaler=self._scaler,
        )

    @property
    def step_size(self) -> int:
        """Mini-batches per update; setting it takes effect at the next epoch."""
        return self._step_size

    @step_size.setter
    def step_size(self, step_size: int) -> None:
        self._step_size = checked_step_size(step_size)

    @devices.restored_threads()
    def fit(
        self,
        train_loader: Iterable[Batch],
        val_loader: Iterable[Batch] | None = None,
        epochs: int | None = None,
        *,
        max_samples: int | None = None,
        max_seconds: float | None = None,
        evaluate_every: int | None = None,
        observers: Sequence[Observer] = (),
    ) -> Fitted:
        """Train until the first limit is reached, then evaluate.

        A later call goes on: samples, schedule and shuffling continue from ``self.clock``.

        Args:
            train_loader: Yields the mini-batches of an epoch each time it is iterated. Where it,
                its sampler or its batch sampler has ``set_epoch``, it is told the epoch before,
                and where it has ``set_window``, the step_size.
            val_loader: The held-out mini-batches; None = no evaluation.
            epochs: Epochs to train in this call, at least 1; None = no such limit.
            max_samples: Samples to train on in this call, met exactly: the last mini-batch is cut
                to fit. None = no such limit.
            max_seconds: Wall time after which no further window starts; None = no such limit.
            evaluate_every: Samples between evaluations; None = once an epoch. There is always one
                at the end.
            observers: Shown every window and every evaluation.

        Returns:
            What the run came to.

        Raises:
            ValueError: No limit is given, an epoch has no mini-batch, or ``microbatch_size`` would
                split what couples its samples.
            DivergedError: Too many updates in a row were refused.
            DoesNotFitError: A single sample does not fit into memory.
        """
        limits = Limits(self.clock, epochs, max_samples, max_seconds)
        self._record = record = Record(self.device, observers)
        _warn_of_short_epochs(train_loader, self.step_size)
        self.model.train()
        self._passes.begin(self.model, self.objective)
        self.optimizer.zero_grad()
        while not limits.reached(self.clock):
            _tell(train_loader, "set_epoch", self.clock.epoch)
            _tell(train_loader, "set_window", self.step_size)
            minibatches = first_samples(train_loader, limits.samples_left(self.clock))
            record.begin_epoch()
            for window in windows(minibatches, self.step_size):
                accumulated = self._passes(window, self.step_size)
                samples = sum(map(sample_count, window))
                outcome = self._update.apply(accumulated, self.clock, samples)
                before = self.clock
                self.clock = before.after_window(
                    len(window), samples, accumulated.items, outcome.applied
                )
                seconds = record.window(self.clock, samples, accumulated.items, outcome)
                self._passes.took(seconds, samples)
                stop_if_diverged(self.clock, outcome, self._max_skipped)
                if evaluate_every and self.clock.passed(evaluate_every, since=before):
                    self._evaluate(val_loader, record)
                if limits.time_is_up():
                    break
            self.clock = self.clock.after_epoch()
            record.end_epoch(self.clock)
            if evaluate_every is None:
                self._evaluate(val_loader, record)
        self._evaluate(val_loader, record)
        return self.fitted

    @property
    def fitted(self) -> Fitted:
        """What the present or last call of `fit` has come to so far, however it ended."""
        return self._record.fitted(self.clock, self.step_size, self._passes.microbatch_size)

    def evaluate(self, minibatches: Iterable[Batch]) -> Evaluation:
        """Return the model's means over all items of some mini-batches; see `cadence.measure`."""
        fitting = self._passes.fitting(minibatches)
        return evaluate(self.model, self.objective, fitting, self.device, self._autocast)

    def _evaluate(self, val_loader: Iterable[Batch] | None, record: Record) -> None:
        if val_loader is not None and not record.has_evaluated(self.clock):
            record.evaluation(self.clock, self.evaluate(val_loader))
            record.show(self.clock, self.fitted)


def _tell(loader: Iterable[Batch], method: str, number: int) -> None:
    """Call a method of whatever has it: torch's DistributedSampler wants ``set_epoch``."""
    listeners = loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    for listener in listeners:
        told = getattr(listener, method, None)
        if told is not None:
            told(number)


def _warn_of_short_epochs(loader: Iterable[Batch], step_size: int) -> None:
    try:
        minibatches = len(loader)  # type: ignore[arg-type]
    except TypeError:  # a generator, or a DataLoader of an IterableDataset
        return
    if 0 < minibatches < step_size:
        log.warning(
            "an epoch of %d mini-batches is shorter than one window of step_size=%d: each update "
            "sees the whole epoch; a smaller data.batch_size gives more mini-batches",
            minibatches,
            step_size,
        )
