"""The certificate: each cause is found in a model that has it, and in no other."""

import random
import re
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CommandLine
from oracles import as_a_user_calls_it, cut, regression_pair
from rich.console import Console
from torch import Tensor, nn

from cadence.certify.cause import Cause
from cadence.certify.certificate import Certificate, certify
from cadence.certify.printed import print_certificate
from cadence.data.batch import Batch, sample_count
from cadence.engine.accumulation import accumulate
from cadence.models.cnn import cnn
from cadence.models.gpt import GPT
from cadence.models.mlp import mlp
from cadence.objectives import Classification, LanguageModelling, MeanLoss, Objective, Regression

EXACT = 1e-12


def data(*sizes: int) -> list[tuple[Tensor, Tensor]]:
    """Float32 samples of 6 features in 3 classes, in mini-batches of these sizes."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(sum(sizes), 6, generator=generator)
    targets = torch.randint(3, (sum(sizes),), generator=generator)
    return list(zip(inputs.split(list(sizes)), targets.split(list(sizes)), strict=True))


def net(*between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), *between, nn.Tanh(), nn.Linear(8, 3))


def kinds(certificate: Certificate) -> list[str]:
    return [cause.kind for cause in certificate.causes]


def only_cause(certificate: Certificate) -> Cause:
    (cause,) = certificate.causes
    assert not certificate.passed
    return cause


class MeanOfClasses(Classification):
    def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(batch[0]), batch[1])


class CountsMinibatches(Classification):
    def items(self, batch: Batch) -> int:
        return 1


class MeanAndCountsMinibatches(MeanOfClasses, CountsMinibatches):
    pass


class Contrastive(Classification):
    """Each sample is to be nearest to itself among those of its micro-batch."""

    def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
        features = model(batch[0])
        nearest = torch.arange(len(features))
        return F.cross_entropy(features @ features.T, nearest, reduction="sum")


class DeclaredContrastive(Contrastive):
    couples_samples = True


class Centre(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - inputs.mean(0)


class CentreInTraining(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs - inputs.mean(0) if self.training else inputs


class Noise(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + torch.randn_like(inputs)


class Warms(nn.Module):
    """Each pass in training mode counts for more than the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        passes = self.get_buffer("passes")
        if self.training:
            passes += 1
        return inputs * (1 + passes)


