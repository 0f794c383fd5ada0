"""conf/ composes, and says the same as the code."""

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as some
from omegaconf import DictConfig, OmegaConf

from cadence import windows
from cadence.config.checks import checked, flattened, quoted, register
from cadence.config.errors import ConfigError
from cadence.config.schema import SCHEMAS, Config, SweepConfig

CONF = ROOT / "conf"
PATHS = {"text": "data.path=a.txt", "arrays": "data.path=a.npz"}


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    register(ROOT)
    with initialize_config_dir(str(CONF)):
        yield


@given(some.text("a/ '\"\\=,:()[]{}#%é", min_size=1))
def test_a_quoted_path_is_read_as_that_path(name: str) -> None:
    path = Path(name)
    override = OverridesParser.create().parse_override(f"resume={quoted(path)}")

    assert override.value() == str(path)


OPTIONS = [(file.parent.name, file.stem) for file in sorted(CONF.glob("*/*.yaml"))]


def composed(*overrides: str) -> DictConfig:
    return compose("config", list(overrides))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_composes_and_is_possible(group: str, option: str) -> None:
    path = [PATHS[option]] if option in PATHS else []

    checked(composed(f"{group}={option}", *path))


def test_the_yaml_default_of_step_size_is_the_one_of_python() -> None:
    default = inspect.signature(windows).parameters["step_size"].default

    assert composed().trainer.step_size == default == 2


def test_a_schedule_of_step_size_is_plain_numbers_and_one_param_as_it_is_typed() -> None:
    typed = "{0: 2, 50000: 8}"
    cfg = composed(f"trainer.step_size={typed}")

    assert checked(cfg).trainer.step_size.given == {0: 2, 50000: 8}
    assert flattened(cfg)["trainer.step_size"] == typed
    assert checked(composed(f"trainer.step_size={typed}", "trainer.step_size=4"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{}", "{}: a schedule must say what holds from 0 samples on, such as {0: 2, 50000: 8}"),
        ("{9: 2}", "{9: 2}: a schedule must say what holds from 0 samples on, such as "
         "{0: 2, 50000: 8}"),
        ("{0: 2, a: 3}", "{0: 2, 'a': 3}: 'a' is no whole number of samples; give samples: "
         "mini-batches per update, such as {0: 2, 50000: 8}"),
        ("null", "null: must be a whole number: mini-batches per update, at least 1; "
         "{0: 2, 50000: 8} = from how many samples on, how many"),
    ],
)  # fmt: skip
def test_an_impossible_schedule_is_refused_by_its_key(value: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checked(composed(f"trainer.step_size={value}"))

    assert str(refused.value) == f"trainer.step_size={message}"


@pytest.mark.parametrize("final", ["1.5", "-0.5"])
def test_a_schedules_end_outside_of_0_to_1_is_refused(final: str) -> None:
    with pytest.raises(ConfigError) as refused:
        checked(composed("schedule=cosine", f"schedule.final={final}"))

    assert str(refused.value) == (
        f"schedule.final={final}: must be a number: factor on the learning rate at the end, at "
        "least 0, at most 1"
    )
    assert checked(composed("schedule=cosine", "schedule.final=1")).schedule.final == 1


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "mps"])
def test_no_device_changes_the_default_step_size(device: str) -> None:
    assert composed(f"device={device}").trainer.step_size == 2


def test_every_setting_states_its_unit() -> None:
    without = [
        f"{name}.{field.name}"
        for name, schema in {**SCHEMAS, "sweep": SweepConfig}.items()
        for field in dataclasses.fields(schema)
        if "unit" not in field.metadata and field.name not in {"_target_", "objective"}
    ]

    groups = [field.name for field in dataclasses.fields(Config)][2:]  # after seed and resume
    assert groups[0] == "model"
    assert without == [f"config.{name}" for name in groups]


def test_params_are_flat_and_keep_lists_whole() -> None:
    params = flattened(composed("model.hidden=[8,4]"))

    assert params["model.hidden"] == [8, 4]
    assert params["data.objective._target_"] == "cadence.objectives.Classification"
    assert not any(isinstance(value, dict) for value in params.values())


def test_a_composed_config_survives_being_written_and_read(tmp_path: Path) -> None:
    cfg = composed("experiment=pydocs_gpt")
    file = tmp_path / "config.yaml"
    OmegaConf.save(cfg, file, resolve=True)

    assert OmegaConf.load(file) == OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))


@pytest.mark.parametrize("sweep", [option for group, option in OPTIONS if group == "sweep"])
@pytest.mark.parametrize("recipe", [option for group, option in OPTIONS if group == "experiment"])
def test_every_sweep_composes_with_every_recipe(sweep: str, recipe: str) -> None:
    settings = checked(composed(f"sweep={sweep}", f"experiment={recipe}"))

    assert settings.sweep is not None
    assert settings.sweep.repeats == 1


@pytest.mark.parametrize("recipe", [option for group, option in OPTIONS if group == "experiment"])
def test_a_sweep_at_equal_seconds_needs_no_last_sample(recipe: str) -> None:
    settings = checked(composed("sweep=equal_seconds", f"experiment={recipe}"))

    assert (settings.trainer.max_epochs, settings.trainer.max_samples) == (None, None)
    assert settings.trainer.max_seconds == 20
    assert settings.schedule.name == "constant"
