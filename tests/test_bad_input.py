"""DESIGN's table of bad input: one line that names key, value and remedy; exit code 1."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import CommandLine

from cadence.checkpoint import latest

STEP_SIZE = "must be a whole number: mini-batches per update, at least 1"

REFUSED = {
    "trainer.step_size=0": f"trainer.step_size=0: {STEP_SIZE}",
    "trainer.step_size=-1": f"trainer.step_size=-1: {STEP_SIZE}",
    "trainer.step_size=1.5": f"trainer.step_size=1.5: {STEP_SIZE}",
    "trainer.step_size=true": f"trainer.step_size=true: {STEP_SIZE}",
    "trainer.step_size=word": f"trainer.step_size=word: {STEP_SIZE}",
    "trainer.step_size=null": f"trainer.step_size=null: {STEP_SIZE}",
    "trainer.step_size=[]": f"trainer.step_size=[]: {STEP_SIZE}",
    "trainer.microbatch_size=0": "trainer.microbatch_size=0: must be a whole number: samples per "
    "forward and backward, at least 1; auto = the fastest that fits; null = one mini-batch",
    "trainer.microbatch_size=fast": "trainer.microbatch_size=fast: must be a whole number: samples "
    "per forward and backward, at least 1; auto = the fastest that fits; null = one mini-batch",
    "device.threads=0": "device.threads=0: must be a whole number: threads of an operation, at "
    "least 1; auto = the fastest; null = torch's choice",
    "data.batch_size=0": "data.batch_size=0: must be a whole number: samples per mini-batch, at "
    "least 1",
    "trainer.clip_norm=0": "trainer.clip_norm=0.0: must be a number: gradient norm, above 0; "
    "null = no clipping",
    "trainer.max_epochs=null": "trainer.max_epochs=null: without a limit the run would never end; "
    "set it, trainer.max_samples or trainer.max_seconds",
    "model=nothing": "model=nothing: no such option; choose one of cnn, gpt, mlp",
    "trainer.stepsize=3": "trainer.stepsize: there is no such key; did you mean trainer.step_size?",
    "+trainer.depth=3": "depth: there is no such key to add; see python -m src.train --cfg job",
    "device=mps": "device.name=mps: there is no such device on this machine, only cpu; try "
    "device=auto",
    "device.precision=fp8": "device.precision=fp8: must be arithmetic, one of fp32, bf16, fp16",
    "data=text": "data.path is not set; give data.path=... (a file)",
    "model=gpt": "model=gpt takes sequences of tokens [context]; the data has [1, 8, 8]: try "
    "data=pydocs",
    "model._target_=os.system": "model._target_=os.system: refused, because a config can name any "
    "code to run; if you trust it, add its module to TRUSTED_TARGETS in src/train.py",
    "data._target_=torch.load": "data._target_=torch.load: refused, because a config can name any "
    "code to run; if you trust it, add its module to TRUSTED_TARGETS in src/train.py",
    "distributed.processes=2": "distributed.processes=2: one process trains alone; add "
    "distributed=ddp to train on several",
    "track.uri=folder": "MLflow 3 keeps runs in a database, not in a folder; try "
    "track.uri=sqlite:///",
    "track.uri=http://127.0.0.1:9": "track.uri=http://127.0.0.1:9: no MLflow server answers",
}


@pytest.mark.parametrize("override", REFUSED)
def test_an_impossible_value_is_refused_in_one_line_and_leaves_no_result(
    command: CommandLine, tmp_path: Path, override: str
) -> None:
    ended = command(override)

    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert REFUSED[override] in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not list(tmp_path.rglob("summary.json"))


def test_hydra_full_error_shows_the_traceback(command: CommandLine) -> None:
    ended = command("model=gpt", environment={"HYDRA_FULL_ERROR": "1"})

    assert ended.returncode == 1
    assert "Traceback (most recent call last)" in ended.stderr


def data_file(folder: Path, kind: str) -> Path:
    inputs, targets = np.zeros((20, 3), np.float32), np.arange(20) % 4
    file = folder / "data.npz"
    if kind == "empty":
        file.touch()
    elif kind == "NaN":
        inputs[7, 1] = np.nan
        np.savez(file, inputs=inputs, targets=targets)
    elif kind == "objects":
        np.savez(file, inputs=np.array([{}, {}], dtype=object), targets=targets[:2])
    elif kind == "other names":
        np.savez(file, features=inputs, answers=targets)
    elif kind == "other lengths":
        np.savez(file, inputs=inputs, targets=targets[:-1])
    elif kind == "negative target":
        np.savez(file, inputs=inputs, targets=targets - 1)
    elif kind == "truncated":
        np.savez(file, inputs=inputs, targets=targets)
        file.write_bytes(file.read_bytes()[:-200])
    return file


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "there is no such file; give an .npz file or a folder of .npy files"),
        ("empty", "not an .npz archive, or cut short; save it again with numpy.savez"),
        ("truncated", "not an .npz archive, or cut short; save it again with numpy.savez"),
        ("NaN", "inputs holds NaN or infinity, first in sample 7; drop or fill such samples"),
        ("objects", "holds Python objects, which are never unpickled"),
        ("other names", "only features, answers; name them by data.inputs= and data.targets="),
        ("other lengths", "inputs has 20 samples and targets has 19; they must share dimension 0"),
        ("negative target", "targets holds -1, out of range for classes 0 to 2"),
    ],
)
def test_a_bad_data_file_is_refused_by_name(
    command: CommandLine, tmp_path: Path, kind: str, said: str
) -> None:
    file = data_file(tmp_path, kind)

    ended = command("data=arrays", f"data.path={file}", "track=none")

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: data.path={file}: ")
    assert said in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_a_batch_larger_than_the_data_and_an_epoch_shorter_than_a_window_only_warn(
    command: CommandLine, tmp_path: Path
) -> None:
    ended = command("data.batch_size=5000", "trainer.max_epochs=2", "track=none")

    assert ended.returncode == 0
    assert "data.batch_size=5000 is larger than the 1437 samples" in ended.stderr
    assert "an epoch of 1 mini-batches is shorter than one window of step_size=2" in ended.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["updates"], summary["samples"]) == (2, 2 * 1437)


def test_a_diverged_run_fails_with_a_remedy_and_says_so_in_its_summary(
    command: CommandLine, tmp_path: Path
) -> None:
    ended = command("optimizer=sgd", "optimizer.lr=1e30", "trainer.max_skipped=3", "track=none")

    assert ended.returncode == 1
    assert "4 windows in a row were refused because their loss or gradient is not finite; try a " \
        "lower optimizer.lr" in ended.stderr  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "FAILED"
    assert summary["updates_skipped"] == 4
    state = latest(tmp_path / "run" / "checkpoints")
    assert state.clock.updates_skipped == 4
    assert all(weight.isfinite().all() for weight in state.model.values())
