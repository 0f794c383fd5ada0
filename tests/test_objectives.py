"""Objectives: the sum over items, divided by the items, is torch's own mean loss."""

import math
import re
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from oracles import FORMS, as_a_user_calls_it, gradients, relative_error
from torch import Tensor, nn

from cadence import Trainer, accumulate
from cadence.data.batch import Batch
from cadence.objectives import (
    Classification,
    LanguageModelling,
    MeanLoss,
    Objective,
    Regression,
    ReportsTotals,
)

IGNORED = -100


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class NextToken(nn.Module):
    """Logits of the next token from the present one alone."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.table = nn.Parameter(random(tokens, tokens))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.table[inputs]


class Case(NamedTuple):
    objective: Objective
    model: nn.Module
    inputs: Tensor
    targets: Tensor
    mean_loss: Callable[[Tensor, Tensor], Tensor]  # torch's own, of outputs and targets
    items: int


def flat(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return torch's cross-entropy of sequences, [samples, context, tokens]."""
    return F.cross_entropy(outputs.transpose(1, 2), targets)


classes = torch.tensor([0, 2, 1, 2])
masked = torch.tensor([0, IGNORED, 1, IGNORED])
pixels = torch.tensor([[0, 1, IGNORED], [2, 2, 1]])
tokens = torch.tensor([[0, 1, 2], [3, IGNORED, IGNORED]])
features = nn.Linear(3, 3).double()

CASES = {
    "classification": Case(
        Classification(), features, random(4, 3), classes, nn.CrossEntropyLoss(), items=4
    ),
    "classification, masked": Case(
        Classification(), features, random(4, 3), masked, nn.CrossEntropyLoss(), items=2
    ),
    "classification, smoothed": Case(
        Classification(label_smoothing=0.1, ignore_index=2),
        features,
        random(4, 3),
        classes,
        nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=2),
        items=2,
    ),
    "classification of pixels": Case(
        Classification(),
        nn.Conv1d(2, 3, kernel_size=1).double(),
        random(2, 2, 3),
        pixels,
        nn.CrossEntropyLoss(),
        items=5,
    ),
    "language modelling": Case(
        LanguageModelling(),
        NextToken(4),
        torch.tensor([[1, 0, 1], [2, 3, 0]]),
        tokens,
        flat,
        items=4,
    ),
    "regression": Case(
        Regression(), features, random(4, 3), random(4, 3) + 1, nn.MSELoss(), items=4
    ),
    "regression of images": Case(
        Regression(),
        nn.Conv1d(2, 3, kernel_size=1).double(),
        random(2, 2, 5),
        random(2, 3, 5),
        nn.MSELoss(),
        items=2,
    ),
    "mean loss": Case(
        MeanLoss(nn.L1Loss()), features, random(4, 3), random(4, 3) + 1, nn.L1Loss(), items=4
    ),
    "mean loss, own items": Case(
        MeanLoss(nn.CrossEntropyLoss(), items=Classification().items),
        features,
        random(4, 3),
        masked,
        nn.CrossEntropyLoss(),
        items=2,
    ),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_the_sum_over_the_items_is_torchs_mean_loss_and_gradient(case: Case, form: str) -> None:
    batch = FORMS[form](case.inputs, case.targets)
    model = case.model

    mean = case.mean_loss(model(case.inputs), case.targets)
    expected = torch.autograd.grad(mean, list(model.parameters()))
    model.zero_grad()
    total = case.objective.total_loss(model, batch)
    (total / case.objective.items(batch)).backward()

    assert case.objective.items(batch) == case.items
    assert total.item() / case.items == pytest.approx(mean.item(), rel=1e-14)
    assert relative_error(gradients(model), expected) <= 1e-14


