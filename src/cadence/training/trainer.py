"""The training loop, flat, in the order things happen."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cadence.checkpoint.file_format import read, write
from cadence.checkpoint.random_state import (
    generator_states,
    random_state_kept,
    random_states,
    restore_generators,
    restore_random_states,
)
from cadence.checkpoint.state import (
    State,
    checked_model_state,
    checked_objective_state,
    checked_optimizer_state,
    first_three,
)
from cadence.data.batch import Batch, samples_in
from cadence.distributed.partition import GathersWindows, PlannedWindow
from cadence.distributed.process_group import ProcessGroup, SingleProcess, WindowCounts
from cadence.engine import device as devices
from cadence.engine.autotune import Auto
from cadence.engine.microbatching import Microbatching
from cadence.engine.update import Update, checked_max_skipped, stop_if_diverged
from cadence.metrics.evaluation import Evaluation, evaluate
from cadence.metrics.memory import PeakMemory
from cadence.metrics.record import Record
from cadence.metrics.result import Result, Window
from cadence.metrics.timing import WindowParts
from cadence.objectives import Objective, checked_objective, modules_beside, with_objective
from cadence.plan.clock import Clock, Limits
from cadence.plan.numbers import whole_number
from cadence.plan.schedule import Schedule, constant
from cadence.plan.shares import SharedStepSizes, WindowPlan
from cadence.plan.window import DEFAULT_STEP_SIZE
from cadence.training.callback import Callback, Tracker
from cadence.training.epochs import (
    announce_epoch,
    batches_in,
    generators_of,
    warn_of_short_epochs,
)
from cadence.training.first_checks import check_lone_sample, check_precision

LOADER = "loader"
"""The random states of the data loader's own generators, among those that a state holds."""


