"""Micro-batch size and threads by measuring: what is tried, what is kept, and when."""

import logging
from collections.abc import Callable, Iterable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracles import cut, regression_pair, relative_error, weights
from torch import Tensor, nn
from torch.optim import SGD

from cadence import Trainer
from cadence.engine.autotune import Setting, Tuner
from cadence.engine.out_of_memory import MemoryLimit
from cadence.objectives import Regression

Cost = Callable[[Setting], float]
"""The seconds that a sample takes under a setting."""


def window(minibatches: int, samples: int = 8, features: int = 4) -> tuple[Tensor, ...]:
    return (torch.zeros(samples, features),) * minibatches


def tuned(
    tuner: Tuner, windows: Iterable[Sequence[Tensor]], cost: Cost, step_size: int = 4
) -> list[Setting]:
    """Let a tuner choose for some windows, on a machine whose speed the cost describes."""
    used = []
    for each in windows:
        setting = tuner.choose(each, step_size)
        samples = sum(map(len, each))
        tuner.took(cost(setting) * samples, samples)
        used.append(setting)
    return used


def tuner(threads: int | str | None = None, limit: MemoryLimit | None = None) -> Tuner:
    return Tuner("auto", threads, limit or MemoryLimit())  # type: ignore[arg-type]


def by_size(costs: dict[int | None, float], otherwise: float = 9.0) -> Cost:
    return lambda setting: costs.get(setting.microbatch_size, otherwise)


@given(st.permutations([1.0, 0.96, 0.92, 0.88, 0.84]))
def test_the_fastest_size_is_kept_wherever_it_lies_on_a_gentle_slope(costs: list[float]) -> None:
    cost = by_size(dict(zip([None, 16, 32, 4, 2], costs, strict=True)))

    last = tuned(tuner(), [window(4)] * 200, cost)[-1]

    assert cost(last) == 0.84


def test_sizes_from_a_single_sample_to_the_whole_window_are_tried_while_they_pay() -> None:
    used = tuned(tuner(), [window(6)] * 200, lambda setting: 1.0, step_size=6)

    assert {setting.microbatch_size for setting in used} == {None, 16, 32, 48, 4, 2, 1}


def test_a_side_that_does_not_pay_twice_is_left() -> None:
    used = tuned(tuner(), [window(8)] * 200, by_size({None: 1.0}, otherwise=5.0), step_size=8)

    sizes = [setting.microbatch_size for setting in used]
    assert {*sizes} == {None, 16, 32, 4, 2}
    assert [sizes.count(size) for size in (16, 32, 4, 2)] == [3, 3, 3, 3]


def test_a_slow_moment_of_one_size_does_not_hide_a_larger_one() -> None:
    cost = by_size({None: 1.0, 16: 5.0, 32: 0.5, 64: 0.4})

    assert tuned(tuner(), [window(8)] * 200, cost, step_size=8)[-1].microbatch_size == 64


def test_small_windows_are_measured_some_at_a_time() -> None:
    seconds = 0.001
    cost = by_size({None: seconds / 32, 16: seconds / 64})

    used = tuned(tuner(), [window(4)] * 20, cost)

    assert [setting.microbatch_size for setting in used[:9]] == [16] * 6 + [None] * 3


def test_what_gains_less_than_the_noise_changes_nothing() -> None:
    cost = by_size({None: 1.0, 16: 0.98, 32: 0.99})

    assert tuned(tuner(), [window(4)] * 200, cost)[-1].microbatch_size is None


def test_a_machine_that_slows_down_for_everyone_misleads_nobody() -> None:
    seconds = iter([1.0] * 7 + [2.5] * 6 + [0.7] * 200)
    cost = by_size({None: 1.0, 16: 0.8, 32: 0.6})

    last = tuned(tuner(), [window(4)] * 200, lambda setting: cost(setting) * next(seconds))[-1]

    assert last.microbatch_size == 32


def test_another_step_size_and_shorter_inputs_are_searched_anew() -> None:
    one = tuner()
    cost = by_size({None: 1.0, 32: 0.5, 16: 0.7, 64: 0.4})
    settled = tuned(one, [window(4)] * 200, cost)[-1]

    longer = tuned(one, [window(8)] * 200, cost, step_size=8)[-1]
    shorter = tuned(one, [window(4, features=1)] * 200, by_size({None: 1.0}))[-1]

    assert (settled.microbatch_size, longer.microbatch_size) == (32, 64)
    assert shorter.microbatch_size is None
    assert tuned(one, [window(4)], cost) == [settled]


