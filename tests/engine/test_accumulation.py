"""The exact gradient of a window, against one big batch in float64."""

import re
from collections.abc import Sequence
from copy import deepcopy
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracles import (
    CUDA,
    FORMS,
    SIZES,
    STEP_SIZES,
    as_a_user_calls_it,
    cut,
    gradients,
    regression_pair,
    relative_error,
    same,
    weights,
)
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD

from cadence import accumulate, windows
from cadence.data.batch import Batch, sample_count
from cadence.models.gpt import GPT
from cadence.objectives import Classification, LanguageModelling, MeanLoss, Regression

EXACT = 1e-12

MICROBATCH_SIZES = (None, 1, 3, 6, 100)
"""One mini-batch; less than one; across two; the whole window."""

MASKED = -100
LENGTHS = (
    (3, 5, 2), (4, 0), (0, 0), (1, 6, 6, 2), (2,), (0, 3), (5, 5), (0,), (1, 0, 0), (6, 4, 2),
)  # fmt: skip
"""Target tokens of each sample of each mini-batch: ragged, some samples and mini-batches empty."""


def widest(lengths: Sequence[int]) -> int:
    return max(1, *lengths)


def text() -> list[list[Tensor]]:
    """Return each sample's tokens, 1 to 6: one more than its targets, or none."""
    generator = torch.Generator().manual_seed(0)
    return [
        [torch.randint(1, 7, (length + (length > 0),), generator=generator) for length in lengths]
        for lengths in LENGTHS
    ]


def padded(samples: Sequence[Tensor], context: int) -> Tensor:
    """Return samples as one tensor of context + 1 tokens, filled up with 0."""
    return torch.stack([F.pad(tokens, (0, context + 1 - len(tokens))) for tokens in samples])


def shifted(tokens: Tensor, fill: int) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, with absent targets marked by ``fill``."""
    return tokens[:, :-1], tokens[:, 1:].masked_fill(tokens[:, 1:] == 0, fill)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("microbatch_size", MICROBATCH_SIZES)
@pytest.mark.parametrize("step_size", STEP_SIZES)
def test_ragged_windows_have_the_gradient_and_weights_of_one_big_batch(
    step_size: int, microbatch_size: int | None, form: str
) -> None:
    _compare_with_one_big_batch(step_size, microbatch_size, form, "cpu")


@pytest.mark.parametrize("device", [CUDA])
def test_a_gpu_finds_the_gradient_and_weights_of_one_big_batch(device: str) -> None:
    _compare_with_one_big_batch(step_size=3, microbatch_size=3, form="dict", device=device)


def _compare_with_one_big_batch(
    step_size: int, microbatch_size: int | None, form: str, device: str
) -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double().to(device)
    plain = deepcopy(model)
    ours, theirs = SGD(model.parameters(), lr=0.1), SGD(plain.parameters(), lr=0.1)
    minibatches = cut(regression_pair(sum(SIZES)), SIZES)

    for window in windows(minibatches, step_size):
        inputs, targets = (torch.cat(column).to(device) for column in zip(*window, strict=True))
        loss = F.mse_loss(plain(inputs), targets)
        loss.backward()

        shaped = [FORMS[form](*pair) for pair in window]
        result = accumulate(model, Regression(), shaped, microbatch_size)

        assert result.items == len(inputs)
        assert result.loss.item() == pytest.approx(loss.item(), rel=EXACT)
        assert relative_error(gradients(model), gradients(plain)) <= EXACT
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        assert relative_error(weights(model), weights(plain)) <= EXACT


@pytest.mark.parametrize("form", [*FORMS, "tensor"])
@pytest.mark.parametrize("microbatch_size", MICROBATCH_SIZES)
@pytest.mark.parametrize("step_size", STEP_SIZES)
def test_masked_and_padded_tokens_have_the_gradient_and_weights_of_one_big_batch(
    step_size: int, microbatch_size: int | None, form: str
) -> None:
    """Mini-batches are padded to their own longest sample, the one big batch to that of all."""
    fill = 0 if form == "tensor" else MASKED
    model = GPT((6,), outputs=7, layers=1, width=4, heads=2).double()
    plain = deepcopy(model)
    ours, theirs = SGD(model.parameters(), lr=0.5), SGD(plain.parameters(), lr=0.5)

    for lengths, window in zip(
        windows(LENGTHS, step_size), windows(text(), step_size), strict=True
    ):
        items = sum(map(sum, lengths))
        tokens = [padded(one, widest(length)) for one, length in zip(window, lengths, strict=True)]
        shaped = [
            part if form == "tensor" else FORMS[form](*shifted(part, fill)) for part in tokens
        ]

        result = accumulate(model, LanguageModelling(fill), shaped, microbatch_size)

        assert result.items == items
        if items == 0:
            assert result.loss.isnan()
            assert all(parameter.grad is None for parameter in model.parameters())
            continue
        inputs, targets = shifted(padded([*chain.from_iterable(window)], context=6), fill)
        loss = F.cross_entropy(plain(inputs).flatten(0, 1), targets.flatten(), ignore_index=fill)
        loss.backward()
        assert result.loss.item() == pytest.approx(loss.item(), rel=EXACT)
        assert relative_error(gradients(model), gradients(plain)) <= EXACT
        for optimizer in (ours, theirs):
            optimizer.step()
            optimizer.zero_grad()
        assert relative_error(weights(model), weights(plain)) <= EXACT


def one_weight(value: float, dtype: torch.dtype = torch.float64) -> nn.Linear:
    """Return the model that multiplies by one weight."""
    model = nn.Linear(1, 1, bias=False, dtype=dtype)
    nn.init.constant_(model.weight, value)
    return model


def column(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)[:, None]


def test_one_weight_by_hand() -> None:
    # w = 1, outputs w x:      x = 1, 2 | 3      in two mini-batches
    # targets                  y = 1, 1 | 0
    # errors w x - y           e = 0, 1 | 3
    # sum of e^2               = 0 + 1 + 9  = 10    mean over 3 items  10/3
    # sum of 2 e x             = 0 + 4 + 18 = 22    mean over 3 items  22/3
    # (the mean of the mini-batches' means would be (4/2 + 18)/2 = 10)
    model = one_weight(1.0)
    window = [(column(1, 2), column(1, 1)), (column(3), column(0))]

    result = accumulate(model, Regression(), window)

    assert result.items == 3
    assert result.total_loss.item() == 10
    assert gradients(model)[0].item() == pytest.approx(22 / 3, rel=1e-15)
    SGD(model.parameters(), lr=0.3).step()
    assert model.weight.item() == pytest.approx(1 - 0.3 * 22 / 3, rel=1e-15)


@pytest.mark.parametrize("microbatch_size", MICROBATCH_SIZES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_gradient_is_added_to_what_was_there(
    microbatch_size: int | None, dtype: torch.dtype
) -> None:
    model = one_weight(1.0, dtype)
    model.weight.grad = torch.full_like(model.weight, 256)
    sample = (column(1, dtype=dtype), column(0, dtype=dtype))  # gradient 2 (w x - y) x = 2

    accumulate(model, Regression(), [sample, sample], microbatch_size)

    assert model.weight.grad.item() == 256 + 2  # in bfloat16 256 + 1 + 1 would stay 256


def test_a_window_without_any_item_leaves_the_gradient_as_it_was() -> None:
    model = nn.Linear(2, 3)
    model.weight.grad = before = torch.ones(3, 2)
    nothing = (torch.ones(4, 2), torch.full((4,), MASKED))

    result = accumulate(model, Classification(), [nothing, nothing], microbatch_size=3)

    assert result.items == 0
    assert result.loss.isnan()
    assert model.weight.grad is before
    assert torch.equal(before, torch.ones(3, 2))
    assert model.bias.grad is None


class Watched(Regression):
    """Notes the samples of each forward pass."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.seen.append(sample_count(batch))
        return super().total_loss(model, batch)


