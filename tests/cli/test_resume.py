"""Going on: a run that was interrupted anywhere ends as one that was not, bit for bit."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
import torch
from conftest import ROOT, CommandLine
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import AtBoundaries, as_a_user_calls_it, cut, regression_pair, same, weights
from told import in_mlflow, in_the_folder
from torch import nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset
from waiting import until
from warm import Warm

from cadence import Callback, Trainer
from cadence.checkpoint.file_format import read
from cadence.checkpoint.folder import FOLDER, Checkpoints, latest
from cadence.cli.resume import OVERRIDES, with_resume
from cadence.config.errors import ConfigError
from cadence.data import TensorData, loader
from cadence.metrics.result import Result, Window
from cadence.models.mlp import mlp
from cadence.objectives import Regression
from cadence.plan.schedule import cosine
from cadence.system.locks import run_lock
from cadence.training.early_stopping import EarlyStopping
from cadence.training.noise_scale import NoiseScaleEstimate


class StoppedError(Exception):
    """The run was interrupted here."""


class Seen(Callback):
    """Keeps every number of a run."""

    def __init__(self) -> None:
        self.numbers: list[tuple[Any, ...]] = []

    def on_window_end(self, trainer: Trainer, window: Window) -> None:
        self.numbers.append((trainer.clock, window))

    def on_evaluation_end(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        result = trainer.result
        self.numbers.append((trainer.clock, result.train_loss, result.val_loss))


def trainer_of(seed: int, **settings: Any) -> Trainer:
    """Return a trainer of a model that draws random numbers, with moments and a schedule."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 1))
    model.double()
    optimizer = AdamW(model.parameters(), lr=0.01)
    chosen = {"schedule": cosine(200, 20, 0.1), "clip_norm": 1.0, "step_size": 3, **settings}
    return Trainer(model, optimizer, Regression(), device="cpu", **chosen)


def unseeded_loader() -> DataLoader[Any]:
    """Return a user's own loader, which shuffles by torch's global random numbers."""
    pair = regression_pair(38)
    return DataLoader(TensorDataset(pair.inputs, pair.targets), batch_size=4, shuffle=True)


def seeded_loader() -> DataLoader[Any]:
    return loader(TensorData(*regression_pair(38)), 4, shuffle_seed=5)


LOADERS = {"cadence's loader": seeded_loader, "torch's own shuffle": unseeded_loader}
CHANGING = {
    "step_size": {0: 2, 13: 1, 21: 3, 60: 1},
    "scaling": "sqrt",
    "microbatch_size": 8,
    "allow_batch_coupling": True,
}
"""A schedule that changes within epochs, and windows of one pass that are sometimes halved."""

HELD_OUT = cut(regression_pair(10), [4, 4, 2])


@pytest.mark.parametrize("make_loader", LOADERS.values(), ids=LOADERS)
@settings(max_examples=20)
@given(
    stop_at=st.integers(1, 14),
    limits=st.sampled_from([{"epochs": 4}, {"max_samples": 100}]),
    patience=st.sampled_from([None, 2]),
    evaluate_every=st.sampled_from([None, 10, 50]),
    chosen=st.sampled_from([{}, CHANGING]),
)
def test_a_run_stopped_at_any_boundary_goes_on_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory,
    make_loader: Any,
    stop_at: int,
    limits: dict[str, int],
    patience: int | None,
    evaluate_every: int | None,
    chosen: dict[str, Any],
) -> None:
    with as_a_user_calls_it():  # the type checker of the tests draws random numbers itself
        undisturbed, whole = trainer_of(0, **chosen), Seen()
        undisturbed.callbacks = [whole, *callbacks_of(chosen, patience)]
        expected = undisturbed.fit(make_loader(), HELD_OUT, **limits, evaluate_every=evaluate_every)

        stopped, parts = trainer_of(0, **chosen), Seen()
        folder = tmp_path_factory.mktemp("checkpoints")
        boundaries = 0

        def stop() -> None:
            nonlocal boundaries
            boundaries += 1
            if boundaries == stop_at:
                with Checkpoints(folder) as checkpoints:
                    checkpoints.save(stopped.state({}), best=False)
                raise StoppedError

        stopped.callbacks = [parts, *callbacks_of(chosen, patience), AtBoundaries(stop)]
        try:
            found = stopped.fit(make_loader(), HELD_OUT, **limits, evaluate_every=evaluate_every)
        except StoppedError:
            torch.manual_seed(99)  # what happens in between leaves no trace
            resumed = trainer_of(1, **chosen)
            resumed.callbacks = [parts, *callbacks_of(chosen, patience)]
            resumed.restore(latest(folder))
            found = go_on(resumed, make_loader(), limits, evaluate_every)
            stopped = resumed

    assert same(weights(stopped.model), weights(undisturbed.model))
    assert same(stopped.model.buffers(), undisturbed.model.buffers())
    assert stopped.state({}).clock == undisturbed.state({}).clock
    assert parts.numbers == whole.numbers
    noise, undisturbed_noise = (
        trainer.state({}).record["callbacks"] for trainer in (stopped, undisturbed)
    )
    assert noise == undisturbed_noise
    assert (found.train_loss, found.val_loss) == (expected.train_loss, expected.val_loss)