class CentresBetween(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.first(inputs)
        outputs: Tensor = self.second(features - features.mean(0))
        return outputs


class InSixes(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.view(-1, 6, inputs.shape[1]).flatten(0, 1)


class NormalisesGradients(nn.Module):
    """Its outputs are its inputs, so that no forward can tell what its backward does."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, inputs: Tensor) -> Tensor:
            return inputs.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient / gradient.norm()

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.Function.apply(inputs)
        return found


def with_clamped_gradient() -> nn.Module:
    model = net()
    weight = model[0].weight
    assert isinstance(weight, Tensor)
    weight.register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
    return model


@pytest.mark.parametrize("sizes", [(12,), (8, 8), (7, 7, 5), (1, 1, 1), (3, 1)])
def test_a_sum_over_independent_samples_passes(sizes: tuple[int, ...]) -> None:
    found = certify(net(), Classification(), data(*sizes))

    assert found.passed
    assert found.causes == found.notes == ()
    assert (found.minibatches, found.samples, found.items) == (len(sizes), sum(sizes), sum(sizes))
    assert [worst.precision for worst in found.comparisons] == ["float64", "float32"]
    assert found.comparisons[0].error < EXACT < 1e-9 < found.comparisons[1].error < 1e-6


def test_every_kind_of_split_is_compared() -> None:
    sizes = certify(net(), Classification(), data(12, 12), microbatch_size=7).microbatch_sizes

    assert sizes == (1, 6, 7, 9, 12, 24, None)
    large = certify(net(), Classification(), data(64, 64)).microbatch_sizes
    assert large == (2, 32, 42, 64, 128, None)
    assert 128 % 42 != 0


def test_the_errors_are_those_derived_by_hand() -> None:
    # Of n samples, n micro-batches of one each have their whole gradient where the mean has its
    # n-th: n times too much. Two mini-batches counted as two items have half the gradient of one.
    mean = certify(net(), MeanOfClasses(), data(5, 5))
    counted = certify(net(), CountsMinibatches(), data(5, 5))

    assert mean.comparisons[0].error == pytest.approx(10 - 1, rel=EXACT)
    assert mean.comparisons[0].microbatch_size == 1
    assert counted.comparisons[0].error == pytest.approx(1 / 2, rel=EXACT)


def summed_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets, reduction="sum")


@pytest.mark.parametrize(
    ("kind", "model", "objective", "finding"),
    [
        (
            "batch norm",
            net(nn.BatchNorm1d(8)),
            Classification(),
            "BatchNorm1d (1) normalises over the samples of a micro-batch",
        ),
        (
            "batch norm",
            net(nn.BatchNorm1d(8, track_running_stats=False)).eval(),
            Classification(),
            "BatchNorm1d (1) normalises over the samples of a micro-batch",
        ),
        (
            "training mode",
            net(CentreInTraining()),
            Classification(),
            "CentreInTraining (1) in training mode: it computes a sample otherwise in other "
            "company, or changes from one pass to the next",
        ),
        (
            "training mode",
            net(Warms()),
            Classification(),
            "Warms (1) in training mode: it computes a sample otherwise in other company, or "
            "changes from one pass to the next",
        ),
        (
            "hook",
            with_clamped_gradient(),
            Classification(),
            "a gradient hook on 0.weight changes the gradient of each micro-batch, before they are "
            "summed",
        ),
        (
            "mean",
            net(),
            MeanOfClasses(),
            "MeanOfClasses.total_loss returns a mean: that of the window is the mean, not the sum, "
            "of those of its micro-batches",
        ),
        (
            "sum",
            net(),
            MeanLoss(summed_cross_entropy),
            "MeanLoss.total_loss returns a sum multiplied by its items: only divided by them does "
            "it add up",
        ),
        (
            "items",
            net(),
            CountsMinibatches(),
            "CountsMinibatches.items does not add up: 1 in one pass, 13 summed over micro-batches "
            "of 1",
        ),
    ],
)
def test_a_cause_is_named_and_without_it_the_error_vanishes(
    kind: str, model: nn.Module, objective: Objective, finding: str
) -> None:
    found = certify(model, objective, data(7, 6))

    assert (only_cause(found).kind, only_cause(found).finding) == (kind, finding)
    assert found.error_without_causes is not None
    assert found.error_without_causes < EXACT


@pytest.mark.parametrize(
    ("kind", "model", "objective", "finding"),
    [
        (
            "couples samples",
            net(),
            Contrastive(),
            "Contrastive couples samples: its total_loss of the window is not the sum over "
            "micro-batches, though the model computes each sample alike",
        ),
        (
            "couples samples",
            net(),
            DeclaredContrastive(),
            "DeclaredContrastive couples samples, as it declares: its total_loss of the window is "
            "not the sum over micro-batches, though the model computes each sample alike",
        ),
        (
            "module",
            net(nn.Sequential(nn.Linear(8, 8), Centre())),
            Classification(),
            "Centre (1.1) mixes the samples of a micro-batch: it computes the same samples "
            "otherwise in other company",
        ),
        (
            "module",
            CentresBetween(),
            Classification(),
            "CentresBetween mixes the samples of a micro-batch: it computes the same samples "
            "otherwise in other company",
        ),
        (
            "random",
            net(Noise()),
            Classification(),
            "a random operation that eval() does not switch off: two passes with different random "
            "states differ; whether anything else does cannot be told",
        ),
        (
            "refused",
            net(InSixes()),
            Classification(),
            "microbatch_size=1 fails: RuntimeError: shape '[-1, 6, 8]' is invalid for input of "
            "size 8",
        ),
        (
            "unknown",
            net(NormalisesGradients()),
            Classification(),
            "some operation mixes the samples of a micro-batch; excluded by experiment: random "
            "operations, training mode",
        ),
    ],
)
def test_a_cause_that_cannot_be_switched_off_is_named(
    kind: str, model: nn.Module, objective: Objective, finding: str
) -> None:
    found = certify(model, objective, data(6, 6))

    assert (only_cause(found).kind, only_cause(found).finding) == (kind, finding)
    assert found.error_without_causes is None


def test_random_masks_alone_pass_with_a_note_and_the_rest_is_certified_without_them() -> None:
    model = net(nn.Dropout(0.5), nn.Dropout(0.1))

    found = certify(model, Classification(), data(7, 6))

    assert found.passed
    assert found.notes == (
        "Dropout (1 and 1 more) draws random masks, each split its own; but for the masks the "
        "gradient is exact",
    )
    assert found.comparisons[0].error < EXACT
    assert all(module.training for module in model.modules())


def test_a_remedy_for_masks_beside_another_cause_names_no_key_that_a_model_may_lack() -> None:
    found = certify(net(nn.BatchNorm1d(8), nn.Dropout()), Classification(), data(7, 6))

    assert kinds(found) == ["batch norm", "random"]
    assert found.causes[1].remedy == "none is needed to train"


def clamped_once_accumulated(parameter: Tensor) -> None:
    assert parameter.grad is not None
    parameter.grad.clamp_(-1e-3, 1e-3)


def centred(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output - output.mean(0)


def of_norm_one(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    return tuple(None if one is None else one / one.norm() for one in inputs)


def test_a_hook_of_any_kind_is_carried_to_the_copy_and_named() -> None:
    accumulated, forward, backward = net(), net(), net()
    weight = accumulated[0].weight
    assert isinstance(weight, Tensor)
    weight.register_post_accumulate_grad_hook(clamped_once_accumulated)
    forward[0].register_forward_hook(centred)
    backward[2].register_full_backward_hook(of_norm_one)

    for model, finding in (
        (accumulated, "a gradient hook on 0.weight changes"),
        (forward, "a forward hook on 0 mixes"),
        (backward, "a backward hook on 2 changes"),
    ):
        cause = only_cause(certify(model, Classification(), data(7, 6)))
        assert cause.kind == "hook"
        assert cause.finding.startswith(finding)


class TokenModel(nn.Module):
    """A causal language model as Hugging Face makes them: outputs and their mean loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.out(self.embed(tokens))
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return {"loss": loss, "logits": logits}


class TokenMean:
    """The mean loss of the model, as it comes."""

    def items(self, batch: Any) -> int:
        return len(batch["tokens"])

    def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
        loss: Tensor = model(**batch)["loss"]
        return loss


class MiscountedTokenMean(TokenMean):
    """The mean over shifted labels, times the count of all labels."""

    def items(self, batch: Any) -> int:
        return int((batch["labels"] != -100).sum())

    def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
        return super().total_loss(model, batch) * self.items(batch)


def padded() -> list[Batch]:
    tokens = torch.randint(7, (6, 5), generator=torch.Generator().manual_seed(0))
    labels = tokens.masked_fill(torch.arange(5) > torch.arange(6)[:, None] + 1, -100)
    return [
        {"tokens": tokens[:3], "labels": labels[:3]},
        {"tokens": tokens[3:], "labels": labels[3:]},
    ]


@pytest.mark.parametrize(
    ("objective", "finding"),
    [
        (
            TokenMean(),
            "TokenMean.total_loss returns a mean over targets other than -100 after the first of "
            "each sequence, not their sum",
        ),
        (
            MiscountedTokenMean(),
            "MiscountedTokenMean.total_loss returns a mean over targets other than -100 after the "
            "first of each sequence, multiplied by its items, which are others",
        ),
    ],
)
def test_a_mean_over_tokens_is_named_and_the_model_is_not_blamed(
    objective: Objective, finding: str
) -> None:
    found = certify(TokenModel(), objective, padded())

    assert (only_cause(found).kind, only_cause(found).finding) == ("mean", finding)
    assert found.error_without_causes is not None
    assert found.error_without_causes < EXACT


def test_a_mean_over_weights_is_a_mean() -> None:
    class WeightedMeanOfRows(Regression):
        def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
            inputs, weights = batch
            return (model(inputs)[:, 0].square() * weights).sum() / weights.sum()

    window = [(inputs, targets + 0.5) for inputs, targets in data(7, 6)]

    cause = only_cause(certify(net(), WeightedMeanOfRows(), window))

    assert cause.kind == "mean"
    assert "a mean over the weights in its tensor 1" in cause.finding


@pytest.mark.parametrize(
    ("model", "objective", "expected"),
    [
        (net(nn.BatchNorm1d(8), nn.Dropout()), Classification(), ["batch norm", "random"]),
        (net(nn.BatchNorm1d(8)), MeanOfClasses(), ["batch norm", "mean"]),
        (net(), MeanAndCountsMinibatches(), ["items", "mean"]),
    ],
)
def test_several_causes_are_told_apart(
    model: nn.Module, objective: Objective, expected: list[str]
) -> None:
    found = certify(model, objective, data(7, 6))

    assert kinds(found) == expected
    assert found.error_without_causes is not None
    assert found.error_without_causes < EXACT


def test_a_module_is_not_blamed_for_its_name_alone() -> None:
    model = net(nn.BatchNorm1d(8), nn.Dropout(0.5))

    assert certify(model.eval(), Classification(), data(7, 6)).passed
    assert certify(net(nn.Dropout(0.0)), Classification(), data(7, 6)).passed
    declared = type("Declared", (Classification,), {"couples_samples": True})
    assert certify(net(), declared(), data(7, 6)).passed


def test_a_mean_over_unmasked_tokens_is_a_mean() -> None:
    class MeanOfTokens(LanguageModelling):
        def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
            return super().total_loss(model, batch) / self.items(batch)

    model = GPT((4,), 5, layers=1, width=8, heads=2)
    tokens = torch.randint(5, (6, 5), generator=torch.Generator().manual_seed(0))
    masked = tokens[:, 1:].masked_fill(torch.arange(4) > torch.arange(6)[:, None], -100)
    window = [(tokens[:3, :-1], masked[:3]), (tokens[3:, :-1], masked[3:])]

    assert certify(model, LanguageModelling(), window).passed
    assert only_cause(certify(model, MeanOfTokens(), window)).kind == "mean"


def test_items_that_ignore_the_mini_batch_fail_even_where_one_window_cannot_show_it() -> None:
    found = certify(net(), CountsMinibatches(), data(6))

    assert all(worst.agrees for worst in found.comparisons)
    assert only_cause(found).kind == "items"


def test_rounding_is_told_from_a_cause_by_float64() -> None:
    # bfloat16 has 8 significant bits: 129 * 129 = 16641 rounds to 16640, and -130 * 128 = -16640 is
    # itself. One pass sums in float32 before it rounds, to 1; two micro-batches sum to 0.
    class Weighted:
        def items(self, batch: Any) -> int:
            return sample_count(batch)

        def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
            inputs, weights = batch
            return (model(inputs) * weights).sum()

    inputs, weights = torch.tensor([[129.0], [-130.0]]), torch.tensor([[129.0], [128.0]])
    window = [(inputs[:1], weights[:1]), (inputs[1:], weights[1:])]
    model = nn.Linear(1, 1, bias=False)

    found = certify(model, Weighted(), window, autocast=torch.bfloat16)

    assert only_cause(found).kind == "dtype"
    assert found.causes[0].finding == (
        "rounding in bfloat16: in float64 every split agrees; one pass is off by 0.0e+00 there, "
        "micro-batches of 1 by 1.0e+00 more (weight)"
    )
    assert found.causes[0].remedy.startswith("device.precision=fp32 ")
    assert [worst.error for worst in found.comparisons] == [0, 1]
    assert certify(model, Weighted(), window).passed


def test_a_gradient_that_is_not_finite_is_told() -> None:
    window = data(4, 4)
    window[0][0][2, 3] = torch.nan

    assert only_cause(certify(net(), Classification(), window)).kind == "not finite"


def test_a_size_that_cannot_be_computed_is_noted() -> None:
    found = certify(net(nn.BatchNorm1d(8)), Classification(), data(6, 6))

    assert found.notes == (
        "microbatch_size=1 fails: ValueError: Expected more than 1 value per channel when "
        "training, got input size torch.Size([1, 8])",
    )
    assert found.comparisons[0].error == torch.inf


def test_parameters_without_a_gradient_are_compared_absolutely() -> None:
    class KeyBias(nn.Module):
        """Softmax does not see a bias of the keys: all that there is of its gradient is noise."""

        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(1, 4) for _ in range(3))
            self.out = nn.Linear(4, 3)
            self.unused = nn.Parameter(torch.ones(3))

        def forward(self, inputs: Tensor) -> Tensor:
            tokens = inputs[..., None]
            found = F.scaled_dot_product_attention(
                self.query(tokens), self.key(tokens), self.value(tokens)
            )
            return self.out(found.mean(1))

    torch.manual_seed(0)
    model = KeyBias()
    accumulate(model, Classification(), data(6, 6))
    assert model.unused.grad is None
    assert model.key.bias.grad is not None
    assert model.key.bias.grad.norm() < 1e-7
    model.zero_grad()

    assert certify(model, Classification(), data(6, 6)).passed
    assert certify(model, Classification(), data(6, 6), autocast=torch.bfloat16).passed


def test_mini_batches_that_cannot_be_joined_are_compared_with_as_few_passes_as_they_allow() -> None:
    class Pixels(Classification):
        def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
            inputs, targets = batch
            logits = model(inputs)
            return self._sum(logits.movedim(-1, 1), targets)

    wide = (torch.randn(4, 2, 6), torch.zeros(4, 2, dtype=torch.int64))
    window = [*data(4), wide]
    found = certify(net(), Pixels(), window)

    assert found.passed
    assert found.items == 4 + 4 * 2
    assert found.notes == (
        "the mini-batches differ in shape and cannot be joined into one pass; compared with 2 "
        "passes instead",
    )


def test_each_parameter_group_has_its_own_line() -> None:
    model = net()
    elsewhere = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD(
        [
            {"params": [model[0].weight], "name": "first"},
            {"params": [model[2].weight, model[2].bias, elsewhere]},
            {"params": [nn.Parameter(torch.ones(1))]},
        ],
        lr=0.1,
    )

    found = certify(model, Classification(), data(6, 6), optimizer)

    assert [(worst.group, worst.precision) for worst in found.comparisons] == [
        ("first", "float64"),
        ("first", "float32"),
        ("1", "float64"),
        ("1", "float32"),
    ]
    assert found.comparisons[0].parameter == "0.weight"
    assert found.comparisons[2].parameter.startswith("2.")
    assert found.notes == ("2 of the optimizer's tensors are not the model's; not compared",)
    assert certify(model, Classification(), data(6, 6), optimizer.param_groups) == found


class State(NamedTuple):
    torch: Tensor
    numpy: Any
    python: Any
    dtype: torch.dtype
    tensors: list[Tensor]
    gradients: list[Tensor | None]
    modes: list[bool]


def state(model: nn.Module) -> State:
    return State(
        torch.get_rng_state(),
        np.random.get_state(),
        random.getstate(),
        torch.get_default_dtype(),
        [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())],
        [parameter.grad for parameter in model.parameters()],
        [module.training for module in model.modules()],
    )


