"""Schedules: samples -> a factor on the learning rate."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR

from cadence.plan.schedule import constant, cosine, named_schedule

samples = st.floats(min_value=0, max_value=2000)


def test_a_constant_stays_at_one_after_a_straight_warm_up() -> None:
    assert [constant()(at) for at in (0.0, 1.0, 1e9)] == [1, 1, 1]
    assert [constant(warmup=100)(at) for at in (0.0, 25.0, 99.0, 100.0, 1e9)] == [
        0, 0.25, 0.99, 1, 1,
    ]  # fmt: skip


def test_a_cosine_by_hand() -> None:
    factor = cosine(horizon=100)

    # (1 + cos(pi t)) / 2 at t = 0, 1/4, 1/3, 1/2, 1, and after the end
    expected = [1, (1 + math.sqrt(0.5)) / 2, 0.75, 0.5, 0, 0]
    assert [factor(at) for at in (0.0, 25.0, 100 / 3, 50.0, 100.0, 150.0)] == pytest.approx(
        expected
    )


def test_a_cosine_falls_to_its_final_factor_from_the_end_of_the_warm_up() -> None:
    factor = cosine(horizon=120, warmup=20, final=0.1)

    # up to 1 at 20; half way down, at 70, the mean of 1 and 0.1; there at 120
    expected = [0, 0.5, 1, 0.55, 0.1, 0.1]
    assert [factor(at) for at in (0.0, 10.0, 20.0, 70.0, 120.0, 1e9)] == pytest.approx(expected)


def test_a_cosine_is_torchs() -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    torchs = CosineAnnealingLR(optimizer, T_max=50, eta_min=0.2)
    ours = cosine(horizon=50, final=0.2)

    for at in range(50):
        assert ours(float(at)) == pytest.approx(torchs.get_last_lr()[0], rel=1e-12)
        optimizer.step()
        torchs.step()


@given(samples, samples, samples, samples, st.floats(0, 1))
def test_a_cosine_rises_through_the_warm_up_then_falls_and_stays(
    one: float, other: float, end: float, warm: float, final: float
) -> None:
    horizon, warmup = int(end) + 1, int(warm)
    factor = cosine(horizon, warmup, final)
    early, late = sorted((one, other))

    assert 0 <= factor(late) <= 1
    if late < warmup:
        assert factor(early) <= factor(late)
    if early >= warmup:
        assert factor(early) >= factor(late) >= final - 1e-15
    if late >= max(horizon, warmup):
        assert factor(late) == pytest.approx(final, abs=1e-15)


def test_schedules_by_name() -> None:
    assert named_schedule("constant", None, warmup=10, final=0.0)(5.0) == 0.5
    assert named_schedule("cosine", 100, warmup=0, final=0.5)(50.0) == pytest.approx(0.75)


@pytest.mark.parametrize("final", [-0.1, 1.5, math.nan])
def test_a_cosine_that_ends_outside_of_0_to_1_is_refused(final: float) -> None:
    message = (
        f"schedule.final={final}: the factor at the end must be at least 0 and at most 1; try "
        "schedule.final=0"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        cosine(horizon=100, final=final)


def test_an_unknown_schedule_is_refused_with_the_choices() -> None:
    message = "schedule=cube: no such schedule; choose one of constant, cosine"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        named_schedule("cube", 100, warmup=0, final=0.0)


def test_a_cosine_without_an_end_is_refused() -> None:
    message = (
        "schedule=cosine: it must know where the run ends; set trainer.max_epochs or "
        "trainer.max_samples, or choose schedule=constant"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        named_schedule("cosine", None, warmup=0, final=0.0)
