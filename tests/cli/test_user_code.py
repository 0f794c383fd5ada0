"""A user's own model, data set and objective: one YAML and one Python file, outside the package.

The files are the README's own, word for word.
"""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import ROOT
from waiting import until

from cadence.checkpoint.folder import FOLDER, latest


def readme_files() -> dict[str, str]:
    """The code blocks of the README whose first line is a comment with a file's path."""
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", readme(), re.S)
    return dict(blocks)


def readme() -> str:
    return (ROOT / "README.md").read_text()


def trusting() -> str:
    """The lines that the README says to add to pyproject.toml."""
    (lines,) = re.findall(r"```toml\n(.*?)```", readme(), re.S)
    return str(lines)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A user's clone with the README's files in it, and its module trusted as the README says."""
    clone = tmp_path / "clone"
    for folder in ("src", "conf"):
        shutil.copytree(ROOT / folder, clone / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in readme_files().items():
        file = clone / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (clone / "pyproject.toml").write_text(trusting())
    return clone


def run(project: Path, *overrides: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *(sys.executable, "-m", "src.train", "track=none", "trainer.max_epochs=3"),
            *(f"hydra.run.dir={project}/run", *overrides),
        ],
        cwd=project,
        env={**os.environ, "PYTHONPATH": f"{project}/src:{project}/elsewhere"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_readmes_model_data_set_and_objective_train(project: Path) -> None:
    lines = re.findall(r"^    PYTHONPATH=elsewhere python -m src\.train (.*)$", readme(), re.M)
    assert ["my_project.objectives.Ranking" in line for line in lines] == [False, True]

    for line in lines:
        ended = run(project, *line.split())

        assert ended.returncode == 0, ended.stderr
        assert "model   residual, " in ended.stdout
        summary = json.loads((project / "run" / "summary.json").read_text())
        assert summary["status"] == "FINISHED"
        assert summary["val_loss"] < 1.0
        assert 0.5 < summary["val_accuracy"] <= 1.0
    assert summary["items"] > summary["samples"]  # pairs


def test_the_readmes_objective_keeps_its_mini_batches_whole(project: Path) -> None:
    own = "data.objective._target_=my_project.objectives.Ranking"

    ended = run(project, "model=residual", "data=spirals", own, "trainer.microbatch_size=8")

    assert ended.returncode == 1
    assert ended.stderr.startswith(
        "error: trainer.microbatch_size=8: Ranking couples the samples of a mini-batch"
    )


@pytest.mark.slow
def test_another_optimizer_is_a_file_in_conf(project: Path) -> None:
    (project / "conf" / "optimizer" / "nadam.yaml").write_text(
        "_target_: torch.optim.NAdam\nlr: 0.002\nbetas: [0.9, 0.999]\n"
    )

    ended = run(project, "optimizer=nadam", "scaling=sqrt", "trainer.step_size=8")

    assert ended.returncode == 0, ended.stderr


SPARSE = """
from torch import nn

class Rows(nn.Module):
    def __init__(self, input_shape, outputs):
        super().__init__()
        self.rows = nn.EmbeddingBag(17, outputs, sparse=True)

    def forward(self, images):
        return self.rows(images.flatten(1).abs().clamp(max=16).long())
"""


@pytest.mark.slow
def test_a_model_of_sparse_gradients_trains_with_an_optimizer_that_cannot_fuse_them(
    project: Path,
) -> None:
    (project / "elsewhere" / "my_project" / "rows.py").write_text(SPARSE)
    (project / "conf" / "model" / "rows.yaml").write_text(
        "_target_: my_project.rows.Rows\ninput_shape: null\noutputs: null\n"
    )

    ended = run(project, "model=rows", "optimizer=sgd", "optimizer.momentum=0", "device=cpu")

    assert ended.returncode == 0, ended.stderr
    assert json.loads((project / "run" / "summary.json").read_text())["status"] == "FINISHED"


def test_the_readmes_sweep_searches_what_it_says(project: Path) -> None:
    ended = run(
        project,
        *("--multirun", "sweep=width", "hydra.sweeper.n_trials=2"),
        *(f"hydra.sweep.dir={project}/sweep", "trainer.max_samples=64"),
    )

    assert ended.returncode == 0, ended.stderr
    assert "IntDistribution" not in (project / "sweep" / "report.md").read_text()
    assert re.search(r"trial 1: trainer.step_size=(1|4|16) model.hidden=\[(32|128)\]", ended.stdout)


def test_a_module_that_is_not_trusted_is_refused_with_both_ways_to_trust_it(project: Path) -> None:
    (project / "pyproject.toml").unlink()

    ended = run(project, "model=residual")

    assert ended.returncode == 1
    assert ended.stderr.startswith(
        "error: model._target_=my_project.models.Residual: refused, because a config can name any "
        'code to run; if you trust it, add "my_project.models.*" to [tool.cadence] trusted in '
        f"{project}/pyproject.toml, or set CADENCE_TRUSTED=my_project.models.*\n"
    )


def test_a_module_that_cannot_be_imported_says_where_it_looked(project: Path) -> None:
    ended = run(project, "model=residual", "model._target_=my_project.models.Residul")

    assert ended.returncode == 1
    assert ended.stderr == (
        "error: model._target_=my_project.models.Residul: cannot be imported; is it spelled right, "
        "and is its folder on PYTHONPATH?\n"
    )


def test_the_readmes_python_runs_as_it_stands(tmp_path: Path) -> None:
    snippet = "\n".join(re.findall(r"```python\n(from cadence.*?)```", readme(), re.S))

    ended = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("Result(step_size=16, ")


ROWS = """
import time
import torch
from cadence.data import Data

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 4000
    def __getitem__(self, index):
        time.sleep(0.001)
        return torch.randn(3), index % 2

