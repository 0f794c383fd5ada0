"""Thirty kills -9 at random moments: every run ends with the weights and curves of an undisturbed
one.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from oracles import same
from test_resume import curves
from waiting import until

from cadence.checkpoint.file_format import read

pytestmark = pytest.mark.slow

KILLS = 10

RUNS = {
    "digits_mlp": ["trainer.max_epochs=1500", "trainer.checkpoint_every=4000"],
    "digits_cnn": ["trainer.max_epochs=40", "trainer.checkpoint_every=320"],
    "pydocs_gpt": [
        *("trainer.max_samples=2400", "trainer.max_epochs=null", "trainer.checkpoint_every=16"),
        *("data.validation_share=0.002", "model.layers=2", "model.width=64"),
    ],
}


def started(arguments: list[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "src.train", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_after_some_progress(
    process: "subprocess.Popen[bytes]", folder: Path, chance: random.Random
) -> bool:
    """Kill a run some time after it has saved anew; False = it ended by itself before."""
    file = folder / "checkpoints" / "last.pt"
    before = file.stat().st_mtime_ns if file.exists() else 0

    def saved() -> bool:
        return file.exists() and file.stat().st_mtime_ns > before

    until(lambda: process.poll() is not None or saved(), "a checkpoint", every=0.005)
    time.sleep(chance.random() * 0.2)
    process.kill()
    return process.wait() == -9


@pytest.mark.parametrize("recipe", RUNS)
def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(
    tmp_path: Path, tracking_uri: str, recipe: str
) -> None:
    chance = random.Random(recipe)
    evaluated = 100_000 if recipe == "digits_mlp" else 500
    arguments = [
        *(f"experiment={recipe}", f"track.uri={tracking_uri}", *RUNS[recipe]),
        f"trainer.evaluate_every={evaluated}",
    ]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "killed"
    assert started([*arguments, f"hydra.run.dir={undisturbed}"]).wait() == 0

    kills = 0
    process = started([*arguments, f"hydra.run.dir={folder}"])
    while kills < KILLS and kill_after_some_progress(process, folder, chance):
        kills += 1
        process = started([f"resume={folder}"])
    assert process.wait() == 0

    assert kills == KILLS
    theirs, ours = (read(each / "checkpoints" / "last.pt") for each in (undisturbed, folder))
    assert ours.clock == theirs.clock
    assert same(ours.model.values(), theirs.model.values())
    assert curves(tracking_uri, str(ours.mlflow_run_id)) == curves(
        tracking_uri, str(theirs.mlflow_run_id)
    )