@pytest.mark.parametrize("copyable", [True, False])
def test_everything_is_afterwards_as_it_was(copyable: bool) -> None:
    model = net(nn.BatchNorm1d(8), nn.Dropout())
    model[2].eval()
    if not copyable:
        model.once = (number for number in range(3))  # type: ignore[assignment]
    first = next(model.parameters())
    first.grad = torch.ones_like(first)
    before = state(model)

    with as_a_user_calls_it():  # the type checks of the tests draw from Python's random state
        found = certify(model, Classification(), data(6, 6), autocast=torch.bfloat16)

    after = state(model)
    assert kinds(found) == ["batch norm"]
    assert torch.equal(after.torch, before.torch)
    assert str(after.numpy) == str(before.numpy)
    assert (after.python, after.dtype) == (before.python, before.dtype)
    assert all(map(torch.equal, after.tensors, before.tensors))
    assert all(new is old for new, old in zip(after.gradients, before.gradients, strict=True))
    assert after.modes == before.modes
    assert len(found.comparisons) == (2 if copyable else 1)


def test_a_mode_that_a_forward_changes_is_put_back() -> None:
    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once = (number for number in range(3))

        def forward(self, inputs: Tensor) -> Tensor:
            self.training = False
            return inputs

    model = net(Restless())

    assert certify(model, Classification(), data(6, 6)).passed
    assert model[1].training


