"""The loop: what it trains on, when it evaluates, where it ends, and what it came to."""

import math
import random
import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import (
    CUDA,
    SIZES,
    STEP_SIZES,
    AtBoundaries,
    Pair,
    Seen,
    as_a_user_calls_it,
    cut,
    plain_sgd,
    regression_pair,
    relative_error,
    same,
    watched,
    weights,
)
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from cadence import Trainer
from cadence.data import TensorData, loader
from cadence.data.batch import Batch, sample_count
from cadence.engine.update import DivergedError
from cadence.metrics.result import Result, Window
from cadence.metrics.timing import WindowTime
from cadence.models.mlp import mlp
from cadence.objectives import Classification, Regression
from cadence.plan.clock import Clock
from cadence.plan.schedule import cosine
from cadence.training.early_stopping import EarlyStopping

LR = 0.05

LOADERS_OF_AN_EPOCH = [
    lambda: loader(TensorData(*regression_pair(38)), 4, shuffle_seed=5),
    lambda: DataLoader(TensorDataset(*regression_pair(38)), batch_size=4, shuffle=True),
]
"""Of 10 mini-batches, shuffled by a seed and by torch's global random numbers."""


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def linear(**settings: Any) -> Trainer:
    """Return a trainer of a linear float64 model of three features, by SGD on the CPU."""
    model = nn.Linear(3, 1).double()
    return Trainer(
        model, SGD(model.parameters(), lr=LR), Regression(), **{"device": "cpu", **settings}
    )


class Own:
    """An objective of two methods and no base class, that keeps the samples it is trained on."""

    def __init__(self) -> None:
        self.inputs: list[Tensor] = []

    def items(self, batch: Pair) -> int:
        return len(batch.inputs)

    def total_loss(self, model: nn.Module, batch: Pair) -> Tensor:
        if model.training:
            self.inputs.append(batch.inputs)
        return (model(batch.inputs) - batch.targets).square().sum()


# -- what it trains on


@pytest.mark.parametrize("step_size", [*STEP_SIZES, 4, 100])
def test_an_epoch_with_a_short_last_window_is_that_of_a_plain_loop(step_size: int) -> None:
    sizes = [2] * 9 + [1]  # 10 mini-batches: four at a time leave a window of two
    minibatches = cut(regression_pair(sum(sizes)), sizes)
    trainer = linear(step_size=step_size)
    plain = deepcopy(trainer.model)

    result = trainer.fit(minibatches, epochs=2)
    for _ in range(2):
        plain_sgd(plain, minibatches, step_size, LR)

    assert relative_error(weights(trainer.model), weights(plain)) <= 1e-12
    assert result.updates == 2 * math.ceil(10 / step_size)


@pytest.mark.parametrize("step_size", STEP_SIZES)
@pytest.mark.parametrize("max_samples", [1, 4, 5, 31, 32, 33, 75])
def test_max_samples_is_met_exactly_and_with_the_same_samples_for_every_step_size(
    max_samples: int, step_size: int
) -> None:
    data = regression_pair(sum(SIZES))  # 32 samples in ragged mini-batches
    objective = Own()
    model = nn.Linear(3, 1).double()
    trainer = Trainer(model, SGD(model.parameters(), lr=LR), objective, step_size, "cpu")

    result = trainer.fit(cut(data, SIZES), max_samples=max_samples)

    assert result.samples == trainer.clock.samples == max_samples
    assert torch.equal(torch.cat(objective.inputs), data.inputs.repeat(3, 1)[:max_samples])


def test_a_run_ends_at_the_first_of_its_limits() -> None:
    minibatches = cut(regression_pair(32), SIZES)

    assert linear().fit(minibatches, epochs=2).samples == 64
    assert linear().fit(minibatches, epochs=2, max_samples=40).samples == 40
    assert linear().fit(minibatches, epochs=1, max_samples=40).samples == 32


def test_no_window_starts_after_max_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("cadence.plan.clock.perf_counter", lambda: now)

    class Slow(Regression):
        def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
            nonlocal now
            now += 1.0  # a second for each mini-batch
            return super().total_loss(model, batch)

    trainer = linear(step_size=2)
    trainer.objective = Slow()

    result = trainer.fit(cut(regression_pair(20), [2] * 10), max_seconds=4.5)

    assert result.samples == 12  # windows end after 2, 4 and 6 seconds


