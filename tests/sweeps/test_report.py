"""A sweep's report: what is compared, what is worth choosing, and how that is told."""

import csv
import dataclasses
import errno
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from cadence.sweeps import figures as pareto
from cadence.sweeps import knee as knees
from cadence.sweeps.knee import compare, gain, knee, sentence, versus, warnings_of_noise
from cadence.sweeps.pareto_front import Measure, PointResult, front, number, results
from cadence.sweeps.prediction import predictions, where_they_part
from cadence.sweeps.report import Report, load, write_report
from cadence.sweeps.trials import read

DISTRIBUTIONS: dict[str, BaseDistribution] = {
    "trainer.step_size": IntDistribution(1, 64),
    "optimizer.lr": FloatDistribution(1e-5, 1.0),
    "data.batch_size": CategoricalDistribution((16, 64)),
}


TURN = {
    "time_samples": 64,
    **{f"time_{part}_ms": 1.0 for part in ("data", "compute", "sync", "update")},
}


@pytest.fixture(autouse=True)
def _quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def trial(
    step_size: int | None = None,
    val_loss: float = 1.0,
    speed: float = 1000.0,
    /,
    *,
    state: TrialState = TrialState.COMPLETE,
    params: Mapping[str, Any] | None = None,
    **attributes: Any,
) -> FrozenTrial:
    searched = {} if step_size is None else {"trainer.step_size": step_size}
    searched |= params or {}
    return create_trial(
        state=state,
        values=[val_loss, speed] if state == TrialState.COMPLETE else None,
        params=searched,
        distributions={key: DISTRIBUTIONS[key] for key in searched},
        user_attrs=attributes,
    )


def study_of(*trials: FrozenTrial, name: str = "digits", **question: Any) -> optuna.Study:
    study = optuna.create_study(study_name=name, directions=["minimize", "maximize"])
    if question:
        study.set_user_attr("question", question)
    study.add_trials(trials)
    return study


def result(
    step_size: int | None,
    val_loss: float | tuple[float, float, float],
    speed: float | tuple[float, float, float],
    **params: Any,
) -> PointResult:
    """A point; a tuple is (value, low, high)."""
    searched = {} if step_size is None else {"trainer.step_size": step_size}
    measures = [
        Measure(*value) if isinstance(value, tuple) else Measure(value, value, value)
        for value in (val_loss, speed)
    ]
    return PointResult(
        params=searched | params,
        step_size=step_size,
        trials=(0,),
        val_loss=measures[0],
        throughput=measures[1],
        updates=None,
        effective_batch=None,
        peak_memory_mib=None,
        seconds=None,
    )


def told(*results: PointResult) -> str:
    return sentence(compare(results))


# What is compared


def test_replicates_are_averaged_by_hand() -> None:
    study = study_of(
        trial(4, 0.30, 900.0, updates=10, peak_memory_mib=20.0, samples_per_second_p10=1.0),
        trial(1, 0.20, 500.0, samples_per_second_p10=450.0, samples_per_second_p90=520.0),
        trial(4, 0.36, 1200.0, updates=10, peak_memory_mib=23.0),
        trial(4, 0.33, 1050.0, updates=10, seconds=2.5),
    )

    one, four = results(read(study))

    assert (one.step_size, one.trials) == (1, (1,))
    assert one.val_loss == Measure(0.20, 0.20, 0.20)
    assert one.throughput == Measure(500.0, 450.0, 520.0)  # a trial's own windows
    assert (four.step_size, four.trials) == (4, (0, 2, 3))
    assert four.val_loss.value == pytest.approx(0.33)
    assert (four.val_loss.low, four.val_loss.high) == (0.30, 0.36)
    assert four.throughput == Measure(1050.0, 900.0, 1200.0)  # between the trials
    assert (four.updates, four.peak_memory_mib, four.seconds) == (10, 21.5, 2.5)
    assert four.effective_batch is None


def test_points_differ_by_any_searched_key() -> None:
    study = study_of(
        trial(2, 0.5, 10, params={"optimizer.lr": 0.1}),
        trial(2, 0.4, 10, params={"optimizer.lr": 0.01}),
        trial(2, 0.3, 10, params={"optimizer.lr": 0.1}),
    )

    assert [point.trials for point in results(read(study))] == [(0, 2), (1,)]


@pytest.mark.parametrize(
    ("attributes", "spread"),
    [
        ({}, (100.0, 100.0)),
        ({"samples_per_second_p10": 90.0}, (90.0, 100.0)),
        ({"samples_per_second_p10": math.nan, "samples_per_second_p90": 110.0}, (100.0, 110.0)),
        ({"samples_per_second_p10": None, "samples_per_second_p90": None}, (100.0, 100.0)),
        ({"samples_per_second_p10": 101.0}, (100.0, 101.0)),  # never an end on the wrong side
    ],
)
def test_a_spread_may_be_missing(attributes: dict[str, Any], spread: tuple[float, float]) -> None:
    (found,) = results(read(study_of(trial(2, 0.5, 100.0, **attributes))))

    assert (found.throughput.low, found.throughput.high) == spread


@pytest.mark.parametrize(
    ("of_trial", "fixed", "step_size"),
    [
        (trial(4, step_size=8), {"trainer.step_size": 2}, 8),
        (trial(4), {"trainer.step_size": 2}, 4),
        (trial(None), {"trainer.step_size": 2}, 2),
        (trial(None), {}, None),
    ],
)
def test_the_step_size_is_found_where_it_is_told(
    of_trial: FrozenTrial, fixed: dict[str, Any], step_size: int | None
) -> None:
    study = study_of(of_trial, space={}, directions=[], fixed=fixed)

    assert results(read(study))[0].step_size == step_size


def test_only_trials_with_numbers_to_compare_take_part() -> None:
    study = study_of(
        trial(1, math.inf, 10.0),
        trial(1, 0.5, 0.0),
        trial(1, 0.5, math.inf),
        trial(2, 0.5, 10.0),
        trial(4, state=TrialState.FAIL, reason="diverged"),
        trial(4, state=TrialState.FAIL),
        trial(8, state=TrialState.FAIL, abandoned=True),
        trial(16, state=TrialState.RUNNING),
        trial(None, state=TrialState.WAITING),
    )

    ledger = read(study)

    assert [point.trials for point in results(ledger)] == [(3,)]
    assert [tuple(failure) for failure in ledger.failures()] == [
        (0, "trainer.step_size 1", "nothing to compare: val_loss inf, samples_per_second 10.0"),
        (1, "trainer.step_size 1", "nothing to compare: val_loss 0.5, samples_per_second 0.0"),
        (2, "trainer.step_size 1", "nothing to compare: val_loss 0.5, samples_per_second inf"),
        (4, "trainer.step_size 4", "diverged"),
        (5, "trainer.step_size 4", "no reason was kept"),
    ]
    assert ledger.open() == 2


