"""The recipes in conf/experiment: their first losses, and what they reach."""

import json
import os
from pathlib import Path

import pytest
from conftest import CommandLine

from cadence import accumulate, windows
from cadence.cli.build import build
from cadence.cli.run import ROOT

GOLDEN = Path(__file__).parents[1] / "golden" / "first_losses.json"
RECIPES = sorted(file.stem for file in (ROOT / "conf" / "experiment").glob("*.yaml"))


def first_losses(recipe: str, count: int = 10) -> list[float]:
    """The losses of the first windows of a recipe, by the public functions alone."""
    from cadence.cli.compose import composed
    from cadence.config.checks import checked

    run = build(checked(composed([f"experiment={recipe}", "device=cpu"])))
    model, optimizer = run.trainer.model, run.trainer.optimizer
    losses = []
    for window in windows(run.train_loader):
        losses.append(accumulate(model, run.trainer.objective, window).loss.item())
        optimizer.step()
        optimizer.zero_grad()
        if len(losses) == count:
            return losses
    raise AssertionError("the epoch is too short")


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_first_ten_losses_are_the_golden_ones(recipe: str) -> None:
    """Changed on purpose only: ``GOLDEN=write make test`` writes the file anew."""
    losses = first_losses(recipe)
    golden = json.loads(GOLDEN.read_text())
    if os.environ.get("GOLDEN") == "write":
        golden[recipe] = losses
        GOLDEN.write_text(json.dumps(golden, indent=2, sort_keys=True) + "\n")

    assert losses == pytest.approx(golden[recipe], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "metric", "at_least", "at_most"),
    [
        ("digits_mlp", "val_accuracy", 0.98, 1.0),
        ("digits_cnn", "val_accuracy", 0.98, 1.0),
        ("pydocs_gpt", "val_bits_per_token", 0.0, 2.3),
    ],
)
def test_a_recipe_learns_what_it_says(
    command: CommandLine,
    tmp_path: Path,
    tracking_uri: str,
    recipe: str,
    metric: str,
    at_least: float,
    at_most: float,
) -> None:
    ended = command(
        f"experiment={recipe}",
        f"track.uri={tracking_uri}",
        environment={"OMP_NUM_THREADS": "2"},
        timeout=900,
    )

    assert ended.returncode == 0, ended.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert at_least <= summary[metric] <= at_most