def test_a_model_that_cannot_be_copied_is_certified_in_its_own_precision() -> None:
    model = net()
    model.once = (number for number in range(3))  # type: ignore[assignment]

    found = certify(model, Classification(), data(6, 6))

    assert found.passed
    assert [worst.precision for worst in found.comparisons] == ["float32"]
    assert found.notes == (
        "float64 is left out: ValueError: the model cannot be copied (TypeError: cannot pickle "
        "'generator' object)",
    )


class InFloat32(nn.Module):
    def __init__(self, *, back: bool) -> None:
        super().__init__()
        self.back = back

    def forward(self, inputs: Tensor) -> Tensor:
        narrow = inputs.float().sin()
        return narrow.to(inputs.dtype) if self.back else narrow


def test_a_model_without_float64_is_judged_by_what_it_computes_in() -> None:
    window = data(6, 6)
    inside = certify(net(InFloat32(back=True)), Classification(), window)
    without = certify(net(InFloat32(back=False)), Classification(), window)

    assert inside.passed
    assert [worst.precision for worst in inside.comparisons] == ["float64 with float32", "float32"]
    assert inside.comparisons[0].tolerance == inside.comparisons[1].tolerance
    assert without.passed
    assert [worst.precision for worst in without.comparisons] == ["float32"]
    assert without.notes == (
        "float64 is left out: RuntimeError: mat1 and mat2 must have the same dtype, but got Float "
        "and Double",
    )
    halved = certify(net(InFloat32(back=False)), Classification(), window, autocast=torch.bfloat16)
    assert [worst.precision for worst in halved.comparisons] == ["float32", "bfloat16"]
    mixed = certify(net(InFloat32(back=False), nn.BatchNorm1d(8)), Classification(), window)
    assert kinds(mixed) == ["batch norm"]