def rows():
    return Data(train=Rows(), validation=None, input_shape=(3,), outputs=2)
"""
ROWS_YAML = """
_target_: my_project.rows.rows
batch_size: 8
workers: 2
objective:
  _target_: cadence.objectives.Classification
"""


@pytest.fixture
def loading(project: Path) -> "Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]":
    """A run whose samples two workers load, in a process group of its own, and its workers."""
    (project / "elsewhere" / "my_project" / "rows.py").write_text(ROWS)
    (project / "conf" / "data" / "rows.yaml").write_text(ROWS_YAML)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "src.train", "data=rows", "track=none"),
            *("trainer.max_epochs=1000", f"hydra.run.dir={project}/run"),
        ],
        cwd=project,
        env={**os.environ, "PYTHONPATH": f"{project}/src:{project}/elsewhere"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    run = psutil.Process(process.pid)
    until(lambda: len(run.children()) >= 2, "two workers", alive=lambda: process.poll() is None)
    time.sleep(0.5)  # now they load
    yield process, run.children()
    process.kill()
    process.communicate()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_to_all_of_a_runs_processes_ends_its_window_and_saves_it(
    project: Path, loading: "tuple[subprocess.Popen[str], list[psutil.Process]]", number: int
) -> None:
    process, workers = loading

    os.killpg(process.pid, number)
    _, error = process.communicate(timeout=400)

    assert process.returncode == 128 + number, error
    warning, interrupted = error.splitlines()
    assert warning.endswith("the window under way ends first; a second one stops at once")
    assert interrupted == "interrupted"
    state = latest(project / "run" / FOLDER)
    summary = json.loads((project / "run" / "summary.json").read_text())
    assert (summary["status"], summary["samples"]) == ("KILLED", state.clock.samples)
    assert not any(worker.is_running() for worker in workers)


@pytest.mark.slow
def test_workers_end_with_a_run_that_is_killed(
    loading: "tuple[subprocess.Popen[str], list[psutil.Process]]",
) -> None:
    process, workers = loading

    process.kill()

    _, alive = psutil.wait_procs(workers, timeout=3)
    assert alive == []


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"(?:`|    )make ([a-z-]+)", readme()))
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))

    assert targets <= made


def test_every_picture_and_file_that_the_readme_links_to_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", readme())

    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


COMMANDS = re.findall(r"^    (python -m src\.train(?!.* resume=).*)$", readme(), re.M)
"""But for ``resume=``, which needs a run to go on with: see test_resume.py."""


LONG = ("--multirun", "ddp", "experiment=", "{0: 2", "auto", "noise_scale")
"""Parts of the commands that `make test` leaves to `make test-slow`."""


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, marks=pytest.mark.slow) if any(part in line for part in LONG) else line
        for line in COMMANDS
    ],
)
def test_the_readmes_commands_run(tmp_path: Path, line: str) -> None:
    arrays = {"inputs": np.zeros((40, 3), np.float32), "targets": np.arange(40) % 2}
    np.savez(tmp_path / "measured.npz", **arrays)
    (tmp_path / "book.txt").write_text("It was a bright cold day in April. " * 100)
    small = ["debug=default", f"hydra.run.dir={tmp_path}/run", f"hydra.sweep.dir={tmp_path}/sweep"]
    if " sweep=" in line:
        small.append("hydra.sweeper.n_trials=1")
    if "--help" in line or "--cfg" in line:
        small = []

    ended = subprocess.run(
        [sys.executable, *shlex.split(line)[1:], *small],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
