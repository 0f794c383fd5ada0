"""Mini-batches whose samples are coupled keep their boundaries."""

from typing import Any

import pytest
import torch
from oracles import cut, regression_pair, same, weights
from torch import nn
from torch.optim import SGD

from cadence import Trainer
from cadence.engine.coupling import coupling
from cadence.objectives import Regression

REFUSED = (
    "trainer.microbatch_size={}: BatchNorm1d couples the samples of a mini-batch, so other "
    "boundaries would train something else; keep null, or set trainer.allow_batch_coupling=true "
    "to accept that"
)


class Contrastive(Regression):
    couples_samples = True


def normalised() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double()


def fit(model: nn.Module, sizes: list[int], **settings: Any) -> None:
    trainer = Trainer(model, SGD(model.parameters(), lr=0.05), Regression(), 2, "cpu", **settings)
    trainer.fit(cut(regression_pair(sum(sizes)), sizes), epochs=2)


@pytest.mark.parametrize(
    ("microbatch_size", "sizes"),
    [
        pytest.param(2, [4, 4], id="smaller than a mini-batch"),
        pytest.param(8, [4, 4], id="larger than a mini-batch"),
        pytest.param(4, [4, 3, 4], id="ragged in a window"),
    ],
)
def test_a_size_that_would_re_split_coupled_samples_is_refused(
    microbatch_size: int, sizes: list[int]
) -> None:
    model = normalised()
    if sizes == [4, 3, 4]:
        sizes = [3, 4]

    with pytest.raises(ValueError, match="couples") as refused:
        fit(model, sizes, microbatch_size=microbatch_size)

    assert str(refused.value) == REFUSED.format(microbatch_size)


@pytest.mark.parametrize("sizes", [[4, 4, 4, 4], [4, 4, 4, 3]])
def test_a_size_that_keeps_the_mini_batches_changes_nothing(sizes: list[int]) -> None:
    kept, split = normalised(), normalised()

    fit(kept, sizes)
    fit(split, sizes, microbatch_size=4)

    assert same(weights(split), weights(kept))


def test_who_allows_it_may_re_split_coupled_samples() -> None:
    model = normalised()

    fit(model, [4, 4], microbatch_size=2, allow_batch_coupling=True)

    assert model[0].num_batches_tracked == 8


def test_auto_says_so_and_keeps_coupled_mini_batches(caplog: pytest.LogCaptureFixture) -> None:
    kept, auto = normalised(), normalised()
    sizes = [4] * 40

    fit(kept, sizes)
    fit(auto, sizes, microbatch_size="auto")

    assert same(weights(auto), weights(kept))
    assert caplog.messages == [
        "trainer.microbatch_size=auto: BatchNorm1d couples the samples of a mini-batch, so the "
        "mini-batches stay as they are; trainer.allow_batch_coupling=true accepts other boundaries"
    ]


def test_what_couples_is_found_in_the_mode_that_the_model_is_in() -> None:
    model = normalised()

    assert coupling(model, Regression()) == "BatchNorm1d"
    assert coupling(model.eval(), Regression()) is None
    assert coupling(nn.BatchNorm1d(3, track_running_stats=False).eval(), Regression()) == (
        "BatchNorm1d"
    )
    assert coupling(nn.Linear(3, 1), Contrastive()) == "Contrastive"
    assert coupling(nn.Sequential(nn.LayerNorm(3), nn.InstanceNorm1d(3)), Regression()) is None