def test_a_loader_that_shuffles_is_told_the_epoch() -> None:
    told: list[int] = []

    class Shuffler(DistributedSampler[Any]):
        def set_epoch(self, epoch: int) -> None:
            told.append(epoch)

    data = TensorRows(6)
    trainer = linear()
    trainer.fit(
        DataLoader(data, sampler=Shuffler(data, num_replicas=1, rank=0), batch_size=2), epochs=2
    )
    trainer.fit(
        DataLoader(data, sampler=Shuffler(data, num_replicas=1, rank=0), batch_size=2), epochs=1
    )

    assert told == [0, 1, 2]


class TensorRows(Dataset[Pair]):
    """A user's own map-style data set."""

    def __init__(self, samples: int) -> None:
        self._data = regression_pair(samples)

    def __len__(self) -> int:
        return len(self._data.inputs)

    def __getitem__(self, index: int) -> Pair:
        return Pair(self._data.inputs[index], self._data.targets[index])


class Stream(IterableDataset[Pair]):
    """A data set without a length."""

    def __iter__(self) -> Iterator[Pair]:
        return (TensorRows(5)[index] for index in range(5))


def test_data_without_a_length_is_trained_on() -> None:
    minibatches = DataLoader(Stream(), batch_size=2)

    assert linear().fit(minibatches, epochs=3).samples == 15


def test_a_generator_that_runs_dry_is_an_error() -> None:
    once = (batch for batch in cut(regression_pair(4), (2, 2)))
    trainer = linear()
    message = (
        "the training data gave no mini-batch after 4 samples; is it empty, or a generator that "
        "can be read once? Give a DataLoader, or another iterable that starts anew each epoch"
    )

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        trainer.fit(once, epochs=2)
    assert trainer.result.updates == 1


def test_an_epoch_shorter_than_a_window_is_allowed_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = linear(step_size=4).fit(cut(regression_pair(6), (2, 2, 2)), epochs=2)

    assert result.updates == 2
    assert caplog.messages == [
        "an epoch of 3 mini-batches is shorter than one window of step_size=4: each update sees "
        "the whole epoch; a smaller data.batch_size gives more mini-batches"
    ]


@pytest.mark.parametrize(
    ("step_size", "message"),
    [
        (0, "step_size=0: mini-batches per update must be at least 1; try step_size=2"),
        (1.5, "step_size=1.5: mini-batches per update must be a whole number; try step_size=2"),
    ],
)
def test_an_impossible_step_size_is_refused_at_once_and_when_set_later(
    step_size: Any, message: str
) -> None:
    trainer = linear()
    with as_a_user_calls_it():
        with pytest.raises((ValueError, TypeError), match=f"^{re.escape(message)}$"):
            linear(step_size=step_size)
        with pytest.raises((ValueError, TypeError), match=f"^{re.escape(message)}$"):
            trainer.step_size = step_size
    assert trainer.step_size == 2


def test_step_size_can_be_set_between_calls_and_the_clock_goes_on() -> None:
    minibatches = cut(regression_pair(12), [2] * 6)
    trainer = linear(step_size=1, schedule=cosine(horizon=100))
    plain = deepcopy(trainer.model)
    seen = Seen()

    watched(trainer, seen).fit(minibatches, epochs=1)
    trainer.step_size = 3
    result = watched(trainer, seen).fit(minibatches, epochs=1)

    assert (trainer.step_size, result.step_size) == (3, 3)
    assert trainer.clock == Clock(2, 12, 24, 24, 8, 8, samples_applied=24)
    lrs = [outcome.lr for _, outcome in seen.windows]
    middles = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 15.0, 21.0]  # of six windows of 2 and two of 6
    assert lrs == pytest.approx([LR * cosine(horizon=100)(at) for at in middles], rel=1e-14)
    for window, lr in zip([(i, i + 1) for i in range(6)] + [(0, 3), (3, 6)], lrs, strict=True):
        plain_sgd(plain, minibatches[slice(*window)], step_size=3, lr=lr)
    assert relative_error(weights(trainer.model), weights(plain)) <= 1e-12


def test_a_step_size_set_during_an_epoch_takes_effect_at_the_next() -> None:
    trainer = linear(step_size=2)

    class Sets(Seen):
        def on_window_end(self, trainer: Trainer, window: Window) -> None:
            super().on_window_end(trainer, window)
            trainer.step_size = 3

    seen = Sets()
    watched(trainer, seen).fit(cut(regression_pair(6), [1] * 6), epochs=2)

    assert [clock.batches for clock, _ in seen.windows] == [2, 4, 6, 9, 12]


