"""The gradient noise scale: unbiased, cheap, honest where it cannot be told."""

import math
from collections.abc import Iterator, Sequence
from io import StringIO
from itertools import pairwise, product
from typing import Any

import numpy as np
import pytest
import torch
from oracles import Pair, cut, gradients, regression_pair, relative_error, same, weights
from rich.console import Console
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.optim import SGD, AdamW

from cadence import Trainer
from cadence.data import TensorData, loader
from cadence.display.terminal import Display
from cadence.engine.accumulation import Accumulated, Accumulator
from cadence.engine.microbatching import Microbatching
from cadence.engine.noise_scale import LEVEL, UNKNOWN, NoiseEstimate, NoiseScale, Parts
from cadence.objectives import LanguageModelling, Regression
from cadence.training.callback import Tracker
from cadence.training.noise_scale import NoiseScaleEstimate


def squares(gradients: Sequence[float], sizes: Sequence[int]) -> tuple[float, Parts]:
    """Return a window's mean of scalar gradients, and what its parts of these sizes leave."""
    ends = np.cumsum([0, *sizes])
    means = [np.mean(gradients[start:stop]) for start, stop in pairwise(ends)]
    parts = Parts(len(sizes), sum(n * mean**2 for n, mean in zip(sizes, means, strict=True)))
    return float(np.mean(gradients)), parts


# -- the estimators


@pytest.mark.parametrize("sizes", [(1, 1), (1, 2), (2, 1, 1), (3, 1)])
def test_over_every_window_there_can_be_the_estimate_is_the_truth(sizes: tuple[int, ...]) -> None:
    """Items are 1 or 5, equally likely: G = 3, Sigma = (1 + 25) / 2 - 9 = 4."""
    noise = NoiseScale()
    for items in list(product((1.0, 5.0), repeat=sum(sizes))) * 64:
        mean, parts = squares(items, sizes)
        noise.window(len(items), abs(mean), parts)

    assert noise.estimate().noise_scale == pytest.approx(4 / 9, rel=1e-12)


def test_windows_of_other_sizes_take_part_by_their_items() -> None:
    noise = NoiseScale()
    for sizes in ((1, 1), (1, 2), (2, 1, 1)):
        for items in list(product((1.0, 5.0), repeat=sum(sizes))) * 64:
            mean, parts = squares(items, sizes)
            noise.window(len(items), abs(mean), parts)

    assert noise.estimate().noise_scale == pytest.approx(4 / 9, rel=1e-12)


def test_only_some_windows_need_to_be_measured() -> None:
    """The covariance of some of them, the mean gradient of all of them."""
    noise, every = NoiseScale(), [(0.0, 2.0), (1.0, 3.0)] * 80
    for number, items in enumerate(every):
        mean, parts = squares(items, (1, 1))
        noise.window(2, abs(mean), parts if number % 5 == 0 else None)

    # Sigma = (1 + 1) / 1 each; the mean of |g|^2 is (1 + 4) / 2, less Sigma / 2
    assert noise.estimate().noise_scale == pytest.approx(2 / (2.5 - 1), rel=1e-12)


def test_the_last_2048_windows_count() -> None:
    noise, present = NoiseScale(), NoiseScale()
    random = np.random.default_rng(0)
    for _ in range(3008):
        mean, parts = squares(random.normal(100, 1, 4), (2, 2))
        noise.window(4, abs(mean), parts)
    for _ in range(2048):
        mean, parts = squares(random.normal(1, 1, 4), (2, 2))
        noise.window(4, abs(mean), parts)
        present.window(4, abs(mean), parts)

    expected = present.estimate().noise_scale
    assert noise.estimate().noise_scale == pytest.approx(expected, rel=1e-12)


def test_before_eight_blocks_with_eight_measured_windows_nothing_is_known() -> None:
    measured, seldom = NoiseScale(), NoiseScale()
    one_part, two_parts = Parts(1, 3.0), Parts(2, 3.0)
    for number in range(128):
        for noise in (measured, seldom):
            assert noise.estimate() == pytest.approx(UNKNOWN, nan_ok=True)
        measured.window(2, 1.0, two_parts if number % 16 == 0 else None)
        seldom.window(2, 1.0, two_parts if number % 17 == 16 else one_part)  # seven times

    assert measured.estimate().noise_scale == 2  # Sigma = 3 - 2, |G|^2 = 1 - Sigma / 2
    assert seldom.estimate() == pytest.approx(UNKNOWN, nan_ok=True)