def test_another_question_is_refused() -> None:
    study = optuna.create_study(study_name="odd", directions=["maximize", "maximize"])

    with pytest.raises(ValueError, match=r"study odd: its directions are maximize, maximize; a"):
        read(study)


# The front


def test_the_front_by_hand() -> None:
    slow, middle, fast = result(1, 0.1, 100), result(2, 0.2, 200), result(4, 0.3, 300)
    worse, equal_speed, equal_loss = result(8, 0.25, 150), result(16, 0.4, 300), result(32, 0.1, 90)

    found = front([equal_loss, fast, worse, middle, equal_speed, slow])

    assert found == [slow, middle, fast]
    assert front([]) == []
    assert front([slow, dataclasses.replace(slow, trials=(7,))]) == [
        dataclasses.replace(slow, trials=(7,)),
        slow,
    ]  # neither dominates the other


points = st.lists(
    st.tuples(st.integers(1, 64), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12
)


def dominates(one: PointResult, other: PointResult) -> bool:
    gains = (
        other.val_loss.value - one.val_loss.value,
        one.throughput.value - other.throughput.value,
    )
    return min(gains) >= 0 and max(gains) > 0


@given(points)
def test_no_front_point_is_dominated_and_every_other_one_is(
    points: list[tuple[int, int, int]],
) -> None:
    results = [result(*point) for point in points]
    found = front(results)

    on_front = {id(point) for point in found}
    assert len(on_front) == len(found)
    for point in results:
        is_dominated = any(dominates(other, point) for other in results)
        assert is_dominated == (id(point) not in on_front)
    speeds = [point.throughput.value for point in found]
    losses = [point.val_loss.value for point in found]
    assert speeds == sorted(speeds)
    assert losses == sorted(losses)


# The knee


def test_the_knee_by_hand() -> None:
    # log throughput scaled to 0, 1/3, 2/3, 1 and loss to 0, 0.1, 0.2, 1: the differences are
    # 0, 0.233, 0.467, 0
    found = [result(1, 1.0, 1000), result(2, 1.1, 2000), result(4, 1.2, 4000), result(8, 2.0, 8000)]

    assert knee(found).step_size == 4
    assert knees._below_chord(found[1], found[0], found[3]) == pytest.approx(1 / 3 - 0.1)
    assert knees._below_chord(found[2], found[0], found[3]) == pytest.approx(2 / 3 - 0.2)


def test_the_knee_of_a_small_or_bulging_front() -> None:
    slow = result(1, 1.0, 1000)
    pays, costs = result(8, 1.14, 2000), result(8, 1.16, 2000)  # 2 ** 0.2 = 1.149
    above_chord = result(2, 1.1, 1200)

    assert knee([slow]) is slow
    assert knee([slow, pays]) is pays
    assert knee([slow, costs]) is slow
    assert knee([slow, above_chord, pays]) is pays
    assert knee([slow, slow]) is slow  # twins


def test_gain_by_hand() -> None:
    baseline = result(1, 0.5, 1000)

    assert gain(result(2, 0.5, 32_000), baseline) == 2  # 32 ** 0.2
    assert gain(result(2, 1.0, 32_000), baseline) == 1
    assert gain(result(2, 0.25, 1000), baseline) == 2
    assert gain(result(2, 0.25, (900, 800, 1000)), baseline) == 2  # as fast, within the spread
    assert gain(result(2, (0.6, 0.4, 0.7), 32_000), baseline) == 2  # as low, within the spread


def test_a_loss_below_zero_has_no_ratio() -> None:
    baseline = result(1, -0.5, 1000)

    assert gain(result(2, -0.6, 900), baseline) == math.inf
    assert gain(result(2, -0.4, 9000), baseline) == 0
    assert gain(result(2, -0.5, 32_000), baseline) == 2
    assert told(baseline, result(2, -0.6, 2000)) == (
        "step_size 2: 2.0x the throughput of 1 at -0.1 loss"
    )


def test_the_baseline_is_1_else_the_default_else_the_smallest() -> None:
    one, worse_one = result(1, 0.5, 10, lr=0.1), result(1, 0.6, 10, lr=0.2)
    two, four, unknown = result(2, 0.4, 10), result(4, 0.3, 10), result(None, 0.1, 10)

    assert compare([unknown, four, two, worse_one, one]).baseline is one
    assert compare([unknown, four, two]).baseline is two
    assert compare([unknown, result(8, 0.2, 10), four]).baseline is four
    assert compare([unknown]).baseline is unknown


@given(points)
def test_the_knee_beats_the_baseline_wherever_anything_does(
    points: list[tuple[int, int, int]],
) -> None:
    results = [result(*point) for point in points]
    comparison = compare(results)

    beating = [point for point in results if gain(point, comparison.baseline) > 1]
    if comparison.knee is comparison.baseline:
        # nothing beats it, or it lies itself between points that do, one slower and one faster
        speeds = [point.throughput.value for point in beating]
        speed = comparison.baseline.throughput.value
        assert not beating or min(speeds) < speed < max(speeds)
    else:
        assert any(comparison.knee is point for point in beating)
    assert sentence(comparison)


def test_a_diverged_point_does_not_move_the_knee() -> None:
    healthy = [result(1, 0.10, 1000), result(2, 0.101, 1900), result(8, 0.11, 2500)]

    assert compare(healthy).knee.step_size == 2
    assert compare([*healthy, result(64, 90.0, 2600)]).knee.step_size == 2


# The sentence


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (
            [result(2, 0.5, 1000), result(8, 0.502, 2100)],
            "step_size 8: 2.1x the throughput of 2 at +0.4 % loss",
        ),
        (
            [result(1, 0.5, 1000), result(32, 0.6, 12_400)],
            "step_size 32: 12x the throughput of 1 at +20 % loss",
        ),
        (
            [result(1, 0.5, 1000), result(2, 0.5, 1050)],
            "step_size 2: 1.05x the throughput of 1 at the same loss",
        ),
        (
            [result(1, 0.5, 1000), result(2, 0.4, 909)],
            "step_size 2: 0.91x the throughput of 1 at -20 % loss",
        ),
        (
            [result(1, 0.5, (1000, 900, 1100)), result(2, 0.49, 980)],
            "step_size 2: the throughput of 1 (within the spread) at -2.0 % loss",
        ),
        (
            [result(1, (0.5, 0.4, 0.6), 1000), result(2, (0.51, 0.4, 0.6), 3000)],
            "step_size 2: 3.0x the throughput of 1 at the same loss (within the spread)",
        ),
        (
            [result(1, 0.5, 1000), result(2, 0.50001, 3000)],
            "step_size 2: 3.0x the throughput of 1 at +0.002 % loss",
        ),
        ([result(4, 0.5, 1000)], "step_size 4 is the only point: nothing to compare it with"),
        ([result(None, 0.5, 1000)], "trial 0 is the only point: nothing to compare it with"),
    ],
)
def test_the_answer(results: list[PointResult], said: str) -> None:
    assert told(*results) == said


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (
            [result(1, 0.5, 1000), result(2, 0.5, 1000), result(4, 0.6, 900)],
            "do not accumulate: no larger step_size is faster than 1 beyond the spread, and none "
            "has a lower loss",
        ),
        (
            [result(1, 0.5, (1000, 900, 1100)), result(2, 0.5, 1090), result(4, 0.6, 1050)],
            "do not accumulate: no larger step_size is faster than 1 beyond the spread, and none "
            "has a lower loss",
        ),
        (
            [result(1, 0.5, 1000), result(2, 0.8, 1500), result(4, 0.9, 1600)],
            "do not accumulate: a larger step_size is faster only at a loss that outweighs it; "
            "the best of the larger, step_size 2, has 1.5x the throughput of 1 at +60 % loss",
        ),
        (
            [result(1, 0.5, 1000), result(2, 0.45, 500)],
            "do not accumulate: a larger step_size has a lower loss only at a throughput that "
            "outweighs it; the best of the larger, step_size 2, has 0.50x the throughput of 1 at "
            "-10 % loss",
        ),
        (
            # exp(-0.45) ** 0.2 / 0.9 = 1.015 and exp(2) ** 0.2 / 1.48 = 1.008 both beat it, and
            # 0.45 / 2.45 > 0.1 / 0.58: it lies between them, below the chord
            [result(2, 0.09, 637.6), result(1, 0.1, 1000), result(4, 0.148, 7389)],
            "do not accumulate: step_size 1 is the knee itself; the best of the larger, "
            "step_size 2, has 0.64x the throughput of 1 at -10 % loss",
        ),
        (
            [result(2, 0.5, 1000), result(4, 0.6, 900)],
            "keep step_size 2 (1 was not run): no larger step_size is faster than 2 beyond the "
            "spread, and none has a lower loss",
        ),
    ],
)
def test_do_not_accumulate(results: list[PointResult], said: str) -> None:
    assert told(*results) == said