@pytest.mark.parametrize("gathered", [False, True], ids=["mini-batches", "whole windows"])
def test_a_schedule_changes_step_size_with_the_first_window_that_begins_at_its_samples(
    gathered: bool,
) -> None:
    data = loader(TensorData(*regression_pair(19)), 2, shuffle_seed=3)  # the last one is of 1
    trainer = linear(step_size={0: 1, 5: 3, 26: 2}, schedule=cosine(100), scaling="linear")
    plain, order = deepcopy(trainer.model), [[], []]
    for epoch in (0, 1):
        data.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        order[epoch] = [Pair(*batch) for batch in data]
    seen = Seen()

    epochs = iter(order)
    stream: Any = data if gathered else Repeated(lambda: next(epochs))
    result = watched(trainer, seen).fit(stream, epochs=2)

    # Windows begin at 0, 2 and 4 samples; 6, 12 and 18; in the next epoch at 19 and 25; 31 and 35:
    # epoch, mini-batches in it, step_size
    sizes = [(0, 1, 1)] * 3 + [(0, 3, 3)] * 2 + [(0, 1, 3)] + [(1, 3, 3)] * 2 + [(1, 2, 2)] * 2
    assert [clock.samples for clock, _ in seen.windows] == [2, 4, 6, 12, 18, 19, 25, 31, 35, 38]
    assert [outcome.step_size for _, outcome in seen.windows] == [size for *_, size in sizes]
    taken = [0, 0]
    middles = [1, 3, 5, 9, 15, 18.5, 22, 28, 33, 36.5]
    for (epoch, count, step_size), middle in zip(sizes, middles, strict=True):
        start = taken[epoch]
        taken[epoch] += count
        lr = LR * step_size * cosine(100)(middle)
        plain_sgd(plain, order[epoch][start : taken[epoch]], 10, lr)
    assert taken == [10, 10]
    assert relative_error(weights(trainer.model), weights(plain)) <= 1e-12
    assert (result.step_size, trainer.step_size, result.updates) == (2, 2, 10)


class Repeated:
    """Mini-batches that are made anew each time they are iterated."""

    def __init__(self, make: Any) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Pair]:
        return iter(self._make())


def test_a_schedule_meets_max_samples_and_warns_of_its_largest_window(
    caplog: pytest.LogCaptureFixture,
) -> None:
    trainer = linear(step_size={0: 1, 4: 5})
    seen = Seen()

    result = watched(trainer, seen).fit(cut(regression_pair(8), [2] * 4), max_samples=11)

    assert [clock.samples for clock, _ in seen.windows] == [2, 4, 8, 11]
    assert result.samples == 11
    assert "shorter than one window of step_size=5" in caplog.text


def test_the_second_moment_follows_a_schedule_as_it_follows_the_batch() -> None:
    model = nn.Linear(3, 1).double()
    optimizer = AdamW(model.parameters(), lr=0.1, betas=(0.9, 0.99))
    trainer = Trainer(model, optimizer, Regression(), {0: 2, 4: 8, 20: 2}, "cpu", scaling="sqrt")
    seen: list[tuple[int, float, float]] = []

    class Sees(Seen):
        def on_window_end(self, trainer: Trainer, window: Window) -> None:
            seen.append((window.step_size, window.lr, optimizer.param_groups[0]["betas"][1]))

    watched(trainer, Sees()).fit(cut(regression_pair(24), [1] * 24), epochs=1)

    # four times the batch: twice the learning rate, and beta2 to the power 4
    assert seen == [
        *[(2, 0.1, 0.99)] * 2,
        *[(8, pytest.approx(0.2), pytest.approx(0.96059601))] * 2,
        *[(2, 0.1, 0.99)] * 2,
    ]


def test_without_scaling_a_schedule_leaves_the_optimizer_alone() -> None:
    trainer = linear(step_size={0: 1, 4: 2})
    seen = Seen()
    watched(trainer, seen).fit(cut(regression_pair(8), [2] * 4), epochs=1)

    assert {outcome.lr for _, outcome in seen.windows} == {LR}


def test_an_unknown_scaling_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^scaling=cube: no such rule; choose one of none, sqrt, linear$"
    ):
        linear(scaling="cube")


def small(seed: int, data: Dataset[Any] | None = None, **fit: Any) -> tuple[list[Tensor], Any]:
    """Train a small model with dropout on shuffled data; return its weights and what it saw."""
    for seeded in (random.seed, np.random.seed, torch.manual_seed):
        seeded(seed)
    inputs = torch.arange(60.0).reshape(20, 3).sin()
    data = data or TensorData(inputs, (inputs.sum(1) > 0).long())
    model = nn.Sequential(mlp((3,), 8), nn.Dropout(0.5), nn.Linear(8, 2))
    trainer = Trainer(model, AdamW(model.parameters(), lr=0.01), Classification(), 2, "cpu")
    seen = Seen()
    watched(trainer, seen).fit(loader(data, 3, shuffle_seed=seed), loader(data, 5), epochs=3, **fit)
    return weights(model), seen


