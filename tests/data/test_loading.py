"""From a data set to its mini-batches: complete, in an order that seed and epoch fix."""

import random
import re
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import CUDA, as_a_user_calls_it, same
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from cadence import Trainer
from cadence.data import InMemoryLoader, TensorData, loader
from cadence.data.batch import first_samples
from cadence.objectives import Regression
from cadence.plan.clock import Clock
from cadence.plan.window import windows

FORKING = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
"""Python 3.12 and later warn of the fork with which torch starts its workers."""


def tensors(samples: int) -> tuple[Tensor, Tensor]:
    """Return inputs that hold the number of their sample, and targets that hold minus it."""
    numbers = torch.arange(samples)
    return numbers[:, None].expand(-1, 3).float(), -numbers


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """A user's own map-style data set, that takes whole numbers for indices."""

    def __init__(self, samples: int) -> None:
        self._rows = dict(enumerate(zip(*tensors(samples), strict=True)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self._rows[index]


class Noise(Rows):
    """Draws from each of the generators that a user may draw from."""

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return torch.tensor([random.random(), np.random.random(), torch.rand(()).item()])


DATA = {"in memory": lambda samples: TensorData(*tensors(samples)), "map-style": Rows}


def epoch(minibatches: DataLoader[Any], number: int) -> list[Sequence[Tensor]]:
    """Return the mini-batches of an epoch, told as the trainer tells it."""
    minibatches.batch_sampler.set_epoch(number)  # type: ignore[union-attr]
    return list(minibatches)


def order(batches: Iterable[Sequence[Tensor]]) -> list[int]:
    """Return the numbers of the samples, after a look that each kept its target."""
    inputs, targets = map(torch.cat, zip(*batches, strict=True))
    assert torch.equal(inputs, -targets[:, None].expand_as(inputs).float())
    return (-targets).tolist()


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 11])
def test_in_order_it_gives_the_mini_batches_of_a_plain_data_loader(
    kind: str, batch_size: int
) -> None:
    plain = DataLoader(TensorDataset(*tensors(10)), batch_size=batch_size)

    ours = loader(DATA[kind](10), batch_size)

    assert len(ours) == len(plain)
    for found, expected in zip(ours, plain, strict=True):
        assert same(found, expected)


@pytest.mark.parametrize("kind", DATA)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 2**32), st.integers(0, 10))
def test_an_epoch_is_a_permutation_in_full_mini_batches(
    kind: str, samples: int, batch_size: int, seed: int, number: int
) -> None:
    minibatches = loader(DATA[kind](samples), batch_size, shuffle_seed=seed)

    batches = epoch(minibatches, number)

    assert sorted(order(batches)) == list(range(samples))
    sizes = [len(targets) for _, targets in batches]
    assert sizes == [min(batch_size, samples - start) for start in range(0, samples, batch_size)]
    assert len(minibatches) == len(sizes)


@pytest.mark.parametrize("kind", DATA)
def test_seed_and_epoch_fix_the_order(kind: str) -> None:
    orders = {
        (seed, number): order(epoch(loader(DATA[kind](50), 8, shuffle_seed=seed), number))
        for seed in (0, 1)
        for number in (0, 1)
    }

    # Four different ones: seed 1 in epoch 0 is not seed 0 in epoch 1.
    assert len(set(map(tuple, orders.values()))) == 4
    again = loader(DATA[kind](50), 8, shuffle_seed=1)
    assert order(epoch(again, 1)) == orders[1, 1]  # whatever came before it
    assert order(epoch(again, 0)) == orders[1, 0]
    torch.manual_seed(5)
    assert order(epoch(again, 0)) == orders[1, 0]


def test_both_kinds_of_data_come_in_the_same_order() -> None:
    orders = [order(epoch(loader(data(50), 8, shuffle_seed=3), 2)) for data in DATA.values()]
    assert orders[0] == orders[1]


@FORKING
def test_workers_give_the_same_mini_batches_each_epoch() -> None:
    here = loader(Rows(10), 4, shuffle_seed=0)
    there = loader(Rows(10), 4, shuffle_seed=0, workers=2)

    for number in (0, 1):
        pairs = zip(epoch(here, number), epoch(there, number), strict=True)
        assert all(same(*pair) for pair in pairs)


@FORKING
def test_workers_draw_noise_of_their_own_that_the_seed_fixes() -> None:
    def noise(seed: int) -> Tensor:
        return torch.cat(list(loader(Noise(8), 2, shuffle_seed=seed, workers=2)))

    once = noise(0)

    for column in once.T:
        assert len(column.unique()) == 8  # no two alike, in no worker
    assert torch.equal(noise(0), once)
    assert not torch.equal(noise(1), once)


@FORKING
def test_an_epochs_noise_in_workers_is_the_same_whichever_epoch_was_the_first() -> None:
    def minibatches() -> DataLoader[Any]:
        return loader(Noise(8), 2, shuffle_seed=0, workers=2)

    undisturbed, resumed = minibatches(), minibatches()

    first, second = (torch.cat(epoch(undisturbed, number)) for number in (0, 1))

    assert torch.equal(torch.cat(epoch(resumed, 1)), second)
    assert not torch.equal(first, second)