def test_a_gradient_that_cannot_be_told_from_noise_has_only_a_lower_end() -> None:
    noise = NoiseScale()
    random = np.random.default_rng(0)
    for _ in range(400):
        mean, parts = squares(random.normal(0.001, 1, 4), (2, 2))
        noise.window(4, abs(mean), parts)

    found = noise.estimate()
    assert found.high == math.inf
    assert 1 < found.low < found.noise_scale


def test_items_that_are_all_the_same_have_no_noise() -> None:
    noise = NoiseScale()
    for _ in range(200):
        noise.window(4, 0.1, squares((0.1,) * 4, (3, 1))[1])

    assert noise.estimate() == pytest.approx((0, 0, 0), abs=1e-12)


def test_a_restored_estimate_goes_on_to_the_bit() -> None:
    random = np.random.default_rng(0)
    windows = [squares(random.normal(1, 1, 4), (2, 2)) for _ in range(2500)]
    whole, part, rest = NoiseScale(), NoiseScale(), NoiseScale()
    for number, (mean, parts) in enumerate(windows):
        whole.window(4, abs(mean), parts)
        if number == 2100:
            rest.restore(part.state())
        (part if number < 2100 else rest).window(4, abs(mean), parts)

    assert rest.estimate() == whole.estimate()


# -- linear regression, where the truth is known

FEATURES = 10
TRUTH = 2 * FEATURES + 1
"""Of squared error at unit distance from the truth, with unit inputs and unit noise.

An item's gradient is 2 r x with r = x_1 - e. Its mean is 2 e_1; its square's mean 4 E[r^2 |x|^2] =
4 ((d + 2) + d). So tr(Sigma) / |G|^2 = (4 (2 d + 2) - 4) / 4.
"""


def stream(minibatches: int, size: int, seed: int) -> Iterator[Pair]:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(minibatches):
        inputs = torch.randn(size, FEATURES, generator=generator, dtype=torch.float64)
        noise = torch.randn(size, 1, generator=generator, dtype=torch.float64)
        yield Pair(inputs, noise)


def standing_still(step_size: int, size: int, **settings: Any) -> Trainer:
    """Return a trainer whose weights stay at unit distance from the truth, which is 0."""
    model = nn.Linear(FEATURES, 1, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()[0, 0] = 1
    return Trainer(
        model, SGD(model.parameters(), lr=0.0), Regression(), step_size, "cpu",
        callbacks=[NoiseScaleEstimate()], **settings,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("step_size", [8, 32])
def test_after_2000_windows_the_estimate_is_within_a_tenth(step_size: int) -> None:
    result = standing_still(step_size, 8).fit([*stream(2000 * step_size, 8, seed=1)], epochs=1)

    assert result.updates == 2000
    assert result.reported["noise_scale"] == pytest.approx(TRUTH, rel=0.1)


def test_two_ragged_minibatches_are_unbiased_up_to_the_interval() -> None:
    sizes = [8, 4, 8, 1] * 1000
    minibatches = [cut(batch, [size, 8 - size])[0] if size < 8 else batch
                   for size, batch in zip(sizes, stream(4000, 8, seed=3), strict=True)]  # fmt: skip
    result = standing_still(2, 8).fit(minibatches, epochs=1)

    assert result.reported["noise_scale_low"] is not None
    assert result.reported["noise_scale_high"] is not None
    assert (
        result.reported["noise_scale_low"] < TRUTH < result.reported["noise_scale_high"] < 2 * TRUTH
    )


def simulated(seed: int, step_size: int, size: int = 8, windows: int = 2000) -> NoiseEstimate:
    """Return the estimate of gradients as linear regression has them, drawn all at once."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((windows, step_size, size, FEATURES))
    residuals = inputs[..., :1] - random.standard_normal((windows, step_size, size, 1))
    parts = (2 * residuals * inputs).mean(2)
    norms = np.linalg.norm(parts.mean(1), axis=1)
    sums = size * (parts**2).sum((1, 2))
    noise = NoiseScale()
    for number in range(windows):
        measured = Parts(step_size, float(sums[number])) if number % 8 == 0 else None
        noise.window(step_size * size, float(norms[number]), measured)
    return noise.estimate()


@pytest.mark.slow
@pytest.mark.parametrize("step_size", [2, 8, 32])
def test_the_interval_holds_the_truth_in_at_least_90_of_100_seeds(step_size: int) -> None:
    found = [simulated(seed, step_size) for seed in range(100)]

    held = sum(each.low <= TRUTH <= each.high for each in found)
    mean = np.mean([each.noise_scale for each in found])
    error = np.std([each.noise_scale for each in found]) / 10
    print(f"step_size {step_size}: {held} of 100 at {LEVEL:.0%}, mean {mean:.2f} +- {error:.2f}")
    assert held >= 90
    assert mean == pytest.approx(TRUTH, abs=4 * error)


# -- measuring


def by_hand(model: nn.Module, objective: Any, parts: Sequence[Any]) -> Parts:
    """Return what parts leave, each run alone by plain autograd."""
    total = 0.0
    for part in parts:
        model.zero_grad()
        objective.total_loss(model, part).backward()
        total += sum(float(g.square().sum()) for g in gradients(model)) / objective.items(part)
    model.zero_grad()
    return Parts(len(parts), total)


def alike(found: Parts | None, expected: Parts, tolerance: float = 1e-12) -> bool:
    assert found is not None
    near = found.squares == pytest.approx(expected.squares, rel=tolerance)
    return near and found.count == expected.count


def test_the_parts_are_those_of_plain_autograd() -> None:
    window = cut(regression_pair(10), [4, 3, 1, 2])
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    accumulate = Accumulator(model, Regression())

    expected = by_hand(model, Regression(), window)
    by_minibatch = accumulate(window, measured=[*model.parameters()]).parts
    model.zero_grad()
    joined_and_split = accumulate(window, 5, measured=[*model.parameters()]).parts
    model.zero_grad()
    of_five = by_hand(model, Regression(), cut(regression_pair(10), [5, 5]))

    assert alike(by_minibatch, expected)
    assert alike(joined_and_split, of_five)


def test_masked_tokens_and_parts_without_an_item_are_counted_right() -> None:
    tokens = torch.tensor([[0, 1, 2], [3, 4, 0], [1, 1, 1]])
    targets = torch.tensor([[1, -100, 3], [-100, -100, -100], [2, 2, 2]])
    window = [(tokens[row : row + 1], targets[row : row + 1]) for row in range(3)]
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5)).double()
    objective = LanguageModelling()

    found = Accumulator(model, objective)(window, measured=[*model.parameters()]).parts
    model.zero_grad()
    expected = by_hand(model, objective, [window[0], window[2]])

    assert expected.count == 2
    assert alike(found, expected)


def test_only_the_parameters_that_are_updated_are_measured() -> None:
    """The update's gradient norm is of them alone."""
    window = cut(regression_pair(6), [4, 2])
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)).double()
    head = [*model[1].parameters()]

    found = Accumulator(model, Regression())(window, measured=head).parts
    model.zero_grad()
    model[0].requires_grad_(False)

    assert alike(found, by_hand(model, Regression(), window))