def test_the_same_seed_gives_the_same_weights_and_losses_to_the_bit() -> None:
    (once, first), (twice, second), (other, third) = small(1), small(1), small(2)

    assert same(once, twice)
    assert first.windows == second.windows
    losses = [[result.val_loss for _, result in seen.evaluations] for seen in (first, second)]
    assert losses[0] == losses[1]
    assert not same(once, other)
    assert first.windows != third.windows


class LabelledRows(Dataset[tuple[Tensor, Tensor]]):
    """A user's own map-style data set of classes."""

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.full((3,), index / 20), torch.tensor(index % 2)


@pytest.mark.parametrize("data", [None, LabelledRows()], ids=["in memory", "map-style"])
def test_how_often_a_run_is_evaluated_does_not_change_what_it_learns(
    data: Dataset[Any] | None,
) -> None:
    often, seen = small(1, data, evaluate_every=6)
    seldom, _ = small(1, data, evaluate_every=10**6)

    assert len(seen.evaluations) == 10
    assert same(often, seldom)


# -- precision and refusals


def test_bf16_autocast_trains_float32_weights_close_to_full_precision() -> None:
    def trained(precision: str) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(3, 1)
        trainer = Trainer(
            model, SGD(model.parameters(), lr=LR), Regression(), device="cpu", precision=precision
        )
        data = [(x.float(), y.float()) for x, y in cut(regression_pair(32), SIZES)]
        trainer.fit(data, epochs=2)
        return weights(model)

    full, half = trained("fp32"), trained("bf16")

    assert {weight.dtype for weight in half} == {torch.float32}
    assert 0 < relative_error(half, full) < 0.02


def test_fp16_skips_the_updates_that_overflow_and_recovers() -> None:
    # One weight w = 0, input 1, target -1: the first gradient, 2, times the loss scale of 65536 is
    # too large for float16, and so it is times 32768; 16384 is just not.
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    schedule = cosine(horizon=100)
    trainer = Trainer(
        model,
        SGD(model.parameters(), lr=0.25),
        Regression(),
        1,
        "cpu",
        precision="fp16",
        schedule=schedule,
    )
    seen = Seen()

    result = watched(trainer, seen).fit([(torch.ones(1, 1), -torch.ones(1, 1))], epochs=8)

    assert [outcome.applied for _, outcome in seen.windows] == [False] * 2 + [True] * 6
    assert [clock.samples_applied for clock, _ in seen.windows] == [0, 0, 1, 2, 3, 4, 5, 6]
    lrs = [outcome.lr for _, outcome in seen.windows[:4]]
    assert lrs == pytest.approx([0.25 * schedule(at) for at in (0.5, 0.5, 0.5, 1.5)], rel=1e-14)
    assert (result.updates, result.updates_skipped, result.samples) == (6, 2, 8)
    assert model.weight.item() == pytest.approx(-1, abs=0.05)


def test_a_refused_window_is_counted_and_moves_neither_weights_nor_loss() -> None:
    good, bad = cut(regression_pair(4), (2, 2)), cut(regression_pair(4), (2, 2))
    bad[1].targets[0] = math.nan
    trainer, healthy = linear(step_size=2), linear(step_size=2)
    healthy.model.load_state_dict(trainer.model.state_dict())

    result = trainer.fit([*good, *bad, *good], epochs=1)
    expected = healthy.fit([*good, *good], epochs=1)

    assert same(weights(trainer.model), weights(healthy.model))
    assert (result.updates, result.updates_skipped, result.samples) == (2, 1, 12)
    assert (trainer.clock.items, trainer.clock.samples_applied) == (12, 8)
    assert result.train_loss == expected.train_loss


def test_a_run_that_diverges_stops_and_counts_every_refusal() -> None:
    batch = Pair(torch.full((2, 3), math.nan, dtype=torch.float64), torch.ones(2, 1).double())
    trainer = linear(step_size=1, max_skipped=2)
    before = weights(trainer.model)

    message = (
        "samples=6: loss nan, gradient norm nan: 3 windows in a row were refused because their "
        "loss or gradient is not finite; begin anew with a lower optimizer.lr, "
        "trainer.clip_norm=1, or device.precision=fp32"
    )
    with pytest.raises(DivergedError, match=f"^{re.escape(message)}$"):
        trainer.fit([batch] * 10, epochs=1)

    assert same(weights(trainer.model), before)
    assert (trainer.result.updates, trainer.result.updates_skipped) == (0, 3)