def callbacks_of(chosen: dict[str, Any], patience: int | None) -> list[Callback]:
    noise = [NoiseScaleEstimate()] if chosen else []
    return [*noise, *([] if patience is None else [EarlyStopping(patience)])]


def go_on(
    trainer: Trainer,
    data: DataLoader[Any],
    limits: dict[str, int],
    evaluate_every: int | None,
) -> Result:
    left = dict(limits)
    if "epochs" in left:
        left["epochs"] -= trainer.clock.epoch
    if "max_samples" in left:
        left["max_samples"] -= trainer.clock.samples
    if min(left.values()) == 0:
        return trainer.result
    return trainer.fit(data, HELD_OUT, **left, evaluate_every=evaluate_every)


def test_the_loss_scale_of_float16_goes_on() -> None:
    data = [pair.inputs.float() for pair in cut(regression_pair(8), [4, 4])]
    pairs = [(part, part.sum(1, keepdim=True)) for part in data]
    model = nn.Linear(3, 1)
    trainer = Trainer(model, SGD(model.parameters(), lr=0.01), Regression(), 1, precision="fp16")
    trainer.fit(pairs, epochs=2)
    state = trainer.state({})

    other = nn.Linear(3, 1)
    resumed = Trainer(other, SGD(other.parameters(), lr=0.01), Regression(), 1, precision="fp16")
    resumed.restore(state)

    assert state.scaler is not None
    assert resumed.state({}).scaler == state.scaler


def test_a_checkpoint_gives_the_moments_and_the_trainer_the_learning_rate() -> None:
    first = trainer_of(0)
    first.fit(seeded_loader(), epochs=1)
    second = trainer_of(1)
    second.optimizer.param_groups[0]["betas"] = (0.8, 0.9)

    second.restore(first.state({}))

    assert second.optimizer.param_groups[0]["betas"] == (0.8, 0.9)
    moments = [state["exp_avg"] for state in second.optimizer.state.values()]
    assert same(moments, [state["exp_avg"] for state in first.optimizer.state.values()])


def test_patience_ends_a_run_after_so_many_evaluations_without_a_lower_loss() -> None:
    model = nn.Linear(3, 1).double()
    trainer = Trainer(model, SGD(model.parameters(), lr=0.0), Regression(), 1, "cpu")
    seen = Seen()

    trainer.callbacks = [seen, EarlyStopping(3)]
    trainer.fit(seeded_loader(), HELD_OUT, epochs=50)

    evaluations = [numbers for numbers in seen.numbers if len(numbers) == 3]
    assert len(evaluations) == 4  # the first is the best, and three more are in vain
    assert trainer.clock.epoch == 4


RUN = (
    "experiment=digits_mlp",
    "model.hidden=[16]",
    "trainer.max_epochs=40",
    "trainer.checkpoint_every=500",
    "trainer.evaluate_every=2000",
    "track.every=400",
)
CURVES = ("train/loss", "train/grad_norm", "train/lr", "train/updates", "val/loss", "val/accuracy")


