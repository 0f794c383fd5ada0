"""What the owner of an optimizer sets holds: a trainer scales it and never puts its own back."""

import logging
import math
from collections.abc import Callable

import pytest
import torch
from oracles import relative_error, weights
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, LRScheduler, OneCycleLR, StepLR

from cadence import Callback, Trainer
from cadence.metrics.result import Window
from cadence.objectives import Classification

Batches = list[tuple[Tensor, Tensor]]


def batches(count: int = 10) -> Batches:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(8, 4, dtype=torch.float64, generator=generator),
            torch.randint(0, 2, (8,), generator=generator),
        )
        for _ in range(count)
    ]


def model() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 2).double()


class Steps(Callback):
    """Steps a torch scheduler after each update, as a loop by hand does."""

    def __init__(self, scheduler: LRScheduler) -> None:
        self._scheduler = scheduler

    def on_window_end(self, trainer: Trainer, window: Window) -> None:
        self._scheduler.step()


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], LRScheduler]] = {
    "warm-up from 0": lambda optimizer: LambdaLR(optimizer, lambda n: min(1, n / 5)),
    "steps": lambda optimizer: StepLR(optimizer, 3, gamma=0.1),
    "exponential": lambda optimizer: ExponentialLR(optimizer, 0.9),
    "one cycle": lambda optimizer: OneCycleLR(optimizer, 0.5, total_steps=21),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_torch_scheduler_stepped_by_a_callback_trains_as_in_plain_pytorch(name: str) -> None:
    trained, by_hand = model(), model()
    ours = torch.optim.SGD(trained.parameters(), 0.5)
    theirs = torch.optim.SGD(by_hand.parameters(), 0.5)
    trainer = Trainer(
        trained,
        ours,
        Classification(),
        step_size=2,
        device="cpu",
        callbacks=[Steps(SCHEDULERS[name](ours))],
    )
    scheduler = SCHEDULERS[name](theirs)

    trainer.fit(batches(), epochs=4)
    for _ in range(4):
        for first, second in zip(batches()[::2], batches()[1::2], strict=True):
            inputs, targets = torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
            nn.functional.cross_entropy(by_hand(inputs), targets).backward()  # type: ignore[no-untyped-call]
            theirs.step()
            theirs.zero_grad()
            scheduler.step()

    assert not torch.equal(trained.weight, model().weight)
    assert relative_error(weights(trained), weights(by_hand)) < 1e-12


def test_a_learning_rate_set_between_two_fits_is_the_next_ones(
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimizer = torch.optim.SGD(model().parameters(), 0.5)
    trained = model()
    optimizer = torch.optim.SGD(trained.parameters(), 0.5)
    trainer = Trainer(trained, optimizer, Classification(), device="cpu")
    trainer.fit(batches(), epochs=1)

    optimizer.param_groups[0]["lr"] = 0.0
    before = weights(trained)
    with caplog.at_level(logging.WARNING):
        trainer.fit(batches(), epochs=1)

    assert all(map(torch.equal, weights(trained), before))
    assert "learning rate of the optimizer's group 0 was set to 0 outside the trainer" in (
        caplog.text
    )


def test_a_learning_rate_set_by_its_owner_is_scaled_by_the_schedule_and_the_step_size() -> None:
    trained = model()
    optimizer = torch.optim.SGD(trained.parameters(), 0.5)
    trainer = Trainer(
        trained,
        optimizer,
        Classification(),
        step_size=2,
        device="cpu",
        schedule=lambda samples: 0.5,
        scaling="linear",
    )
    trainer.fit(batches(2), epochs=1)
    optimizer.param_groups[0]["lr"] = 0.1
    trainer.fit(batches(2), epochs=1)
    at_two = optimizer.param_groups[0]["lr"]
    trainer.step_size = 4
    trainer.fit(batches(4), epochs=1)

    assert at_two == pytest.approx(0.1 * 0.5, rel=1e-12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * 0.5 * 2, rel=1e-12)


def test_an_optimizer_put_in_anothers_place_is_the_one_that_steps() -> None:
    trained, by_hand = model(), model()
    trainer = Trainer(
        trained, torch.optim.SGD(trained.parameters(), 0.5), Classification(), 1, "cpu"
    )
    trainer.optimizer = torch.optim.SGD(trained.parameters(), 0.0)
    trainer.fit(batches(), epochs=1)

    assert all(map(torch.equal, weights(trained), weights(by_hand)))
    with pytest.raises(ValueError, match="updates what is not the model's"):
        trainer.optimizer = torch.optim.SGD(by_hand.parameters(), 0.1)


@pytest.mark.parametrize("factor", [math.nan, math.inf, -1.0])
def test_a_factor_that_is_no_learning_rate_is_refused_before_the_step(factor: float) -> None:
    trained = model()
    optimizer = torch.optim.SGD(trained.parameters(), 0.5)
    trainer = Trainer(
        trained, optimizer, Classification(), device="cpu", schedule=lambda samples: factor
    )

    with pytest.raises(ValueError, match=r"^the learning-rate schedule gave .* at 8 samples; it "):
        trainer.fit(batches(), epochs=1)
    assert all(map(torch.equal, weights(trained), weights(model())))