def test_with_other_keys_the_sentence_names_the_whole_point() -> None:
    one, faster_one = result(1, 0.5, 1000, lr=0.01), result(1, 0.5, 2000, lr=0.02)
    four, slow_four = result(4, 0.6, 3000, lr=0.03), result(4, 0.9, 900, lr=0.123456)

    assert told(one, four) == (
        "step_size 4, lr 0.03: 3.0x the throughput of step_size 1, lr 0.01 at +20 % loss"
    )
    assert told(one, slow_four) == (
        "do not accumulate: no larger step_size is faster than step_size 1, lr 0.01 beyond the "
        "spread, and none has a lower loss"
    )
    assert told(one, faster_one, slow_four) == told(faster_one, slow_four)
    assert told(one, result(1, 0.51, 2000, lr=0.02), slow_four) == (
        "do not accumulate: step_size 1, lr 0.02: 2.0x the throughput of step_size 1, lr 0.01 at "
        "+2.0 % loss"
    )
    assert told(one, result(1, 0.6, 900, lr=0.02)) == (
        "step_size 1, lr 0.01: nothing else that was run beats it"
    )
    assert slow_four.name == "step_size 4, lr 0.1235"


# Noise


@pytest.mark.parametrize(
    ("one", "other", "apart"),
    [
        ((10, 9, 11), (12, 11.5, 13), True),
        ((10, 9, 12), (12, 11.5, 13), False),
        ((10, 9, 11), (12, 10, 13), False),
        ((10, 10, 10), (12, 12, 12), True),
        ((10, 10, 10), (10, 10, 10), False),
    ],
)
def test_what_can_be_told_apart(
    one: tuple[float, float, float], other: tuple[float, float, float], apart: bool
) -> None:
    assert Measure(*one).apart(Measure(*other)) == Measure(*other).apart(Measure(*one)) == apart
    assert Measure(*other).above(Measure(*one)) == apart
    assert not Measure(*one).above(Measure(*other))


def test_a_noisy_machine_is_warned_of() -> None:
    slow = result(1, 0.5, 100)
    calm = [slow, result(4, 0.6, (1000, 990, 1010)), result(8, 0.7, (1100, 1090, 1110))]
    noisy = [slow, result(4, 0.6, (1000, 800, 1150)), result(8, 0.7, (1100, 900, 1300))]

    assert warnings_of_noise(calm) == []
    assert warnings_of_noise(noisy) == [
        "the two fastest cannot be told apart: step_size 8 with 1,100 (900 to 1,300) samples/s, "
        "step_size 4 with 1,000 (800 to 1,150) samples/s; leave the machine to the sweep alone, "
        "or ask for repeats (sweep.repeats=3)"
    ]


def test_losses_that_replicates_leave_open_are_warned_of() -> None:
    found = [result(1, (0.50, 0.45, 0.55), 100), result(2, (0.52, 0.49, 0.56), 200)]

    assert warnings_of_noise(found) == [
        "the two lowest losses cannot be told apart: step_size 1 with 0.5000 (0.4500 to 0.5500), "
        "step_size 2 with 0.5200 (0.4900 to 0.5600); ask for more repeats (sweep.repeats)"
    ]
    assert warnings_of_noise([result(1, 0.5, 100), result(2, 0.5, 100)]) == []  # equal, no noise