def test_a_window_without_any_item_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Linear(3, 2)
    trainer = Trainer(model, SGD(model.parameters(), lr=LR), Classification(), 1, "cpu")
    before = weights(model)

    result = trainer.fit([(torch.ones(4, 3), torch.full((4,), -100))], epochs=1)

    assert same(weights(model), before)
    assert (result.updates, result.updates_skipped, result.samples) == (0, 1, 4)
    assert math.isnan(result.train_loss)
    assert caplog.messages == ["samples=0: a window without any item; no update"]


def test_the_schedule_goes_by_samples_not_by_items() -> None:
    model = nn.Linear(3, 2)
    trainer = Trainer(
        model,
        SGD(model.parameters(), lr=1.0),
        Classification(),
        1,
        "cpu",
        schedule=lambda samples: samples / 100,
    )
    one_item = (torch.ones(4, 3), torch.tensor([1, -100, -100, -100]))
    seen = Seen()

    watched(trainer, seen).fit([one_item] * 3, epochs=1)

    assert [outcome.lr for _, outcome in seen.windows] == [0.02, 0.06, 0.1]
    assert (trainer.clock.samples, trainer.clock.items) == (12, 3)


# -- when it evaluates


@pytest.mark.parametrize(
    ("step_size", "fit", "expected"),
    [
        (1, {"epochs": 2}, [10, 20]),  # once an epoch
        (1, {"epochs": 1, "evaluate_every": 4}, [4, 8, 10]),  # and at the last sample
        (1, {"epochs": 1, "evaluate_every": 5}, [6, 10]),  # the first window end at or after
        (1, {"epochs": 1, "evaluate_every": 10}, [10]),  # never twice at the same sample
        (1, {"epochs": 1, "evaluate_every": 10**6}, [10]),
        (3, {"epochs": 1, "evaluate_every": 2}, [6, 10]),  # not more often than windows end
        (1, {"epochs": 2, "evaluate_every": 4}, [4, 8, 12, 16, 20]),  # across epochs
        (1, {"max_samples": 7}, [7]),
        (1, {"max_samples": 10}, [10]),
        (1, {"max_samples": 13}, [10, 13]),
        (1, {"max_samples": 13, "evaluate_every": 6}, [6, 12, 13]),
    ],
)
def test_evaluations_come_as_often_as_asked_and_always_at_the_last_sample(
    step_size: int, fit: dict[str, int], expected: list[int]
) -> None:
    minibatches = cut(regression_pair(10), [2] * 5)
    seen = Seen()

    watched(linear(step_size=step_size), seen).fit(minibatches, minibatches, **fit)

    assert seen.evaluated_at == expected


@pytest.mark.parametrize("max_seconds", [10.5, 0.5])
def test_a_run_that_time_ends_is_evaluated_at_its_last_sample(
    monkeypatch: pytest.MonkeyPatch, max_seconds: float
) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr("cadence.plan.clock.perf_counter", lambda: float(next(ticks)))
    minibatches = cut(regression_pair(200), [2] * 100)
    seen = Seen()

    result = watched(linear(), seen).fit(minibatches, minibatches, max_seconds=max_seconds)

    assert result.samples < 200
    assert (result.samples > 0) == (max_seconds > 1)  # else time is up before the first window
    assert seen.evaluated_at == [result.samples]


def test_the_last_evaluation_is_that_of_the_model_as_it_is() -> None:
    train, held_out = cut(regression_pair(10), [2] * 5), regression_pair(7)
    trainer = linear()

    result = trainer.fit(train, [held_out], max_samples=9)

    expected = F.mse_loss(trainer.model(held_out.inputs), held_out.targets).item()
    assert result.val_loss == pytest.approx(expected, rel=1e-14)
    assert result.val_loss == trainer.evaluate([held_out]).loss
    assert trainer.result.val_loss == result.val_loss


def test_training_goes_on_in_training_mode_after_an_evaluation() -> None:
    modes: list[bool] = []

    class Watched(Regression):
        def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
            modes.append(model.training)
            return super().total_loss(model, batch)

    trainer = linear(step_size=1)
    trainer.objective = Watched()
    trainer.model.eval()
    minibatches = cut(regression_pair(4), (2, 2))

    trainer.fit(minibatches, minibatches[:1], epochs=1, evaluate_every=2)

    assert modes == [True, False, True, False]


