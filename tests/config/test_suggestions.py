"""An unknown key is answered from the config that was composed, and only by a name that is like."""

from pathlib import Path

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException

from cadence.config.checks import register
from cadence.config.errors import explained

OWN = "_target_: timm.create_model\nmodel_name: resnet18\nnum_classes: 10\npart: {depth: 1}\n"


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        (
            "model.num_klasses=3",
            "model.num_klasses: there is no such key; did you mean model.num_classes?; to add it, "
            "give +model.num_klasses=3",
        ),
        (
            "model.part.dept=3",
            "model.part.dept: there is no such key; did you mean model.part.depth?; to add it, "
            "give +model.part.dept=3",
        ),
        (
            "model.drop_rate=0.1",
            "model.drop_rate: there is no such key; see python -m src.train --cfg job; to add it, "
            "give +model.drop_rate=0.1",
        ),
        (
            "trainer.monitored=x",
            "trainer.monitored: there is no such key; see python -m src.train --cfg job",
        ),
        (
            "trainer.stepsize=3",
            "trainer.stepsize: there is no such key; did you mean trainer.step_size?",
        ),
        ("trainr.step_size=3", "trainr.step_size: there is no such key; did you mean trainer?"),
    ],
)
def test_a_key_that_is_unknown_is_compared_with_those_beside_it(
    tmp_path: Path, override: str, answer: str
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text(OWN)
    register(ROOT)

    with (
        initialize_config_dir(str(ROOT / "conf")),
        pytest.raises(ConfigCompositionException) as refused,
    ):
        compose("config", [f"hydra.searchpath=[file://{tmp_path}]", "model=mine", override])

    assert explained(refused.value) == answer