def test_points_of_one_step_size_are_no_rivals() -> None:
    by_lr = [result(1, 0.5, (100, 50, 150), lr=0.1), result(1, 0.4, (100, 50, 150), lr=0.2)]

    assert warnings_of_noise(by_lr) == []
    assert warnings_of_noise([*by_lr, result(2, 0.6, (300, 290, 310))]) == []


def test_a_throughput_of_too_few_windows_differs_from_no_other(tmp_path: Path) -> None:
    study = study_of(
        trial(1, 0.5, 1000.0, updates=100, updates_skipped=0, **TURN),
        trial(2, 0.5, 1500.0, updates=50, updates_skipped=0, **TURN),
        trial(32, 0.5, 9000.0, updates=3, updates_skipped=1, samples_per_second_p10=1.0, **TURN),
        trial(64, 0.5, 400.0, updates=1, **TURN),
        fixed={"seed": 0},
    )
    one, two, cold, colder = results(read(study))

    assert two.throughput.above(one.throughput)
    assert not any(point.throughput.apart(one.throughput) for point in (cold, colder))
    assert gain(cold, one) == gain(colder, one) == 1
    assert cold.window is None
    assert str(cold.throughput) == "9,000 (too few windows)"
    assert versus(cold, one) == ("the throughput of 1 (too few windows to tell) at the same loss")
    report = write_report(study, tmp_path)
    assert report.sentence == "step_size 2: 1.5x the throughput of 1 at the same loss"
    assert report.warnings == (
        "step_size 32; step_size 64: fewer than 5 windows, of which the first are slow, tell no "
        "throughput, so it counts for nothing here; train on more samples (trainer.max_samples, "
        "trainer.max_epochs or trainer.max_seconds)",
    )


def test_replicates_are_as_cold_as_the_coldest_of_them() -> None:
    enough = trial(2, updates=5, updates_skipped=0)
    warm, cold = (
        results(read(study_of(enough, trial(2, updates=updates, updates_skipped=0))))[0]
        for updates in (5, 4)
    )

    assert warm.throughput.is_measured
    assert not cold.throughput.is_measured


def test_step_sizes_beyond_an_epoch_are_said_to_be_one_training(tmp_path: Path) -> None:
    sizes = {2: 128, 4: 256, 8: 300, 16: 300, 32: 300}
    study = study_of(*(trial(k, effective_batch=items) for k, items in sizes.items()))

    assert write_report(study, tmp_path).warnings == (
        "step_size 8, 16, 32 are the same training: a window ends with its epoch, and these hold a "
        "whole one (300 items); search below",
    )


def test_a_schedule_is_named_by_its_own_text(tmp_path: Path) -> None:
    study = study_of(
        trial(None, 0.5, 100.0, step_size=4, effective_batch=64),
        fixed={"trainer.step_size": "{0: 2, 500: 4}"},
    )

    report = write_report(study, tmp_path)

    assert report.table.rows[0][0] == "{0: 2, 500: 4}"
    assert "`'trainer.step_size={0: 2, 500: 4}'`" in (tmp_path / "report.md").read_text()


def test_schedules_that_end_alike_are_told_apart() -> None:
    space: dict[str, BaseDistribution] = {
        "trainer.step_size": CategoricalDistribution((8, "{0:2,500:8}", "{0:4,500:8}"))
    }
    study = study_of()
    for step_size in (8, "{0:2,500:8}", "{0:4,500:8}"):
        study.add_trial(
            create_trial(
                values=[0.5, 100.0],
                params={"trainer.step_size": step_size},
                distributions=space,
                user_attrs={"summary": {"step_size": 8, "effective_batch": 64}},
            )
        )

    found = results(read(study))

    assert [point.step_size for point in found] == [8, None, None]
    assert sorted(point.name for point in found) == [
        "step_size 8",
        "step_size {0:2,500:8}",
        "step_size {0:4,500:8}",
    ]
    assert len(knees.best_by_step_size(found)) == 3


def test_a_part_of_a_grid_says_how_many_of_how_many(tmp_path: Path) -> None:
    study = study_of(trial(1), trial(2))
    study.set_user_attr("grid", 10)

    (warning,) = write_report(study, tmp_path).warnings

    assert warning.startswith("2 of the 10 trials of the grid were run")
    assert warning.endswith("hydra.sweeper.n_trials=10 runs all")
    study.set_user_attr("grid", 2)
    assert write_report(study, tmp_path).warnings == ()


def test_a_summary_in_one_attribute_reads_as_its_keys_by_themselves() -> None:
    summary = {"samples": 128, "updates": 40, "step_sizes": [1, 2]}
    before, now = study_of(trial(1, **summary)), study_of(trial(1, summary=summary))

    assert read(now).csv() == read(before).csv()
    assert results(read(now)) == results(read(before))


def test_a_warning_names_the_first_points_and_counts_the_rest(tmp_path: Path) -> None:
    trials = [trial(size, effective_batch=64) for size in range(1, 41)]

    (warning,) = write_report(study_of(*trials), tmp_path).warnings

    assert warning.startswith("step_size 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, and 28 more are")


def test_points_of_one_effective_batch_that_differ_otherwise_are_not_the_same(
    tmp_path: Path,
) -> None:
    by_batch_size = [
        trial(step_size, effective_batch=64, params={"data.batch_size": 64 // step_size})
        for step_size in (1, 4)
    ]

    assert write_report(study_of(*by_batch_size), tmp_path).warnings == ()


# Numbers as text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "-"),
        (0.0, "0"),
        (64.0, "64"),
        (57_480, "57,480"),
        (12_345.6, "12,346"),
        (3.4, "3.400"),
        (0.12346, "0.1235"),
        (0.001234567, "0.001235"),
        (-0.5, "-0.5000"),
        (1.2346e-9, "1.235e-09"),
        (math.inf, "inf"),
    ],
)
def test_numbers_have_four_digits(value: float | None, said: str) -> None:
    assert number(value) == said


def test_a_point_against_another() -> None:
    assert versus(result(4, 0.55, 900), result(2, 0.5, 1000)) == (
        "0.90x the throughput of 2 at +10 % loss"
    )