def test_a_users_evaluation_leaves_every_module_in_its_own_mode() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)).double()
    trainer = Trainer(model, SGD(model.parameters(), lr=LR), Regression(), device="cpu")
    model.train()
    model[1].eval()  # frozen

    trainer.evaluate([regression_pair(4)])

    assert [module.training for module in model] == [True, False, True]


# -- what it came to


def test_the_train_loss_is_the_mean_over_the_items_of_the_last_epoch_by_hand() -> None:
    # One weight w, input 1, no target but 0: the loss is w^2, its gradient 2 w. With a learning
    # rate of 1/4 each update halves w. Mini-batches of 3 samples and of 1, one update each:
    # the first epoch starts at w = 8, the second at w = 2: (4 * 3 + 1 * 1) / 4 = 3.25.
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 8.0)
    trainer = Trainer(model, SGD(model.parameters(), lr=0.25), Regression(), 1, "cpu")
    minibatches = [(torch.ones(samples, 1), torch.zeros(samples, 1)) for samples in (3, 1)]

    assert trainer.fit(minibatches, epochs=2).train_loss == 3.25
    assert model.weight.item() == 0.5


def test_the_result_says_what_was_done() -> None:
    data = cut(regression_pair(10), (4, 4, 2))

    result = linear(step_size=2, microbatch_size=3).fit(data, data, epochs=3)

    assert (result.step_size, result.microbatch_size, result.device) == (2, 3, "cpu")
    assert (result.updates, result.updates_skipped, result.samples) == (6, 0, 30)
    assert 0 < result.samples_per_second_p10 <= result.samples_per_second
    assert result.samples_per_second <= result.samples_per_second_p90
    assert result.seconds > 0
    assert result.peak_memory_mib >= 0
    assert result.val_metrics == {}


def test_a_later_fit_keeps_the_runs_memory_and_its_peak() -> None:
    data = [(torch.ones(2, 1), torch.zeros(2, 1))]
    model = Takes64MiBOnce()
    trainer = Trainer(model, SGD(model.parameters(), lr=0.0), Regression(), 1, "cpu")

    peaks = [trainer.fit(data, epochs=1).peak_memory_mib for _ in range(2)]

    assert 60 < peaks[0] <= peaks[1]


