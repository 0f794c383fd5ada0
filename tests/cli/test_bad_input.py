"""DESIGN's table of bad input: one line that names key, value and remedy; exit code 1."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, CommandLine

from cadence.checkpoint.folder import latest

STEP_SIZE = "must be a whole number: mini-batches per update, at least 1"

REFUSED = {
    "trainer.step_size=0": f"trainer.step_size=0: {STEP_SIZE}",
    "trainer.step_size=-1": f"trainer.step_size=-1: {STEP_SIZE}",
    "trainer.step_size=1.5": f"trainer.step_size=1.5: {STEP_SIZE}",
    "trainer.step_size=true": f"trainer.step_size=true: {STEP_SIZE}",
    "trainer.step_size=word": f"trainer.step_size=word: {STEP_SIZE}",
    "trainer.step_size=null": f"trainer.step_size=null: {STEP_SIZE}",
    "trainer.step_size=[]": f"trainer.step_size=[]: {STEP_SIZE}",
    "trainer.step_size={0: 2, 9: 0}": "trainer.step_size={0: 2, 9: 0}: from 9 samples on, "
    "step_size=0: mini-batches per update must be at least 1; try step_size=2",
    "trainer.step_size=": f"trainer.step_size=: {STEP_SIZE}",
    "trainer.step_size=16.0": f"trainer.step_size=16.0: {STEP_SIZE}",
    "~trainer.step_size": "~trainer.step_size: a run needs this key; give it a value instead",
    "trainer.microbatch_size=0": "trainer.microbatch_size=0: must be a whole number: samples per "
    "forward and backward, at least 1; auto = the fastest that fits; null = one mini-batch",
    "trainer.microbatch_size=fast": "trainer.microbatch_size=fast: must be a whole number: samples "
    "per forward and backward, at least 1; auto = the fastest that fits; null = one mini-batch",
    "device.threads=0": "device.threads=0: must be a whole number: threads of an operation, at "
    "least 1; auto = the fastest; null = by its work",
    "data.batch_size=0": "data.batch_size=0: must be a whole number: samples per mini-batch, at "
    "least 1",
    "trainer.clip_norm=0": "trainer.clip_norm=0.0: must be a number: gradient norm, above 0; "
    "null = no clipping",
    "trainer.max_epochs=null": "trainer.max_epochs=null: without a limit the run would never end; "
    "set it, trainer.max_samples or trainer.max_seconds",
    "optimizer.lr=inf": "optimizer.lr=inf: must be a number: learning rate, at least 0",
    "optimizer.betas=[0.9,2]": "optimizer.betas=[0.9, 2.0]: must be a list of numbers: decay per "
    "update of the gradient's two moments, at least 0, below 1",
    "optimizer.betas=[0.9]": "optimizer._target_=torch.optim.AdamW: ",
    "model.hidden=[0]": "model.hidden=[0]: must be a list of whole numbers: widths of the hidden "
    "layers, at least 1",
    "seed=4294967296": "seed=4294967296: must be a whole number: seed of weights, shuffling and "
    "dropout, at least 0, below 4,294,967,296",
    "data=null": "a config group is null; give one of its options, see python -m src.train --help",
    "model=nothing": "model=nothing: no such option; choose one of cnn, gpt, mlp",
    "trainer.stepsize=3": "trainer.stepsize: there is no such key; did you mean trainer.step_size?",
    "+trainer.depth=3": "trainer.depth: there is no such key; did you mean trainer.max_epochs?",
    "++trainer.stepsize=3": "trainer.stepsize: there is no such key; did you mean "
    "trainer.step_size?",
    "data.path=x.npz": "data.path: the chosen option of data has no such key",
    "hydra.sweeper.depth=3": "hydra.sweeper.depth: there is no such key; to add it, give "
    "+hydra.sweeper.depth=3",
    "device.name=cuda:64": "device.name=cuda:64: there is no such device on this machine, only ",
    "device.name=meta": "device.name=meta: there is no such device on this machine, only ",
    "device=mps": "device.name=mps: there is no such device on this machine, only cpu; try "
    "device=auto",
    "device.precision=fp8": "device.precision=fp8: must be arithmetic, one of fp32, bf16, fp16",
    "data=text": "data.path is not set; give data.path=... (a file)",
    "model=gpt": "model=gpt takes sequences of tokens [context]; the data has [1, 8, 8]: try "
    "data=pydocs",
    "data=pydocs": "model._target_=cadence.models.mlp.mlp: it takes numbers, the data has tokens; "
    "try model=gpt",
    "model.outputs=9": "model.outputs=9: the data needs 10; null = as many",
    "model._target_=os.system": "model._target_=os.system: refused, because a config can name any "
    'code to run; if you trust it, add "os.*" to [tool.cadence] trusted in '
    f"{ROOT}/pyproject.toml, or set CADENCE_TRUSTED=os.*",
    "data._target_=torch.load": "data._target_=torch.load: refused, because a config can name any "
    'code to run; if you trust it, add "torch.*" to [tool.cadence] trusted in '
    f"{ROOT}/pyproject.toml, or set CADENCE_TRUSTED=torch.*",
    "track.experiment=": "track.experiment=: an experiment needs a name, such as cadence",
    "track.uri=sqlite:////dev/null/x.db": "track.uri=sqlite:////dev/null/x.db: it cannot be "
    "written (File exists: /dev/null); choose another, or train without by track=none",
    "track.uri=sqlite:////proc/x.db": "track.uri=sqlite:////proc/x.db: it cannot be written (No "
    "such file or directory: /proc/x.db); choose another, or train without by track=none",
    "hydra.run.dir=/dev/null": "/dev/null: File exists; choose another folder by hydra.run.dir= "
    "(of a sweep: hydra.sweep.dir=)",
    "hydra.run.dir=/dev/null/run": "/dev/null/run: Not a directory; choose another folder by "
    "hydra.run.dir=",
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


def sweep_of(parameters: str) -> str:
    return f"hydra.sweeper.params={{trainer.step_size:'{parameters}'}}"


REFUSED_SWEEPS = {
    "hydra.sweeper.n_trials=0": "hydra.sweeper.n_trials=0: must be at least 1",
    "hydra.sweeper.n_trials=word": "hydra.sweeper.n_trials=word: Value 'word' of type 'str' could "
    "not be converted to Integer",
    "hydra.sweeper.max_failure_rate=2": "hydra.sweeper.max_failure_rate=2.0: must be a share of "
    "n_trials, from 0 to 1",
    "hydra.sweeper.direction=minimize": "hydra.sweeper.direction=['minimize']: a run returns "
    "(val_loss, samples_per_second), so it must be [minimize, maximize]",
    "hydra.sweeper.direction=[maximize,minimize]": "hydra.sweeper.direction=['maximize', "
    "'minimize']: a run returns (val_loss, samples_per_second)",
    "hydra/sweeper/sampler=nothing": "hydra/sweeper/sampler=nothing: no such option; choose one of",
    "hydra/sweeper/sampler=cmaes": "hydra/sweeper/sampler: optuna.samplers.CmaEsSampler keeps a "
    "state that no sweep can go on from; choose tpe, random, gp or grid",
    "hydra.sweeper.sampler._target_=os.system": "hydra/sweeper/sampler: os.system keeps a state",
    "hydra.sweeper.study_name=../escaped": "hydra.sweeper.study_name=../escaped: must be a plain "
    "name, because a folder is made of it; hydra.sweep.dir= moves the whole sweep",
    "hydra.sweeper.study_name=/tmp/escaped": "hydra.sweeper.study_name=/tmp/escaped: must be a",
    "hydra.sweeper.study_name=..": "hydra.sweeper.study_name=..: must be a plain name",
    "hydra.sweeper.storage=nonsense": "hydra.sweeper.storage=nonsense: the study cannot be kept "
    "there (Could not parse SQLAlchemy URL from given URL string); correct it or free some space: "
    "the same command goes on",
    "hydra.sweeper.storage=sqlite:////dev": "hydra.sweeper.storage=sqlite:////dev: the study "
    "cannot be kept there (unable to open database file)",
    "hydra.sweep.dir=/dev/null/sweep": "/dev/null/sweep: Not a directory; choose another folder by "
    "hydra.run.dir= (of a sweep: hydra.sweep.dir=)",
    "trainer.step_size=0": f"trainer.step_size=0: {STEP_SIZE}",
    sweep_of("interval(32, 1)"): "hydra.sweeper.params: `low <= high` must hold, but got (low=32.0,"
    " high=1.0).; write such as choice(1,2,4) or int(tag(log, interval(1, 32)))",
}


REFUSED_GRIDS = {
    sweep_of("interval(1, 32)"): "hydra/sweeper/sampler=grid: trainer.step_size has no end of "
    "values; give choice() or range(), or choose tpe, random or gp",
    sweep_of("range(1, 20000)"): "hydra/sweeper/sampler=grid: the search space has 19,999 points, "
    "a grid at most 10,000; search fewer, or choose tpe, random or gp",
}


@pytest.mark.parametrize("override", REFUSED_GRIDS)
def test_a_grid_over_what_cannot_be_counted_is_refused_and_leaves_nothing(
    command: CommandLine, tmp_path: Path, override: str
) -> None:
    ended = command(
        *("--multirun", "sweep=step_size_grid", "track=none", f"hydra.sweep.dir={tmp_path}/sweep"),
        override,
    )

    assert ended.returncode == 1
    assert ended.stderr == f"error: {REFUSED_GRIDS[override]}\n"
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("override", REFUSED_SWEEPS)
def test_an_impossible_sweep_is_refused_in_one_line_and_leaves_no_result(
    command: CommandLine, tmp_path: Path, override: str
) -> None:
    folder = [] if "study_name" in override else [f"hydra.sweep.dir={tmp_path}/sweep"]
    ended = command("--multirun", "sweep=step_size", "track=none", *folder, override)

    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert REFUSED_SWEEPS[override] in ended.stderr
    assert ended.stderr.count("\n") == 1
    left = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert {file.name for file in left} <= {".lock"}
    assert not (ROOT / "escaped").exists()
    assert not Path("/tmp/escaped").exists()


@pytest.mark.parametrize("damage", ["another file", "a folder"])
def test_a_study_that_cannot_be_read_is_named_and_left_as_it_is(
    command: CommandLine, tmp_path: Path, damage: str
) -> None:
    database = tmp_path / "sweep" / "study.db"
    database.parent.mkdir()
    if damage == "a folder":
        database.mkdir()
    else:
        database.write_bytes(b"no database" * 500)

    ended = command(
        *("--multirun", "sweep=step_size", "track=none", f"hydra.sweep.dir={database.parent}")
    )

    assert ended.returncode == 1
    assert ended.stderr.startswith(
        f"error: hydra.sweeper.storage=sqlite:///{database}: the study cannot be kept there ("
    )
    assert ended.stderr.count("\n") == 1
    assert database.is_dir() or database.read_bytes() == b"no database" * 500


def test_a_sweep_without_a_finished_trial_is_an_error_and_its_report_tells_why(
    command: CommandLine, tmp_path: Path
) -> None:
    ended = command(
        *("--multirun", "sweep=step_size", "track=none", f"hydra.sweep.dir={tmp_path}/sweep"),
        *("optimizer=sgd", "optimizer.lr=1e30", "trainer.max_skipped=0", "trainer.max_samples=128"),
        *("hydra.sweeper.n_trials=1", "hydra.sweeper.max_failure_rate=1"),
    )

    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(
        "error: hydra.sweeper.max_failure_rate=1.0: 1 of 1 trials failed (trial 0: "
    )
    report = (tmp_path / "sweep" / "report.md").read_text()
    assert "val_loss and samples_per_second" in report or "DivergedError" in report


def data_file(folder: Path, kind: str) -> Path:
    inputs, targets = np.zeros((20, 3), np.float32), np.arange(20) % 4
    file = folder / "data.npz"
    if kind == "empty":
        file.touch()
    elif kind == "NaN":
        inputs[7, 1] = np.nan
        np.savez(file, inputs=inputs, targets=targets)
    elif kind == "infinite targets":
        np.savez(file, inputs=inputs, targets=np.where(targets == 3, np.inf, 1.0))
    elif kind == "too large for float32":
        np.savez(file, inputs=np.full((20, 3), 1e300), targets=targets)
    elif kind == "no samples":
        np.savez(file, inputs=inputs[:0], targets=targets[:0])
    elif kind == "words":
        np.savez(file, inputs=np.array(["a", "b"]), targets=targets[:2])
    elif kind == "unsigned":
        np.savez(file, inputs=inputs, targets=targets.astype(np.uint16))
    elif kind == "other bytes":
        np.savez(file, inputs=inputs.astype(">f4"), targets=targets)
    elif kind == "one dimension":
        np.savez(file, inputs=inputs[:, 0], targets=targets)
    elif kind == "damaged":
        np.savez(file, inputs=inputs, targets=targets)
        whole = file.read_bytes()
        file.write_bytes(whole[:60] + b"\xff" * 20 + whole[80:])
    elif kind == "compressed objects":
        np.savez_compressed(file, inputs=np.array([{}, {}], dtype=object), targets=targets[:2])
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
        ("damaged", "cannot be read (Bad CRC-32 for file 'inputs.npy'); save it again with"),
        (
            "NaN",
            "inputs holds NaN, infinity or more than float32 can, first in sample 7; drop, "
            "fill or scale such samples",
        ),
        (
            "infinite targets",
            "targets holds NaN, infinity or more than float32 can, first in sample 3",
        ),
        (
            "too large for float32",
            "inputs holds NaN, infinity or more than float32 can, first in sample 0",
        ),
        ("no samples", "inputs has fewer than 2 samples, one to train and one to hold out"),
        ("words", "inputs holds <U1, not real numbers; convert it"),
        (
            "unsigned",
            "targets holds <u2, which torch cannot index; convert it, such as by "
            ".astype('int64') or .astype('float32')",
        ),
        ("other bytes", "inputs holds >f4, which torch cannot index; convert it"),
        (
            "one dimension",
            "inputs has one dimension, the samples; give it the features' too, such "
            "as by .reshape(20, 1)",
        ),
        ("compressed objects", "it holds Python objects, which are never unpickled"),
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


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("truncated", "inputs.npy is no readable .npy array (mmap length is greater than file "
         "size); save it again with numpy.save"),
        ("empty", "inputs.npy is no readable .npy array (No data left in file); save it again"),
        ("words", "inputs.npy is no readable .npy array (it holds Python objects, which are never "
         "unpickled); save it again with numpy.save"),
        ("objects", "inputs.npy is no readable .npy array (it holds Python objects, which are "
         "never unpickled); save it again with numpy.save"),
        ("none", "the folder has no .npy file; save inputs.npy and targets.npy there, or give an "
         ".npz file"),
    ],
)  # fmt: skip
def test_a_bad_npy_file_is_refused_by_name_and_never_unpickled(
    command: CommandLine, tmp_path: Path, kind: str, said: str
) -> None:
    folder, proof = tmp_path / "arrays", tmp_path / "executed"
    folder.mkdir()
    file = folder / "inputs.npy"
    if kind != "none":
        np.save(file, np.zeros((20, 3)))
        np.save(folder / "targets.npy", np.arange(20) % 4)
    if kind == "truncated":
        file.write_bytes(file.read_bytes()[:150])
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "words":
        file.write_bytes(b"hello world" * 50)
    elif kind == "objects":
        np.save(file, np.array([Touches(proof)], dtype=object), allow_pickle=True)

    ended = command("data=arrays", f"data.path={folder}", "track=none")

    assert ended.returncode == 1
    assert ended.stderr == f"error: data.path={folder}: {said}\n" or (
        kind == "empty" and said in ended.stderr
    )
    assert not proof.exists()


class Touches:
    """Makes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.file}",)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "there is no such file; give the path of a text file"),
        ("", "0 bytes are too few for a sample of 129 in each of training and validation "),
        ("short", "5 bytes are too few for a sample of 129 in each of training and validation "),
    ],
    ids=["missing", "empty", "short"],
)
def test_a_bad_text_file_is_refused_by_name(
    command: CommandLine, tmp_path: Path, text: str | None, said: str
) -> None:
    file = tmp_path / "book.txt"
    if text is not None:
        file.write_text(text)

    ended = command("data=text", "model=gpt", f"data.path={file}", "track=none")

    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: data.path={file}: {said}")
    assert ended.stderr.count("\n") == 1