def test_tokens_alone_are_inputs_and_the_targets_one_later() -> None:
    text = torch.tensor([[1, 0, 3, 2], [2, 2, 1, 0]])
    pair = text[:, :-1], text[:, 1:]
    objective, model = LanguageModelling(), NextToken(4)

    assert objective.items(text) == objective.items(pair) == 6
    assert objective.total_loss(model, text) == objective.total_loss(model, pair)


@pytest.mark.parametrize(("outputs", "targets"), [((4, 1), (4,)), ((4,), (4, 1))])
def test_one_output_per_sample_needs_no_dimension_of_its_own(
    outputs: tuple[int, ...], targets: tuple[int, ...]
) -> None:
    inputs = torch.tensor([1.0, 2.0, 3.0, 4.0]).reshape(outputs)
    batch = inputs, torch.tensor([1.0, 1.0, 1.0, 1.0]).reshape(targets)

    assert Regression().total_loss(nn.Identity(), batch) == 0 + 1 + 4 + 9


def test_totals_are_sums_over_items() -> None:
    logits = torch.tensor([1.0, 3.0]).log().expand(4, 2)  # the second class has probability 3/4

    totals = Classification().totals(nn.Identity(), (logits, torch.tensor([1, 1, 0, IGNORED])))

    # -2 ln(3/4) - ln(1/4) = ln(64/9), and two of the three items are right
    assert totals["loss"].item() == pytest.approx(math.log(64 / 9), rel=1e-6)
    assert totals["accuracy"].item() == 2


def test_a_uniform_guess_among_eight_tokens_costs_three_bits_each() -> None:
    model = NextToken(8)
    model.table.data.zero_()

    totals = LanguageModelling().totals(model, torch.zeros(2, 6, dtype=torch.int64))

    assert totals["bits_per_token"].item() == pytest.approx(3 * 2 * 5, rel=1e-14)
    assert totals["accuracy"].item() == 10  # of equal logits the first is taken: token 0


@pytest.mark.parametrize(
    ("objective", "inputs"),
    [
        (Classification(ignore_index=0), torch.tensor([0, 0, 2])),
        (LanguageModelling(ignore_index=0), torch.tensor([[0, 0, 2]])),
    ],
    ids=["classification", "language modelling"],
)
def test_an_ignored_item_is_never_a_right_answer(objective: ReportsTotals, inputs: Tensor) -> None:
    repeats = NextToken(3)
    repeats.table.data = torch.eye(3)

    assert objective.totals(repeats, (inputs, inputs))["accuracy"] == 1  # of one item