def test_what_an_objective_holds_is_converted_with_the_model() -> None:
    weights = torch.tensor([1.0, 2.0, 3.0])

    found = certify(net(), MeanLoss(WeightedMean(weights)), data(6, 6))

    assert found.passed
    assert found.comparisons[0].precision == "float64"
    assert weights.dtype == torch.float32


def test_what_a_forward_makes_is_made_in_float64() -> None:
    class MakesTensors(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs @ torch.eye(inputs.shape[1])

    found = certify(net(MakesTensors()), Classification(), data(6, 6))

    assert found.passed
    assert found.notes == ()
    assert found.comparisons[0].precision == "float64"


class WeightedMean(nn.Module):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        each = F.cross_entropy(outputs, targets, self.get_buffer("weights"), reduction="none")
        return each.mean()


RECIPES: dict[str, Callable[[], tuple[nn.Module, Objective, list[Batch]]]] = {
    "digits_mlp": lambda: (mlp((1, 8, 8), 10), Classification(0.1), images()),
    "digits_cnn": lambda: (cnn((1, 8, 8), 10), Classification(0.1), images()),
    "pydocs_gpt": lambda: (GPT((32,), 256, layers=2), LanguageModelling(), texts()),
}


def images() -> list[Batch]:
    inputs = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(64) % 10
    return [(inputs[:32], targets[:32]), (inputs[32:], targets[32:])]


def texts() -> list[Batch]:
    tokens = torch.randint(256, (16, 33), generator=torch.Generator().manual_seed(0))
    return [tokens[:8], tokens[8:]]


@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_models_of_the_recipes_pass_in_every_precision(
    recipe: str, autocast: torch.dtype | None
) -> None:
    torch.manual_seed(0)
    model, objective, window = RECIPES[recipe]()

    found = certify(model, objective, window, autocast=autocast)

    assert found.passed
    assert found.comparisons[0].error < 1e-13
    assert found.comparisons[1].error < found.comparisons[1].tolerance / 4


def test_float16_is_compared_at_a_loss_scale() -> None:
    class Faint(Classification):
        def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
            return super().total_loss(model, batch) * 1e-7

    found = certify(net(), Faint(), data(6, 6), autocast=torch.float16)

    assert found.passed
    assert found.comparisons[1].tolerance == 16 * torch.finfo(torch.float16).eps


def test_half_precision_parameters_are_told_by_their_dtype() -> None:
    window: list[Batch] = [(inputs.bfloat16(), targets) for inputs, targets in data(6, 6)]

    found = certify(net().bfloat16(), Classification(), window)

    assert found.passed
    assert [worst.precision for worst in found.comparisons] == ["float64", "bfloat16"]


class AddsOneByOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, bias: Tensor) -> Tensor:
        return inputs + bias

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        total = torch.zeros_like(gradient[0])
        for row in gradient:
            total = total + row
        return gradient, total