@pytest.mark.parametrize(
    ("microbatch_size", "expected"),
    [(None, [4, 3, 1]), (1, [1] * 8), (3, [3, 3, 2]), (6, [6, 2]), (100, [8])],
)
def test_a_forward_sees_microbatch_size_samples(
    microbatch_size: int | None, expected: list[int]
) -> None:
    objective = Watched()

    window = cut(regression_pair(8), (4, 3, 1))
    accumulate(nn.Linear(3, 1).double(), objective, window, microbatch_size)

    assert objective.seen == expected


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_a_micro_batch_without_any_item_is_not_run(microbatch_size: int | None) -> None:
    """A mean over nothing is NaN, and NaN times zero is still NaN."""
    model = nn.Linear(2, 3)
    objective = MeanLoss(nn.CrossEntropyLoss(), items=Classification().items)
    some = (torch.ones(2, 2), torch.tensor([0, 1]))
    nothing = (torch.ones(2, 2), torch.tensor([MASKED, MASKED]))

    accumulate(model, objective, [some])
    expected = gradients(model)
    model.zero_grad()
    result = accumulate(model, objective, [nothing, some], microbatch_size)

    assert result.loss.isfinite()
    assert same(gradients(model), expected)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_runs_in_the_mode_it_is_in(training: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 1), nn.Dropout(p=1.0)).double().train(training)

    accumulate(model, Regression(), cut(regression_pair(4), (2, 2)))

    assert (gradients(model)[0].norm() == 0) == training  # everything is dropped in training
    assert model[1].training == training