class Trainer:
    """Trains a model by windows of ``step_size`` mini-batches, with their exact gradient.

    Args:
        model: Any module; it moves to the device.
        optimizer: Any torch optimizer over its parameters, and over those of an objective that has
            some.
        objective: See `cadence.objectives`; one that is or holds a module moves as well.
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
        callbacks: What is called as the run goes on; see `cadence.training.callback.Callback`.
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
        callbacks: Iterable[Callback] = (),
        processes: ProcessGroup | None = None,
    ) -> None:
        self.clock = Clock()
        self.callbacks = list(callbacks)
        """What is called as the run goes on; callbacks may be added between calls of `fit`."""
        self._processes = processes or SingleProcess()
        self._windows = WindowPlan(step_size, self._processes.count)
        self.device = devices.resolved(device)
        self.model = model.to(self.device)
        self.objective = checked_objective(objective)
        self._own_modules = nn.ModuleList(modules_beside(self.model, self.objective))
        self._own_modules.to(self.device)
        self._optimizer = optimizer
        self._max_skipped = checked_max_skipped(max_skipped)
        self._autocast = devices.autocast_dtype(precision, self.device)
        self._scaler = devices.grad_scaler(precision, self.device)
        self._microbatching = Microbatching(
            microbatch_size,
            threads,
            allow_batch_coupling=allow_batch_coupling,
            autocast=self._autocast,
            scaler=self._scaler,
        )
        self._memory = PeakMemory(self.device)
        self._record = Record(self.device, self._memory)
        self._restored: State | None = None
        self._callback_states: dict[str, Any] = {}
        self._random_of_epoch = random_states()
        self._loader_of_epoch: Iterable[Batch] | None = None
        self._stops = self._measures_parts = False
        self.evaluation_is_due = False
        """Whether an evaluation follows on the window that has just ended."""
        check_precision(self._whole, precision)
        self._check_optimizer()
        self._make_update = partial(
            Update,
            schedule=schedule or constant(),
            clip_norm=clip_norm,
            scaler=self._scaler,
            scaling=scaling,
        )
        self._update = self._make_update(optimizer, step_size=sum(self.step_sizes))

    @property
    def _whole(self) -> nn.Module:
        """All that is trained: the model, and what modules the objective has beside it."""
        return with_objective(self.model, self.objective)

    @property
    def optimizer(self) -> Optimizer:
        """What updates the parameters; another one may take its place between calls of `fit`."""
        return self._optimizer

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._check_optimizer()
        self._update = self._make_update(optimizer, step_size=sum(self.step_sizes))

    def _check_optimizer(self) -> None:
        owned = {id(parameter) for parameter in self._whole.parameters()}
        updated = [one for group in self.optimizer.param_groups for one in group["params"]]
        ids = {id(parameter) for parameter in updated}
        forgotten = [
            name
            for module in self._own_modules
            for name, each in module.named_parameters()
            if each.requires_grad and id(each) not in ids
        ]
        if forgotten:
            raise ValueError(
                f"the optimizer does not update {first_three(forgotten)} of "
                f"{type(self.objective).__name__}; give it the objective's parameters beside the "
                "model's, such as [*model.parameters(), *objective.parameters()], or set "
                "requires_grad=False"
            )
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
        self._windows = WindowPlan(step_size, self._processes.count)

    @property
    def step_sizes(self) -> tuple[int, ...]:
        """Mini-batches per update of each process at present."""
        return self._windows.at(self.clock.samples)

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
    ) -> Result:
        """Train until the first limit is reached, then evaluate.

        A later call goes on: samples, schedule and shuffling continue from ``self.clock``, with the
        same loader within the epoch that a limit cut off. A model in evaluation mode is put in
        training mode; one in training mode keeps the parts of it that are not, such as a BatchNorm
        that is to stay as it was.

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

        Returns:
            What the run came to.

        Raises:
            TypeError: A limit or ``evaluate_every`` is not a number of its kind (a bool is not), a
                mini-batch is not one, or the objective's items are no whole number.
            ValueError: No limit is given, or one of these numbers is out of its range; an epoch or
                the validation data has no mini-batch; or ``microbatch_size`` would split what
                couples its samples.
            DivergedError: Too many updates in a row were refused.
            DoesNotFitError: A single sample does not fit into memory.
            ProcessLostError: Another process is lost.
        """
        every = _checked_period(evaluate_every)
        self._go_on_with(train_loader)
        limits = Limits(self.clock, epochs, max_samples, max_seconds)
        evaluates = val_loader is not None and self._processes.rank == 0
        self._begin(train_loader)
        while not self._is_over(limits):
            for planned in self._windows_of_epoch(train_loader, limits):
                before = self.clock
                window = self._train(*planned)
                is_last = limits.is_complete(self.clock)
                is_time = every is not None and self.clock.passed(every, since=before)
                self.evaluation_is_due = evaluates and (is_time or is_last)
                for callback in self.callbacks:
                    callback.on_window_end(self, window)
                if self.evaluation_is_due:
                    self._evaluate(val_loader)
                self._record.resume()
            if self._epoch_is_over(train_loader):
                self.clock = self.clock.after_epoch()
                if every is None:
                    self._evaluate(val_loader)
                for callback in self.callbacks:
                    callback.on_epoch_end(self)
        self._evaluate(val_loader)
        for callback in self.callbacks:
            callback.on_fit_end(self, self.result)
        return self.result

    def stop(self) -> None:
        """End the run, on all its processes, before the next window."""
        self._stops = True

    def measure_parts(self) -> None:
        """Have the gradients of some windows' micro-batches measured: see ``Window.parts``.

        To be called in `Callback.on_fit_start`; see `cadence.engine.noise_scale` for which windows.
        """
        self._measures_parts = True

    def log(self, name: str, value: float) -> None:
        """Give every tracker a number, at the samples seen so far."""
        for tracker in self._trackers:
            tracker.log(name, float(value), self.clock.samples)

    def log_figure(self, name: str, figure: Any) -> None:
        """Give every tracker a matplotlib figure, at the samples seen so far."""
        for tracker in self._trackers:
            tracker.log_figure(name, figure, self.clock.samples)

    def log_artifact(self, path: str | Path) -> None:
        """Give every tracker a file."""
        for tracker in self._trackers:
            tracker.log_artifact(Path(path))

    @property
    def _trackers(self) -> list[Tracker]:
        return [callback for callback in self.callbacks if isinstance(callback, Tracker)]

    def _go_on_with(self, loader: Iterable[Batch]) -> None:
        """Go on within an epoch that was cut off, if this is its loader and can be read again."""
        is_same = self._restored is not None or loader is self._loader_of_epoch
        if self.clock.batches_of_epoch and (not is_same or isinstance(loader, Iterator)):
            self.clock = self.clock.after_epoch()
        self._loader_of_epoch = loader

    def _begin(self, train_loader: Iterable[Batch]) -> None:
        """Take the model, the callbacks and the process group as they are now."""
        self._memory.begin()
        self._record = Record(self.device, self._memory)
        self._restore_record()
        warn_of_short_epochs(train_loader, self._windows.window)
        check_lone_sample(self.model, self.objective, train_loader, self.device)
        if not self.model.training:  # else it keeps parts that its owner froze by eval()
            self.model.train()
        self._stops = self._measures_parts = False
        for callback in self.callbacks:
            callback.on_fit_start(self)
        self._processes.begin(self._whole)
        self._microbatching.begin(
            self.model,
            self.objective,
            summed=self._processes.sum,
            measured=self._update.parameters if self._measures_parts else (),
        )
        self.optimizer.zero_grad()

    def _windows_of_epoch(
        self, loader: Iterable[Batch], limits: Limits
    ) -> Iterator[tuple[tuple[int, ...], Sequence[Batch], WindowCounts]]:
        """Yield the windows of the rest of an epoch, up to a limit or a stop."""
        announce_epoch(loader, self.clock.epoch)
        rest = self._rest_of_epoch(loader, limits)
        self._record.begin_epoch(self.clock)
        self._has_read_all = False
        for step_sizes, minibatches in self._record.arriving(rest):
            stops = self._wants_to_stop(limits)
            counts = self._processes.count_window(minibatches, self.objective, stops)
            if counts.stop and self.clock.batches_of_epoch > 0:
                return
            yield step_sizes, minibatches, counts
            if limits.is_complete(self.clock):
                return
        self._has_read_all = True

    def _train(
        self, step_sizes: tuple[int, ...], minibatches: Sequence[Batch], counts: WindowCounts
    ) -> Window:
        """Make one update from a window, or refuse it."""
        self._update.follow(sum(step_sizes))
        accumulated = self._microbatching(
            minibatches,
            step_sizes[self._processes.rank],
            items=counts.items,
            windows_before=self.clock.updates_attempted,
        )
        self._record.computed(self._processes.waited)
        outcome = self._update.apply(accumulated, self.clock, counts.samples)
        if not outcome.applied:
            self._microbatching.put_buffers_back()
        window = Window(counts.samples, accumulated.items, *outcome, accumulated.parts)
        self.clock = self.clock.after_window(
            counts.minibatches, window.samples, window.items, window.applied
        )
        seconds = self._record.window(window)
        self._microbatching.took(seconds - self._processes.waited, samples_in(minibatches))
        stop_if_diverged(self.clock, outcome, self._max_skipped)
        if counts.step_sizes is not None:
            self._windows.share_out(counts.step_sizes)
        return window

    def _is_over(self, limits: Limits) -> bool:
        """Return whether the run ends between two epochs, where all processes agree on it."""
        stops = self._processes.agree(self._wants_to_stop(limits))
        return stops or limits.is_complete(self.clock)

    def _wants_to_stop(self, limits: Limits) -> bool:
        """Return whether this process wants to stop, where others may not know of it."""
        return self._stops or limits.time_is_up()

    def _epoch_is_over(self, loader: Iterable[Batch]) -> bool:
        """Return whether the epoch has no further mini-batch.

        Raises:
            ValueError: It had none at all: the run would never end.
        """
        if self._has_read_all and self.clock.batches_of_epoch == 0:
            raise ValueError(
                f"the training data gave no mini-batch after {self.clock.samples} samples; is it "
                "empty, or a generator that can be read once? Give a DataLoader, or another "
                "iterable that starts anew each epoch"
            )
        if self._has_read_all:
            return True
        return batches_in(loader) == self.clock.batches_of_epoch and self._processes.epoch_is_read()

    def _rest_of_epoch(self, loader: Iterable[Batch], limits: Limits) -> Iterator[PlannedWindow]:
        """Return the windows of the epoch that are not seen yet, in the random state of then.

        A run that goes on within an epoch draws it again from the state in which it began.
        """
        behind = self.clock.batches_of_epoch
        goes_on = behind > 0 or self._restored is not None
        states = {"epoch": self._random_of_epoch, "now": random_states() if goes_on else {}}
        states, self._restored = self._restored.random if self._restored else states, None
        if goes_on:
            began = states["epoch" if behind else "now"]
            restore_random_states(began)
            if LOADER in began:
                restore_generators(generators_of(loader), began[LOADER])
        if not isinstance(loader, GathersWindows):  # that draws its order from a seed of its own
            self._random_of_epoch = self._random_states()
        rest = self._processes.windows(loader, self._windows, lambda: self.clock, limits)
        if behind:
            restore_random_states(states["now"])
        return rest

    def _random_states(self) -> dict[str, Any]:
        """Return the global random states, and those of the loader's own generators."""
        if self._loader_of_epoch is None:  # before the first epoch: nothing was drawn yet
            return random_states()
        of_loader = generator_states(generators_of(self._loader_of_epoch))
        return {**random_states(), LOADER: of_loader}

    def save(self, path: str | Path) -> None:
        """Write everything the run needs to go on into a file, whole or not at all."""
        write(self.state(), Path(path))

    def load(self, path: str | Path) -> None:
        """Take over from what `save` wrote; see `restore`."""
        self.restore(read(Path(path)))

    def state(
        self, config: Mapping[str, Any] | None = None, mlflow_run_id: str | None = None
    ) -> State:
        """Return everything the run needs to go on, between two windows.

        Args:
            config: The flattened config, which whoever goes on is compared with.
            mlflow_run_id: The run in MLflow; None = it is not tracked.
        """
        states = {name: each.state_dict() for name, each in self._named_callbacks()}
        callbacks = self._callback_states | {name: kept for name, kept in states.items() if kept}
        return State(
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            scaler=None if self._scaler is None else self._scaler.state_dict(),
            clock=self.clock,
            random={"epoch": self._random_of_epoch, "now": self._random_states()},
            record={**self._record.state(), "callbacks": callbacks},
            config=dict(config or {}),
            mlflow_run_id=mlflow_run_id,
            objective=self._own_modules.state_dict() or None,
        )

    def _named_callbacks(self) -> Iterator[tuple[str, Callback]]:
        """Yield each callback with its class's name, numbered from the second of a class on."""
        counts: Counter[str] = Counter()
        for callback in self.callbacks:
            name = type(callback).__name__
            counts[name] += 1
            yield name if counts[name] == 1 else f"{name} {counts[name]}", callback

    def restore(self, state: State) -> None:
        """Take over where a run was, so that the next `fit` goes on as if it had never stopped.

        Args:
            state: What `state` returned, or `cadence.checkpoint.file_format.read`.

        Raises:
            ValueError: It is of another model or optimizer.
        """
        model_state = checked_model_state(self.model, state)
        optimizer_state = checked_optimizer_state(self.optimizer, state)
        objective_state = checked_objective_state(self._own_modules, state)
        groups = self.optimizer.param_groups
        chosen = [{key: group[key] for key in group if key != "params"} for group in groups]
        self.model.load_state_dict(model_state)
        self._own_modules.load_state_dict(objective_state)
        self.optimizer.load_state_dict(optimizer_state)
        for group, options in zip(self.optimizer.param_groups, chosen, strict=True):
            group.update(options)  # the moments are the run's, the learning rate is this trainer's
        if self._scaler is not None and state.scaler is not None:
            self._scaler.load_state_dict(state.scaler)
        self.clock = state.clock
        self._restored = state
        self._callback_states = dict(state.record.get("callbacks", {}))
        self._restore_record()

    def _restore_record(self) -> None:
        """Give record and callbacks what they had, as far as they are there already."""
        if self._restored is not None:
            self._record.restore(self._restored.record)
        for name, callback in self._named_callbacks():
            if name in self._callback_states:
                callback.load_state_dict(self._callback_states.pop(name))

    @property
    def is_best(self) -> bool:
        """Whether the model as it is now has the lowest validation loss so far."""
        return self._record.is_best(self.clock)

    @property
    def evaluations_since_best(self) -> int:
        """Evaluations since the lowest validation loss."""
        return self._record.evaluations_since_best

    @property
    def result(self) -> Result:
        """What the present or last call of `fit` has come to so far, however it ended."""
        reported = {name: each for one in self.callbacks for name, each in one.report().items()}
        size = self._microbatching.microbatch_size
        return self._record.result(self.clock, self.step_size, size, reported)

    @property
    def is_tuning(self) -> bool:
        """Whether ``auto`` is still looking for the fastest setting of windows like the last."""
        return self._microbatching.is_searching

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
        limit = self._microbatching.limit
        threads = self._microbatching.default_threads
        generators = generators_of(minibatches)
        drawn = generator_states(generators)
        try:
            with random_state_kept(self.device):  # what is drawn here changes no training
                return evaluate(
                    self.model,
                    self.objective,
                    minibatches,
                    self.device,
                    self._autocast,
                    limit,
                    threads,
                )
        finally:
            restore_generators(generators, drawn)

    def _evaluate(self, val_loader: Iterable[Batch] | None) -> None:
        """Evaluate the model as it is now, unless that is done already."""
        is_done = self._record.has_evaluated(self.clock)
        if self._processes.rank > 0 or val_loader is None or is_done:
            return
        evaluation = self.evaluate(val_loader)
        self._record.evaluation(self.clock, evaluation)
        means = {"loss": evaluation.loss, **evaluation.metrics}
        for callback in self.callbacks:
            callback.on_evaluation_end(self, {f"val/{name}": mean for name, mean in means.items()})


def _checked_period(evaluate_every: int | None) -> int | None:
    if evaluate_every is None:
        return None
    what, remedy = "samples between evaluations", "use None for once an epoch"
    return whole_number("evaluate_every", evaluate_every, what, remedy)