def test_the_loss_scale_of_float16_is_taken_out() -> None:
    window = [Pair(*(part.float() for part in pair)) for pair in cut(regression_pair(6), [4, 2])]
    model = nn.Linear(3, 1)
    scaler = GradScaler("cpu", init_scale=1024.0)

    found = Accumulator(model, Regression(), scaler=scaler)(window, measured=[*model.parameters()])
    model.zero_grad()

    assert alike(found.parts, by_hand(model, Regression(), window), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_measuring_leaves_the_same_gradient_to_the_bit(dtype: torch.dtype) -> None:
    window = [Pair(*(part.to(dtype) for part in pair)) for pair in cut(regression_pair(9), [4, 5])]
    model = nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 1)).to(dtype)
    accumulate = Accumulator(model, Regression())

    for size in (None, 2):
        plain = accumulate(window, size)
        expected = gradients(model)
        model.zero_grad()
        measured = accumulate(window, size, measured=[*model.parameters()])
        assert same(gradients(model), expected)
        assert torch.equal(plain.total_loss, measured.total_loss)
        assert plain.parts is None
        model.zero_grad()


# -- while training


def trained(noise_scale: bool, microbatch_size: int | None = None) -> tuple[list[Tensor], Trainer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model.double()
    trainer = Trainer(
        model, AdamW(model.parameters(), lr=0.01), Regression(), 3, "cpu", clip_norm=0.1,
        microbatch_size=microbatch_size, allow_batch_coupling=True,
        callbacks=[NoiseScaleEstimate()] * noise_scale,
    )  # fmt: skip
    trainer.fit(loader(TensorData(*regression_pair(400)), 4, shuffle_seed=5), epochs=4)
    return weights(model), trainer


@pytest.mark.parametrize("microbatch_size", [None, 2])
def test_what_is_learned_does_not_depend_on_it(microbatch_size: int | None) -> None:
    (off, plain), (on, trainer) = trained(False, microbatch_size), trained(True, microbatch_size)

    assert same(on, off)
    assert plain.result.reported == {}
    assert trainer.result.reported["noise_scale"] > 0


def test_a_window_of_a_single_pass_is_halved_now_and_then_and_reported_as_it_is_otherwise() -> None:
    minibatches = cut(regression_pair(400), [4] * 100)
    finals = []
    for noise_scale in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(3, 1).double()
        trainer = Trainer(
            model, SGD(model.parameters(), lr=0.01), Regression(), 2, "cpu", microbatch_size=64,
            callbacks=[NoiseScaleEstimate()] * noise_scale,
        )  # fmt: skip
        result = trainer.fit(minibatches, epochs=7)
        finals.append((weights(model), result.microbatch_size))

    assert relative_error(finals[1][0], finals[0][0]) <= 1e-12
    assert finals[0][1] == finals[1][1] == 64
    assert result.reported["noise_scale"] > 0


def measured_windows(
    model: nn.Module, count: int, sizes: Sequence[int], microbatch_size: int | None
) -> list[int]:
    """Return which of the windows were measured."""
    passes = Microbatching(
        microbatch_size, None, allow_batch_coupling=False, autocast=None, scaler=None
    )
    passes.begin(model, Regression(), measured=[*model.parameters()])
    window = cut(regression_pair(sum(sizes)), sizes)
    found: list[Accumulated] = []
    for number in range(count):
        found.append(passes(window, len(sizes), windows_before=number))
        model.zero_grad()
    return [number for number, each in enumerate(found) if each.parts is not None]


def test_which_windows_are_measured_depends_on_their_number_alone() -> None:
    model = nn.Linear(3, 1).double()

    assert measured_windows(model, 25, [2, 2], None) == [0, 8, 16, 24]
    assert measured_windows(model, 25, [2, 2], 1) == [0, 8, 16, 24]
    assert measured_windows(model, 90, [2, 2], 4) == [0, 40, 80]
    assert measured_windows(model, 90, [4], None) == [0, 40, 80]


def test_a_window_that_has_no_parts_is_never_measured_and_says_why_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    coupled = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()

    assert measured_windows(coupled, 90, [4], None) == []
    assert measured_windows(coupled, 9, [4, 4], None) == [0, 8]
    assert measured_windows(nn.Linear(3, 1).double(), 90, [1], None) == []
    why = "trainer.noise_scale=true: a window of a single mini-batch that must not be split has " \
        "no parts to compare ({}); trainer.step_size=2 gives it two"  # fmt: skip
    assert caplog.messages == [why.format("BatchNorm1d"), why.format("it is one sample")]


def test_the_search_for_the_fastest_is_not_told_of_measured_windows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[int] = []
    monkeypatch.setattr("cadence.engine.autotune.Tuner.took", lambda *_: told.append(1))
    standing_still(2, 4, microbatch_size="auto").fit([*stream(64, 4, seed=0)], epochs=1)

    assert len(told) == 32 - 1  # it waits at a single pass, of which one in forty is measured


def test_a_refused_window_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(NoiseScale, "window", lambda *_: taken.append(1))
    good, bad = stream(2, 4, seed=0)
    bad.inputs[0, 0] = math.nan
    standing_still(1, 4).fit([good, bad, good], epochs=1)

    assert len(taken) == 2


# -- what is said of it


@pytest.mark.parametrize(
    ("estimate", "said", "logged"),
    [
        ((1234.5, 900.0, 2000.0), "1,234 items (an estimate; 98 % interval 900 to 2,000 items)", 3),
        (
            (1234.5, 900.0, math.inf),
            "1,234 items (an estimate; 98 % interval at least 900 items)",
            2,
        ),
        (
            (math.inf, 900.0, math.inf),
            "larger than the windows can tell (an estimate; 98 % interval at least 900 items)",
            1,
        ),
        (UNKNOWN, "unknown: too few windows were measured", 0),
    ],
)
def test_what_cannot_be_told_is_said_in_words_and_drawn_nowhere(
    monkeypatch: pytest.MonkeyPatch, estimate: tuple[float, float, float], said: str, logged: int
) -> None:
    monkeypatch.setattr(NoiseScale, "estimate", lambda _: NoiseEstimate(*estimate))
    seen: list[str] = []

    class Logs(Tracker):
        def log(self, name: str, value: float, samples: int) -> None:
            seen.append(name)

    trainer = standing_still(2, 4)
    trainer.callbacks.append(Logs())
    result = trainer.fit([*stream(2, 4, seed=0)], epochs=1)
    written = StringIO()
    Display(None, Console(file=written, width=160)).table(result, (2,), {})

    assert f"noise scale  {said}\n" in written.getvalue()
    names = ("train/noise_scale_low", "train/noise_scale", "train/noise_scale_high")
    assert {*seen} == {*names[:logged]}
