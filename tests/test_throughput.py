"""Throughput by step_size from the time of a few windows: by hand, and against made-up machines."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadence.throughput import LEVEL, Line, Model, fitted, forecast, medians, straight

SIZES = (1, 2, 4, 8, 16, 32)

seconds = st.floats(1e-6, 10)


def test_the_throughput_by_hand() -> None:
    # 2 s of update and 1 s a mini-batch of 32: 3, 4 and 22 s for 32, 64 and 640 samples
    model = straight(2.0, 1.0, 32)

    assert model.throughput(1) == 32 / 3
    assert model.throughput(2) == 64 / 4
    assert model.throughput(20) == 640 / 22
    assert model.ceiling == 32
    assert model.update_share(2) == 2 / 4


def test_95_percent_of_the_ceiling_is_reached_at_19_times_the_updates_share() -> None:
    # k / (2 + k) = 19/20 at k = 38
    assert straight(2.0, 1.0, 32).reaching() == pytest.approx(38)
    assert straight(2.0, 1.0, 32).reaching(0.5) == pytest.approx(2)
    assert straight(0.001, 1.0, 32).reaching() == 1
    assert straight(0.0, 1.0, 32).reaching() == 1


@given(seconds, seconds, st.floats(0.05, 0.99))
def test_where_a_share_is_reached_the_throughput_is_that_share(
    base: float, slope: float, share: float
) -> None:
    model = straight(base, slope, 8)
    reached = model.reaching(share)

    assert reached >= 1
    if reached > 1:
        assert model.throughput(reached) == pytest.approx(share * model.ceiling)
    else:
        assert model.throughput(1) >= share * model.ceiling * (1 - 1e-9)


def test_bent_lines_reach_a_share_on_the_line_where_it_lies() -> None:
    # 3 k up to 4, from there 10 + k / 2: the ceiling is 8 / 0.5 = 16 samples/s, and half of it is
    # not at 4 (8 / 3) but where 8 k / (10 + k / 2) = 8, at k = 20
    model = Model((Line(0.0, 3.0, 4.0), Line(10.0, 0.5)), 8)

    assert (model.seconds(4), model.seconds(6)) == (12, 13)
    assert model.ceiling == 16
    assert model.reaching(0.5) == pytest.approx(20)
    assert model.reaching(1 / 8) == 1


@given(seconds, seconds)
def test_a_straight_line_is_found_again_from_two_step_sizes_or_more(
    base: float, slope: float
) -> None:
    truth = straight(base, slope, 32)
    for sizes in ((1, 4), (1, 4, 16), (2, 3, 5, 8)):
        found = fitted({size: truth.seconds(size) for size in sizes}, 32)

        for size in SIZES:
            assert found.throughput(size) == pytest.approx(truth.throughput(size), rel=1e-6)


def test_every_step_size_counts_by_its_relative_error() -> None:
    """Two measured values a tenth too long and one as much too short move all by a few percent."""
    truth = straight(1.0, 1.0, 32)
    found = fitted({1: 1.02 * 2, 4: 0.98 * 5, 16: 1.02 * 17}, 32)

    assert len(found.lines) == 1
    for size in SIZES:
        assert found.throughput(size) == pytest.approx(truth.throughput(size), rel=0.03)


def test_neither_part_of_a_line_is_below_0() -> None:
    assert fitted({1: 1.0, 4: 4.1}, 1, may_bend=False).lines[0].base == 0
    flat = fitted({1: 1.01, 4: 1.0}, 1, may_bend=False)
    assert flat.lines[0].slope == 0
    assert flat.ceiling == math.inf
    assert flat.reaching() == math.inf


def test_a_bent_machine_is_met_where_it_was_measured_and_between() -> None:
    """One pass a window up to 4 mini-batches, which costs less each; then two passes and more."""
    truth = {1: 2.0, 2: 2.2, 4: 2.6, 8: 5.2, 16: 10.4, 32: 20.8}

    found = fitted({size: truth[size] for size in (1, 4, 16)}, 32)

    assert len(found.lines) == 2
    for size in (1, 2, 4, 16, 32):
        assert found.seconds(size) == pytest.approx(truth[size])
    straight_line = fitted({size: truth[size] for size in (1, 4, 16)}, 32, may_bend=False)
    assert abs(straight_line.seconds(4) / truth[4] - 1) > 0.1


def test_the_median_stands_for_the_windows_of_all_rounds() -> None:
    assert medians([{1: [1.0, 9.0], 4: [2.0]}, {1: [3.0], 4: [4.0]}]) == {1: 3.0, 4: 3.0}


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Windows of a machine whose rounds differ by 3 %, and whose windows by 2 % more."""
    truth = straight(0.5, 1.0, 32)
    held = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        rounds = []
        for _ in range(6):
            slow = random.normal(1, 0.03)
            rounds.append(
                {
                    size: [
                        truth.seconds(size) * slow * (1 + 0.02 * random.standard_normal())
                        for _ in range(4)
                    ]
                    for size in (1, 4, 16)
                }
            )
        low_high = forecast(rounds, 32).estimate(lambda model: model.throughput(32))[1:]
        held += low_high[0] <= truth.throughput(32) <= low_high[1]

    assert held >= 40 * (LEVEL - 0.15)


def test_without_noise_the_interval_is_a_point() -> None:
    truth = straight(0.5, 1.0, 32)
    rounds = [{size: [truth.seconds(size)] * 3 for size in (1, 4, 16)}] * 3

    found = forecast(rounds, 32).estimate(lambda model: model.ceiling)

    assert found == pytest.approx((32, 32, 32))
