"""Goodput: what a sample is worth, the best step_size in closed form, and the flat region."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadence.advise.goodput import best_step_size, efficiency, flat_region, goodput
from cadence.metrics.window_time_model import Line, Model, simple

LIMIT = 256

times = st.floats(0.01, 100)
noises = st.floats(0.1, 1e5)


def test_an_items_worth_by_hand() -> None:
    # twice the noise scale of 64 per update costs (64 + 128) / (64 + 64) = 1.5 times the items
    assert efficiency(64, 128, 64) == 1 / 1.5
    assert efficiency(64, 64, 64) == 1
    assert efficiency(0, 128, 32) == 1 / 4  # without noise every further item is wasted
    assert efficiency(math.inf, 128, 32) == 1


def test_the_best_step_size_by_hand() -> None:
    # sqrt(noise 128 / batch 32 * update 4 s / compute 1 s) = 4
    model = simple(4.0, 1.0, 32)

    assert best_step_size(model, 128, 32, LIMIT) == 4
    # goodput there: 4 * 32 / 8 samples/s, each worth (128 + 32) / (128 + 128)
    assert goodput(model, 128, 32, 4) == 16 * 160 / 256
    # 1 / goodput is proportional to 512 / k + (128 + 128) + 32 k, 512 at its least; up to
    # 512 / 0.95 = 538.9 are 32 k + 512 / k <= 282.9: k from 2.52 to 6.35
    assert flat_region(model, 128, 32, LIMIT) == (3, 6)


def test_the_best_step_size_stays_within_what_there_can_be() -> None:
    assert best_step_size(simple(4.0, 1.0, 32), 128, 32, 3) == 3
    assert best_step_size(simple(0.01, 1.0, 32), 128, 32, LIMIT) == 1
    assert best_step_size(simple(4.0, 1.0, 32), math.inf, 32, LIMIT) == LIMIT
    assert best_step_size(simple(4.0, 0.0, 32), 128, 32, LIMIT) == LIMIT


@given(times, times, noises, st.integers(1, 512))
def test_the_closed_form_is_the_best_of_the_grid(
    base: float, slope: float, noise: float, items: int
) -> None:
    model = simple(base, slope, items)

    best = goodput(model, noise, items, best_step_size(model, noise, items, LIMIT))

    every = [goodput(model, noise, items, size) for size in range(1, LIMIT + 1)]
    assert best == pytest.approx(max(every), rel=1e-12)


@given(times, times, times, st.integers(2, 40), noises)
def test_on_bent_lines_it_is_the_best_of_the_grid_too(
    base: float, steep: float, shallow: float, knot: int, noise: float
) -> None:
    at_knot = base + steep * knot
    after = Line(at_knot - shallow * knot, shallow)
    model = Model((Line(base, steep, float(knot)), after), base, 8)

    best = goodput(model, noise, 8, best_step_size(model, noise, 8, LIMIT))

    every = [goodput(model, noise, 8, size) for size in range(1, LIMIT + 1)]
    assert best == pytest.approx(max(every), rel=1e-12)


@given(times, times, noises)
def test_the_flat_region_is_what_the_grid_says(base: float, slope: float, noise: float) -> None:
    model = simple(base, slope, 8)
    every = {size: goodput(model, noise, 8, size) for size in range(1, LIMIT + 1)}

    low, high = flat_region(model, noise, 8, LIMIT)

    flat = [size for size, good in every.items() if good >= 0.95 * max(every.values())]
    assert (low, high) == (min(flat), max(flat))