@pytest.mark.parametrize("name", ["classification", "language modelling", "regression"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_of_half_precision_outputs_is_summed_in_float32(
    name: str, dtype: torch.dtype
) -> None:
    case = CASES[name]
    outputs = case.model(case.inputs).detach().to(dtype)

    class Given(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            return outputs

    total = case.objective.total_loss(Given(), (case.inputs, case.targets))

    assert total.dtype == torch.float32
    mean = case.mean_loss(outputs.double(), case.targets)
    assert total.item() == pytest.approx(mean.item() * case.items, rel=1e-6)


def test_a_mean_loss_may_be_of_complex_outputs_or_of_several() -> None:
    inputs, targets = torch.randn(4, dtype=torch.complex64), torch.zeros(4, dtype=torch.complex64)
    pair = inputs.abs(), inputs.angle()

    class Both(nn.Module):
        def forward(self, _: Tensor) -> tuple[Tensor, Tensor]:
            return pair

    distance = MeanLoss(lambda outputs, targets: (outputs - targets).abs().mean())
    of_both = MeanLoss(lambda outputs, targets: outputs[0].mean() + outputs[1].mean())

    found = [
        distance.total_loss(nn.Identity(), (inputs, targets)),
        of_both.total_loss(Both(), (inputs, targets)),
    ]

    expected = [inputs.abs().sum().item(), (pair[0] + pair[1]).sum().item()]
    assert [total.item() for total in found] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("objective", [Classification(), Regression(), MeanLoss(nn.MSELoss())])
@pytest.mark.parametrize(
    ("batch", "found"),
    [(torch.ones(2, 3), "one tensor"), ((torch.ones(2),) * 3, "3 tensors")],
)
def test_a_mini_batch_without_targets_is_refused(
    objective: Objective, batch: Batch, found: str
) -> None:
    message = f"this objective takes mini-batches of (inputs, targets), not {found}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        objective.total_loss(nn.Identity(), batch)


NO_CLASSES = (
    "and classes are whole numbers, one for each sample; for numbers choose "
    "data.objective._target_=cadence.objectives.Regression"
)
NO_TOKENS = "and tokens are whole numbers; convert them, such as by .long()"


@pytest.mark.parametrize("method", ["total_loss", "totals"])
@pytest.mark.parametrize(
    ("objective", "targets", "told"),
    [
        (Classification(), torch.ones(4), f"torch.float32 of shape [4], {NO_CLASSES}"),
        (Classification(), pixels, f"torch.int64 of shape [2, 3], {NO_CLASSES}"),
        (LanguageModelling(), torch.ones(4, 1), f"torch.float32 of shape [4, 1], {NO_TOKENS}"),
    ],
    ids=["numbers for classes", "pixels for samples", "numbers for tokens"],
)
def test_targets_of_another_kind_are_refused(
    objective: ReportsTotals, targets: Tensor, told: str, method: str
) -> None:
    logits = torch.zeros(4, 3) if isinstance(objective, Classification) else torch.zeros(4, 1, 3)

    with as_a_user_calls_it(), pytest.raises(ValueError, match=r"^the targets are ") as refused:
        getattr(objective, method)(nn.Identity(), (logits, targets))

    assert str(refused.value) == f"the targets are {told}"


def test_outputs_that_would_be_broadcast_to_the_targets_are_refused() -> None:
    message = (
        "the model's outputs [4, 3] and the targets [4] must have one shape; squared error would "
        "broadcast them"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        Regression().total_loss(nn.Identity(), (torch.ones(4, 3), torch.ones(4)))


WEIGHTS = torch.tensor([1.0, 9.0], dtype=torch.float64)
UNEVEN = [
    (
        random(10, 4),
        torch.tensor([1] * ones + [IGNORED] * (ones % 3) + [0] * (10 - ones - ones % 3)),
    )
    for ones in (1, 9, 5, 2)
]
"""Mini-batches of two classes, no two with the same share of them, some with ignored targets."""

WEIGHTED: dict[str, tuple[Callable[[], Objective], Callable[[Tensor, Tensor], Tensor]]] = {
    "Classification with weights": (
        lambda: Classification(weight=[1.0, 9.0]),
        nn.CrossEntropyLoss(weight=WEIGHTS),
    ),
    "Classification with weights and smoothing": (
        lambda: Classification(weight=WEIGHTS, label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1),
    ),
    "MeanLoss of a module with weights": (
        lambda: MeanLoss(nn.CrossEntropyLoss(weight=WEIGHTS)),
        nn.CrossEntropyLoss(weight=WEIGHTS),
    ),
    "MeanLoss of a module that ignores targets": (
        lambda: MeanLoss(nn.CrossEntropyLoss()),
        nn.CrossEntropyLoss(),
    ),
    "MeanLoss of a module that ignores a class": (
        lambda: MeanLoss(nn.CrossEntropyLoss(ignore_index=0, weight=None)),
        nn.CrossEntropyLoss(ignore_index=0),
    ),
    "MeanLoss of a function": (lambda: MeanLoss(F.cross_entropy), F.cross_entropy),
    "MeanLoss of a function with weights": (
        lambda: MeanLoss(partial(F.cross_entropy, weight=WEIGHTS)),
        partial(F.cross_entropy, weight=WEIGHTS),
    ),
}


@pytest.mark.parametrize("size", [None, 3, 40])
@pytest.mark.parametrize("name", WEIGHTED)
def test_a_weighted_or_masked_mean_has_the_gradient_of_one_big_batch(
    name: str, size: int | None
) -> None:
    make, mean_loss = WEIGHTED[name]
    found, expected = nn.Linear(4, 2).double(), nn.Linear(4, 2).double()
    expected.load_state_dict(found.state_dict())
    window = [batch for batch in UNEVEN if "ignores a class" not in name or IGNORED not in batch[1]]

    accumulated = accumulate(found, make(), window, size)
    inputs, targets = map(torch.cat, zip(*window, strict=True))
    mean = mean_loss(expected(inputs), targets)
    mean.backward()  # type: ignore[no-untyped-call]

    assert relative_error(gradients(found), gradients(expected)) < 1e-12
    assert accumulated.loss.item() == pytest.approx(mean.item(), rel=1e-12)


def test_class_probabilities_are_averaged_over_samples() -> None:
    model = nn.Linear(4, 3).double()
    window = [(random(size, 4), random(size, 3).softmax(1)) for size in (4, 1, 3)]

    accumulate(model, MeanLoss(nn.CrossEntropyLoss()), window)
    found = gradients(model)
    model.zero_grad()
    inputs, targets = map(torch.cat, zip(*window, strict=True))
    F.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]

    assert relative_error(found, gradients(model)) < 1e-12


def test_a_weighted_accuracy_is_the_weight_of_the_right_answers() -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    batch = logits, torch.tensor([0, 1, 1, IGNORED])

    totals = Classification(weight=[1.0, 9.0]).totals(nn.Identity(), batch)

    assert totals["accuracy"].item() == 10.0
    assert Classification(weight=[1.0, 9.0]).items(batch) == 19.0


@pytest.mark.parametrize(
    ("items", "error", "told"),
    [
        (-100, ValueError, "-100; it must return a finite number, at least 0 and at most 2**53"),
        (math.nan, ValueError, "nan; it must return a finite number"),
        (math.inf, ValueError, "inf; it must return a finite number"),
        (2**60, ValueError, "1152921504606846976; it must return a finite number"),
        ("10", TypeError, "'10'; it must return the number of items or the sum of their weights"),
        (True, TypeError, "True; it must return the number of items"),
        (None, TypeError, "None; it must return the number of items"),
        (1j, TypeError, "1j; it must return the number of items"),
        (torch.ones(2), TypeError, "it must return the number of items"),
    ],
)
def test_items_that_are_no_number_of_items_are_refused_by_name(
    items: Any, error: type[Exception], told: str
) -> None:
    class Mine(Classification):
        def items(self, batch: Any) -> Any:
            return items

    with as_a_user_calls_it(), pytest.raises(error, match=r"^Mine.items gave ") as refused:
        accumulate(nn.Linear(4, 2).double(), Mine(), UNEVEN)
    assert told in str(refused.value)


@pytest.mark.parametrize("items", [20.0, 20, torch.tensor(20), torch.tensor(20.0)])
def test_items_may_be_any_number(items: Any) -> None:
    class Mine(Classification):
        def items(self, batch: Any) -> Any:
            return items

    model = nn.Linear(4, 2).double()
    with as_a_user_calls_it():
        assert accumulate(model, Mine(), UNEVEN).items == 80


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (nn.CrossEntropyLoss(reduction="sum"), 'CrossEntropyLoss has reduction="sum"'),
        (nn.MSELoss(reduction="none"), 'MSELoss has reduction="none"'),
        (partial(F.cross_entropy, reduction="sum"), 'cross_entropy has reduction="sum"'),
    ],
)
def test_a_reduction_other_than_the_mean_is_refused_when_the_objective_is_made(
    loss: Callable[..., Tensor], told: str
) -> None:
    message = f'MeanLoss multiplies a mean by its items, and {told}; leave it at "mean"'
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        MeanLoss(loss)


def test_a_mean_that_is_no_single_number_is_refused_with_mean_losss_own_remedy() -> None:
    def losses(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets) ** 2

    message = "losses gave shape [4] to MeanLoss, which takes the mean over items, a 0-d tensor"
    with as_a_user_calls_it(), pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        MeanLoss(losses).total_loss(nn.Identity(), (torch.ones(4), torch.ones(4)))


class Returns(nn.Module):
    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self._form = form

    def forward(self, inputs: Tensor) -> Any:
        return self._form(inputs)


Aux = namedtuple("Aux", ["logits", "aux_logits"])


@pytest.mark.parametrize(
    "form",
    [
        lambda logits: {"logits": logits, "hidden": logits},
        lambda logits: SimpleNamespace(logits=logits),
        lambda logits: Aux(logits, logits),
        lambda logits: (logits,),
    ],
    ids=["a dict", "an object", "a named tuple", "a tuple of one"],
)
def test_logits_that_a_model_names_are_its_outputs(form: Callable[[Tensor], Any]) -> None:
    batch = random(4, 3), torch.tensor([0, 1, 2, 1])

    for objective in (Classification(), MeanLoss(nn.CrossEntropyLoss())):
        found = objective.total_loss(Returns(form), batch)
        assert torch.equal(found, objective.total_loss(nn.Identity(), batch))


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        (lambda outputs: (outputs, outputs), "tuple"),
        (lambda outputs: {"out": outputs}, "dict"),
        (lambda outputs: None, "NoneType"),
    ],
)
@pytest.mark.parametrize("objective", [Classification(), Regression()])
def test_outputs_that_are_no_logits_are_refused_in_one_line(
    objective: Objective, form: Callable[[Tensor], Any], kind: str
) -> None:
    message = f"Returns returned a {kind}, and this objective takes a tensor of logits; "
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        objective.total_loss(Returns(form), (torch.ones(4, 2), torch.ones(4)))


