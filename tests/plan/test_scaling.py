"""How the learning rate follows the effective batch."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cadence.cli.build import Run, build
from cadence.cli.compose import composed
from cadence.config.checks import checked
from cadence.plan.scaling import scaled

ADAM = {"lr": 0.01, "betas": [0.9, 0.99], "weight_decay": 0.1}


@pytest.mark.parametrize(
    ("rule", "lr", "beta2"),
    [
        ("none", 0.01, 0.99),
        ("sqrt", 0.02, 0.96059601),  # lr * sqrt(4), 0.99^4
        ("linear", 0.04, 0.96059601),  # lr * 4
    ],
)
def test_four_times_the_reference_batch_by_hand(rule: str, lr: float, beta2: float) -> None:
    assert scaled(ADAM, rule, effective_batch=256.0, reference=64.0) == {
        "lr": pytest.approx(lr, rel=1e-12),
        "betas": [0.9, pytest.approx(beta2, rel=1e-12)],
        "weight_decay": 0.1,
    }


@pytest.mark.parametrize(("rule", "lr"), [("sqrt", 0.005), ("linear", 0.0025)])
def test_a_quarter_of_the_reference_batch_by_hand(rule: str, lr: float) -> None:
    arguments = scaled({"lr": 0.01}, rule, effective_batch=16.0, reference=64.0)

    assert arguments == {"lr": pytest.approx(lr, rel=1e-12)}


@pytest.mark.parametrize("rule", ["none", "sqrt", "linear"])
def test_at_the_reference_batch_nothing_changes(rule: str) -> None:
    assert scaled(ADAM, rule, effective_batch=64.0, reference=64.0) == ADAM


@pytest.mark.parametrize("rule", ["sqrt", "linear"])
@given(st.floats(0.01, 100), st.floats(0.5, 0.9999))
def test_the_second_moment_keeps_its_half_life_in_items(
    rule: str, ratio: float, beta2: float
) -> None:
    """After so many items as make an update of the reference batch it has decayed as much."""
    found = scaled({"betas": (0.9, beta2)}, rule, effective_batch=64 * ratio, reference=64.0)

    assert found["betas"][1] ** (1 / ratio) == pytest.approx(beta2, rel=1e-9)


def test_an_unknown_rule_is_refused_with_the_choices() -> None:
    with pytest.raises(
        ValueError, match=r"^scaling=cube: no such rule; choose one of none, sqrt, linear$"
    ):
        scaled(ADAM, "cube", effective_batch=64.0, reference=64.0)


def test_the_callers_arguments_stay_as_they_are() -> None:
    before = {"lr": 0.01, "betas": [0.9, 0.99]}

    scaled(before, "linear", effective_batch=256.0, reference=64.0)["betas"].append(0)

    assert before == {"lr": 0.01, "betas": [0.9, 0.99]}


def built(*overrides: str) -> tuple[int, Run]:
    """A run on the 1,437 digits in mini-batches of 500, and its effective batch."""
    settings = checked(composed(["data.batch_size=500", "scaling=sqrt", *overrides]))
    run = build(settings)
    return run.effective_batch(run.trainer.step_size), run


@pytest.mark.parametrize(
    ("overrides", "items", "ratio"),
    [
        (["trainer.step_size=1"], 500, 0.5),
        (["trainer.step_size=3"], 1437, 1.437),
        (["trainer.step_size=1000"], 1437, 1.437),
        (["trainer.step_size=1000", "data.batch_size=1000"], 1437, 1.0),  # two hold an epoch
    ],
)
def test_no_effective_batch_is_larger_than_an_epoch(
    overrides: list[str], items: int, ratio: float
) -> None:
    found, run = built(*overrides)

    assert found == items
    (group,) = run.trainer.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.001 * math.sqrt(ratio), rel=1e-12)
