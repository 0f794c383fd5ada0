"""Which points come next: nothing twice, and the same from the same study."""

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import create_trial

from cadence.sweeps.next_points import next_points
from cadence.sweeps.points import Point

SPACE: dict[str, BaseDistribution] = {
    "x": CategoricalDistribution((1, 2, 4)),
    "y": FloatDistribution(0.0, 1.0, step=0.25),
}
EVERY = [{"x": x, "y": y} for x in (1, 2, 4) for y in (0.0, 0.25, 0.5, 0.75, 1.0)]


def study_with(points: list[Point]) -> optuna.Study:
    study = optuna.create_study(directions=["minimize", "maximize"])
    for point in points:
        values = [point["x"] + point["y"], point["x"]]
        study.add_trial(create_trial(values=values, params=point, distributions=SPACE))
    return study


def tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, n_startup_trials=2)


@pytest.mark.parametrize("sampler", [tpe, lambda seed: RandomSampler(seed=seed)])
def test_a_points_place_in_a_batch_changes_only_the_trials_it_knows(sampler: object) -> None:
    study = study_with(EVERY[:6])

    together = next_points(study, SPACE, sampler, count=4)  # type: ignore[arg-type]
    again = next_points(study, SPACE, sampler, count=4)  # type: ignore[arg-type]

    assert together == again
    assert next_points(study, SPACE, sampler, count=1) == together[:1]  # type: ignore[arg-type]
    assert len(study.trials) == 6
    points = [point for point, _ in together]
    assert all(points.count(point) == 1 and point in EVERY[6:] for point in points)


def test_every_point_of_a_space_is_reached_by_any_sampler() -> None:
    reached = [point for point, _ in next_points(study_with([]), SPACE, tpe, count=20)]

    assert sorted(map(str, reached)) == sorted(map(str, EVERY))


def test_a_grid_goes_through_the_space_in_rounds() -> None:
    study = study_with(EVERY[:13])

    chosen = next_points(study, SPACE, None, count=4, repeats=2)

    assert chosen == [(EVERY[13], 0), (EVERY[14], 0), (EVERY[0], 1), (EVERY[1], 1)]


def test_a_sampler_repeats_a_point_before_the_next() -> None:
    study = study_with(EVERY[:2])

    chosen = next_points(study, SPACE, tpe, count=3, repeats=2)

    assert chosen[:2] == [(EVERY[0], 1), (EVERY[1], 1)]
    assert chosen[2][0] not in EVERY[:2]
