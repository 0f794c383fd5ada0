"""Which points of the search space come next, from the study alone."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from cadence.sweeps.points import Point, PointKey, key_of, point_of, points
from cadence.sweeps.study import finished
from cadence.sweeps.trials import is_abandoned

TRIES = 100
"""Proposals of a sampler that are looked at for a new point."""


def next_points(
    study: optuna.Study,
    space: Mapping[str, BaseDistribution],
    sampler: Callable[[int], BaseSampler] | None,
    *,
    count: int,
    repeats: int = 1,
) -> list[tuple[Point, int]]:
    """Return the points to run next, each with the number of its replicate, from 0.

    A point that is finished, running or enqueued ``repeats`` times is not among them. The points
    depend on the study alone, so a sweep that was killed goes on as if it had not been.

    Args:
        study: The trials so far.
        space: The searched keys and their distributions.
        sampler: ``seed -> sampler``, whose every point is repeated before the next; None means the
            order of the space, which must be countable, one full round after another.
        count: Points wanted, at least 1.
        repeats: Trials of each point, at least 1.

    Returns:
        At most ``count`` points; fewer when the space has no more.
    """
    past = [trial for trial in study.get_trials(deepcopy=False) if not is_abandoned(trial)]
    runs = Counter(key_of(point_of(trial, space)) for trial in past)
    search = _Search(study, space)
    chosen: list[tuple[Point, int]] = []
    for number in range(len(past), len(past) + count):
        repeated = _unrepeated(runs, repeats)
        if sampler is None:  # in rounds: a slow quarter of an hour then hits several points
            point = search.first(runs) or repeated
        else:
            point = repeated or search.proposed(runs, sampler(number), number)
        if point is None:
            return chosen
        key = key_of(point)
        chosen.append((point, runs[key]))
        runs[key] += 1
    return chosen


def remaining(
    study: optuna.Study, space: Mapping[str, BaseDistribution], repeats: int = 1
) -> int | None:
    """Return how many trials a space lacks until each point has finished ``repeats`` times.

    None means too many points to count.
    """
    every = points(space)
    if every is None:
        return None
    ended = Counter(key_of(point_of(trial, space)) for trial in finished(study))
    return sum(max(0, repeats - ended[key_of(point)]) for point in every)


@dataclass(slots=True)
class _Search:
    """A space on the way to the next points."""

    study: optuna.Study
    space: Mapping[str, BaseDistribution]
    every: list[Point] | None = field(init=False)
    unseen: Iterator[Point] = field(init=False)
    copy: optuna.Study | None = None

    def __post_init__(self) -> None:
        self.every = points(self.space)
        self.unseen = iter(self.every or ())

    def first(self, seen: Collection[PointKey]) -> Point | None:
        """Return the first point that was not seen; the next call looks behind that point."""
        return next((point for point in self.unseen if key_of(point) not in seen), None)

    def proposed(
        self, seen: Collection[PointKey], sampler: BaseSampler, number: int
    ) -> Point | None:
        """Return a point that the sampler proposes and that was not seen."""
        new = None
        if self.every is not None:
            new = [point for point in self.every if key_of(point) not in seen]
            if not new:
                return None
        proposal = self._proposal(seen, sampler)
        return new[number % len(new)] if proposal is None and new is not None else proposal

    def _proposal(self, seen: Collection[PointKey], sampler: BaseSampler) -> Point | None:
        # On a copy of the study a proposal that is not wanted leaves no trace.
        self.copy = self.copy or _copy_of(self.study)
        self.copy.sampler = sampler
        trials = []
        try:
            for _ in range(TRIES):
                trials.append(self.copy.ask(dict(self.space)))
                params = trials[-1].params
                if key_of({name: params[name] for name in self.space}) not in seen:
                    return params
            return None
        finally:
            for trial in trials:  # the next point's sampler is not to see them
                self.copy.tell(trial, state=TrialState.FAIL)


def _copy_of(study: optuna.Study) -> optuna.Study:
    """Return a study in memory with what a sampler looks at in the finished trials."""
    copy = optuna.create_study(directions=study.directions)
    ended = study.get_trials(deepcopy=False)
    copy.add_trials([_without_attributes(trial) for trial in ended if trial.state.is_finished()])
    return copy


def _without_attributes(trial: FrozenTrial) -> FrozenTrial:
    return create_trial(
        state=trial.state,
        values=trial.values,
        params=trial.params,
        distributions=trial.distributions,
        system_attrs=trial.system_attrs,
    )


def _unrepeated(runs: Counter[PointKey], repeats: int) -> Point | None:
    """Return the point with the fewest runs; None means that each has its repeats."""
    if repeats == 1:
        return None
    fewest = min(runs, key=runs.__getitem__, default=None)
    return dict(fewest) if fewest is not None and runs[fewest] < repeats else None