# The files


FIXED = {
    "trainer.max_samples": 6400,
    "trainer.max_seconds": None,
    "data._target_": "cadence.data.digits.Digits",
    "data.batch_size": 64,
    "optimizer.lr": 0.001,
    "scaling.name": "sqrt",
    "scaling.reference": 64,
    "seed": 0,
    "model.hidden": [64],
}


def finished(step_size: int, val_loss: float, speed: float) -> FrozenTrial:
    return trial(
        step_size,
        val_loss,
        speed,
        step_size=step_size,
        updates=100 // step_size,
        updates_skipped=0,
        samples=6400,
        effective_batch=64 * step_size,
        train_loss=0.1,
        val_loss=val_loss,
        samples_per_second_p10=0.95 * speed,
        samples_per_second_p90=1.04 * speed,
        peak_memory_mib=10.5 + step_size,
        seconds=6400 / speed,
        folder=f"/sweeps/digits/trials/{step_size}",
        mlflow_run_id=None,
    )


def small_study() -> optuna.Study:
    study = study_of(
        finished(1, 0.5, 1000.0),
        finished(2, 0.51, 1900.0),
        trial(64, state=TrialState.FAIL, reason="RuntimeError: can't\nallocate | <memory>"),
        finished(4, 0.6, 2500.0),
        trial(8, state=TrialState.FAIL, abandoned=True),
        finished(8, 0.7, 2400.0),
        trial(16, state=TrialState.RUNNING),
        space={"trainer.step_size": "IntDistribution(high=64, log=True, low=1, step=1)"},
        directions=["minimize", "maximize"],
        fixed=FIXED,
    )
    study.set_user_attr("mlflow_parent_run_id", "c0ffee")
    return study


WHOLE_REPORT = r"""# Sweep digits

**step_size 2: 1.9x the throughput of 1 at +2.0 % loss**

> Warning: the two fastest cannot be told apart: step_size 4 with 2,500 (2,375 to 2,600) samples/s, step_size 8 with 2,400 (2,280 to 2,496) samples/s; leave the machine to the sweep alone, or ask for repeats (sweep.repeats=3)

step_size is the number of mini-batches per update. To train with this answer, give `trainer.step_size=2 scaling=sqrt` and whatever else the sweep was given.

![throughput against validation loss](pareto.png)

Trials: 4 compared, 1 failed, 1 running or waiting; [the picture to point at](pareto.html), [every trial](trials.csv). MLflow run of the sweep: `c0ffee`.

## By step_size

| step_size (mini-batches per update) | val loss | throughput (samples/s) | updates | effective batch (items per update) | peak memory (MiB) | seconds | trials | front |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
| 1 | 0.5000 | 1,000 (950 to 1,040) | 100 | 64 | 11.50 | 6.400 | 0 | yes |
| 2 | 0.5100 | 1,900 (1,805 to 1,976) | 50 | 128 | 12.50 | 3.368 | 1 | knee |
| 4 | 0.6000 | 2,500 (2,375 to 2,600) | 25 | 256 | 14.50 | 2.560 | 3 | yes |
| 8 | 0.7000 | 2,400 (2,280 to 2,496) | 12 | 512 | 18.50 | 2.667 | 5 | no |

In brackets, the spread: of a throughput the 10th to the 90th percentile of the trial's windows; where a point was run several times, the lowest to the highest trial around the mean.

## Pareto front

The points that no other one beats in both, from the slowest on.

| point | val loss | throughput (samples/s) | against the baseline | trials |
| --- | --- | --- | --- | --- |
| step_size 1 | 0.5000 | 1,000 (950 to 1,040) | the baseline | 0 |
| step_size 2 | 0.5100 | 1,900 (1,805 to 1,976) | 1.9x the throughput of 1 at +2.0 % loss | 1 |
| step_size 4 | 0.6000 | 2,500 (2,375 to 2,600) | 2.5x the throughput of 1 at +20 % loss | 3 |

The baseline is step_size 1. A point beats another when the factor on its throughput, to the power 0.2, is above the factor on its loss: about what more samples in equal time make up for (Hestness et al. 2017), so that twice the throughput may cost 15 % of loss. Differences within the spread count as none. The knee is looked for on the front of the baseline and the points that beat it: the one farthest below the straight line between that front's two ends, in axes of val loss and log throughput, each scaled to 0..1 (Kneedle, Satopaa et al. 2011). Where none lies below the line, as between two points, it is the end that beats the other. Where nothing beats the baseline, the baseline is kept.

## Held fixed

| condition | value |
| --- | --- |
| samples | 6,400 |
| lr scaling | sqrt from 64 items per update |
| trainer.max_samples | 6400 |
| data.\_target\_ | cadence.data.digits.Digits |
| data.batch_size | 64 |
| optimizer.lr | 0.001 |
| seed | 0 |

The study keeps all 9 fixed keys, each trial's folder its whole config in `.hydra/config.yaml`.

## Search space

| key | values |
| --- | --- |
| trainer.step_size | IntDistribution(high=64, log=True, low=1, step=1) |

## Failed trials

| trial | point | reason |
| --- | --- | --- |
| 2 | trainer.step_size 64 | RuntimeError: can't allocate \| &lt;memory> |
"""  # noqa: E501


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    folder = tmp_path_factory.mktemp("sweeps") / "digits"
    return write_report(small_study(), folder), folder


def test_the_whole_report(written: tuple[Report, Path]) -> None:
    report, folder = written

    assert (folder / "report.md").read_text() == WHOLE_REPORT
    assert report.sentence == "step_size 2: 1.9x the throughput of 1 at +2.0 % loss"
    assert [row[0] for row in report.table.rows] == ["1", "2", "4", "8"]
    assert all(len(row) == len(report.table.columns) for row in report.table.rows)
    assert len(report.warnings) == 1
    names = ["report.md", "pareto.png", "pareto.html", "trials.csv"]
    assert report.files == tuple(folder / name for name in names)
    assert sorted(file.name for file in folder.iterdir()) == sorted(names)  # nothing half-written


def test_the_picture_has_its_size(written: tuple[Report, Path]) -> None:
    header = (written[1] / "pareto.png").read_bytes()[:24]

    assert header.startswith(b"\x89PNG")
    assert struct.unpack(">II", header[16:]) == (1200, 750)