class Takes64MiBOnce(nn.Linear):
    """A model of one weight whose first forward, and no other, needs 64 MiB for a moment."""

    def __init__(self) -> None:
        super().__init__(1, 1)
        self.taken = False

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.taken:
            torch.ones(64 * 2**20 // 4)
            self.taken = True
        return super().forward(inputs)


def test_a_windows_time_is_told_by_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes only in the loader (1 s), the loss (0.25 s) and the optimizer's step (8 s)."""
    now = 0.0
    monkeypatch.setattr("cadence.metrics.timing.perf_counter", lambda: now)

    def passes(seconds: float) -> None:
        nonlocal now
        now += seconds

    class Slow(Regression):
        def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
            passes(0.25)
            return super().total_loss(model, batch)

    class SlowSGD(SGD):
        def step(self, closure: Any = None) -> Any:
            passes(8)
            return super().step(closure)

    class SlowLoader(list[Pair]):
        def __iter__(self) -> Iterator[Pair]:
            for pair in super().__iter__():
                passes(1)
                yield pair

    model = nn.Linear(3, 1).double()
    optimizer = SlowSGD(model.parameters(), lr=LR)
    trainer = Trainer(model, optimizer, Slow(), step_size=3, device="cpu")
    data = cut(regression_pair(22), [2] * 11)  # three windows of 6 samples, one of 4
    result = trainer.fit(SlowLoader(data), data, epochs=2)

    assert result.time == WindowTime(6, 3000, 750, 0, 8000)
    assert trainer.window_parts.data.tolist() == [3, 3, 3, 2] * 2
    again = Trainer(model, optimizer, Slow(), device="cpu")
    again.restore(trainer.state({}))
    assert again.result.time == result.time


def test_without_validation_data_there_is_no_validation_loss() -> None:
    seen = Seen()

    result = watched(linear(), seen).fit(cut(regression_pair(4), (2, 2)), epochs=1)

    assert math.isnan(result.val_loss)
    assert seen.evaluations == []


def test_callbacks_see_every_window_and_evaluation_in_order() -> None:
    data = cut(regression_pair(10), (4, 4, 2))
    first, second = Seen(), Seen()

    result = watched(linear(step_size=2), first, second).fit(data, data, epochs=2)

    assert [clock.samples for clock, _ in first.windows] == [8, 10, 18, 20]
    assert [clock.updates for clock, _ in first.windows] == [1, 2, 3, 4]
    assert [clock.epoch for clock, _ in first.evaluations] == [1, 2]
    assert first.evaluations[-1][1].val_loss == result.val_loss
    assert second.windows == first.windows


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_an_objective_of_two_methods_trains_as_the_librarys_own(device: str) -> None:
    data = cut(regression_pair(32), SIZES)

    def trained(objective: Own | Regression) -> tuple[list[Tensor], Result]:
        torch.manual_seed(0)
        model = nn.Linear(3, 1).double()
        trainer = Trainer(model, SGD(model.parameters(), lr=LR), objective, 3, device)
        result = trainer.fit(data, data, epochs=2)
        return weights(model), result

    (own, one), (ours, other) = trained(Own()), trained(Regression())

    assert relative_error(own, ours) <= 1e-12
    assert one.train_loss == pytest.approx(other.train_loss, rel=1e-12)
    assert one.val_loss == pytest.approx(other.val_loss, rel=1e-12)


def test_the_settings_reach_accumulation_and_update() -> None:
    """Clipped to a norm of 1, at half the learning rate, an update is half as long as the rate."""
    seen: list[int] = []

    class Watched(Regression):
        def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
            seen.append(sample_count(batch))
            return 1000 * super().total_loss(model, batch)

    trainer = linear(microbatch_size=5, clip_norm=1.0, schedule=lambda samples: 0.5)
    trainer.objective = Watched()
    before = weights(trainer.model)

    trainer.fit(cut(regression_pair(8), (4, 4)), epochs=1)

    moves = [now - then for now, then in zip(weights(trainer.model), before, strict=True)]
    assert get_total_norm(moves).item() == pytest.approx(LR / 2, rel=1e-6)
    assert seen == [5, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"device": "cuda:99"}, "device.name=cuda:99: there is no such device on this machine, "),
        ({"precision": "fp8"}, "device.precision=fp8: choose one of fp32, bf16, fp16"),
        (
            {"microbatch_size": 0},
            "microbatch_size=0: samples per forward and backward must be ",
        ),
    ],
)
def test_an_impossible_setting_is_refused(settings: dict[str, Any], message: str) -> None:
    with as_a_user_calls_it(), pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        linear(**settings)


NORM = "the largest gradient norm"
BORNE = "refused updates in a row that are borne"
THREADS = "threads of an operation"
OR_AUTO = "use None for torch's own number, or auto"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("clip_norm", -1.0, f"{NORM} must be above 0; use None for no clipping"),
        ("clip_norm", 0, f"{NORM} must be above 0; use None for no clipping"),
        ("clip_norm", math.nan, f"{NORM} must be above 0; use None for no clipping"),
        ("clip_norm", True, f"{NORM} must be a number; use None for no clipping"),
        ("max_skipped", -1, f"{BORNE} must be at least 0; use 0 to bear none"),
        ("max_skipped", 1.5, f"{BORNE} must be a whole number; use 0 to bear none"),
        ("max_skipped", None, f"{BORNE} must be a whole number; use 0 to bear none"),
        ("threads", 0, f"{THREADS} must be at least 1; {OR_AUTO}"),
        ("threads", True, f"{THREADS} must be a whole number; {OR_AUTO}"),
        ("threads", 1.5, f"{THREADS} must be a whole number; {OR_AUTO}"),
    ],
)
def test_an_impossible_number_is_refused_when_the_trainer_is_made(
    name: str, value: Any, problem: str
) -> None:
    message = re.escape(f"{name}={value}: {problem}")
    with as_a_user_calls_it(), pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        linear(**{name: value})


SAMPLES = "samples between evaluations"
ONCE = "use None for once an epoch"
IN_VAIN = "evaluations without a lower validation loss"
PATIENT = "give 1 or more"


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("epochs", 0, "epochs to train (trainer.max_epochs) must be at least 1; use None (null) "
         "for no such limit"),
        ("evaluate_every", 0, f"{SAMPLES} must be at least 1; {ONCE}"),
        ("evaluate_every", -3, f"{SAMPLES} must be at least 1; {ONCE}"),
        ("evaluate_every", True, f"{SAMPLES} must be a whole number; {ONCE}"),
        ("evaluate_every", math.nan, f"{SAMPLES} must be a whole number; {ONCE}"),
    ],
)  # fmt: skip
def test_an_impossible_number_is_refused_before_anything_is_trained(
    name: str, value: Any, problem: str
) -> None:
    data, trainer = cut(regression_pair(4), (2, 2)), linear()
    before = weights(trainer.model)
    message = re.escape(f"{name}={value}: {problem}")

    with as_a_user_calls_it(), pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        trainer.fit(data, data, **{"epochs": 1, name: value})

    assert trainer.clock == Clock()
    assert same(weights(trainer.model), before)


