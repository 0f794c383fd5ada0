"""The training loop, flat, in the order things happen."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cadence.checkpoint.random_state import random_states, restore_random_states
from cadence.checkpoint.state import (
    State,
    checked_model_state,
    checked_optimizer_state,
)
from cadence.data.batch import Batch, samples_in
from cadence.distributed.partition import GathersWindows, PlannedWindow
from cadence.distributed.process_group import ProcessGroup, SingleProcess
from cadence.engine import device as devices
from cadence.engine.autotune import Auto
from cadence.engine.microbatching import Microbatching
from cadence.engine.noise_scale import NoiseScale
from cadence.engine.update import Update, checked_max_skipped, stop_if_diverged
from cadence.metrics.evaluation import Evaluation, evaluate
from cadence.metrics.memory import PeakMemory
from cadence.metrics.record import Observer, Record, Result
from cadence.metrics.timing import WindowParts
from cadence.objectives import Objective
from cadence.plan.clock import Clock, Limits
from cadence.plan.numbers import whole_number
from cadence.plan.schedule import Schedule, constant
from cadence.plan.shares import Plan, SharedStepSizes
from cadence.plan.window import DEFAULT_STEP_SIZE

log = logging.getLogger(__name__)


class Trainer:
    """Trains a model by windows of ``step_size`` mini-batches, with their exact gradient.

    Args:
        model: Any module; it moves to the device.
        optimizer: Any torch optimizer over its parameters.
        objective: See `cadence.objectives`.
        step_size: Mini-batches per update, at least 1, or a schedule: from how many samples on, how
            many (``{0: 2, 50_000: 8}``); see `cadence.plan.window.StepSizeSchedule`. It can be
            read, as the present number, and set between epochs. With several processes it is each
            one's own; a sequence = one for each.
        device: ``auto`` (CUDA, else MPS, else CPU), or any torch device.
        microbatch_size: Samples per forward and backward, at least 1; None = one mini-batch;
            ``auto`` = the fastest, measured while training, so two runs may differ by rounding.
        threads: Threads of an operation on the CPU while training, at least 1; None = by the work
            of a micro-batch, see `cadence.engine.threads`; ``auto`` = the fewest up to torch's
            number that are as fast as any, measured while training.
        allow_batch_coupling: Whether micro-batches may split and join mini-batches even where that
            changes what is trained, as with BatchNorm.
        precision: ``fp32`` (the parameters' own dtype), or autocast in ``bf16`` or ``fp16``.
        schedule: The factor on the learning rates by samples; see `cadence.plan.schedule`.
        clip_norm: The largest gradient norm, above 0; None = any.
        max_skipped: Updates refused in a row that are borne, at least 0; one more stops the run.
        scaling: How learning rate and beta2 follow a step_size that changes, from what the
            optimizer has for the first: ``none``, ``sqrt`` or ``linear``; see
            `cadence.plan.scaling`.
        noise_scale: Whether the gradient noise scale is estimated; see
            `cadence.engine.noise_scale`.
        processes: Those that train together, of which this is one; None = this one alone.

    Raises:
        TypeError, ValueError: An argument is not possible; the message says what to try.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        objective: Objective,
        step_size: SharedStepSizes = DEFAULT_STEP_SIZE,
        device: str | torch.device = "auto",
        *,
        microbatch_size: int | Auto | None = None,
        threads: int | Auto | None = None,
        allow_batch_coupling: bool = False,
        precision: str = "fp32",
        schedule: Schedule | None = None,
        clip_norm: float | None = None,
        max_skipped: int = 20,
        scaling: str = "none",
        noise_scale: bool = False,
        processes: ProcessGroup | None = None,
    ) -> None:
        self.clock = Clock()
        self._processes = processes or SingleProcess()
        self._plan = Plan(step_size, self._processes.count)
        self.device = devices.resolved(device)
        self.model = model.to(self.device)
        self.optimizer = optimizer
        self.objective = objective
        self._max_skipped = checked_max_skipped(max_skipped)
        self._autocast = devices.autocast_dtype(precision, self.device)
        self._scaler = devices.grad_scaler(precision, self.device)
        self._passes = Microbatching(
            microbatch_size,
            threads,
            allow_batch_coupling=allow_batch_coupling,
            autocast=self._autocast,
            scaler=self._scaler,
        )
        self._memory = PeakMemory(self.device)
        self._noise = NoiseScale() if noise_scale else None
        self._record = Record(self.device, (), self._memory, self._noise)
        self._restored: State | None = None
        self._random_of_epoch = random_states()
        self._cut_off: Clock | None = None  # where a limit ended the last epoch before its end
        self._check_optimizer()
        self._update = Update(
            optimizer,
            schedule=schedule or constant(),
            clip_norm=clip_norm,
            scaler=self._scaler,
            step_size=sum(self.step_sizes),
            scaling=scaling,
        )

    def _check_optimizer(self) -> None:
        owned = {id(parameter) for parameter in self.model.parameters()}
        updated = [one for group in self.optimizer.param_groups for one in group["params"]]
        foreign = sum(id(parameter) not in owned for parameter in updated)
        if foreign:
            raise ValueError(
                f"the optimizer updates what is not the model's ({foreign} of {len(updated)} "
                "tensors), and neither a checkpoint nor another process would have it; make it "
                "parameters of the model"
            )

    @property
    def step_size(self) -> int:
        """Mini-batches per update at present.

        Setting it, to a number, a schedule or one for each process, takes effect at the next epoch.
        """
        return self.step_sizes[self._processes.rank]

    @step_size.setter
    def step_size(self, step_size: SharedStepSizes) -> None:
        self._plan = Plan(step_size, self._processes.count)

    @property
    def step_sizes(self) -> tuple[int, ...]:
        """Mini-batches per update of each process at present."""
        return self._plan.at(self.clock.samples)

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
        patience: int | None = None,
        observers: Sequence[Observer] = (),
        at_boundary: Callable[[], None] | None = None,
    ) -> Result:
        """Train until the first limit is reached, then evaluate.

        A later call goes on: samples, schedule and shuffling continue from ``self.clock``. A model
        in evaluation mode is put in training mode; one in training mode keeps the parts of it that
        are not, such as a BatchNorm that is to stay as it was.

        Args:
            train_loader: Yields the mini-batches of an epoch each time it is iterated. Where it,
                its sampler or its batch sampler has ``set_epoch``, it is told the epoch before. One
                that `cadence.distributed.partition.GathersWindows` is asked for whole windows
                instead. Several processes give the same one each; that module says what each then
                reads.
            val_loader: The held-out mini-batches; None = no evaluation. Of several processes only
                process 0 needs it.
            epochs: Epochs to train in this call, at least 1; None = no such limit.
            max_samples: Samples to train on in this call, at least 1, met exactly: the last
                mini-batch is cut to fit. None = no such limit.
            max_seconds: Wall time in seconds, above 0, after which no further window starts; None =
                no such limit.
            evaluate_every: Samples between evaluations, at least 1; None = once an epoch. There is
                always one at the end.
            patience: Evaluations without a lower validation loss that end the run, at least 1;
                None = never.
            observers: Shown every window and every evaluation.
            at_boundary: Called after each window, and at the end of each epoch and the run, with
                the evaluation due there, when `state` is whole: the place to save it, or to raise
                what stops the run. None = nothing.

        Returns:
            What the run came to.

        Raises:
            TypeError: A limit, ``evaluate_every`` or ``patience`` is not a number of its kind (a
                bool is not), a mini-batch is not one, or the objective's items are no whole number.
            ValueError: No limit is given, or one of these numbers is out of its range; an epoch or
                the validation data has no mini-batch; or ``microbatch_size`` would split what
                couples its samples.
            DivergedError: Too many updates in a row were refused.
            DoesNotFitError: A single sample does not fit into memory.
            ProcessLostError: Another process is lost.
        """
        _check_evaluations(evaluate_every, patience)
        limits = Limits(self.clock, epochs, max_samples, max_seconds)
        self._memory.begin()
        self._record = record = Record(self.device, observers, self._memory, self._noise)
        self._restore_record()
        _warn_of_short_epochs(train_loader, self._plan.window)
        if not self.model.training:  # else it keeps parts that its owner froze by eval()
            self.model.train()
        self._processes.begin(self.model)
        measured = self._update.parameters if self._noise else ()
        self._passes.begin(
            self.model, self.objective, summed=self._processes.sum, measured=measured
        )
        self.optimizer.zero_grad()
        is_over = self._is_over(limits, patience)
        while not is_over:
            announce_epoch(train_loader, self.clock.epoch)
            rest = self._rest_of_epoch(train_loader, limits)
            record.begin_epoch(self.clock)
            is_cut_off, self._cut_off = True, None
            for step_sizes, window in record.arriving(rest):
                asks = self._asks_to_stop(limits, patience)
                whole = self._processes.count_window(window, self.objective, asks)
                if whole.stop and self.clock.batches_of_epoch > 0:
                    break
                if whole.interrupted and at_boundary is not None:
                    at_boundary()
                self._update.follow(sum(step_sizes))
                accumulated = self._passes(
                    window,
                    step_sizes[self._processes.rank],
                    items=whole.items,
                    windows_before=self.clock.updates_attempted,
                )
                record.computed(self._processes.waited)
                outcome = self._update.apply(accumulated, self.clock, whole.samples)
                if not outcome.applied:
                    self._passes.put_buffers_back()
                if self._noise is not None and outcome.applied:
                    self._noise.window(accumulated.items, outcome.grad_norm, accumulated.parts)
                before = self.clock
                self.clock = before.after_window(
                    whole.minibatches, whole.samples, accumulated.items, outcome.applied
                )
                seconds = record.window(self.clock, whole.samples, accumulated.items, outcome)
                self._passes.took(seconds - self._processes.waited, samples_in(window))
                stop_if_diverged(self.clock, outcome, self._max_skipped)
                if whole.step_sizes is not None:
                    self._plan.share_out(whole.step_sizes)
                if evaluate_every and self.clock.passed(evaluate_every, since=before):
                    self._evaluate(val_loader, record)
                if limits.is_complete(self.clock):
                    break
                if at_boundary is not None:
                    at_boundary()
                    record.resume()
            else:
                is_cut_off = False
            self._cut_off = self.clock if is_cut_off else None
            self.clock = self.clock.after_epoch()
            record.end_epoch(self.clock)
            if evaluate_every is None:
                self._evaluate(val_loader, record)
            is_over = self._is_over(limits, patience)
            if is_over:
                self._evaluate(val_loader, record)
            if at_boundary is not None:
                at_boundary()
        self._evaluate(val_loader, record)
        return self.result

    def _is_over(self, limits: Limits, patience: int | None) -> bool:
        """Return whether the run ends between two epochs, where all processes agree on it."""
        asks = self._asks_to_stop(limits, patience)
        return self._processes.agree(asks) or limits.is_complete(self.clock)

    def _asks_to_stop(self, limits: Limits, patience: int | None) -> bool:
        """Return whether time or patience is up on this process, where others may not know it."""
        in_vain = self._record.evaluations_in_vain
        return limits.time_is_up() or (patience is not None and in_vain >= patience)

    def _rest_of_epoch(self, loader: Iterable[Batch], limits: Limits) -> Iterator[PlannedWindow]:
        """Return the windows of the epoch that are not seen yet, in the random state of then.

        A run that goes on within an epoch draws it again from the state in which it began.
        """
        behind, restored = self.clock.batches_of_epoch, self._restored
        self._restored = None
        if restored is not None:
            restore_random_states(restored.random["epoch" if behind else "now"])
        if not isinstance(loader, GathersWindows):  # that draws its order from a seed of its own
            self._random_of_epoch = random_states()
        rest = self._processes.windows(loader, self._plan, lambda: self.clock, limits)
        if restored is not None and behind:
            restore_random_states(restored.random["now"])
        return rest

    def state(self, config: Mapping[str, Any], mlflow_run_id: str | None = None) -> State:
        """Return everything the run needs to go on, between two windows.

        Args:
            config: The flattened config, which whoever goes on is compared with.
            mlflow_run_id: The run in MLflow; None = it is not tracked.
        """
        return State(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scaler=None if self._scaler is None else self._scaler.state_dict(),
            clock=self._cut_off or self.clock,
            random={"epoch": self._random_of_epoch, "now": random_states()},
            record=self._record.state(),
            config=dict(config),
            mlflow_run_id=mlflow_run_id,
        )

    def restore(self, state: State) -> None:
        """Take over where a run was, so that the next `fit` goes on as if it had never stopped.

        Args:
            state: What `state` returned, or `cadence.checkpoint.file_format.read`.

        Raises:
            ValueError: It is of another model or optimizer.
        """
        model_state = checked_model_state(self.model, state)
        optimizer_state = checked_optimizer_state(self.optimizer, state)
        groups = self.optimizer.param_groups
        chosen = [{key: group[key] for key in group if key != "params"} for group in groups]
        self.model.load_state_dict(model_state)
        self.optimizer.load_state_dict(optimizer_state)
        for group, options in zip(self.optimizer.param_groups, chosen, strict=True):
            group.update(options)  # the moments are the run's, the learning rate is this trainer's
        if self._scaler is not None and state.scaler is not None:
            self._scaler.load_state_dict(state.scaler)
        self.clock = state.clock
        self._restored = state
        self._restore_record()

    def _restore_record(self) -> None:
        if self._restored is not None:
            self._record.restore(self._restored.record)

    @property
    def is_best(self) -> bool:
        """Whether the model as it is now has the lowest validation loss so far."""
        return self._record.is_best(self.clock)

    @property
    def result(self) -> Result:
        """What the present or last call of `fit` has come to so far, however it ended."""
        return self._record.result(self.clock, self.step_size, self._passes.microbatch_size)

    @property
    def is_tuning(self) -> bool:
        """Whether ``auto`` is still looking for the fastest setting of windows like the last."""
        return self._passes.is_searching

    @property
    def window_parts(self) -> WindowParts:
        """The time of each window of the present or last call of `fit`, by its parts."""
        return self._record.windows()

    def evaluate(self, minibatches: Iterable[Batch]) -> Evaluation:
        """Return the model's means over all items of some mini-batches; see
        `cadence.metrics.evaluation`.

        Args:
            minibatches: The held-out data, read once.

        Raises:
            ValueError: There is no mini-batch.
            DoesNotFitError: Not even one sample fits into memory.
        """
        announce_epoch(minibatches, self.clock.samples)  # so that noise in workers is of here
        limit = self._passes.limit
        threads = self._passes.default_threads
        return evaluate(
            self.model, self.objective, minibatches, self.device, self._autocast, limit, threads
        )

    def _evaluate(self, val_loader: Iterable[Batch] | None, record: Record) -> None:
        if self._processes.rank > 0 or val_loader is None:
            return
        if not record.has_evaluated(self.clock):
            record.evaluation(self.clock, self.evaluate(val_loader))
            record.show(self.clock, self.result)


