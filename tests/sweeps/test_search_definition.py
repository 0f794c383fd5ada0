"""What a study searches: what its trials share, and what the options of a searched group decide."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import IntDistribution
from optuna.trial import create_trial

from cadence.sweeps import study as studies
from cadence.sweeps.definition import SearchDefinition, differences
from cadence.sweeps.report import write_report
from hydra_plugins.cadence_sweeper._search_definition import (
    Composer,
    definition_of,
    searched_groups,
    space_of,
)

DIRECTIONS = ["minimize", "maximize"]
DEFAULTS = {"optimizer": {"name": "adamw", "lr": 0.001}, "schedule": {"name": "constant"}}
RECIPES: dict[str, dict[str, Any]] = {
    "mlp": {"optimizer": {"lr": 0.005}, "schedule": {"name": "cosine"}},
    "cnn": {"optimizer": {"lr": 0.002}, "schedule": {"name": "cosine"}},
}


def definition(*words: str, recipes: Mapping[str, Any] = RECIPES) -> SearchDefinition:
    def compose(overrides: list[str]) -> DictConfig:
        config = OmegaConf.create({**DEFAULTS, "trainer": {"step_size": 2}, "seed": 0, "hydra": {}})
        for word in overrides:
            key, _, value = word.partition("=")
            if key == "experiment" and value not in recipes:
                raise HydraException(f"no {value}")
            given = recipes[value] if key == "experiment" else OmegaConf.from_dotlist([word])
            config = OmegaConf.merge(config, given)  # type: ignore[assignment]
        return config

    space = space_of(list(words))
    composer = Composer(space, compose, searched_groups(space, lambda name: name == "experiment"))
    return definition_of(composer, composer.shared(), DIRECTIONS, is_grid=True)


WORDS = ("experiment=mlp,cnn", "trainer.step_size=choice(1,2)")


def test_what_options_decide_is_not_fixed_and_belongs_to_each_option() -> None:
    found = definition(*WORDS)

    assert found.fixed == {"optimizer.name": "adamw", "schedule.name": "cosine", "seed": 0}
    assert found.options == {
        "experiment": {"mlp": {"optimizer.lr": 0.005}, "cnn": {"optimizer.lr": 0.002}}
    }


def test_a_key_that_is_searched_or_given_is_decided_by_no_option() -> None:
    searched = definition(*WORDS, "optimizer.lr=choice(0.1,0.2)")
    given = definition(*WORDS, "seed=4")

    assert searched.options == {"experiment": {"mlp": {}, "cnn": {}}}
    assert given.fixed["seed"] == 4


def test_an_option_that_does_not_compose_is_left_to_its_trials() -> None:
    found = definition("experiment=mlp,nosuch", "trainer.step_size=choice(1,2)")

    assert found.fixed["optimizer.lr"] == 0.005
    assert list(found.options["experiment"]) == ["mlp"]


def test_an_option_that_was_edited_between_two_sessions_is_refused() -> None:
    storage = studies.open_storage(None)
    study = studies.open_study(storage, "s", definition(*WORDS))
    study.add_trial(create_trial(values=[0.0, 1.0]))
    edited = {**RECIPES, "cnn": {"optimizer": {"lr": 0.05}, "schedule": {"name": "cosine"}}}

    studies.open_study(storage, "s", definition(*WORDS))
    with pytest.raises(ValueError, match=r"experiment=cnn: optimizer.lr: was 0.002, now 0.05\)"):
        studies.open_study(storage, "s", definition(*WORDS, recipes=edited))


def test_a_study_of_before_options_were_kept_goes_on() -> None:
    now = definition(*WORDS).as_json()
    before = {
        "space": now["space"],
        "directions": DIRECTIONS,
        "fixed": {**now["fixed"], "optimizer.lr": 0.001},
    }

    assert list(differences(before, now)) == []
    assert list(differences({**before, "fixed": {**before["fixed"], "seed": 1}}, now)) == [
        "seed: was 1, now 0"
    ]


def test_the_report_of_options_tells_their_conditions_and_a_recipe_of_the_trial(
    tmp_path: Path,
) -> None:
    recipes = {**RECIPES, "cnn": {"optimizer": {"lr": 0.002}, "schedule": {"name": "constant"}}}
    found = definition(*WORDS, recipes=recipes)
    study = studies.open_study(studies.open_storage(None), "s", found)
    for recipe, loss in (("mlp", 0.1), ("cnn", 0.9)):
        params = {"experiment": recipe, "trainer.step_size": 1}
        study.add_trial(
            create_trial(values=[loss, 10.0], params=params, distributions=dict(found.space))
        )

    write_report(study, tmp_path)

    said = (tmp_path / "report.md").read_text()
    assert "`trainer.step_size=1 experiment=mlp schedule=cosine`" in said
    assert "| optimizer.lr | 0.001 |" not in said
    assert "| experiment=mlp | optimizer.lr | 0.005 |" in said
    assert "| experiment=cnn | optimizer.lr | 0.002 |" in said


def test_a_searched_key_without_a_default_counts_as_set() -> None:
    def compose(overrides: list[str]) -> DictConfig:
        return OmegaConf.create({"data": {"path": "???"}, "hydra": {}})

    space = space_of(["data.path=choice('a.npz','b.npz')"])

    assert Composer(space, compose, {}).shared().data.path == "a.npz"


def test_an_attribute_of_a_trial_that_another_process_began_is_kept() -> None:
    """Tried with optuna 5.0.0: a storage's public methods, which its documentation lists."""
    storage = studies.open_storage(None)
    found = SearchDefinition({"x": IntDistribution(1, 8)}, DIRECTIONS, {})
    study = studies.open_study(storage, "s", found)
    study.ask()
    (begun,) = studies.running(optuna.load_study(study_name="s", storage=storage))

    studies.set_user_attrs(study, storage, begun, {"reason": "lost"})

    assert study.trials[0].user_attrs == {"reason": "lost"}