@pytest.mark.parametrize(
    ("loss", "told"),
    [
        (
            nn.CrossEntropyLoss(),
            "CrossEntropyLoss is a loss, and an objective has items and total_loss; wrap it: "
            "cadence.objectives.MeanLoss(nn.CrossEntropyLoss())",
        ),
        (
            F.cross_entropy,
            "cross_entropy is a loss, and an objective has items and total_loss; wrap it: "
            "cadence.objectives.MeanLoss(cross_entropy)",
        ),
        (3, "int is no objective: it must have items(batch) and total_loss(model, batch)"),
    ],
)
def test_a_loss_in_an_objectives_place_is_told_how_to_be_one(loss: Any, told: str) -> None:
    model = nn.Linear(4, 2)
    with as_a_user_calls_it():
        with pytest.raises(TypeError, match=f"^{re.escape(told)}$"):
            Trainer(model, torch.optim.SGD(model.parameters(), 0.1), loss, device="cpu")
        with pytest.raises(TypeError, match=f"^{re.escape(told)}$"):
            accumulate(model, loss, [])


def test_a_loss_that_depends_on_no_parameter_is_refused_by_name() -> None:
    class Constant(Classification):
        def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
            return torch.zeros(())

    message = "Constant.total_loss gave a tensor that depends on no parameter: it must be computed"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        accumulate(nn.Linear(4, 2).double(), Constant(), UNEVEN)


def test_a_window_that_is_an_iterator_has_the_gradient_of_the_list() -> None:
    found, expected = nn.Linear(4, 2).double(), nn.Linear(4, 2).double()
    expected.load_state_dict(found.state_dict())

    for size in (None, 5):
        for model, window in ((found, iter(UNEVEN)), (expected, UNEVEN)):
            model.zero_grad()
            assert accumulate(model, Classification(), window, size).items == 35  # type: ignore[arg-type]
        assert all(map(torch.equal, gradients(found), gradients(expected)))