def announce_epoch(loader: Iterable[Batch], epoch: int) -> None:
    """Tell whoever shuffles which epoch begins, as torch's DistributedSampler wants to be told."""
    shufflers = loader, getattr(loader, "sampler", None), getattr(loader, "batch_sampler", None)
    for shuffler in shufflers:
        set_epoch = getattr(shuffler, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)


def batches_in(loader: Iterable[Batch]) -> int | None:
    """Return the mini-batches of an epoch; None = the loader does not tell."""
    try:
        return len(loader)  # type: ignore[arg-type]
    except TypeError:  # a generator, or a DataLoader of an IterableDataset
        return None


def _check_evaluations(evaluate_every: int | None, patience: int | None) -> None:
    if evaluate_every is not None:
        what, remedy = "samples between evaluations", "use None for once an epoch"
        whole_number("evaluate_every", evaluate_every, what, remedy)
    if patience is not None:
        what, remedy = "evaluations without a lower validation loss", "use None to bear any number"
        whole_number("patience", patience, what, remedy)


def _warn_of_short_epochs(loader: Iterable[Batch], step_size: int) -> None:
    minibatches = batches_in(loader)
    if minibatches is not None and 0 < minibatches < step_size:
        log.warning(
            "an epoch of %d mini-batches is shorter than one window of step_size=%d: each update "
            "sees the whole epoch; a smaller data.batch_size gives more mini-batches",
            minibatches,
            step_size,
        )
