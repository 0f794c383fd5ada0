"""What is known to go wrong before the first window is told before it."""

import logging

import pytest
import torch
from oracles import weights
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cadence import Trainer
from cadence.data import TensorData, loader
from cadence.objectives import Classification


def trainer_of(model: nn.Module, precision: str = "fp32") -> Trainer:
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    return Trainer(model, optimizer, Classification(), device="cpu", precision=precision)


def samples(count: int) -> tuple[Tensor, Tensor]:
    return torch.randn(count, 4), torch.zeros(count).long()


def norm() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


@pytest.mark.parametrize("own", [True, False], ids=["cadence's loader", "a DataLoader"])
def test_a_last_mini_batch_that_batch_norm_cannot_take_is_refused_before_any_update(
    own: bool,
) -> None:
    model = norm()
    trainer = trainer_of(model)
    before = weights(model), [buffer.clone() for buffer in model.buffers()]
    made = loader(TensorData(*samples(9)), 4) if own else DataLoader(TensorDataset(*samples(9)), 4)

    with pytest.raises(
        ValueError,
        match=r"^the last mini-batch of an epoch would be one of the 9 samples alone, and "
        r"BatchNorm needs more than one in training; choose another data.batch_size, set "
        r"data.drop_last=true, or use GroupNorm or LayerNorm$",
    ):
        trainer.fit(made, epochs=1)
    assert trainer.clock.updates_attempted == 0
    assert all(map(torch.equal, weights(model), before[0]))
    assert all(map(torch.equal, model.buffers(), before[1]))


@pytest.mark.parametrize("count", [8, 10])
def test_other_epochs_train_with_batch_norm(count: int) -> None:
    trainer = trainer_of(norm())

    trainer.fit(loader(TensorData(*samples(count)), 4), epochs=1)

    assert trainer.clock.samples == count


def test_a_lone_sample_left_out_by_drop_last_trains() -> None:
    trainer = trainer_of(norm())

    trainer.fit(loader(TensorData(*samples(9)), 4, drop_last=True), epochs=2)

    assert (trainer.clock.samples, trainer.clock.batches) == (16, 4)


def test_a_lone_image_has_enough_values_for_batch_norm() -> None:
    model = nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
    trainer = trainer_of(model)

    trainer.fit(loader(TensorData(*samples(9)), 4), epochs=1)

    assert trainer.clock.samples == 9


def test_parameters_in_half_precision_are_warned_of_where_updates_vanish(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        trainer_of(nn.Linear(4, 2).bfloat16())
        trainer_of(nn.Linear(4, 2))

    assert [record.getMessage() for record in caplog.records] == [
        "the model's parameters are bfloat16: an update below about a 256th of a weight is lost in "
        "its rounding; keep them in float32 (model.float()) and give device.precision=bf16"
    ]


def test_float16_parameters_under_a_loss_scale_are_refused_when_the_trainer_is_made() -> None:
    with pytest.raises(ValueError, match=r"^device.precision=fp16 scales the loss of float32"):
        trainer_of(nn.Linear(4, 2).half(), "fp16")
