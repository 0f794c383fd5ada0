"""A short probe of a training run: what its windows take, what they hold, how noisy they are.

It trains in earnest, by real updates on the run's own data and device, and then puts everything
back as it was.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from time import perf_counter
from typing import Any

import torch

from cadence.checkpoint.file_format import snapshot, state_of
from cadence.data.batch import Batch, sample_count
from cadence.engine.accumulation import Accumulator
from cadence.engine.noise_scale import NoiseScale
from cadence.engine.update import total_norm
from cadence.metrics.timing import warm_up
from cadence.metrics.window_time_model import Estimate, Round, Turn
from cadence.plan.window import windows
from cadence.training.epochs import announce_epoch, batches_in
from cadence.training.trainer import Trainer

STEP_SIZES = (1, 4, 16)
"""What takes turns, as far as an epoch has the mini-batches."""

WINDOWS = 4
"""Measured windows of a turn, at least; one more warms up."""

TURN_SECONDS = 0.1
"""The least time of a turn, so that short windows meet as much of what else the machine does as
long ones."""

LEAST_ROUNDS, MOST_ROUNDS = 5, 20
ENOUGH_SECONDS = 5.0
"""After which no round is begun beyond the least."""

BUDGET_SECONDS = 60.0
"""After which no third round is begun."""

SEARCHES = 200
"""Turns in which ``auto`` must have found its setting; what it has by then is measured."""

FIRST_SECONDS = 30.0
"""How long the run is trained, to its middle at most, before its noise scale is measured: that of
weights as they were drawn is small, and soon over."""

NOISE_MINIBATCHES = 16
"""Mini-batches in a window whose gradients tell the noise scale."""

MOST_NOISE_WINDOWS, LEAST_NOISE_WINDOWS = 24, 8
NOISE_SECONDS = 30.0
"""After which no window is measured beyond the least."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe found."""

    rounds: Sequence[Round]
    """The turns of each round, by step_size."""
    samples: float
    """In a mini-batch."""
    items: float
    """In a mini-batch."""
    minibatches: int | None
    """In an epoch; None = the loader does not tell."""
    memory_mib: Mapping[int, float]
    """The peak of each step_size above what was there before."""
    noise: Estimate
    """The gradient noise scale, in items, after the run's first `first_samples`."""
    first_samples: int


def probe(
    trainer: Trainer,
    train_loader: Iterable[Batch],
    *,
    halfway: int | None = None,
    autocast: torch.dtype | None = None,
    step_sizes: Sequence[int] = STEP_SIZES,
) -> Probe:
    """Train some windows of each step_size in turns, and measure them.

    Afterwards the trainer is as it was, but for what ``auto`` has learned.

    Args:
        trainer: What trains; any step_size.
        train_loader: The mini-batches of an epoch each time it is iterated, as for `Trainer.fit`.
        halfway: Samples after which the noise scale is wanted, or as many of them as go into
            `FIRST_SECONDS`; None = those that do.
        autocast: The dtype that the noise scale's gradients are computed in; None = the
            parameters' own.
        step_sizes: What takes turns. Those above the mini-batches of an epoch are left out.

    Raises:
        ValueError: An epoch has fewer than two mini-batches.
        DivergedError: Too many updates in a row were refused.
    """
    minibatches = batches_in(train_loader)
    sizes = _possible(step_sizes, minibatches)
    clock, before = trainer.clock, snapshot(trainer.state())
    working = copy.copy(trainer)  # with a step_size and a clock of its own
    working.callbacks = []
    turns = Turns(working, train_loader, minibatches)
    try:
        turns.settle(sizes)
        rounds: list[Round] = []
        start = perf_counter()
        while _goes_on(len(rounds), perf_counter() - start):
            rounds.append({size: turns.turn(size) for size in sizes})
        begun = copy.copy(working)
        begun.restore(state_of(copy.deepcopy(before)))  # on the CPU it trains on these tensors
        begun.fit(train_loader, max_samples=halfway, max_seconds=FIRST_SECONDS)
        samples = begun.clock.samples - clock.samples
        items = begun.clock.items - clock.items
        noise = noise_scale(begun, train_loader, autocast)
    finally:
        trainer.restore(state_of(before))
    return Probe(
        rounds=rounds,
        samples=turns.samples,
        items=turns.samples * items / samples,
        minibatches=minibatches,
        memory_mib=turns.memory_mib,
        noise=noise,
        first_samples=samples,
    )


