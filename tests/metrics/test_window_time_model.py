"""Throughput by step_size from the time of a few windows: by hand, and against made-up machines."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadence.metrics.window_time_model import (
    LEVEL,
    Line,
    Model,
    Turn,
    fit_model,
    forecast,
    median_turns,
    simple,
)

SIZES = (1, 2, 4, 8, 16, 32)

seconds = st.floats(1e-6, 10)


def test_the_throughput_by_hand() -> None:
    # 2 s of update and 1 s a mini-batch of 32: 3, 4 and 22 s for 32, 64 and 640 samples
    model = simple(2.0, 1.0, 32)

    assert model.throughput(1) == 32 / 3
    assert model.throughput(2) == 64 / 4
    assert model.throughput(20) == 640 / 22
    assert model.ceiling == 32
    assert model.update_share(2) == 2 / 4


def test_95_percent_of_the_ceiling_is_reached_at_19_times_the_updates_share() -> None:
    # k / (2 + k) = 19/20 at k = 38
    assert simple(2.0, 1.0, 32).reaching() == pytest.approx(38)
    assert simple(2.0, 1.0, 32).reaching(0.5) == pytest.approx(2)
    assert simple(0.001, 1.0, 32).reaching() == 1
    assert simple(0.0, 1.0, 32).reaching() == 1


@given(seconds, seconds, st.floats(0.05, 0.99))
def test_where_a_share_is_reached_the_throughput_is_that_share(
    base: float, slope: float, share: float
) -> None:
    model = simple(base, slope, 8)
    reached = model.reaching(share)

    assert reached >= 1
    if reached > 1:
        assert model.throughput(reached) == pytest.approx(share * model.ceiling)
    else:
        assert model.throughput(1) >= share * model.ceiling * (1 - 1e-9)


def test_bent_lines_reach_a_share_on_the_line_where_it_lies() -> None:
    # 3 k up to 4, from there 10 + k / 2: the ceiling is 8 / 0.5 = 16 samples/s, and half of it is
    # not at 4 (8 / 3) but where 8 k / (10 + k / 2) = 8, at k = 20
    model = Model((Line(0.0, 3.0, 4.0), Line(10.0, 0.5)), 0.0, 8)

    assert (model.seconds(4), model.seconds(6)) == (12, 13)
    assert model.ceiling == 16
    assert model.reaching(0.5) == pytest.approx(20)
    assert model.reaching(1 / 8) == 1


def test_where_larger_windows_cost_more_the_ceiling_is_the_highest_throughput() -> None:
    # k up to 4, from there 2 k - 4: 8 k / k = 8 samples/s up to 4, and 8 k / (2 k - 4) beyond,
    # which falls to 4; with an update of 1 s, 8 * 4 / 5 at 4 and 95 % of it at 8 k / (1 + k) = 6.08
    model = Model((Line(1.0, 1.0, 4.0), Line(-3.0, 2.0)), 1.0, 8)

    assert (model.throughput(4), model.throughput(1000)) == pytest.approx((6.4, 4.006), rel=1e-3)
    assert model.ceiling == pytest.approx(6.4)
    assert model.reaching() == pytest.approx(6.08 / 1.92)


@given(
    st.dictionaries(st.integers(1, 64), st.builds(Turn, seconds, seconds), min_size=1, max_size=5),
    st.floats(0.05, 0.99),
)
def test_no_step_size_exceeds_the_ceiling_and_none_below_reaches_its_share(
    measured: dict[int, Turn], share: float
) -> None:
    model = fit_model(measured, 32)
    reached = model.reaching(share)

    for size in range(1, 200):
        assert model.throughput(size) <= model.ceiling * (1 + 1e-9)
        if size < reached:
            assert model.throughput(size) <= share * model.ceiling * (1 + 1e-9)
    if math.isfinite(reached):
        beside = reached * (1 + 1e-9)  # where a line ends the next one may begin lower
        assert model.throughput(beside) >= share * model.ceiling * (1 - 1e-6)


def turns(once: float, passes: dict[int, float]) -> dict[int, Turn]:
    return {size: Turn(taken, once) for size, taken in passes.items()}


@given(seconds, seconds)
def test_mini_batches_of_one_price_are_found_again_from_any_step_sizes(
    once: float, each: float
) -> None:
    truth = simple(once, each, 32)
    for sizes in ((4,), (1, 4, 16), (2, 3, 5, 8)):
        found = fit_model(turns(once, {size: size * each for size in sizes}), 32)

        assert found.shape == "proportional"
        for size in SIZES:
            assert found.throughput(size) == pytest.approx(truth.throughput(size), rel=1e-9)
        assert found.update_share(2) == pytest.approx(truth.update_share(2))


def test_a_window_with_a_price_of_its_own_is_a_straight_line() -> None:
    """As where a window goes through in one pass: 3 s, and 1 s for each mini-batch."""
    found = fit_model(turns(2.0, {size: 3.0 + size for size in (1, 4, 16)}), 32)

    assert found.shape == "straight"
    assert found.lines == (pytest.approx((5.0, 1.0, math.inf)),)
    assert found.update_share(1) == pytest.approx(2 / 6)
    assert found.throughput(32) == pytest.approx(32 * 32 / 37)


def test_a_bent_machine_is_met_where_it_was_measured_and_between() -> None:
    """One pass a window up to 4 mini-batches, which costs less each; then two passes and more."""
    truth = {1: 2.0, 2: 2.2, 4: 2.6, 8: 5.2, 16: 10.4, 32: 20.8}

    found = fit_model(turns(1.0, {size: truth[size] for size in (1, 4, 16)}), 32)

    assert found.shape == "bent"
    for size in truth:
        assert found.seconds(size) == pytest.approx(1.0 + truth[size])


def test_an_update_that_takes_longer_in_larger_windows_is_no_error() -> None:
    measured = {1: Turn(1.0, 0.5), 4: Turn(4.0, 0.9), 16: Turn(16.0, 1.4)}

    found = fit_model(measured, 32)

    for size, turn in measured.items():
        assert found.seconds(size) == pytest.approx(turn.seconds, rel=0.03)
    assert found.update_share(1) == pytest.approx(0.5 / 1.5, rel=0.03)


def test_a_shape_is_too_simple_only_beyond_the_noise() -> None:
    measured = turns(0.0, {1: 1.0, 4: 4.0, 16: 17.6})

    assert fit_model(measured, 32).shape != "proportional"
    far = turns(0.0, {1: 1.0, 4: 4.0, 16: 22.0})
    assert fit_model(far, 32, noise=dict.fromkeys(far, 0.5)).shape != "proportional"
    found = fit_model(measured, 32, noise=dict.fromkeys(measured, 0.05))
    assert found.shape == "proportional"
    # the least squared relative errors: x = (1 + 1 + 1 / 1.1) / (1 + 1 + 1 / 1.1 ** 2)
    assert found.lines[0].slope == pytest.approx((2 + 1 / 1.1) / (2 + 1 / 1.21))


def test_time_never_falls_with_step_size() -> None:
    found = fit_model(turns(0.5, {1: 1.2, 4: 1.0, 16: 1.1}), 1)

    assert all(line.slope >= 0 for line in found.lines)
    flat = fit_model(turns(0.5, {1: 1.02, 16: 1.0}), 1)
    assert (flat.ceiling, flat.reaching()) == (math.inf, math.inf)


def test_below_the_smallest_a_mini_batch_costs_no_less_than_nothing() -> None:
    # passes of 0.5, 0.52 and 9 s: the line through the last two is at -50 s at step_size 1, that
    # from nothing to the first at 0.5 / 8
    found = fit_model(turns(0.1, {8: 0.5, 9: 0.52, 10: 9.0}), 1)
    steep = fit_model(turns(0.1, {8: 0.5, 9: 9.0, 10: 9.1}), 1)

    assert found.shape == steep.shape == "bent"
    assert found.seconds(1) == pytest.approx(0.1 + 0.36)  # 0.34 s of its own, and 0.02 s for each
    assert steep.seconds(1) == pytest.approx(0.1 + 0.5 / 8)
    assert (steep.seconds(8), steep.seconds(9)) == pytest.approx((0.6, 9.1))


@given(
    st.dictionaries(
        st.integers(1, 10**5),
        st.builds(Turn, st.floats(1e-6, 1e3), st.floats(0, 1e3)),
        min_size=1,
        max_size=5,
    )
)
def test_every_window_takes_some_time_whatever_was_measured(measured: dict[int, Turn]) -> None:
    found = fit_model(measured, 32)

    for size in {*measured, *SIZES, 10**5}:
        assert 0 <= found.once <= found.seconds(size) < math.inf
        assert 0 < found.throughput(size) < math.inf


def test_the_median_turn_stands_for_all() -> None:
    rounds = [turns(1.0, {1: 5.0}), turns(3.0, {1: 9.0}), turns(8.0, {1: 6.0})]

    # 6, 12 and 14 s, so 12 in all; the parts' medians, 6 and 3, are 2 to 1
    assert median_turns(rounds) == {1: pytest.approx((8.0, 4.0))}


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Rounds of a machine that differ by 3 %, with turns that differ by 2 % more."""
    truth = simple(0.5, 1.0, 32)
    held = 0
    for seed in range(100):
        random = np.random.default_rng(seed)
        rounds = []
        for _ in range(8):
            slow = random.normal(1, 0.03)
            rounds.append(
                {
                    size: Turn(
                        size * slow * random.normal(1, 0.02), 0.5 * slow * random.normal(1, 0.02)
                    )
                    for size in (1, 4, 16)
                }
            )
        _, low, high = forecast(rounds, 32).estimate(lambda model: model.throughput(32))
        held += low <= truth.throughput(32) <= high

    assert held >= 100 * (LEVEL - 0.1)


def test_one_turn_that_was_held_up_hides_no_bend() -> None:
    rounds = [turns(0.5, {size: 0.2 + size for size in (1, 4, 16)}) for _ in range(6)]
    rounds[3] = turns(0.5, {1: 20.0, 4: 50.0, 16: 170.0})

    assert forecast(rounds, 32).model.shape == "straight"


def test_without_noise_the_interval_is_a_point() -> None:
    rounds = [turns(0.5, {size: float(size) for size in (1, 4, 16)})] * 3

    found = forecast(rounds, 32).estimate(lambda model: model.ceiling)

    assert found == pytest.approx((32, 32, 32))
