"""What a run is measured by: evaluation, throughput, peak memory."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from oracles import FORMS, SIZES, cut, regression_pair
from torch import Tensor, nn

from cadence.data.batch import Batch, sample_count
from cadence.engine.out_of_memory import DoesNotFitError
from cadence.metrics import memory
from cadence.metrics.evaluation import evaluate
from cadence.metrics.memory import PeakMemory
from cadence.metrics.timing import PartTimer, Stopwatch, Throughput, WindowTime, warm_up
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
    monkeypatch.setattr("cadence.metrics.timing.perf_counter", lambda: now)
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
    monkeypatch.setattr("cadence.metrics.timing.perf_counter", lambda: now)
    stopwatch = Stopwatch()
    now = 0.5

    stopwatch.window(samples=8)

    assert _fields(stopwatch.throughput()) == (16, 16, 16)


class Clockwork:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def arriving(self, seconds: list[float]) -> Iterator[int]:
        for window, wait in enumerate(seconds):
            self.now += wait
            yield window


def timed(timer: PartTimer, clock: Clockwork, windows: int, sync: float = 0.0) -> None:
    """Windows of 64 samples: 1 s of data, 5 s of compute, 2 s of update and 0.5 s of observers."""
    for _ in timer.arriving(clock.arriving([1.0] * windows)):
        clock.now += 5 + sync
        timer.computed(sync)
        clock.now += 2
        timer.window(64)
        clock.now += 0.5


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clockwork:
    clock = Clockwork()
    monkeypatch.setattr("cadence.metrics.timing.perf_counter", lambda: clock.now)
    return clock


def test_the_parts_of_a_window_add_up_to_its_time(clock: Clockwork) -> None:
    timer = PartTimer(CPU)
    timed(timer, clock, windows=3)
    clock.now += 1000  # an evaluation
    timer.resume()
    timed(timer, clock, windows=1, sync=7.0)

    parts = timer.windows()

    assert parts.data.tolist() == [1, 1, 1, 1]
    assert parts.compute.tolist() == [5, 5, 5, 5]
    assert parts.sync.tolist() == [0, 0, 0, 7]
    assert parts.update.tolist() == [2, 2.5, 2.5, 2]  # what follows on an update is the next one's
    assert parts.seconds.tolist() == [8, 8.5, 8.5, 15]
    assert parts.samples.tolist() == [64] * 4


def test_with_one_process_synchronisation_takes_no_time_at_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = map(float, range(100))
    monkeypatch.setattr("cadence.metrics.timing.perf_counter", lambda: next(ticks))
    timer = PartTimer(CPU)

    for _ in timer.arriving(range(2)):
        timer.computed(0)
        timer.window(64)

    assert timer.windows().sync.tolist() == [0, 0]


def test_the_window_time_is_the_median_of_full_windows_after_the_warm_up(clock: Clockwork) -> None:
    timer = PartTimer(CPU)
    assert timer.medians() is None

    for samples, compute in [(64, 900), (64, 3), (5, 1), (64, 4), (64, 8), (5, 1), (5, 1)]:
        for _ in timer.arriving(clock.arriving([0.25])):
            clock.now += compute
            timer.computed(0)
            timer.window(samples)

    # the first of seven is warm-up; of the rest, three of 64 samples are full, three of 5 are not
    assert timer.medians() == WindowTime(64, 250, 4000, 0, 0)


@pytest.mark.parametrize(("windows", "left_out"), [(1, 0), (2, 1), (10, 1), (19, 1), (40, 4)])
def test_a_tenth_of_the_windows_warms_up_and_one_is_always_left(
    windows: int, left_out: int
) -> None:
    assert warm_up(windows) == left_out


def test_an_accelerators_parts_are_read_from_events_that_have_ended(
    clock: Clockwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for CUDA's events: reading one that has not ended is an error."""

    class Event:
        ended = False

        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = clock.now
            waiting.append(self)

        def synchronize(self) -> None:
            waited.append(not self.ended)
            self.ended = True

        def elapsed_time(self, end: "Event") -> float:
            assert self.ended
            assert end.ended
            return 1000 * (end.at - self.at)

    waiting: list[Event] = []
    waited: list[bool] = []

    def finish() -> None:
        for event in waiting:
            event.ended = True

    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(Event=Event))
    timer = PartTimer(torch.device("cuda"))
    for _ in timer.arriving(clock.arriving([1.0] * 4)):
        clock.now += 5
        timer.computed(0)
        finish()  # the update reads the loss
        clock.now += 2
        timer.window(64)

    assert waited == [False] * 3  # every window but the last was read, none was waited for
    assert timer.medians() == WindowTime(64, 1000, 5000, 0, 2000)
    assert waited == [False] * 3 + [True]  # asked for, the last one is waited for


@pytest.mark.gpu
def test_on_cuda_the_compute_is_the_devices() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda")
    big = torch.ones(4096, 4096, device=device)
    timer = PartTimer(device)

    for _ in timer.arriving(range(8)):
        for _ in range(20):
            product = big @ big
        timer.computed(0)
        product.sum().item()
        timer.window(64)

    time = timer.medians()
    assert time is not None
    assert time.compute_ms > 10 * max(time.data_ms, time.update_ms)


def test_peak_memory_sees_what_was_taken_and_given_back() -> None:
    memory = PeakMemory(CPU)
    memory.begin()

    torch.ones(64 * 2**20 // 4)  # 64 MiB, gone at once

    assert 60 < memory.mib() < 80


def _fields(throughput: Throughput) -> tuple[float, float, float]:
    return throughput.samples_per_second, throughput.p10, throughput.p90


class Carries(nn.Module):
    """A model that keeps a state from one forward for the next."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(3, 1).double()
        self.state: Tensor | None = None

    def forward(self, inputs: Tensor) -> Tensor:
        before = inputs if self.state is None else inputs * self.state
        found: Tensor = self.cell(before)
        self.state = inputs.detach().mean(0) + 1
        return found


def test_what_a_model_keeps_of_an_evaluation_can_be_trained_with() -> None:
    model, data = Carries(), regression_pair(4)

    evaluate(model, Regression(), [data], CPU)
    Regression().total_loss(model, data).backward()

    assert model.cell.weight.grad is not None


class Roomy(Regression):
    """A loss for which memory suffices up to some samples."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.sizes: list[int] = []

    def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        self.sizes.append(sample_count(batch))
        if sample_count(batch) > self.most:
            raise RuntimeError("CUDA error: out of memory")
        return super().total_loss(model, batch)


def test_held_out_mini_batches_that_do_not_fit_are_evaluated_in_parts() -> None:
    model, data = nn.Linear(3, 1).double(), regression_pair(20)
    objective = Roomy(5)

    found = evaluate(model, objective, cut(data, [16, 4]), CPU)

    assert objective.sizes == [16, 8, 4, 4, 4, 4, 4]
    expected = F.mse_loss(model(data.inputs), data.targets).item()
    assert found.loss == pytest.approx(expected, rel=1e-14)
    assert (found.samples, found.items) == (20, 20)


def test_one_held_out_sample_that_does_not_fit_is_said_with_a_remedy() -> None:
    with pytest.raises(DoesNotFitError, match=r"of 1 sample does not fit into memory .*; try "):
        evaluate(nn.Linear(3, 1).double(), Roomy(0), [regression_pair(4)], CPU)


def test_a_kernel_that_tells_no_peak_is_asked_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmRSS:\t  1024 kB\n")
    monkeypatch.setattr(memory, "STATUS", status)

    peak = PeakMemory(CPU)
    peak.begin()

    assert peak.mib() >= 0