def curves(uri: str, run_id: str) -> dict[str, list[tuple[int, float]]]:
    client = mlflow.MlflowClient(uri)
    return {
        name: [(point.step, point.value) for point in client.get_metric_history(run_id, name)]
        for name in CURVES
    }


def started(arguments: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "src.train", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGKILL, -9),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights_and_curves_in_the_same_places(
    command: CommandLine,
    tmp_path: Path,
    tracking_uri: str,
    number: signal.Signals,
    code: int,
) -> None:
    arguments = [*RUN, f"track.uri={tracking_uri}"]
    undisturbed = tmp_path / "undisturbed"
    folder = tmp_path / "killed"
    assert command(*arguments, f"hydra.run.dir={undisturbed}").returncode == 0
    dying = started([*arguments, f"hydra.run.dir={folder}"])
    previous = folder / "checkpoints" / "previous.pt"
    until(previous.exists, "two saves", alive=lambda: dying.poll() is None, every=0.002)
    dying.send_signal(number)
    dying.communicate(timeout=400)
    assert dying.returncode == code
    was = latest(folder / "checkpoints")
    client = mlflow.MlflowClient(tracking_uri)
    assert was.mlflow_run_id is not None
    expected = "RUNNING" if number == signal.SIGKILL else "KILLED"
    assert client.get_run(was.mlflow_run_id).info.status == expected

    ended = command(f"resume={folder}")

    assert ended.returncode == 0, ended.stderr
    theirs, ours = (read(each / "checkpoints" / "last.pt") for each in (undisturbed, folder))
    assert was.clock.samples < ours.clock.samples
    assert ours.clock == theirs.clock
    assert same(ours.model.values(), theirs.model.values())
    assert ours.mlflow_run_id == was.mlflow_run_id
    assert client.get_run(ours.mlflow_run_id).info.status == "FINISHED"
    assert curves(tracking_uri, ours.mlflow_run_id) == curves(
        tracking_uri, str(theirs.mlflow_run_id)
    )


def test_resume_last_is_the_run_that_was_started_last_with_its_own_overrides_first(
    tmp_path: Path,
) -> None:
    for number, name in enumerate(["2026-01-01/older", "2026-01-02/newer"]):
        overrides = tmp_path / name / ".hydra" / "overrides.yaml"
        overrides.parent.mkdir(parents=True)
        overrides.write_text("- model=cnn\n- resume='elsewhere'\n- trainer.max_epochs=40\n")
        os.utime(overrides, (number, number))

    found = with_resume(["resume=last", "trainer.max_epochs=80"], tmp_path)

    newer = tmp_path / "2026-01-02" / "newer"
    assert found == [
        *("model=cnn", "trainer.max_epochs=40", f"hydra.run.dir='{newer}'"),
        *("trainer.max_epochs=80", f"resume='{newer}'"),
    ]
    assert with_resume(["model=cnn"], tmp_path) == ["model=cnn"]


def test_the_best_model_of_a_run_is_evaluated_as_the_run_found_it(
    command: CommandLine, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert command("optimizer.lr=0.1", "trainer.max_epochs=6", "track=none").returncode == 0
    best = read(folder / "checkpoints" / "best.pt")

    ended = command(f"run={folder}", module="src.evaluate")
    nothing = command(module="src.evaluate")

    assert ended.returncode == 0, ended.stderr
    assert best.record["best_loss"] == best.record["evaluation"]["loss"]
    assert ended.stdout == (
        f"checkpoint    {folder}/checkpoints/best.pt, after {best.clock.samples:,} samples\n"
        "held out      360 samples, 360 items\n"
        f"val loss      {best.record['best_loss']:.4f}\n"
        f"val accuracy  {best.record['evaluation']['metrics']['accuracy']:.4f}\n"
    )
    assert nothing.returncode == 1
    assert nothing.stderr == (
        "error: run= is missing; usage: python -m src.evaluate run=<run folder, or last> "
        "[overrides]\n"
    )


@pytest.mark.parametrize("lost", ["best.pt", "last.pt"])
def test_where_a_checkpoint_is_damaged_the_next_best_is_evaluated_with_a_warning(
    command: CommandLine, tmp_path: Path, lost: str
) -> None:
    """A run that has no best, and whose last is damaged, has the one before it."""
    folder = tmp_path / "run" / FOLDER
    trained = command("trainer.max_epochs=2", "trainer.checkpoint_every=1000", "track=none")
    assert trained.returncode == 0, trained.stderr
    if lost == "last.pt":
        (folder / "best.pt").unlink()
    damaged = folder / lost
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.unlink()  # the others may share its bytes
    damaged.write_bytes(content)
    found = folder / {"best.pt": "last.pt", "last.pt": "previous.pt"}[lost]

    ended = command(f"run={tmp_path}/run", module="src.evaluate")

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"checkpoint    {found}, after ")
    (warning,) = ended.stderr.splitlines()
    assert f"checkpoint {damaged}: damaged" in warning
    assert warning.endswith(f"; going on from {found}")


