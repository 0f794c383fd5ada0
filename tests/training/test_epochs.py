"""What an epoch is drawn from: told the epoch, put back on resume, and left alone by evaluation."""

import copy
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from oracles import weights
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from cadence import Trainer
from cadence.checkpoint.state import State
from cadence.data import TensorData, loader
from cadence.objectives import Classification

SAMPLES = 12


class Kept(Classification):
    """Keeps the samples that were trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[float]] = []

    def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
        if model.training:
            self.seen.append(batch[0][:, 0].tolist())
        return super().total_loss(model, batch)


def data() -> TensorDataset:
    return TensorDataset(torch.arange(float(SAMPLES))[:, None], torch.zeros(SAMPLES).long())


class Noisy(Dataset[Any]):
    """Adds noise of a generator of its own to each sample."""

    def __init__(self, generator: Any) -> None:
        self.generator = generator

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if isinstance(self.generator, torch.Generator):
            noise = torch.rand(1, generator=self.generator)
        elif isinstance(self.generator, random.Random):
            noise = torch.tensor([self.generator.random()])
        else:
            noise = torch.tensor([float(self.generator.uniform())])
        return index + noise.float(), torch.tensor(0)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


LOADERS: dict[str, Callable[[], DataLoader[Any]]] = {
    "a loader's generator": lambda: DataLoader(data(), 2, shuffle=True, generator=seeded()),
    "a sampler's": lambda: DataLoader(data(), 2, sampler=RandomSampler(data(), generator=seeded())),
    "a weighted sampler's": lambda: DataLoader(
        data(),
        2,
        sampler=WeightedRandomSampler([1.0, 2.0] * 6, SAMPLES, generator=seeded()),
    ),
    "a batch sampler's": lambda: DataLoader(
        data(),
        batch_sampler=BatchSampler(RandomSampler(data(), generator=seeded()), 2, drop_last=False),
    ),
    "a data set's, torch's": lambda: DataLoader(Noisy(seeded()), 2),
    "a data set's, numpy's": lambda: DataLoader(Noisy(np.random.default_rng(3)), 2),
    "a data set's, numpy's old": lambda: DataLoader(Noisy(np.random.RandomState(3)), 2),
    "a data set's, Python's": lambda: DataLoader(Noisy(random.Random(3)), 2),
    "a data set's within another": lambda: DataLoader(ConcatDataset([Noisy(seeded()), data()]), 2),
    "nobody's": lambda: DataLoader(data(), 2, shuffle=True),
}


def seen_by(
    made: DataLoader[Any], samples: int, state: State | None = None
) -> tuple[State, list[list[float]]]:
    torch.manual_seed(0)
    model, objective = nn.Linear(1, 2), Kept()
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), 0.1), objective, device="cpu")
    if state is not None:
        trainer.restore(state)
    trainer.fit(made, max_samples=samples)
    return trainer.state({}), objective.seen


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("first", [4, 16, 24])
def test_a_resumed_epoch_is_drawn_from_every_generator_as_it_was(name: str, first: int) -> None:
    make = LOADERS[name]

    _, undisturbed = seen_by(make(), 40)
    state, begun = seen_by(make(), first)
    _, resumed = seen_by(make(), 40 - first, state)

    assert begun + resumed == undisturbed


def test_what_state_returned_does_not_change_as_training_goes_on() -> None:
    model = nn.Linear(1, 2)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), 0.1), Classification())
    made = LOADERS["a data set's, numpy's"]()
    trainer.fit(made, max_samples=4)
    random_then = copy.deepcopy(trainer.state({}).random["now"]["loader"])
    state = trainer.state({})

    trainer.fit(made, max_samples=4)

    assert state.random["now"]["loader"] == random_then
    assert trainer.state({}).random["now"]["loader"] != random_then


def test_a_later_fit_goes_on_within_the_epoch_that_a_limit_cut_off() -> None:
    objective = Kept()
    model = nn.Linear(1, 2)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), 1e-5), objective, device="cpu")
    firsts = range(0, 100, 10)
    batches = [(torch.arange(i, i + 10.0)[:, None], torch.zeros(10).long()) for i in firsts]

    for _ in range(10):
        trainer.fit(batches, max_samples=20)

    assert sorted({sample for batch in objective.seen for sample in batch}) == list(range(100))
    assert (trainer.clock.samples, trainer.clock.epoch) == (200, 2)


class Told(Sampler[int]):
    """Keeps the epochs it was told."""

    def __init__(self) -> None:
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[int]:
        return iter(range(SAMPLES))

    def __len__(self) -> int:
        return SAMPLES


class ToldData(TensorDataset):
    def __init__(self) -> None:
        super().__init__(*data().tensors)
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)


def test_every_part_of_a_loader_is_told_the_epoch() -> None:
    inner, outer, held = Told(), ToldData(), ToldData()
    made = DataLoader(
        ConcatDataset([outer, held]), batch_sampler=BatchSampler(inner, 4, drop_last=False)
    )
    model = nn.Linear(1, 2)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), 0.1), Classification())

    trainer.fit(made, epochs=2)

    assert inner.epochs == outer.epochs == held.epochs == [0, 1]


class Draws(Dataset[Any]):
    """Draws from each global random generator for a sample."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(1) + random.random() + np.random.uniform()
        return noise.float(), torch.tensor(0)


@pytest.mark.parametrize(
    "held_out",
    [
        lambda: DataLoader(data(), 2),
        lambda: DataLoader(data(), 2, shuffle=True),
        lambda: DataLoader(Draws(), 2),
    ],
    ids=["plain", "shuffled", "one that draws"],
)
def test_evaluating_more_often_changes_nothing_that_is_learned(
    held_out: Callable[[], DataLoader[Any]],
) -> None:
    def trained(every: int | None) -> list[Tensor]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        model = nn.Sequential(nn.Dropout(0.2), nn.Linear(1, 2))
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), 0.5), Classification())
        trainer.fit(
            loader(TensorData(*data().tensors), 2, shuffle_seed=0),
            held_out(),
            epochs=3,
            evaluate_every=every,
        )
        return weights(model)

    assert all(map(torch.equal, trained(None), trained(4)))


def test_an_evaluation_draws_nothing_from_a_generator_that_training_shares() -> None:
    def seen(every: int | None) -> list[list[float]]:
        generator, objective = seeded(), Kept()
        model = nn.Linear(1, 2)
        trainer = Trainer(model, torch.optim.SGD(model.parameters(), 0.1), objective)
        made, held_out = (
            DataLoader(data(), 2, shuffle=True, generator=generator) for _ in range(2)
        )
        trainer.fit(made, held_out, epochs=2, evaluate_every=every)
        return objective.seen

    assert seen(None) == seen(4)