def test_targets_that_are_no_classes_are_refused_with_the_objective_for_numbers(
    command: CommandLine, tmp_path: Path
) -> None:
    file = tmp_path / "data.npz"
    np.savez(file, inputs=np.zeros((200, 3)), targets=np.linspace(0, 1, 200))

    ended = command("data=arrays", f"data.path={file}", "track=none")

    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "error: the targets are torch.float32 of shape [32], and classes are whole numbers, one "
        "for each sample; for numbers choose data.objective._target_=cadence.objectives.Regression"
    )


def test_a_micro_batch_larger_than_the_window_and_a_window_larger_than_the_run_are_one_pass(
    command: CommandLine, tmp_path: Path
) -> None:
    ended = command(
        *("trainer.microbatch_size=100000", f"trainer.step_size={10**30}", "track=none"),
        "trainer.max_epochs=2",
    )

    assert ended.returncode == 0, ended.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["updates"], summary["samples"]) == (2, 2 * 1437)


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
    assert "4 windows in a row were refused because their loss or gradient is not finite; " \
        "begin anew with a lower optimizer.lr" in ended.stderr  # fmt: skip
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "FAILED"
    assert summary["updates_skipped"] == 4
    state = latest(tmp_path / "run" / "checkpoints")
    assert state.clock.updates_skipped == 4
    assert all(weight.isfinite().all() for weight in state.model.values())