def test_a_logged_model_is_the_best_and_is_loaded_by_mlflow_to_compute_the_same(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    # Saved at every epoch's end as well, before what it is worth is known.
    worsening = ("optimizer.lr=0.02", "trainer.max_epochs=5", "trainer.checkpoint_every=1437")
    ended = command(*worsening, f"track.uri={tracking_uri}", "track.log_model=true")
    assert ended.returncode == 0, ended.stderr
    state, best = (read(tmp_path / "run" / FOLDER / name) for name in ("last.pt", "best.pt"))

    mlflow.set_tracking_uri(tracking_uri)
    uri = f"runs:/{state.mlflow_run_id}/model"
    model = mlflow.pytorch.load_model(uri)
    info = mlflow.models.get_model_info(uri)

    losses = dict(curves(tracking_uri, str(state.mlflow_run_id))["val/loss"])
    assert best.clock.samples == min(losses, key=losses.__getitem__) < state.clock.samples
    assert same(model.state_dict().values(), best.model.values())
    assert not same(model.state_dict().values(), state.model.values())
    signature = info.signature
    assert signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    assert signature.outputs.inputs[0].shape == (-1, 10)
    inputs = torch.from_numpy(mlflow.models.Model.load(uri).load_input_example(uri))
    assert inputs.shape == (2, 1, 8, 8)
    expected = mlp((1, 8, 8), 10, (128,))
    expected.load_state_dict(best.model)
    assert torch.equal(model(inputs), expected(inputs))
    run = mlflow.MlflowClient(tracking_uri).get_run(str(state.mlflow_run_id))
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_is_extended_by_a_higher_limit_and_may_take_another_step_size(
    command: CommandLine, tmp_path: Path
) -> None:
    folder = tmp_path / "run folder"
    short = ("trainer.max_epochs=2", "track=none", f"hydra.run.dir='{folder}'")
    assert command(*short).returncode == 0

    ended = command(f"resume={folder}")
    longer = command(f"resume={folder}", "trainer.max_epochs=3", "trainer.step_size=5")

    assert ended.returncode == 0, ended.stderr
    assert "the run had come to its end; a higher limit" in ended.stderr
    assert longer.returncode == 0, longer.stderr
    assert "resume: trainer.max_epochs: was 2, now 3" in longer.stderr
    assert "resume: trainer.step_size: was 2, now 5" in longer.stderr
    clock = latest(folder / "checkpoints").clock
    assert (clock.epoch, clock.samples, clock.updates) == (3, 3 * 1437, 2 * 23 + 9)


@pytest.mark.parametrize(
    ("given_now", "message"),
    [
        (
            ["optimizer.lr=0.1"],
            "error: resume: it would be another training (optimizer.lr: was 0.001, now 0.1); give "
            "what the run began with, or begin a new one without resume=\n",
        ),
        (
            ["model.hidden=[8]"],
            "error: resume: it would be another training (model.hidden: was [128], now [8]); give "
            "what the run began with, or begin a new one without resume=\n",
        ),
    ],
)
def test_a_resume_that_would_train_something_else_is_refused(
    command: CommandLine, tmp_path: Path, given_now: list[str], message: str
) -> None:
    folder = tmp_path / "run"
    assert command("trainer.max_epochs=1", "track=none").returncode == 0
    before = (folder / "checkpoints" / "last.pt").read_bytes()

    ended = command(f"resume={folder}", *given_now)

    assert ended.returncode == 1
    assert ended.stderr == message
    assert (folder / "checkpoints" / "last.pt").read_bytes() == before


def contents(folder: Path) -> dict[Path, bytes]:
    """Return what each file of a run's folder holds, but for its log and its locks."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file: file.read_bytes() for file in files if file.suffix not in (".log", ".lock")}


def test_a_resume_that_is_refused_leaves_its_run_as_it_was_and_the_plain_one_goes_on(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    folder = tmp_path / "run"
    began = command("trainer.max_epochs=1", "model.hidden=[8]", f"track.uri={tracking_uri}")
    assert began.returncode == 0, began.stderr
    before = contents(folder)

    refused = [
        command(f"resume={folder}", "optimizer.lr=0.1", "trainer.max_epochs=2"),
        command(f"resume={folder}", "model.hidden=[4]"),
        command(f"resume={folder}", "track.uri=http://127.0.0.1:9"),
        command("seed=1", "track.uri=http://127.0.0.1:9"),  # another run, in the same folder
    ]

    assert [ended.returncode for ended in refused] == [1, 1, 1, 1]
    assert contents(folder) == before
    evaluated = command(f"run={folder}", module="src.evaluate")
    assert evaluated.returncode == 0, evaluated.stderr
    resumed = command(f"resume={folder}")
    assert resumed.returncode == 0, resumed.stderr


def test_a_run_goes_on_in_another_folder_where_its_own_cannot_be_written(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    folder, other = tmp_path / "run", tmp_path / "other"
    began = command("trainer.max_epochs=1", "model.hidden=[8]", f"track.uri={tracking_uri}")
    assert began.returncode == 0, began.stderr
    before = contents(folder)
    longer = (f"resume={folder}", "trainer.max_epochs=2", f"hydra.run.dir={other}")

    ended = command(*longer)
    again = command(*longer)

    assert ended.returncode == 0, ended.stderr
    assert contents(folder) == before
    ours = latest(other / FOLDER)
    assert ours.clock.epoch == 2
    assert ours.mlflow_run_id != latest(folder / FOLDER).mlflow_run_id
    assert in_mlflow(tracking_uri, ours.mlflow_run_id) == in_the_folder(other)
    assert again.returncode == 1
    assert again.stderr.splitlines()[-1] == (
        f"error: hydra.run.dir={other}: another run is there; choose a new folder, or go on with "
        f"that run by resume={other}"
    )


def test_a_run_whose_data_moved_goes_on_with_it_and_says_so(
    command: CommandLine, tmp_path: Path
) -> None:
    here, there = tmp_path / "here.npz", tmp_path / "there.npz"
    np.savez(here, inputs=np.ones((40, 3), np.float32), targets=np.arange(40) % 2)
    began = command("data=arrays", f"data.path={here}", "trainer.max_epochs=1", "track=none")
    assert began.returncode == 0, began.stderr
    here.rename(there)

    ended = command(f"resume={tmp_path}/run", f"data.path={there}", "trainer.max_epochs=2")

    assert ended.returncode == 0, ended.stderr
    assert f"WARNING: resume: data.path: was {here}, now {there}\n" in ended.stderr
    assert latest(tmp_path / "run" / FOLDER).clock.epoch == 2


@pytest.mark.parametrize("arguments", [["hydra.run.dir="], ["seed=1", "resume="]])
def test_a_folder_in_which_a_run_goes_on_takes_no_second_one(
    command: CommandLine, tmp_path: Path, arguments: list[str]
) -> None:
    folder = tmp_path / "run"
    (folder / FOLDER).mkdir(parents=True)
    (folder / ".hydra").mkdir()
    (folder / OVERRIDES).write_text("- track=none\n")
    before = contents(folder)

    with run_lock(folder):
        second = command("track=none", *arguments[:-1], f"{arguments[-1]}{folder}")

    assert second.returncode == 1
    assert second.stderr == (
        f"error: {folder}: its run is still going on; wait for it, or choose another "
        "hydra.run.dir=\n"
    )
    assert contents(folder) == before


def test_resume_last_passes_over_a_start_that_was_refused(tmp_path: Path, warm: Warm) -> None:
    runs = tmp_path / "runs" / "2026-01-01"
    small = ("trainer.max_samples=64", "track=none", "hydra.run.dir=")
    began = warm.run("src.train", [*small[:2], f"{small[2]}{runs}/first"], tmp_path)
    assert began.returncode == 0, began.stderr
    refused = warm.run("src.train", ["device.name=meta", f"{small[2]}{runs}/second"], tmp_path)
    assert refused.returncode == 1

    found = with_resume(["resume=last"], tmp_path / "runs")

    assert found[-1] == f"resume='{runs}/first'"


def test_a_folder_that_is_used_again_holds_nothing_of_the_run_before(
    command: CommandLine, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    trained = command("trainer.max_epochs=2", "trainer.checkpoint_every=1000", "track=none")
    assert trained.returncode == 0, trained.stderr
    assert {file.name for file in (folder / FOLDER).iterdir()} == {
        *("last.pt", "previous.pt", "best.pt")
    }
    again = started(
        ["trainer.max_epochs=100000", "trainer.checkpoint_every=1000000000", "track=none",
         "trainer.evaluate_every=1000000000", "seed=1", f"hydra.run.dir={folder}"]
    )  # fmt: skip
    kept = folder / OVERRIDES
    until(lambda: "seed=1" in kept.read_text(), "another run", alive=lambda: again.poll() is None)

    again.kill()
    again.communicate(timeout=400)

    assert list((folder / FOLDER).iterdir()) == []
    assert not (folder / "summary.json").exists()
    evaluated = command(f"run={folder}", module="src.evaluate")
    assert evaluated.returncode == 1


def test_a_folder_that_is_no_run_and_a_damaged_checkpoint_are_clear_errors(
    command: CommandLine, tmp_path: Path
) -> None:
    nowhere = command(f"resume={tmp_path}/nowhere")
    assert command("trainer.max_epochs=1", "track=none").returncode == 0
    for file in (tmp_path / "run" / "checkpoints").iterdir():
        file.write_bytes(file.read_bytes()[:1000])

    damaged = command(f"resume={tmp_path}/run")

    assert nowhere.returncode == damaged.returncode == 1
    assert nowhere.stderr == (
        f"error: resume={tmp_path}/nowhere: {tmp_path}/nowhere is no run folder (it has no "
        ".hydra/overrides.yaml); give the folder of a run, or last\n"
    )
    assert re.fullmatch(
        rf"error: checkpoint {tmp_path}/run/checkpoints/last.pt: .*\n", damaged.stderr
    )


def test_a_secret_that_was_kept_nowhere_is_asked_for_again(tmp_path: Path) -> None:
    overrides = tmp_path / "run" / ".hydra" / "overrides.yaml"
    overrides.parent.mkdir(parents=True)
    overrides.write_text("- track.uri=http://me:***@there:5000\n")
    again = "track.uri=http://me:secret@there:5000"

    with pytest.raises(ConfigError) as refused:
        with_resume([f"resume={tmp_path}/run"], tmp_path)

    assert str(refused.value) == (
        f"resume={tmp_path}/run: the secret in track.uri is kept nowhere; give track.uri= again"
    )
    assert again in with_resume([f"resume={tmp_path}/run", again], tmp_path)


def test_a_trial_of_a_sweep_is_trained_on(command: CommandLine, tmp_path: Path) -> None:
    swept = command(
        *("--multirun", "sweep=step_size", "track=none", "trainer.max_epochs=2"),
        *("hydra.sweeper.n_trials=1", f"hydra.sweep.dir={tmp_path}/sweep"),
    )
    assert swept.returncode == 0, swept.stderr
    trial = tmp_path / "sweep" / "trials" / "0"

    ended = command(f"resume={trial}", "trainer.max_epochs=3")

    assert ended.returncode == 0, ended.stderr
    assert latest(trial / "checkpoints").clock.epoch == 3
