"""A schedule of step_size on the command line, where others were given before it."""

from pathlib import Path

import pytest
from conftest import CommandLine
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from warm import Warm

from cadence.cli.overrides import NO_SCHEDULE, with_one_schedule
from cadence.cli.run import ROOT
from cadence.config.checks import checked, register

OLD, NEW = "trainer.step_size={0: 2, 50000: 8}", "trainer.step_size={0: 4}"


@pytest.mark.parametrize(
    ("given", "step_size"),
    [
        ([OLD], {0: 2, 50000: 8}),
        ([OLD, NEW], {0: 4}),
        ([OLD, "seed=3", "++trainer.step_size={7: 3}", f"+{NEW}"], {0: 4}),
        ([*with_one_schedule([OLD]), NEW], {0: 4}),
        ([OLD, "trainer.step_size=5"], 5),
        (["trainer.step_size=5", NEW], {0: 4}),
        (["seed=3"], 2),
    ],
)
def test_the_last_step_size_holds_as_a_whole(given: list[str], step_size: object) -> None:
    register(ROOT)
    with initialize_config_dir(str(ROOT / "conf")):
        cfg = compose("config", with_one_schedule(given))

    assert checked(cfg).trainer.step_size.given == step_size


def test_a_schedule_replaces_the_one_of_a_recipe_in_each_job_of_a_multirun() -> None:
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    typed = with_one_schedule(["trainer.step_size=3", "trainer.step_size={0: 4},{0: 6}", "seed=1"])
    parsed = OverridesParser.create().parse_overrides(typed)

    (jobs,) = BasicSweeper.split_arguments(parsed, None)

    assert jobs == [
        [NO_SCHEDULE, "trainer.step_size={0:4}", "seed=1"],
        [NO_SCHEDULE, "trainer.step_size={0:6}", "seed=1"],
    ]


def test_a_command_line_is_prepared_once_for_all() -> None:
    once = with_one_schedule([OLD, NEW, "seed=3"])

    assert once == [NO_SCHEDULE, NEW, "seed=3"]
    assert with_one_schedule(once) == once


@pytest.mark.parametrize("module", ["src.train", "src.advise", "src.certify"])
def test_each_command_takes_the_last_schedule_alone(command: CommandLine, module: str) -> None:
    shown = command(OLD, NEW, "--cfg", "job", module=module)

    assert shown.returncode == 0, shown.stderr
    assert OmegaConf.create(shown.stdout).trainer.step_size == {0: 4}


def test_a_run_that_goes_on_or_is_evaluated_takes_the_new_schedule_alone(
    command: CommandLine, warm: Warm, tmp_path: Path
) -> None:
    overrides = tmp_path / "run" / ".hydra" / "overrides.yaml"
    overrides.parent.mkdir(parents=True)
    overrides.write_text(f"- '{OLD}'\n")

    shown = command(f"resume={tmp_path}/run", NEW, "--cfg", "job")
    asked = warm.run("src.evaluate", [f"run={tmp_path}/run", "trainer.step_size={9: 4}"], tmp_path)

    assert OmegaConf.create(shown.stdout).trainer.step_size == {0: 4}
    assert asked.stderr.startswith("error: trainer.step_size={9: 4}: a schedule must say what")
