"""An objective with parameters, buffers and modes of its own: trained, moved, kept and refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import relative_error
from torch import Tensor, nn

from cadence import Trainer, accumulate
from cadence.objectives import MeanLoss

Batches = list[tuple[Tensor, Tensor]]


class Uncertain(nn.Module):
    """Squared error under a variance that is learned, Kendall and Gal (2017)."""

    def __init__(self) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def items(self, batch: Any) -> int:
        return len(batch[1])

    def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
        squares = nn.functional.mse_loss(model(batch[0]), batch[1], reduction="sum")
        return (-self.log_variance).exp() * squares + len(batch[1]) * self.log_variance


class Holds:
    """The same by a module that a plain object has."""

    def __init__(self) -> None:
        self.inner = Uncertain()

    def items(self, batch: Any) -> int:
        return self.inner.items(batch)

    def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self.inner.total_loss(model, batch)


def batches(count: int = 10) -> Batches:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(8, 4, dtype=torch.float64, generator=generator),
            torch.randn(8, 1, dtype=torch.float64, generator=generator),
        )
        for _ in range(count)
    ]


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 1).double()


def variance_of(objective: Uncertain | Holds) -> nn.Parameter:
    return objective.inner.log_variance if isinstance(objective, Holds) else objective.log_variance


def trainer_of(objective: Uncertain | Holds) -> Trainer:
    model = linear()
    parameters = [*model.parameters(), variance_of(objective)]
    return Trainer(model, torch.optim.SGD(parameters, 0.1), objective, step_size=2, device="cpu")


@pytest.mark.parametrize("kind", [Uncertain, Holds])
def test_its_parameters_are_trained_as_by_hand(kind: type[Uncertain | Holds]) -> None:
    objective, by_hand, model = kind(), Uncertain(), linear()
    trainer = trainer_of(objective)
    optimizer = torch.optim.SGD([*model.parameters(), *by_hand.parameters()], 0.1)

    trainer.fit(batches(), epochs=3)
    for _ in range(3):
        for first, second in zip(batches()[::2], batches()[1::2], strict=True):
            both = torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]])
            (by_hand.total_loss(model, both) / 16).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()

    found = [variance_of(objective).detach(), trainer.model.weight.detach()]
    assert relative_error(found, [by_hand.log_variance.detach(), model.weight.detach()]) < 1e-12


@pytest.mark.parametrize("size", [1, 3, 16])
def test_its_gradient_is_the_same_for_every_micro_batch(size: int) -> None:
    found, expected = Uncertain(), Uncertain()

    accumulate(linear(), found, batches(2), size)
    accumulate(linear(), expected, batches(2))

    assert found.log_variance.grad is not None
    assert expected.log_variance.grad is not None
    assert relative_error([found.log_variance.grad], [expected.log_variance.grad]) < 1e-12


@pytest.mark.parametrize("kind", [Uncertain, Holds])
def test_a_run_goes_on_from_a_file_as_if_it_had_never_stopped(
    tmp_path: Path, kind: type[Uncertain | Holds]
) -> None:
    undisturbed, begun, gone_on = (trainer_of(kind()) for _ in range(3))

    undisturbed.fit(batches(), epochs=4)
    begun.fit(batches(), max_samples=96)
    begun.save(tmp_path / "run.pt")
    gone_on.load(tmp_path / "run.pt")
    gone_on.fit(batches(), max_samples=224)

    assert torch.equal(variance_of(gone_on.objective), variance_of(undisturbed.objective))  # type: ignore[arg-type]
    assert torch.equal(gone_on.model.weight, undisturbed.model.weight)


def test_a_state_of_another_objective_is_refused(tmp_path: Path) -> None:
    trainer_of(Uncertain()).save(tmp_path / "run.pt")
    model = linear()
    plain = Trainer(model, torch.optim.SGD([*model.parameters()], 0.1), MeanLoss(nn.MSELoss()))
    other = trainer_of(Uncertain())
    plain.save(tmp_path / "plain.pt")

    with pytest.raises(ValueError, match="the checkpoint is of another"):
        other.load(tmp_path / "plain.pt")


def test_parameters_that_no_optimizer_has_are_refused_by_name() -> None:
    model = linear()

    with pytest.raises(
        ValueError, match=r"^the optimizer does not update log_variance of Uncertain; give it the"
    ):
        Trainer(model, torch.optim.SGD(model.parameters(), 0.1), Uncertain(), device="cpu")


def test_a_frozen_teacher_needs_no_optimizer_and_stays_in_its_mode() -> None:
    class Distils:
        def __init__(self) -> None:
            self.teacher = nn.Sequential(nn.Linear(4, 1), nn.Dropout(0.5)).double().eval()
            self.teacher.requires_grad_(False)

        def items(self, batch: Any) -> int:
            return len(batch[0])

        def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
            return nn.functional.mse_loss(model(batch[0]), self.teacher(batch[0]), reduction="sum")

    model, objective = linear(), Distils()
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), 0.1), objective, device="cpu")

    trainer.fit(batches(), batches(1), epochs=1)

    assert not objective.teacher.training


def test_a_loss_with_dropout_is_evaluated_without_it_and_trained_with_it() -> None:
    modes: list[bool] = []

    class Noisy(nn.Module):
        def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
            modes.append(self.training)
            return nn.functional.mse_loss(outputs, targets)

    model = linear()
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), 0.1), MeanLoss(Noisy()), 2, "cpu")

    trainer.fit(batches(2), batches(1), epochs=2)

    assert modes == [True, True, False, True, True, False]