def test_every_point_is_drawn_once_as_what_it_is() -> None:
    comparison = compare(results(read(small_study())))

    drawn = {
        kind.name: [point.step_size for point in kind.results] for kind in pareto._kinds(comparison)
    }

    assert drawn == {
        "dominated by another point": [8],
        "Pareto front": [4],
        "baseline": [1],
        "knee": [2],
    }


def test_the_page_needs_no_network(written: tuple[Report, Path]) -> None:
    page = (written[1] / "pareto.html").read_text()

    assert "<script src=" not in page
    assert "plotly.js" in page
    assert "step_size 2: 1.9x the throughput of 1 at +2.0 % loss" in page


def test_the_csv_holds_every_trial(written: tuple[Report, Path]) -> None:
    with (written[1] / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))

    assert [row["number"] for row in rows] == ["0", "1", "2", "3", "5", "6"]  # 4 was abandoned
    assert [row["state"] for row in rows] == ["COMPLETE"] * 2 + ["FAIL"] + ["COMPLETE"] * 2 + [
        "RUNNING"
    ]
    for row, trial in zip(rows, read(small_study()).trials, strict=True):
        assert row.pop("params_trainer.step_size") == str(trial.params["trainer.step_size"])
        values = [row.pop(f"values_{name}") for name in ("val_loss", "samples_per_second")]
        assert [float(value) for value in values if value] == (trial.values or [])
        for key, value in trial.user_attrs.items():
            told = row.pop(f"user_attrs_{key}")
            if value is None:
                assert told == ""
            else:
                assert type(value)(told) == value
        assert set(row.values()) - {row["number"], row["state"]} <= {""}


def test_the_csv_holds_lists_as_json() -> None:
    (row,) = csv.DictReader(read(study_of(trial(1, step_sizes=[1, 2]))).csv().splitlines())

    assert json.loads(row["user_attrs_step_sizes"]) == [1, 2]


def test_trials_may_lack_every_attribute(tmp_path: Path) -> None:
    report = write_report(study_of(trial(1, 0.5, 100.0), trial(2, 0.4, 200.0)), tmp_path)

    assert report.sentence == "step_size 2: 2.0x the throughput of 1 at -20 % loss"
    assert report.table.rows == (
        ("1", "0.5000", "100", "-", "-", "-", "-", "0", "no"),
        ("2", "0.4000", "200", "-", "-", "-", "-", "1", "knee"),
    )
    assert report.warnings == ()
    said = (tmp_path / "report.md").read_text()
    assert "The study does not tell what else was held fixed." in said
    assert "## Search space" not in said
    assert "MLflow" not in said


def test_other_keys_have_columns_and_the_best_of_each_step_size(tmp_path: Path) -> None:
    study = study_of(
        trial(1, 0.5, 100.0, params={"optimizer.lr": 0.1, "data.batch_size": 16}),
        trial(1, 0.4, 100.0, params={"optimizer.lr": 1 / 3, "data.batch_size": 16}),
        trial(4, 0.41, 300.0, params={"optimizer.lr": 0.1, "data.batch_size": 64}),
        trial(4, 0.45, 350.0, params={"optimizer.lr": 0.2, "data.batch_size": 64}),
        trial(2, 0.6, 50.0, params={"optimizer.lr": 0.2}),
    )

    report = write_report(study, tmp_path)

    assert report.table.columns[:4] == (
        "step_size\n(mini-batches\nper update)",
        "data.batch_size",
        "optimizer.lr",
        "val loss",
    )
    assert [(*row[:4], *row[-2:]) for row in report.table.rows] == [
        ("1", "16", "0.3333", "0.4000", "1", "yes"),
        ("2", "-", "0.2", "0.6000", "4", "no"),
        ("4", "64", "0.1", "0.4100", "2", "knee"),
    ]
    assert (
        "`trainer.step_size=4 optimizer.lr=0.1 data.batch_size=64`"
        in (tmp_path / "report.md").read_text()
    )


@pytest.mark.parametrize(
    ("fixed", "space", "given"),
    [
        ({}, {}, "trainer.step_size=2"),
        (
            {"scaling.name": "none", "schedule.name": "cosine"},
            {},
            "trainer.step_size=2 scaling=none schedule=cosine",
        ),
        (
            {"scaling.name": "sqrt", "schedule.name": "cosine"},
            {"scaling": "CategoricalDistribution(choices=('none', 'sqrt'))"},
            "trainer.step_size=2 schedule=cosine",
        ),
        (
            {"scaling.name": "sqrt", "schedule.name": "constant", "trainer.max_seconds": 20.0},
            {},
            "trainer.step_size=2 scaling=sqrt schedule=constant trainer.max_epochs=null "
            "trainer.max_samples=null trainer.max_seconds=20",
        ),
    ],
)
def test_the_answer_names_what_a_sweep_chooses_beside_its_points(
    tmp_path: Path, fixed: dict[str, Any], space: dict[str, str], given: str
) -> None:
    write_report(study_of(trial(2), space=space, fixed=fixed), tmp_path)

    assert f"To train with this answer, give `{given}` and" in (tmp_path / "report.md").read_text()


def test_samples_that_differ_are_warned_of() -> None:
    ledger = read(study_of(trial(1, samples=6400), trial(2, samples=6000), trial(4)))

    assert ledger.samples() == [6000, 6400]
    assert "samples" not in ledger.conditions()


def test_the_warning_of_samples_is_in_the_report(tmp_path: Path) -> None:
    study = study_of(trial(1, 0.5, 100.0, samples=6400), trial(2, 0.4, 200.0, samples=6000))

    warning = (
        "the trials saw different numbers of samples, from 6,000 to 6,400, so their losses do not "
        "compare; set trainer.max_samples"
    )
    assert write_report(study, tmp_path).warnings == (warning,)
    assert f"> Warning: {warning}" in (tmp_path / "report.md").read_text()


EQUAL_SECONDS = {"trainer.max_seconds": 20.0, "trainer.max_samples": None, "seed": 0}