def test_what_one_pass_loses_to_rounding_is_not_held_against_the_split() -> None:
    # In bfloat16, 256 + 1 is 256: of 512 ones, summed one by one, half are lost. In micro-batches
    # of 256 and fewer none is, and their sums are added in float32.
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))

        def forward(self, inputs: Tensor) -> Tensor:
            found: Tensor = AddsOneByOne.apply(inputs, self.bias)
            return found

    class Sum(Regression):
        def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
            return model(batch).sum()

    window = [torch.zeros(256, 1, dtype=torch.bfloat16) for _ in range(2)]

    found = certify(Biased(), Sum(), window)

    assert found.passed
    own = found.comparisons[1]
    assert (own.precision, own.error, own.tolerance) == ("bfloat16", 1.0, 4 * 0.5)
    assert found.notes == (
        "bias: in bfloat16 rounding alone puts one pass off by 5.0e-01; 4 times that is tolerated",
    )


def ragged() -> list[Batch]:
    return [(torch.randn(1, size, 6), torch.zeros(1, size, dtype=torch.int64)) for size in (1, 2)]


NOTHING: dict[str, tuple[list[Any], str]] = {
    "one sample": (data(1), "the window holds 1 sample: there is nothing to split"),
    "no sample": ([], "the window holds no sample: there is nothing to split"),
    "no item": (
        [(torch.randn(4, 6), torch.full((4,), -100))],
        "the window holds no item, so it makes no update and there is nothing to compare",
    ),
    "as many shapes as samples": (ragged(), "the 2 samples of the window have 2 shapes"),
    "wrong width": ([(torch.randn(4, 5), torch.zeros(4, dtype=torch.int64))],
                    "one pass over the whole window fails: RuntimeError: mat1 and mat2 shapes"),
}  # fmt: skip


