"""What a sweep's overrides search, and the words with which each trial is composed."""

from typing import Any

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from cadence.cli.overrides import with_one_schedule
from cadence.config.checks import register
from hydra_plugins.cadence_sweeper._search_space import read_space, text_of

CHOICES = {
    "trainer.step_size": ("choice(4, {0: 2, 500: 8})", [4, {0: 2, 500: 8}]),
    "optimizer.lr": ("choice(0.1, 1e-5)", [0.1, 1e-5]),
    "trainer.microbatch_size": ("null,auto,8", [None, "auto", 8]),
    "data.batch_size": ("range(8, 17, 8)", [8, 16]),
    "model.hidden": ("choice([16], [8, 4])", [[16], [8, 4]]),
    "track.experiment": ("choice('a b', \"it's\", 'a=b,c', '')", ["a b", "it's", "a=b,c", ""]),
    "trainer.detect_anomaly": ("choice(true, false)", [True, False]),
}


@pytest.mark.parametrize("key", CHOICES)
def test_each_trials_config_equals_its_params(key: str) -> None:
    register(ROOT)
    text, wanted = CHOICES[key]
    space = read_space(with_one_schedule(["seed=3", f"{key}={text}"]))
    distribution = space.searched[key]
    values = (
        list(distribution.choices)
        if isinstance(distribution, CategoricalDistribution)
        else [distribution.low, distribution.high]
        if isinstance(distribution, IntDistribution | FloatDistribution)
        else []
    )

    found = []
    for value in values:
        with initialize_config_dir(str(ROOT / "conf")):
            config = compose("config", overrides=space.overrides({key: value}))
        found.append(OmegaConf.to_container(config, resolve=False))
    assert [_at(config, key) for config in found] == wanted
    assert all(config["seed"] == 3 for config in found)  # type: ignore[index, call-overload]


def _at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config[name]
    return config


@pytest.mark.parametrize("text", ["a b", "it's", "a=b,c", "", "a'b\\'c", "[1", "x)", "\\'", "a,b"])
def test_text_comes_back_from_its_override(text: str) -> None:
    override = OverridesParser.create().parse_override(f"key={text_of(text)}")

    assert override.value() == text


def test_of_several_overrides_of_a_key_the_last_holds() -> None:
    typed_last = read_space(["a=choice(1,2)", "b=3", "++a=5", "b=choice(6,7)"])

    assert typed_last.fixed == {"++a": "5"}
    assert list(typed_last.searched) == ["b"]


@pytest.mark.parametrize(
    ("text", "distribution"),
    [
        ("range(1,10,4)", IntDistribution(1, 9, step=4)),
        ("range(10,1,-3)", IntDistribution(4, 10, step=3)),
        ("range(0.1,0.5,0.1)", FloatDistribution(0.1, 0.4, step=0.1)),
        ("int(tag(log, interval(1, 32)))", IntDistribution(1, 32, log=True)),
        ("tag(log, interval(0.1, 32))", FloatDistribution(0.1, 32, log=True)),
        ("interval(1, 3.5)", FloatDistribution(1, 3.5)),
        ("sort(choice(3, 1))", CategoricalDistribution((1, 3))),
    ],
)
def test_a_range_becomes_its_distribution(text: str, distribution: object) -> None:
    assert read_space([f"a={text}"]).searched == {"a": distribution}


@pytest.mark.parametrize("text", ["range(1,1)", "range(0.0,1,0)"])
def test_a_range_without_values_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"a range needs"):
        read_space([f"a={text}"])


def test_the_distributions_are_those_of_hydras_own_optuna_sweeper() -> None:
    """Tried with hydra-optuna-sweeper 1.4.0rc3 and optuna 5.0.0: studies of before go on."""
    official = pytest.importorskip("hydra_plugins.hydra_optuna_sweeper._impl")
    words = [f"{key}={text}" for key, (text, _) in CHOICES.items()]
    words += ["a=range(0.5,0.1,-0.1)", "b=int(range(1,4,0.5))", "c=range(0,1e30,3e29)"]

    searched, fixed, _ = official.create_params_from_overrides(words)

    assert read_space(words).searched == searched
    assert fixed == {}