def test_half_precision_parameters_sum_their_gradients_in_float32() -> None:
    # w = 0, so the gradient of (w x - y)^2 is -2 x y; with x = 1:
    # y = -128 gives 256, and 255 times y = -1/2 gives 1 each: 511 in all, over 256 items.
    # bfloat16 has 8 significant bits, so 256 + 1 = 256 there: added up in it, the sum stays 256.
    ys = [-128.0] + [-0.5] * 255
    window = [(column(1.0, dtype=torch.bfloat16), column(y, dtype=torch.bfloat16)) for y in ys]
    model, true = one_weight(0.0, torch.bfloat16), one_weight(0.0)

    accumulate(model, Regression(), window)
    accumulate(true, Regression(), [(column(1.0), column(y)) for y in ys])

    assert true.weight.grad is not None
    assert true.weight.grad.item() == 511 / 256
    assert model.weight.grad is not None
    assert torch.equal(model.weight.grad, true.weight.grad.bfloat16())  # rounded once

    naive = one_weight(0.0, torch.bfloat16)
    for batch in window:
        (Regression().total_loss(naive, batch) / 256).backward()
    assert naive.weight.grad is not None
    assert naive.weight.grad.item() == 1.0


def test_half_precision_losses_are_summed_in_float32() -> None:
    class Own:
        def items(self, batch: Batch) -> int:
            return sample_count(batch)

        def total_loss(self, model: nn.Module, batch: Tensor) -> Tensor:
            return model(batch).sum()  # bfloat16, as the model

    window = [column(256.0, dtype=torch.bfloat16)] + [column(1.0, dtype=torch.bfloat16)] * 255

    result = accumulate(one_weight(1.0, torch.bfloat16), Own(), window)

    assert result.total_loss.item() == 511  # 256 in bfloat16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_lowers_the_arithmetic_and_not_the_gradient(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    window = [(x.float(), y.float()) for x, y in cut(regression_pair(9), (4, 4, 1))]
    accumulate(model, Regression(), window)
    full = gradients(model)
    model.zero_grad()

    accumulate(model, Regression(), window, autocast=dtype)

    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
    assert 0 < relative_error(gradients(model), full) < 2**-5


def test_a_loss_scale_multiplies_the_gradient_and_not_the_loss() -> None:
    model = one_weight(1.0)

    result = accumulate(
        model, Regression(), [(column(2), column(1))], scaler=GradScaler("cpu", init_scale=8.0)
    )

    assert result.total_loss.item() == 1
    assert gradients(model)[0].item() == 8 * 4


WHOLE = "samples per forward and backward must be a whole number; use None for one mini-batch"
LEAST = "samples per forward and backward must be at least 1; use None for one mini-batch"


@pytest.mark.parametrize(
    ("microbatch_size", "error", "message"),
    [
        (0, ValueError, f"microbatch_size=0: {LEAST}"),
        (-1, ValueError, f"microbatch_size=-1: {LEAST}"),
        (1.5, TypeError, f"microbatch_size=1.5: {WHOLE}"),
        (True, TypeError, f"microbatch_size=True: {WHOLE}"),
        ("2", TypeError, f"microbatch_size='2': {WHOLE}"),
    ],
)
def test_an_impossible_microbatch_size_is_refused(
    microbatch_size: Any, error: type[Exception], message: str
) -> None:
    window = cut(regression_pair(2), (2,))
    with as_a_user_calls_it(), pytest.raises(error, match=f"^{re.escape(message)}$"):
        accumulate(nn.Linear(3, 1).double(), Regression(), window, microbatch_size)


def test_a_loss_for_each_sample_is_refused() -> None:
    class Unsummed(Watched):
        def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
            return model(batch[0]).squeeze(1)

    message = (
        "Unsummed.total_loss gave shape [2]; it must return the sum over items, a 0-d tensor: try "
        'reduction="sum"'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        accumulate(nn.Linear(3, 1).double(), Unsummed(), cut(regression_pair(2), (2,)))


@pytest.mark.parametrize("loss", [1.5, None, (torch.tensor(1.0), 2)])
def test_a_loss_that_is_no_tensor_is_refused(loss: Any) -> None:
    class Odd(Watched):
        def total_loss(self, model: nn.Module, batch: Batch) -> Any:
            return loss

    message = f"Odd.total_loss gave {loss!r}; it must return the sum over items, a 0-d tensor: "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        accumulate(nn.Linear(3, 1).double(), Odd(), cut(regression_pair(2), (2,)))


@pytest.mark.parametrize("kind", [torch.tensor, np.int64, np.array])
@pytest.mark.parametrize("size", [None, 1])
def test_items_may_be_any_kind_of_whole_number_and_are_told_as_pythons(
    kind: Any, size: int | None
) -> None:
    class Counts(Watched):
        def items(self, batch: Batch) -> Any:
            return kind(sample_count(batch))

    model, window = nn.Linear(3, 1).double(), cut(regression_pair(5), (3, 2))

    found = accumulate(model, Counts(), window, size)

    assert type(found.items) is int
    assert found.items == 5


@pytest.mark.parametrize("device", [CUDA])
def test_one_micro_batch_at_a_time_is_on_the_device(device: str) -> None:
    features, samples, minibatches = 2**18, 4, 16  # 4 MiB each
    model = nn.Linear(features, 1).to(device)
    window = [(torch.ones(samples, features), torch.ones(samples, 1))] * minibatches
    accumulate(model, Regression(), window[:1])  # now .grad and cuBLAS's workspace are there
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    accumulate(model, Regression(), window)

    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 5 * samples * features * 4  # of the 16 mini-batches at most a few lived at once
