"""What a run is measured by: evaluation, throughput, peak memory."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from oracles import FORMS, SIZES, cut, regression_pair
from torch import Tensor, nn

from cadence.batch import Batch, sample_count
from cadence.measure import PeakMemory, Stopwatch, Throughput, evaluate
from cadence.objectives import Classification, LanguageModelling, MeanLoss, Regression

CPU = torch.device("cpu")
MASKED = -100
LARGE = [256.0] + [1.0] * 255


@pytest.mark.parametrize("form", FORMS)
def test_an_evaluation_is_the_mean_over_all_items_of_all_mini_batches(form: str) -> None:
    model = nn.Linear(3, 1).double()
    data = regression_pair(sum(SIZES))

    found = evaluate(model, Regression(), [FORMS[form](*pair) for pair in cut(data, SIZES)], CPU)

    expected = F.mse_loss(model(data.inputs), data.targets).item()
    assert found.loss == pytest.approx(expected, rel=1e-14)
    assert (found.samples, found.items, found.metrics) == (32, 32, {})


def test_accuracy_is_the_share_of_right_answers_among_the_items() -> None:
    right, wrong = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    batches = [
        (torch.cat([right, right, wrong]), torch.tensor([1, 1, 1])),
        (torch.cat([wrong, right]), torch.tensor([1, MASKED])),
    ]

    found = evaluate(nn.Identity(), Classification(), batches, CPU)

    assert (found.samples, found.items) == (5, 4)
    assert found.metrics == {"accuracy": 2 / 4}
    # cross-entropy of logits 0 and 1: ln(1 + e^-1) where right, ln(1 + e) where wrong
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.e)) / 2
    assert found.loss == pytest.approx(expected, rel=1e-6)


def test_the_metrics_are_the_objectives_own() -> None:
    uniform = nn.Embedding(4, 4)
    nn.init.zeros_(uniform.weight)

    found = evaluate(uniform, LanguageModelling(), [torch.tensor([[0, 1, 2]])], CPU)

    # Two bits for one of four tokens; token 0, the first of equals, is never the target.
    assert found.loss == pytest.approx(math.log(4), rel=1e-6)
    assert found.metrics == {"bits_per_token": pytest.approx(2, rel=1e-6), "accuracy": 0}


@pytest.mark.parametrize("failing", [False, True])
def test_every_module_is_back_in_its_own_mode(failing: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 1))
    frozen, head = model[1], model[3]
    frozen.eval()
    seen: list[bool] = []
    head.register_forward_pre_hook(lambda module, _: seen.append(module.training))

    def batches() -> Iterator[Batch]:
        yield torch.ones(2, 3), torch.ones(2, 1)
        if failing:
            raise OSError("the disk is gone")

    try:
        evaluate(model, Regression(), batches(), CPU)
    except OSError:
        assert failing

    assert seen == [False]
    assert [module.training for module in model] == [True, False, True, True]
    assert model.training


def test_an_evaluation_moves_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()

    evaluate(model, Regression(), [(torch.ones(4, 3), torch.ones(4, 1))], CPU)

    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize(
    "objective", [Classification(), MeanLoss(nn.CrossEntropyLoss(), Classification().items)]
)
def test_a_mini_batch_without_any_item_takes_no_part(objective: Classification | MeanLoss) -> None:
    """A mean over nothing is NaN, and NaN times zero is still NaN."""
    model = nn.Linear(2, 3)
    some = (torch.ones(2, 2), torch.tensor([0, 1]))
    nothing = (torch.ones(4, 2), torch.full((4,), MASKED))

    found = evaluate(model, objective, [nothing, some, nothing], CPU)

    assert found.loss == evaluate(model, objective, [some], CPU).loss
    assert math.isfinite(found.loss)
    assert (found.samples, found.items) == (10, 2)


def test_without_any_mini_batch_evaluation_is_refused() -> None:
    with pytest.raises(ValueError, match="the validation data gave no mini-batch; is it empty, or"):
        evaluate(nn.Linear(2, 3), Classification(), [], CPU)


def test_without_any_item_the_mean_is_nan() -> None:
    batches = [(torch.ones(1, 2), torch.tensor([MASKED]))]

    found = evaluate(nn.Linear(2, 3), Classification(), batches, CPU)

    assert math.isnan(found.loss)
    assert found.items == 0


def test_an_objective_of_two_methods_is_enough() -> None:
    class Own:
        def items(self, batch: Batch) -> int:
            return sample_count(batch)

        def total_loss(self, model: nn.Module, batch: Tensor) -> Tensor:
            return model(batch).sum()

    found = evaluate(nn.Identity(), Own(), [torch.tensor([1.0, 2.0]), torch.tensor([6.0])], CPU)
    # bfloat16 has 8 significant bits, so 256 + 1 = 256 there
    half = evaluate(nn.Identity(), Own(), [torch.tensor([x]).bfloat16() for x in LARGE], CPU)

    assert (found.loss, found.metrics) == (3.0, {})
    assert half.loss == (256 + 255) / 256


def test_autocast_lowers_the_arithmetic() -> None:
    model, batches = nn.Linear(3, 1), [(torch.full((2, 3), 1 / 3), torch.ones(2, 1))]

    full = evaluate(model, Regression(), batches, CPU).loss
    half = evaluate(model, Regression(), batches, CPU, torch.bfloat16).loss

    assert 0 < abs(half - full) < 0.05 * max(1, full)


def test_throughput_is_that_of_the_median_window_after_the_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twenty windows of 100 samples; the first tenth is warm-up, an evaluation is not timed."""
    now = 0.0
    monkeypatch.setattr("cadence.measure.perf_counter", lambda: now)
    stopwatch = Stopwatch()
    assert stopwatch.throughput() is None

    for seconds in [50.0, 50.0] + [1.0] * 8 + [2.0] + [4.0] * 9:
        now += seconds
        stopwatch.window(samples=100)
        now += 1000  # an evaluation
        stopwatch.resume()

    # rates of the last 18 windows: 100 eight times, 50 once, 25 nine times
    assert _fields(stopwatch.throughput()) == pytest.approx((37.5, 25, 100))


def test_the_throughput_of_a_single_window_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("cadence.measure.perf_counter", lambda: now)
    stopwatch = Stopwatch()
    now = 0.5

    stopwatch.window(samples=8)

    assert _fields(stopwatch.throughput()) == (16, 16, 16)


def test_peak_memory_sees_what_was_taken_and_given_back() -> None:
    memory = PeakMemory(CPU)
    memory.begin()

    torch.ones(64 * 2**20 // 4)  # 64 MiB, gone at once

    assert 60 < memory.mib() < 80


def _fields(throughput: Throughput) -> tuple[float, float, float]:
    return throughput.samples_per_second, throughput.p10, throughput.p90