def test_a_short_last_window_is_run_but_not_measured() -> None:
    whole, short = window(4), window(1)
    cost = by_size({None: 1.0, 16: 0.7, 32: 0.5})

    mixed = tuned(tuner(), [each for _ in range(200) for each in (whole, short)], cost)
    plain = tuned(tuner(), [whole] * 200, cost)

    assert mixed[::2] == plain


def test_a_size_that_did_not_fit_is_not_tried_again() -> None:
    limit = MemoryLimit()
    one = tuner(limit=limit)
    used: list[int | None] = []
    for _ in range(200):
        setting = one.choose(window(4), 4)
        fits = limit.within(window(4), setting.microbatch_size)
        if (fits or 8) > 8:
            limit.lower(window(4), fits, "you tried to allocate 1 bytes")
            fits = limit.within(window(4), fits)
        used.append(setting.microbatch_size)
        one.took(32.0, 32)

    assert used.count(16) == 1
    assert 32 not in used
    assert used[-1] is None


@pytest.mark.parametrize(("cheapest", "expected"), [(1, 1), (2, 2), (4, 4)])
def test_threads_are_chosen_from_all_down_to_one(cheapest: int, expected: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        one = Tuner(None, "auto", MemoryLimit())
        cost = {cheapest: 0.8}
        used = tuned(one, [window(4)] * 200, lambda setting: cost.get(setting.threads, 0.9))
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)

    assert used[-1].threads == expected
    assert {setting.threads for setting in used} == {4, 2, 1}


@pytest.mark.parametrize(("four", "expected"), [(0.99, 1), (0.95, 4)])
def test_of_threads_that_are_as_fast_the_fewest_are_chosen(four: float, expected: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        used = tuned(
            Tuner(None, "auto", MemoryLimit()),
            [window(4)] * 200,
            lambda setting: four if setting.threads == 4 else 1.0,
        )
    finally:
        torch.set_num_threads(before)

    assert used[-1].threads == expected


def test_auto_trains_what_null_trains_and_says_what_it_tried(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "cadence.engine.autotune")
    data = cut(regression_pair(8 * 60), [8] * 60)
    models = []
    for microbatch_size in (None, "auto"):
        torch.manual_seed(0)
        model = nn.Linear(3, 1).double()
        optimizer = SGD(model.parameters(), lr=0.05)
        trainer = Trainer(model, optimizer, Regression(), 4, "cpu", microbatch_size=microbatch_size)
        trainer.fit(data, epochs=150)
        models.append(model)

    assert relative_error(weights(models[1]), weights(models[0])) < 1e-12
    tried, chosen = caplog.messages
    assert tried.startswith("auto: microbatch_size=null threads=")
    assert "microbatch_size=16 threads=" in tried
    assert chosen.startswith("auto: microbatch_size=")
    assert chosen.endswith(" is the fastest")


def test_training_leaves_the_number_of_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    model = nn.Linear(3, 1).double()
    seen = []

    class Looks(Regression):
        def items(self, batch: object) -> int:
            seen.append(torch.get_num_threads())
            return super().items(batch)  # type: ignore[arg-type]

    trainer = Trainer(model, SGD(model.parameters(), lr=0.05), Looks(), threads=before + 1)
    trainer.fit(cut(regression_pair(8), [4, 4]), epochs=1)

    assert set(seen) == {before + 1}
    assert torch.get_num_threads() == before


def test_the_first_window_of_a_fit_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[int] = []
    monkeypatch.setattr(Tuner, "took", lambda self, seconds, samples: told.append(samples))
    model = nn.Linear(3, 1).double()
    trainer = Trainer(
        model, SGD(model.parameters(), lr=0.1), Regression(), 1, "cpu", microbatch_size="auto"
    )

    for _ in range(2):
        trainer.fit(cut(regression_pair(9), [2, 3, 4]), epochs=2)

    assert told == [3, 4, 2, 3, 4] * 2


def test_inputs_of_two_lengths_in_turns_settle_each_on_its_own() -> None:
    long, short = window(4, features=9), window(4, features=7)
    one = tuner()
    cost = by_size({None: 1.0, 16: 0.8, 32: 0.6})

    used = tuned(one, [long, short] * 60, cost)

    assert {setting.microbatch_size for setting in used[-2:]} == {32}
    assert not one.is_searching


def test_a_size_that_some_windows_exceed_what_fits_by_does_not_keep_the_search_from_ending() -> (
    None
):
    limit = MemoryLimit()
    limit.lower(window(1, samples=32, features=7), None, "you tried to allocate 1 bytes")
    windows = [window(4, features=4), window(4, features=7)] * 200  # of one size, or nearly

    used = tuned(tuner(limit=limit), windows, by_size({None: 1.0, 16: 0.6}))

    assert used[-1].microbatch_size == 16