@pytest.mark.parametrize(
    ("patience", "problem"),
    [
        (0, "must be at least 1"),
        (-1, "must be at least 1"),
        (True, "must be a whole number"),
        (math.nan, "must be a whole number"),
    ],
)
def test_an_impossible_patience_is_refused(patience: Any, problem: str) -> None:
    message = re.escape(f"patience={patience}: {IN_VAIN} {problem}; {PATIENT}")

    with as_a_user_calls_it(), pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        EarlyStopping(patience)


def test_a_run_without_a_limit_is_refused() -> None:
    message = (
        "without a limit the run would never end; set epochs (trainer.max_epochs), max_samples or "
        "max_seconds"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        linear().fit([regression_pair(2)])


def test_what_happens_at_a_boundary_is_in_no_windows_time(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**9))
    monkeypatch.setattr("cadence.metrics.timing.perf_counter", lambda: float(next(ticks)))
    trainer = linear(step_size=1)

    def save() -> None:
        for _ in range(1000):
            next(ticks)

    watched(trainer, AtBoundaries(save)).fit(cut(regression_pair(12), [4, 4, 4]), epochs=2)

    parts = trainer.window_parts
    assert len(parts.samples) == 6
    assert max((parts.data + parts.compute + parts.update).tolist()) < 100


def test_a_run_that_goes_on_for_a_moment_keeps_the_throughput_of_its_long_session() -> None:
    data = cut(regression_pair(8), [4, 4])
    before, after = linear(), linear()
    was = before.fit(data, epochs=20)
    after.restore(before.state({}))

    found = after.fit(data, epochs=1)

    assert found.samples_per_second == was.samples_per_second
    assert (found.samples_per_second_p10, found.time) == (was.samples_per_second_p10, was.time)
    assert found.samples == was.samples + 8


@pytest.mark.parametrize("make_loader", LOADERS_OF_AN_EPOCH)
def test_a_run_that_a_limit_ended_within_an_epoch_goes_on_there(make_loader: Any) -> None:
    with as_a_user_calls_it():
        undisturbed, cut_off, resumed = linear(), linear(), linear()
        for trainer in (cut_off, resumed):
            trainer.model.load_state_dict(undisturbed.model.state_dict())
        torch.manual_seed(1)
        undisturbed.fit(make_loader(), max_samples=64)
        torch.manual_seed(1)
        cut_off.fit(make_loader(), max_samples=24)
        state = cut_off.state({})
        torch.manual_seed(2)
        resumed.restore(state)
        resumed.fit(make_loader(), max_samples=40)

    assert same(weights(resumed.model), weights(undisturbed.model))
    assert resumed.clock == undisturbed.clock


def test_a_mini_batch_without_a_sample_tells_auto_nothing() -> None:
    sizes = [4, 0, 4, 4, 0, 4] * 40
    trainer = linear(step_size=1, microbatch_size="auto", threads="auto")

    result = trainer.fit(cut(regression_pair(sum(sizes)), sizes), epochs=2)

    assert result.samples == 2 * sum(sizes)


def test_an_optimizer_of_what_is_not_the_models_is_refused() -> None:
    model, temperature = nn.Linear(3, 1), nn.Parameter(torch.ones(()))
    optimizer = SGD([*model.parameters(), temperature], lr=0.1)

    with pytest.raises(ValueError, match=r"^the optimizer updates what is not .* \(1 of 3 ten"):
        Trainer(model, optimizer, Regression(), device="cpu")


def test_a_part_of_the_model_that_is_in_evaluation_mode_stays_in_it() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    model[0].eval()
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), Regression(), 2, "cpu",
                      microbatch_size=3)  # fmt: skip
    data = cut(regression_pair(8), [4, 4])

    trainer.fit(data, data, epochs=1)

    assert [module.training for module in model] == [False, True]
    assert torch.equal(model[0].running_mean, torch.zeros(3).double())


def test_a_model_left_in_evaluation_mode_is_trained_in_training_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 1)).double().eval()
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), Regression(), 2, "cpu")

    trainer.fit(cut(regression_pair(8), [4, 4]), epochs=1)

    assert all(module.training for module in model.modules())