class NoiseToRegress(Noise):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(index).double(), torch.zeros(1).double()


@FORKING
def test_held_out_noise_in_workers_is_the_same_however_often_it_was_evaluated_before() -> None:
    def losses(evaluations: range) -> list[float]:
        torch.manual_seed(0)
        model = nn.Linear(3, 1).double()
        trainer = Trainer(model, SGD(model.parameters(), lr=0.1), Regression(), 1, "cpu")
        held_out = loader(NoiseToRegress(8), 2, workers=2)
        found = []
        for samples in evaluations:
            trainer.clock = Clock(samples=samples)
            found.append(trainer.evaluate(held_out).loss)
        return found

    undisturbed, resumed = losses(range(3)), losses(range(2, 3))

    assert resumed == undisturbed[-1:]
    assert len(set(undisturbed)) == 3


def test_a_part_of_tensors_in_memory_is_as_good_as_the_whole() -> None:
    """``torch.utils.data.random_split`` makes such parts."""
    part = Subset(TensorData(*tensors(10)), [7, 2, 5])

    assert order(loader(part, 2)) == [7, 2, 5]
    assert order(DataLoader(TensorData(*tensors(3)), batch_size=2)) == [0, 1, 2]


def test_tensors_are_prepared_as_they_are_gathered() -> None:
    raw = torch.arange(6, dtype=torch.uint8)
    data = TensorData(raw, prepare=lambda batch: (batch[0].long() * 2, batch[0]))

    assert [doubled.tolist() for doubled, _ in loader(data, 4)] == [[0, 2, 4, 6], [8, 10]]
    assert data[3][0].item() == 6
    assert len(data) == 6
    assert raw.tolist() == [0, 1, 2, 3, 4, 5]


def test_tensors_in_memory_are_never_handed_to_workers() -> None:
    assert isinstance(loader(TensorData(torch.ones(4)), 2, workers=2), InMemoryLoader)


@pytest.mark.parametrize("kind", DATA)
def test_a_batch_larger_than_the_data_is_allowed_with_a_warning(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert order(loader(DATA[kind](3), 4)) == [0, 1, 2]
    assert caplog.messages == [
        "data.batch_size=4 is larger than the 3 samples: every mini-batch is an epoch"
    ]


@pytest.mark.parametrize("kind", DATA)
def test_an_empty_data_set_is_refused(kind: str) -> None:
    message = "the data set has no sample; check its path and its splits"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        loader(DATA[kind](0), 4)


@pytest.mark.parametrize(
    ("parts", "found"), [((), "[]"), ((torch.ones(2), torch.ones(3)), "[2, 3]")]
)
def test_tensors_of_different_lengths_are_refused(parts: tuple[Tensor, ...], found: str) -> None:
    message = f"tensors of one length are needed; got lengths {found}"
    with as_a_user_calls_it(), pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        TensorData(*parts)


@pytest.mark.parametrize("device", [CUDA])
@pytest.mark.parametrize("kind", DATA)
def test_pinned_mini_batches_hold_the_same(kind: str, device: str) -> None:
    batches = list(loader(DATA[kind](10), 4, pin_memory=True))

    assert order(batches) == list(range(10))
    assert all(part.is_pinned() for batch in batches for part in batch)


@given(
    st.integers(1, 40),
    st.integers(1, 7),
    st.integers(1, 9),
    st.integers(0, 8),
    st.none() | st.integers(1, 50),
)
def test_windows_gathered_at_once_hold_the_same_mini_batches(
    count: int, batch_size: int, step_size: int, skip: int, samples: int | None
) -> None:
    data = TensorData(torch.arange(count), torch.arange(count)[:, None] * 2.0)
    gathering = loader(data, batch_size, shuffle_seed=3)
    assert isinstance(gathering, InMemoryLoader)

    found = [list(each) for each in gathering.windows(step_size, skip=skip, samples=samples)]

    rest = first_samples(islice(gathering, skip, None), samples)
    expected = list(windows(rest, step_size))
    assert [len(window) for window in found] == [len(window) for window in expected]
    for ours, theirs in zip(chain(*found), chain(*expected), strict=True):
        assert all(map(torch.equal, ours, theirs))


def test_a_window_gathered_at_once_is_cut_without_a_copy() -> None:
    data = loader(TensorData(torch.arange(40), torch.rand(40, 3)), 4)
    assert isinstance(data, InMemoryLoader)
    window = next(data.windows(5))

    assert (len(window), window.samples) == (5, 20)
    for size in (1, 3, 20, 99):
        joined = [torch.cat(column) for column in zip(*window.cut(size), strict=True)]
        assert all(map(torch.equal, joined, window.whole))
    assert window.cut(3)[0][0].data_ptr() == window.whole[0].data_ptr()
    assert torch.equal(window[1][0], torch.arange(4, 8))
