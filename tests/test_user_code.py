"""A user's own model, data set and objective: one YAML and one Python file, outside the package.

The files are the README's own, word for word.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT


def readme_files() -> dict[str, str]:
    """The code blocks of the README whose first line is a comment with a file's path."""
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+\.(?:py|yaml))\n(.*?)```", readme(), re.S)
    return dict(blocks)


def readme() -> str:
    return (ROOT / "README.md").read_text()


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
    hall = clone / "src" / "train.py"
    hall.write_text(
        hall.read_text().replace(
            '    "torch.optim.*",\n)', '    "torch.optim.*",\n    "my_project.*",\n)'
        )
    )
    return clone


def run(project: Path, *overrides: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [
            *(sys.executable, "-m", "src.train", "track=none", "trainer.max_epochs=3"),
            *(f"hydra.run.dir={project}/run", *overrides),
        ],
        cwd=project,
        env={**os.environ, "PYTHONPATH": f"{project}/elsewhere"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_readmes_model_data_set_and_objective_train(project: Path) -> None:
    ended = run(project, "model=residual", "data=spirals")

    assert ended.returncode == 0, ended.stderr
    assert "model   residual, " in ended.stdout
    summary = json.loads((project / "run" / "summary.json").read_text())
    assert summary["status"] == "FINISHED"
    assert summary["val_loss"] < 1.0


SPARSE = """
from torch import nn

class Rows(nn.Module):
    def __init__(self, input_shape, outputs):
        super().__init__()
        self.rows = nn.EmbeddingBag(17, outputs, sparse=True)

    def forward(self, images):
        return self.rows(images.flatten(1).abs().clamp(max=16).long())
"""


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


def test_a_module_that_is_not_trusted_is_refused_with_the_constant_to_edit(project: Path) -> None:
    hall = project / "src" / "train.py"
    hall.write_text(hall.read_text().replace('    "my_project.*",\n', ""))

    ended = run(project, "model=residual")

    assert ended.returncode == 1
    assert ended.stderr.startswith(
        "error: model._target_=my_project.models.Residual: refused, because a config can name any "
        "code to run; if you trust it, add its module to TRUSTED_TARGETS in src/train.py"
    )


def test_a_module_that_cannot_be_imported_says_where_it_looked(project: Path) -> None:
    ended = run(project, "model=residual", "model._target_=my_project.models.Residul")

    assert ended.returncode == 1
    assert ended.stderr == (
        "error: model._target_=my_project.models.Residul: cannot be imported; is it spelled right, "
        "and is its folder on PYTHONPATH?\n"
    )


def test_the_readmes_python_runs_as_it_stands(tmp_path: Path) -> None:
    (snippet,) = re.findall(r"```python\n(from cadence.*?)```", readme(), re.S)

    ended = subprocess.run(
        [sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("Fitted(step_size=16, ")


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


LONG = [
    pytest.param(line, marks=pytest.mark.slow) if "--multirun" in line or "ddp" in line else line
    for line in COMMANDS
]


@pytest.mark.parametrize("line", LONG)
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