def test_at_equal_seconds_the_report_says_so_and_takes_the_lowest_loss(tmp_path: Path) -> None:
    """At equal samples the knee would be 8, for its throughput."""
    points = [(1, 0.50, 1000.0), (2, 0.45, 1900.0), (4, 0.46, 3600.0), (8, 0.48, 6000.0)]
    trials = [trial(*point, samples=int(20 * point[2])) for point in points]
    study = study_of(*trials, space={}, fixed=EQUAL_SECONDS)

    report = write_report(study, tmp_path)

    assert report.sentence == (
        "step_size 2: 1.9x the throughput of 1 at -10 % loss after the same time"
    )
    assert report.warnings == ()
    text = (tmp_path / "report.md").read_text()
    assert "| seconds | 20 of wall time, for 20,000 to 120,000 samples |" in text
    assert "Every trial had the same wall time, so its loss counts its throughput already" in text
    assert "Hestness" not in text


def test_at_equal_seconds_a_loss_that_is_no_lower_keeps_the_baseline(tmp_path: Path) -> None:
    trials = [trial(1, 0.5, 1000.0, samples=20), trial(8, 0.5, 9000.0, samples=180)]
    report = write_report(study_of(*trials, space={}, fixed=EQUAL_SECONDS), tmp_path)

    assert report.sentence == (
        "do not accumulate: no larger step_size has a lower loss after the same time, beyond the "
        "spread"
    )


@pytest.mark.parametrize(
    ("fixed", "space", "seconds"),
    [
        (EQUAL_SECONDS, {}, 20.0),
        (EQUAL_SECONDS | {"trainer.max_epochs": 3}, {}, None),
        (EQUAL_SECONDS | {"trainer.max_samples": 3}, {}, None),
        (EQUAL_SECONDS, {"trainer.max_samples": "choice(1, 2)"}, None),
        ({}, {}, None),
    ],
)
def test_time_is_equal_where_nothing_else_ends_a_trial(
    fixed: dict[str, Any], space: dict[str, str], seconds: float | None
) -> None:
    assert read(study_of(trial(1), fixed=fixed, space=space)).equal_seconds() == seconds


@pytest.mark.parametrize(
    ("fixed", "said"),
    [
        (
            {"scaling.name": "none", "optimizer.lr": 0.1},
            "none (the same lr at every effective batch)",
        ),
        ({"scaling.name": "none"}, "none"),  # lr is searched
        ({"scaling.name": "linear", "scaling.reference": 32.0}, "linear from 32 items per update"),
        ({"scaling.name": "sqrt"}, "sqrt from 2 mini-batches per update, all processes together"),
    ],
)
def test_the_scaling_of_lr_is_told(fixed: dict[str, Any], said: str) -> None:
    ledger = read(study_of(space={}, directions=[], fixed=fixed))

    assert ledger.conditions()["lr scaling"] == said


def test_replicates_have_seeds_of_their_own() -> None:
    question: dict[str, Any] = {"space": {}, "directions": [], "fixed": {"seed": 7}}

    alone = read(study_of(trial(1, replicate=0), trial(2), **question))
    repeated = read(study_of(trial(1, replicate=0), trial(1, replicate=2), **question))

    assert alone.conditions() == {"seed": "7"}
    assert repeated.conditions() == {"seed": "7 to 9, by repeat"}


@pytest.mark.parametrize(
    ("trials", "said", "counted"),
    [
        ([], "no trial has finished yet", "Trials: none yet"),
        (
            [trial(1, state=TrialState.RUNNING)],
            "no trial has finished yet",
            "Trials: 1 running or waiting",
        ),
        (
            [
                trial(1, state=TrialState.FAIL, reason="ValueError: NaN\nin the data"),
                trial(1, math.inf),
            ],
            "no trial finished: 2 failed, the first with: ValueError: NaN in the data",
            "Trials: 2 failed",
        ),
    ],
)
def test_without_a_finished_trial_the_report_says_so(
    tmp_path: Path, trials: Sequence[FrozenTrial], said: str, counted: str
) -> None:
    report = write_report(study_of(*trials), tmp_path / "new" / "folder")

    assert report.sentence == said
    assert report.table.rows == ()
    assert [file.name for file in report.files] == ["report.md", "trials.csv"]
    text = report.files[0].read_text()
    assert text.startswith(f"# Sweep digits\n\n**{said}**\n\n{counted}; [every trial](trials.csv).")
    assert "pareto" not in text
    if trials and trials[0].state == TrialState.FAIL:
        assert "| 0 | trainer.step_size 1 | ValueError: NaN in the data |" in text
        assert "| 1 | trainer.step_size 1 | nothing to compare: val_loss inf," in text


@pytest.mark.parametrize("speed", [3.5, 64_000 / 3, 0.1])
def test_one_point_is_drawn(tmp_path: Path, speed: float) -> None:
    report = write_report(study_of(trial(None, 0.5, speed), name="$odd$ <b>"), tmp_path)

    assert report.sentence == "trial 0 is the only point: nothing to compare it with"
    assert (tmp_path / "report.md").read_text().startswith("# Sweep $odd$ &lt;b>")