@pytest.mark.parametrize("case", NOTHING)
def test_a_window_with_nothing_to_compare_is_refused(case: str) -> None:
    window, message = NOTHING[case]
    with as_a_user_calls_it(), pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        certify(net(), Classification(), window)


def test_an_optimizer_of_another_model_is_refused() -> None:
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"^there is no parameter to compare: "):
        certify(net(), Classification(), data(6, 6), optimizer)


def test_one_pass_that_does_not_fit_says_what_to_try() -> None:
    class Large(Classification):
        def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
            if sample_count(batch) > 6:
                torch.empty(2**60)
            return super().total_loss(model, batch)

    message = (
        "one pass over the whole window takes more memory than there is; certify a smaller one: "
        "trainer.step_size=2, or a smaller data.batch_size"
    )
    with pytest.raises(MemoryError, match=f"^{re.escape(message)}$"):
        certify(net(), Large(), data(6, 6))


def test_a_float64_model_is_measured_once() -> None:
    found = certify(nn.Linear(3, 1).double(), Regression(), cut(regression_pair(12), (5, 4, 3)))

    assert found.passed
    assert [worst.precision for worst in found.comparisons] == ["float64"]


def masked(text: str) -> list[str]:
    """Return lines without the blanks at their ends, with # for a number below 1e-3."""
    numbers = r"\d\.\de-(0[4-9]|1\d)"
    return [re.sub(numbers, "#", line).rstrip() for line in text.splitlines()]


