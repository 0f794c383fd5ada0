"""The default number of threads: by the work of a micro-batch, the same each time."""

from collections.abc import Iterator

import pytest
import torch
from oracles import cut, regression_pair, same, weights
from torch import Tensor, nn
from torch.optim import SGD

from cadence import Trainer
from cadence.data.batch import Gathered
from cadence.engine.threads import LEAST_WORK, NAMED_BY, DefaultThreads
from cadence.objectives import Regression

SIDE = 128
"""Numbers in a row of a square weight matrix: 1,024 samples make one thread's least work."""


@pytest.fixture(autouse=True)
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMED_BY:
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def threads_of(model: nn.Module, *inputs: Tensor, size: int | None = None) -> int:
    threads = DefaultThreads()
    threads.take(model)
    return threads.for_window(inputs, size)


@pytest.mark.parametrize(
    ("samples", "expected"), [(1, 1), (1024, 1), (2048, 2), (3071, 2), (4096, 4), (9999, 4)]
)
def test_each_thread_has_the_least_work_and_there_are_no_more_than_torchs(
    samples: int, expected: int
) -> None:
    assert SIDE * SIDE * 1024 == LEAST_WORK
    assert threads_of(nn.Linear(SIDE, SIDE), torch.zeros(samples, SIDE)) == expected


def test_the_micro_batch_counts_and_not_the_window() -> None:
    model, minibatch = nn.Linear(SIDE, SIDE), torch.zeros(1024, SIDE)

    assert threads_of(model, *(minibatch,) * 4) == 1
    assert threads_of(model, *(minibatch,) * 4, size=2048) == 2
    assert threads_of(model, *(minibatch,) * 4, size=9999) == 4
    assert threads_of(model, torch.zeros(4096, SIDE), size=8) == 1


def test_a_matrix_works_at_each_token_and_a_convolution_at_each_pixel() -> None:
    linear, convolution = nn.Linear(SIDE, SIDE), nn.Conv2d(SIDE, SIDE, 1)

    assert threads_of(linear, torch.zeros(8, 256, dtype=torch.int64)) == 2
    assert threads_of(convolution, torch.zeros(8, SIDE, 16, 16)) == 2
    assert threads_of(convolution, torch.zeros(8, SIDE, 1, 1)) == 1


def test_a_gathered_window_has_the_threads_of_its_mini_batches() -> None:
    model, samples = nn.Linear(SIDE, SIDE), torch.zeros(4096, SIDE)
    threads = DefaultThreads()
    threads.take(model)

    assert threads.for_window(Gathered((samples,), 2048), None) == 2
    assert threads.for_window(samples.split(2048), None) == 2


@pytest.mark.parametrize("name", NAMED_BY)
def test_a_number_that_the_environment_names_wins(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "4")

    assert threads_of(nn.Linear(2, 2), torch.zeros(1, 2)) == 4


def test_a_model_without_a_weight_matrix_keeps_torchs_number() -> None:
    assert threads_of(nn.PReLU(), torch.zeros(1, 2)) == 4


def test_a_device_that_is_no_cpu_keeps_torchs_number() -> None:
    assert threads_of(nn.Linear(2, 2, device="meta"), torch.zeros(1, 2)) == 4


class Looks(Regression):
    """Sees how many threads each of its forwards has."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def total_loss(self, model: nn.Module, batch: object) -> Tensor:
        self.seen.append(torch.get_num_threads())
        return super().total_loss(model, batch)  # type: ignore[arg-type]


def test_training_and_evaluating_have_them_and_torch_has_its_own_again_after() -> None:
    model, looks = nn.Linear(3, 1).double(), Looks()
    data = cut(regression_pair(8), [4, 4])
    trainer = Trainer(model, SGD(model.parameters(), lr=0.05), looks, 1, "cpu")

    trainer.fit(data, data, epochs=1)
    trainer.evaluate(data)

    assert set(looks.seen) == {1}
    assert torch.get_num_threads() == 4


def test_a_run_that_goes_on_has_the_bits_and_threads_of_one_that_never_stopped() -> None:
    def made() -> tuple[nn.Module, Looks, Trainer]:
        torch.manual_seed(0)
        model, looks = nn.Linear(SIDE, 1, bias=False), Looks()
        optimizer = SGD(model.parameters(), lr=0.001)
        return model, looks, Trainer(model, optimizer, looks, 1, "cpu")

    inputs = torch.randn(2**18 + 8, SIDE)
    data = [(part, part[:, :1]) for part in inputs.split([2**18, 8])]
    undisturbed, seen, trainer = made()
    trainer.fit(data, epochs=2)

    _, before, first = made()
    first.fit(data, epochs=1)
    model, after, second = made()
    second.restore(first.state({}))
    second.fit(data, epochs=1)

    assert before.seen + after.seen == seen.seen == [2, 1, 2, 1]
    assert same(weights(model), weights(undisturbed))