def _goes_on(rounds: int, seconds: float) -> bool:
    if rounds < LEAST_ROUNDS:
        return rounds < 2 or seconds < BUDGET_SECONDS
    return rounds < MOST_ROUNDS and seconds < ENOUGH_SECONDS


def _possible(step_sizes: Sequence[int], minibatches: int | None) -> list[int]:
    if minibatches is None:
        return list(step_sizes)
    if minibatches < 2:
        raise ValueError(
            f"an epoch has {minibatches} mini-batch, so there is nothing to accumulate; a smaller "
            "data.batch_size gives more"
        )
    sizes = [size for size in step_sizes if size <= minibatches]
    return sizes if len(sizes) > 1 else [1, minibatches]


class Turns:
    """Lets step_sizes take turns in training.

    Args:
        trainer: What trains; its step_size changes from turn to turn.
        loader: The mini-batches of an epoch each time it is iterated.
        minibatches: In an epoch; None = the loader does not tell.
    """

    def __init__(self, trainer: Trainer, loader: Iterable[Batch], minibatches: int | None) -> None:
        self._trainer = trainer
        self._loader = loader
        self._minibatches = minibatches
        self._batch_size = sample_count(next(iter(loader)))
        self._windows: dict[int, int] = {}
        self.samples = math.nan
        """In a mini-batch."""
        self.memory_mib: dict[int, float] = {}
        """The peak of each step_size and of those before it, above what was there at the start."""

    def settle(self, sizes: Sequence[int]) -> None:
        """Let ``auto`` find its settings, and see how many windows make a turn."""
        for size in sizes:
            self._windows[size] = WINDOWS + 1
            for _ in range(SEARCHES):
                seconds = self.turn(size).seconds
                if not self._trainer.is_tuning:
                    break
            peak = self._trainer.result.peak_memory_mib
            self.memory_mib[size] = max(peak, *self.memory_mib.values(), 0.0)
            self._windows[size] = 1 + max(WINDOWS, math.ceil(TURN_SECONDS / seconds))

    def turn(self, size: int) -> Turn:
        """Train some windows of a step_size, and return the mean of the full ones."""
        self._trainer.step_size = size
        self._trainer.fit(self._loader, **self._limit(size))
        parts = self._trainer.window_parts
        first = warm_up(len(parts.samples))
        full = parts.samples[first:] == parts.samples.max()
        data, compute, sync, update = (part[first:][full].mean() for part in parts[1:])
        self.samples = float(parts.samples.max()) / size
        return Turn(float(data + compute), float(sync + update))

    def _limit(self, size: int) -> dict[str, Any]:
        """Return how long a turn trains: within an epoch, or for some whole ones."""
        windows = self._windows[size]
        an_epoch = windows if self._minibatches is None else self._minibatches // size
        if windows <= an_epoch:
            return {"max_samples": windows * size * self._batch_size}
        return {"epochs": math.ceil(windows / an_epoch)}


def noise_scale(
    trainer: Trainer, train_loader: Iterable[Batch], autocast: torch.dtype | None = None
) -> Estimate:
    """Return the gradient noise scale of a model as it is, in items, without an update.

    Args:
        trainer: Whose model, objective and optimizer are asked.
        train_loader: The mini-batches of an epoch each time it is iterated.
        autocast: The dtype that gradients are computed in; None = the parameters' own.
    """
    accumulate = Accumulator(trainer.model, trainer.objective, autocast=autocast)
    parameters = [each for group in trainer.optimizer.param_groups for each in group["params"]]
    noise = NoiseScale(block=1)  # the weights stand still, so the windows are independent
    minibatches = _epoch_after_epoch(train_loader, trainer.clock.epoch)
    start = perf_counter()
    for number, window in enumerate(windows(minibatches, NOISE_MINIBATCHES)):
        is_late = number >= LEAST_NOISE_WINDOWS and perf_counter() - start > NOISE_SECONDS
        if is_late or number == MOST_NOISE_WINDOWS:
            break
        size = trainer.result.microbatch_size
        whole = size is None or size >= max(map(sample_count, window))
        found = accumulate(window, None if whole else size, measured=parameters)
        norm = total_norm([each.grad for each in parameters if each.grad is not None])
        if found.items > 0 and math.isfinite(norm):
            noise.window(found.items, norm, found.parts)
        for parameter in parameters:
            parameter.grad = None
    return Estimate(*noise.estimate())


def _epoch_after_epoch(loader: Iterable[Batch], first: int) -> Iterator[Batch]:
    for epoch in count(first):
        announce_epoch(loader, epoch)
        yield from loader