def test_wide_ranges_and_strange_text_are_drawn(tmp_path: Path) -> None:
    space: dict[str, BaseDistribution] = {
        "model": CategoricalDistribution(("<script>a</script>", "$x_1$"))
    }
    study = study_of(
        *(
            create_trial(
                values=[10.0**power, 20.0**power],
                params={"model": model},
                distributions=space,
                user_attrs={"step_size": power + 1, "samples_per_second_p90": 30.0**power},
            )
            for power, model in enumerate(("<script>a</script>", "$x_1$", "$x_1$"))
        )
    )

    report = write_report(study, tmp_path)

    page = (tmp_path / "pareto.html").read_text()
    assert "&lt;script&gt;a" in page.replace("\\u003c", "<").replace("\\u003e", ">")
    assert "<script>a" not in page.replace("\\u003c", "<").replace("\\u003e", ">")
    assert len(report.table.rows) == 2  # trials 1 and 2 are of one point


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of()
    write_report(study, tmp_path)
    before = (tmp_path / "report.md").read_text()
    study.add_trial(trial(1, state=TrialState.FAIL))

    def full_disk(opened: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(study, tmp_path)

    assert (tmp_path / "report.md").read_text() == before


# What the other trials foretell

TIMES = st.floats(1e-3, 1e4)


def timed(step_size: int, each: float, once: float, /, **more: Any) -> FrozenTrial:
    """A trial of 64 samples a mini-batch, by milliseconds of a mini-batch and of an update."""
    speed = 1000 * 64 * step_size / (step_size * each + once)
    params = more.pop("params", None)
    return trial(
        step_size,
        0.5 + step_size / 100,
        speed,
        params=params,
        time_samples=64 * step_size,
        time_data_ms=0.25 * step_size * each,
        time_compute_ms=0.75 * step_size * each,
        time_sync_ms=0.5 * once,
        time_update_ms=0.5 * once,
        **more,
    )


def test_each_throughput_is_predicted_from_the_others_alone(tmp_path: Path) -> None:
    # 2 ms of update and 1 ms a mini-batch: 64 k / (2 + k) per ms, but for step_size 8, which took
    # half as long again: of 64 * 8 / 10 = 51.2 it reaches 512 / 14 = 36.6
    study = study_of(*(timed(size, 1.5 if size == 8 else 1.0, 2.0) for size in (1, 4, 8)))

    report = write_report(study, tmp_path)

    assert report.table.columns[2:4] == ("throughput\n(samples/s)", "predicted\n(samples/s)")
    assert [row[2] for row in report.table.rows] == ["21,333", "42,667", "36,571"]
    assert report.table.rows[2][3] == "51,200"
    text = (tmp_path / "report.md").read_text()
    assert "fitted to the time of windows at the other step_sizes alone. They part most at " in text
    assert (
        "step_size 8: 36,571 samples/s measured against 51,200 (-29 %), as its forward and "
        "backward took 50 % longer per sample: memory bandwidth, or caches that a larger window no "
        "longer fits; or the machine was busier for some trials than for others."
    ) in text


def test_where_trials_keep_to_the_prediction_it_says_so(tmp_path: Path) -> None:
    write_report(study_of(*(timed(size, 1.0, 2.0) for size in (1, 2, 4))), tmp_path)

    text = (tmp_path / "report.md").read_text()
    assert "The two agree at every step_size, within 10 % or the spread." in text


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        (timed(4, 0.5, 2.0), "took 50 % less per sample: warm caches, or larger passes at a time"),
        (timed(4, 1.0, 6.0), "its update took longer, 6 ms against 2"),
        (timed(4, 1.0, 0.5), "its update took shorter, 0.5 ms against 2"),
    ],
)
def test_the_reason_lies_in_the_part_that_came_otherwise(odd: FrozenTrial, said: str) -> None:
    found = predictions(results(read(study_of(timed(1, 1.0, 2.0), timed(2, 1.0, 2.0), odd))))

    (of_odd,) = (each for each in found if each.result.step_size == 4)
    assert said in where_they_part([of_odd])


def test_only_points_of_the_same_speed_foretell_each_other() -> None:
    study = study_of(
        timed(1, 1.0, 2.0, params={"optimizer.lr": 0.1, "data.batch_size": 16}),
        timed(2, 1.0, 2.0, params={"optimizer.lr": 0.2, "data.batch_size": 16}),
        timed(4, 9.0, 2.0, params={"optimizer.lr": 0.1, "data.batch_size": 64}),
        trial(8, 0.5, 100.0, params={"optimizer.lr": 0.1, "data.batch_size": 16}),  # tells nothing
    )

    found = predictions(results(read(study)))

    assert [each.result.step_size for each in found] == [1, 2]
    for each in found:
        assert each.samples_per_second == pytest.approx(each.result.throughput.value)


def test_a_bend_within_the_spread_of_the_trials_is_none() -> None:
    # 4 and 5 took 6 % longer and shorter than 1 ms a mini-batch: a bend, if they were exact
    exact = [timed(size, each, 0.0) for size, each in ((4, 1.06), (5, 0.94), (8, 1.0))]
    spread = {"samples_per_second_p10": 50_000.0, "samples_per_second_p90": 80_000.0}
    noisy = [timed(size, each, 0.0, **spread) for size, each in ((4, 1.06), (5, 0.94), (8, 1.0))]

    bent, straight = (
        predictions(results(read(study_of(timed(1, 1.0, 0.0), *others))))[0].samples_per_second
        for others in (exact, noisy)
    )

    assert abs(bent / 64_000 - 1) > 0.5
    assert straight == pytest.approx(64_000, rel=0.01)


@given(st.lists(st.tuples(TIMES, TIMES), min_size=2, max_size=5), st.permutations(range(1, 6)))
def test_what_is_foretold_is_positive_whatever_was_measured(
    times: list[tuple[float, float]], step_sizes: list[int]
) -> None:
    trials = [timed(size, *each) for size, each in zip(step_sizes, times, strict=False)]

    for each in predictions(results(read(study_of(*trials)))):
        assert 0 < each.samples_per_second < math.inf
        assert each.predicted.passes > 0
        assert where_they_part([each])


def test_a_difference_within_the_spread_is_none() -> None:
    trials = [timed(1, 1.0, 2.0), timed(2, 1.0, 2.0)]
    slow = timed(4, 2.0, 2.0, samples_per_second_p10=20_000.0, samples_per_second_p90=50_000.0)

    found = predictions(results(read(study_of(*trials, slow))))

    assert not found[2].is_apart
    assert "agree" in where_they_part(found[2:])


# The study


def test_a_study_is_loaded_or_what_is_there_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'study.db'}"
    with pytest.raises(ValueError, match=r"study\.db: there is no such file; run the sweep first"):
        load(url, "digits")
    assert not (tmp_path / "study.db").exists()

    storage = optuna.storages.RDBStorage(url)
    with pytest.raises(ValueError, match=r"no study of this name in .*; there is none yet"):
        load(url, "digits")
    for name in ("wide", "digits"):
        optuna.create_study(
            study_name=name, storage=storage, directions=["minimize", "maximize"]
        ).add_trial(trial(1))

    assert load(url, "digits").study_name == "digits"
    assert len(load(url, "digits").trials) == 1
    with pytest.raises(
        ValueError, match=r"digit: no study of this name in sqlite.*; there are digits, wide$"
    ):
        load(url, "digit")


@pytest.mark.parametrize("url", ["study.db", "nothing://there", f"sqlite:///{__file__}"])
def test_a_storage_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="the study's storage cannot be opened: ") as refused:
        load(url, "digits")
    assert "\n" not in str(refused.value)