def test_the_command_line_prints_a_pass_and_leaves_nothing_behind(
    command: CommandLine, tmp_path: Path
) -> None:
    ended = command("trainer.step_size=3", module="src.certify")

    assert ended.stderr == ""
    assert ended.returncode == 0
    lines = masked(ended.stdout)
    assert lines[:4] == [
        "window   3 mini-batches, 96 samples, 96 items",
        "compare  micro-batches of 2, 16, 32, 33, 96, null samples with one pass",
        "",
        "group  precision  relative error  tolerance  worst parameter  microbatch_size",
    ]
    assert re.fullmatch(r"0      float64    #\s+#\s+[13]\.(weight|bias)\s+(\d+|null)", lines[4])
    assert lines[6:] == ["", "PASS     every split compared has the same gradient, up to rounding"]
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_passes_a_model_with_dropout_and_notes_the_masks(
    command: CommandLine, tmp_path: Path
) -> None:
    ended = command("experiment=digits_cnn", "device.precision=bf16", module="src.certify")

    assert ended.stderr == ""
    assert ended.returncode == 0
    assert re.search(r"^0      bfloat16  ", ended.stdout, re.M)
    assert masked(ended.stdout)[-3:] == [
        "",
        "note     Dropout (7) draws random masks, each split its own; but for the masks the "
        "gradient is exact",
        "PASS     every split compared has the same gradient, up to rounding",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_printed_with_cause_remedy_and_proof() -> None:
    console = Console(file=StringIO(), width=200)

    print_certificate(certify(net(), MeanOfClasses(), data(7, 6)), console)

    assert isinstance(console.file, StringIO)
    assert masked(console.file.getvalue())[-5:] == [
        "",
        "FAIL     the gradient depends on how the window is split into micro-batches",
        "cause    MeanOfClasses.total_loss returns a mean: that of the window is the mean, not the "
        "sum, of those of its micro-batches",
        'remedy   return the sum over items (reduction="sum"), or make the mean an objective with '
        "cadence.objectives.MeanLoss",
        "proof    with that switched off every split agrees to #",
    ]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["data.batch_size=1", "trainer.step_size=1"],
            "the window holds 1 sample: there is nothing to split, so nothing to compare; try a "
            "larger data.batch_size or trainer.step_size",
        ),
        (
            ["--multirun"],
            "--multirun: a certificate is of one run; try python -m src.certify once for each",
        ),
        (
            ["sweep=step_size"],
            "sweep=step_size: a certificate is of one run; leave it out, and give one step_size",
        ),
        (["trainer.stepsize=3"], "trainer.stepsize: there is no such key; did you mean "
         "trainer.step_size?"),
    ],
)  # fmt: skip
def test_what_cannot_be_certified_is_refused_in_one_line(
    command: CommandLine, tmp_path: Path, arguments: list[str], error: str
) -> None:
    ended = command(*arguments, module="src.certify")

    assert ended.returncode == 1
    assert ended.stderr == f"error: {error}\n"
    assert ended.stdout == ""
    assert list(tmp_path.iterdir()) == []
