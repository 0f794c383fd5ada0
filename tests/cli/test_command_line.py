"""The command line as a user types it: what it prints, leaves behind and how fast it answers."""

import json
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, CommandLine
from omegaconf import OmegaConf

SUMMARY = {
    "step_size",
    "microbatch_size",
    "updates",
    "updates_skipped",
    "samples",
    "train_loss",
    "val_loss",
    "val_accuracy",
    "samples_per_second",
    "time_data_ms",
    "time_compute_ms",
    "time_sync_ms",
    "time_update_ms",
    "peak_memory_mib",
    "seconds",
    "device",
    "seed",
    "mlflow_run_id",
    "status",
}


def summary(folder: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((folder / "run" / "summary.json").read_text())
    return found


def test_a_run_says_what_it_does_and_leaves_its_folder_behind(
    command: CommandLine, tmp_path: Path
) -> None:
    ended = command("trainer.step_size=16", "trainer.max_epochs=2", "track=none")

    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    said = ended.stdout.splitlines()
    assert said[:5] == [
        "model   mlp, 9,610 parameters, fp32 on cpu",
        "data    digits, 1,437 training and 360 validation samples",
        "window  step_size=16 mini-batches per update of 32 samples: effective batch 512 samples",
        "epoch   45 mini-batches, 3 updates",
        "run     2 epochs, 2,874 samples in all",
    ]
    assert said[5].startswith("1,437 of 2,874 samples  train loss ")
    assert "updates       6 applied, 0 skipped" in said
    assert any(
        re.fullmatch(
            r"window time   data [\d.]+, compute [\d.]+, sync 0, update [\d.]+ ms "
            r"\(medians of the windows of 512 samples\)",
            line,
        )
        for line in said
    )
    assert said[-1] == f"run folder    {tmp_path / 'run'}"
    assert {file.name for file in (tmp_path / "run").iterdir()} == {
        ".hydra",
        ".running.lock",
        "config.yaml",
        "summary.json",
        "train.log",
        "checkpoints",
    }
    logged = (tmp_path / "run" / "train.log").read_text().splitlines()
    assert [line.partition("INFO: ")[2].partition(":")[0] for line in logged[:5]] == [
        *("model", "data", "window", "epoch", "run")
    ]
    assert "INFO: epoch 1, samples=1437: val/loss " in logged[5]
    assert "INFO: ended after 2874 samples and 6 updates (0 skipped), " in logged[-1]
    kept = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert (kept.trainer.step_size, kept.model.hidden) == (16, [128])
    found = summary(tmp_path)
    assert found.keys() >= SUMMARY
    assert (found["step_size"], found["microbatch_size"]) == (16, None)
    assert (found["updates"], found["samples"], found["status"]) == (6, 2874, "FINISHED")
    assert found["mlflow_run_id"] is None


def test_the_default_is_two_minibatches_per_update(command: CommandLine, tmp_path: Path) -> None:
    assert command("trainer.max_epochs=1", "track=none").returncode == 0

    assert (summary(tmp_path)["step_size"], summary(tmp_path)["updates"]) == (2, math.ceil(45 / 2))


@pytest.mark.slow
def test_every_step_size_sees_the_same_samples(command: CommandLine, tmp_path: Path) -> None:
    seen = set()
    for step_size in (1, 7):
        ended = command(f"trainer.step_size={step_size}", "trainer.max_samples=1000", "track=none")
        assert ended.returncode == 0, ended.stderr
        seen.add(summary(tmp_path)["samples"])

    assert seen == {1000}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_losses_to_the_bit(
    command: CommandLine, tmp_path: Path
) -> None:
    losses = []
    for seed in (3, 3, 4):
        ended = command(f"seed={seed}", "trainer.max_epochs=1", "track=none")
        assert ended.returncode == 0, ended.stderr
        losses.append((summary(tmp_path)["train_loss"], summary(tmp_path)["val_loss"]))

    assert losses[0] == losses[1] != losses[2]


def test_debug_is_one_tiny_epoch_without_tracking(command: CommandLine, tmp_path: Path) -> None:
    assert command("debug=default").returncode == 0

    found = summary(tmp_path)
    assert (found["samples"], found["mlflow_run_id"]) == (256, None)


@pytest.mark.parametrize(
    "question",
    [
        ["--help"],
        ["--cfg", "job"],
        ["trainer.step_szie=3"],
        ["trainer.step_size=0", "hydra.run.dir=/tmp/cadence-bad-value"],
    ],
)
def test_help_config_and_typos_are_answered_without_torch_or_mlflow(question: list[str]) -> None:
    watched = (
        "import sys, runpy, atexit\n"
        "atexit.register(lambda: print(sorted({'torch', 'mlflow'} & set(sys.modules))))\n"
        f"sys.argv = ['train', *{question!r}]\n"
        "runpy.run_module('src.train', run_name='__main__')\n"
    )

    ended = subprocess.run(
        [sys.executable, "-c", watched], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert ended.stdout.splitlines()[-1] == "[]"


def test_the_reference_has_every_number_of_a_run(command: CommandLine, tmp_path: Path) -> None:
    options = ("trainer.noise_scale=true", "trainer.step_size=1", "track.offline=true")
    ended = command("trainer.max_epochs=12", *options)
    assert ended.returncode == 0, ended.stderr
    journal = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    logged = {json.loads(line)["key"] for line in journal}
    assert "train/noise_scale" in logged

    told = set(re.findall(r"`([\w/]+)`", (ROOT / "docs" / "reference.md").read_text()))

    assert {name for name in logged if not name.startswith("system/")} <= told
    assert summary(tmp_path).keys() <= told


@pytest.mark.parametrize(
    ("module", "first", "example"),
    [
        ("src.train", "Train a PyTorch model: ", "python -m src.train --multirun sweep=step_size"),
        ("src.train", "Train a PyTorch model: ", "python -m src.train resume=last"),
        ("src.advise", "Advise which step_size ", "python -m src.advise run=last"),
        ("src.certify", "Certify that the gradient ", "python -m src.certify experiment="),
        ("src.evaluate", "Tell what a run's best model ", "python -m src.evaluate run=last"),
        ("src.report", "usage: python -m src.report ", "python -m src.report step_size_digits_mlp"),
        ("src.sync", "usage: python -m src.sync ", "python -m src.sync mlruns/runs/"),
    ],
)
def test_help_says_what_a_command_does_with_an_example_on_a_line_of_its_own(
    command: CommandLine, module: str, first: str, example: str
) -> None:
    ended = command("--help", module=module)

    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(first)
    assert f"\n    {example}" in ended.stdout
    assert ("README.md" in ended.stdout) == (module in ("src.train", "src.advise", "src.certify"))


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_is_killed_and_keeps_what_it_had(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "src.train", "trainer.max_epochs=100000", "track=none"),
            f"hydra.run.dir={tmp_path}/run",
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "val loss" in line:
            break
    process.send_signal(number)
    _, error = process.communicate(timeout=400)

    assert process.returncode == 128 + number
    name = signal.Signals(number).name
    assert re.fullmatch(
        rf"\[.*\] WARNING: {name}: the window under way ends first; a second one stops at once\n"
        "interrupted\n",
        error,
    )
    found = summary(tmp_path)
    assert found["status"] == "KILLED"
    assert found["samples"] >= 1437  # type: ignore[operator]


def test_a_report_is_drawn_again_from_the_study_alone(command: CommandLine, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    sweep = ("--multirun", "sweep=step_size", f"hydra.sweep.dir={folder}", "track=none")
    ended = command(*sweep, "hydra.sweeper.n_trials=2", "trainer.max_samples=64")
    assert ended.returncode == 0, ended.stderr
    report = (folder / "report.md").read_text()
    (folder / "report.md").unlink()

    again = command("step_size_digits_mlp", "--folder", str(folder), module="src.report")

    assert again.returncode == 0, again.stderr
    assert (folder / "report.md").read_text() == report
    assert again.stdout.splitlines()[-1] == f"report  {folder}"


def test_a_sweep_that_is_not_there_is_refused_by_its_database(
    command: CommandLine, tmp_path: Path
) -> None:
    ended = command("nothing", "--folder", str(tmp_path), module="src.report")

    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert ended.stderr == (
        f"error: sqlite:///{tmp_path}/study.db: there is no such file; run the sweep first\n"
    )


@pytest.mark.parametrize(("goal", "word"), [("report", "STUDY"), ("sync", "RUN")])
def test_make_hands_on_a_name_with_a_space_as_one(goal: str, word: str) -> None:
    def asked(*named: str) -> str:
        made = ["make", "--dry-run", goal, *named]
        return subprocess.run(made, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    assert f'-m src.{goal} "a study" ' in asked(f"{word}=a study")
    assert '"' not in asked().splitlines()[-1]  # none is not an empty one
