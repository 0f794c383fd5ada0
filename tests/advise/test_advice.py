"""What is advised: by known machines and noise scales, on real probes, and on the command line."""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from conftest import CommandLine
from hypothesis import given
from hypothesis import strategies as st
from oracles import Pair, cut
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from warm import Warm

from cadence import Trainer
from cadence.advise.advice import Advice, advice_markdown, advise, table_of_advice
from cadence.advise.figure import advice_png
from cadence.advise.growing_window import warmup
from cadence.advise.probe import noise_scale, probe
from cadence.checkpoint.file_format import snapshot
from cadence.metrics.summary import read_summary
from cadence.metrics.window_time_model import Estimate, Forecast, Turn, forecast, simple
from cadence.objectives import Regression
from cadence.plan.window import StepSizeSchedule
from cadence.tracking.metrics_file import LoggedMetric

MEMORY = {1: 10.0, 4: 13.0, 16: 25.0}


def known(once: float, each: float) -> Forecast:
    """A machine that is known: windows of k mini-batches take once + k * each seconds."""
    model = simple(once, each, 32)
    return Forecast(model, (model,) * 3)


def exactly(noise: float) -> Estimate:
    return Estimate(noise, noise, noise)


def told(once: float, each: float, noise: float | Estimate, **more: Any) -> Advice:
    estimate = noise if isinstance(noise, Estimate) else exactly(noise)
    return advise(known(once, each), estimate, 32, MEMORY, **more)


# What is said


def test_dear_updates_are_shared_by_hand() -> None:
    # k* = sqrt(512 / 32 * 4 / 1) = 8. 1 / goodput is 4 * 512 / k + (4 * 32 + 512) + 32 k: 2720 at
    # 1, 1152 at 8; up to 1152 / 0.95 = 1212.6 are 2048 / k + 32 k <= 572.6: 5 to 12
    advice = told(4.0, 1.0, 512)

    assert advice.sentence == (
        "accumulate: step_size 8 comes to the same loss in 0.42 (0.42 to 0.42) of the time of "
        "step_size 1; 5 to 12 are within 5 % of the best"
    )
    assert (advice.step_size, advice.flat) == (8, (5, 12))
    assert [row.step_size for row in advice.rows] == [1, 2, 4, 8, 16, 32, 64]
    eight = advice.rows[3]
    assert eight.throughput == pytest.approx((8 * 32 / 12,) * 3)
    assert eight.items == 256
    assert eight.time == pytest.approx((1152 / 2720,) * 3)


@pytest.mark.parametrize(
    ("once", "noise", "said"),
    [
        (
            0.01,
            1e6,
            "do not accumulate: updates cost 0.99 % of a window at step_size 1, so there is "
            "nothing to win",
        ),
        (
            0.5,
            20,
            "do not accumulate: the noise scale, 20 items (20 to 20), is below the 32 of one "
            "mini-batch, so that a larger effective batch wastes samples (Marek et al. 2025, "
            "arXiv 2507.07101)",
        ),
        (
            0.5,
            100,
            "do not accumulate: what larger updates save, 33 % of a window at step_size 1, they "
            "lose again in samples, with a noise scale of 100 items (100 to 100)",
        ),
    ],
)
def test_do_not_accumulate_has_its_reason(once: float, noise: float, said: str) -> None:
    advice = told(once, 1.0, noise)

    assert advice.sentence.startswith(said)
    assert advice.step_size == 1


def test_what_is_within_5_percent_of_step_size_1_is_not_chosen() -> None:
    # k* = sqrt(160 / 32 * 0.5) = 1.6. 1 / goodput is 80 / k + 176 + 32 k: 288 at 1 and 280 at 2
    advice = told(0.5, 1.0, 160)

    assert advice.sentence == (
        "do not accumulate: the best, step_size 2, takes 2.8 % less time to the same loss, within "
        "the 5 % that count as no difference; up to step_size 2 is not ruled out"
    )
    assert {row.step_size: row.verdict for row in advice.rows if row.verdict} == {
        1: "chosen",
        2: "as good",
    }


def test_the_interval_is_that_of_the_noise_and_of_the_times() -> None:
    models = tuple(simple(once, 1.0, 32) for once in (1.0, 4.0, 9.0))
    sure = advise(Forecast(models[1], models), exactly(512), 32, MEMORY)
    unsure = advise(Forecast(models[1], models), Estimate(512, 128, 2048), 32, MEMORY)

    # sqrt(16 * 1) to sqrt(16 * 9), and with a quarter and four times the noise 2 to 24
    assert sure.sentence.startswith("accumulate: step_size 8 (interval 4 to 12) comes to")
    assert unsure.sentence.startswith("accumulate: step_size 8 (interval 2 to 24) comes to")


def test_what_is_not_certain_is_said() -> None:
    doubtful = told(1.0, 1.0, Estimate(512, 1, 1024))
    assert doubtful.sentence.endswith("; that it is faster than step_size 1 is not certain")
    assert told(0.5, 1.0, Estimate(20, 10, 3200)).sentence.endswith(
        "; up to step_size 7 is not ruled out"
    )


@pytest.mark.parametrize("noise", [math.inf, math.nan])
def test_without_a_bound_on_the_noise_the_smallest_near_the_ceiling_is_chosen(
    noise: float,
) -> None:
    # throughput alone: k / (1 + k) >= 0.95 * 64 / 65 from 15 on
    advice = told(1.0, 1.0, Estimate(noise, 300.0, math.inf))

    assert (advice.step_size, advice.flat) == (15, (15, 64))
    assert "noise scale" in advice.facts
    assert advice.facts["noise scale"].startswith("more items than could be told (at least ")


def test_no_window_is_larger_than_an_epoch() -> None:
    advice = told(4.0, 1.0, 1e6, minibatches=11)

    assert [row.step_size for row in advice.rows] == [1, 2, 4, 8, 11]
    assert advice.facts["epoch"] == "11 mini-batches, so no window can be larger"


def test_memory_lies_on_the_line_through_what_was_measured() -> None:
    memory = {row.step_size: row.memory_mib for row in told(4.0, 1.0, 512).rows}

    assert memory == {1: 10, 2: 11, 4: 13, 8: 17, 16: 25, 32: 41, 64: 73}


WHOLE_PAGE = r"""# Which step_size?

**accumulate: step_size 3 comes to the same loss in 0.79 (0.79 to 0.79) of the time of step_size 1; 2 to 3 are within 5 % of the best**

![throughput and the time to the same loss by step_size](advice.png)

| step_size (mini-batches per update) | items per update | predicted throughput (samples/s) | time to the same loss (1 = step_size 1) | peak memory (MiB) | goodput |
| --- | --- | --- | --- | --- | --- |
| 1 | 32 | 16 (16 to 16) | 1.00 (1.00 to 1.00) | 10 | - |
| 2 | 64 | 21 (21 to 21) | 0.82 (0.82 to 0.82) | ~11 | as good |
| 3 | 96 | 24 (24 to 24) | 0.79 (0.79 to 0.79) | ~12 | chosen |
"""  # noqa: E501


def test_the_page_begins_with_the_answer_and_the_table() -> None:
    # goodput k / (1 + k) * 352 / (320 + 32 k): 1/2, 11/18 and 33/52, so 9/11 and 26/33 of the time
    advice = told(1.0, 1.0, 320, minibatches=3)

    assert advice_markdown(advice).startswith(WHOLE_PAGE)
    table = table_of_advice(advice)
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_picture_has_its_size() -> None:
    for advice in (told(4.0, 1.0, 512), told(4.0, 1.0, math.inf, minibatches=2)):
        picture = advice_png(advice, {1: Turn(1.0, 4.0), 2: Turn(2.0, 4.0)}, "$odd$ <data>")

        assert picture.startswith(b"\x89PNG")
        assert struct.unpack(">II", picture[16:24]) == (1200, 600)


# The probe


class Machine:
    """A machine whose time passes only in the loss and in the optimizer's step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, each: float, once: float) -> None:
        self.now = 0.0
        self.each, self.once = each, once
        for module in ("metrics.timing", "advise.probe", "metrics.record", "plan.clock"):
            monkeypatch.setattr(f"cadence.{module}.perf_counter", lambda: self.now)

    def trainer(self) -> Trainer:
        machine = self

        class Timed(Regression):
            def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
                machine.now += machine.each
                return super().total_loss(model, batch)

        class Stepping(AdamW):
            def step(self, closure: Any = None) -> Any:
                machine.now += machine.once
                return super().step(closure)

        torch.manual_seed(0)
        model = nn.Linear(3, 1).double()
        return Trainer(model, Stepping(model.parameters(), lr=0.01), Timed(), device="cpu")


def noisy(samples: int) -> Pair:
    """A linear law with noise around it, so that mini-batches disagree at the optimum too."""
    torch.manual_seed(1)
    inputs = torch.randn(samples, 3, dtype=torch.float64)
    return Pair(inputs, inputs.sum(1, keepdim=True) + 4 * torch.randn(samples, 1).double())


@pytest.mark.parametrize(("once", "begins"), [(0.4, "accumulate: "), (0.0005, "do not acc")])
def test_where_updates_are_dear_it_says_accumulate_and_where_they_are_free_it_does_not(
    monkeypatch: pytest.MonkeyPatch, once: float, begins: str
) -> None:
    machine = Machine(monkeypatch, each=0.1, once=once)
    data = cut(noisy(160), [4] * 40)

    found = probe(machine.trainer(), data, halfway=320)
    advice = advise(
        forecast(found.rounds, found.samples), found.noise, found.items, found.memory_mib, 40
    )

    assert advice.sentence.startswith(begins)
    assert (found.samples, found.items, found.minibatches) == (4, 4, 40)
    for turns in found.rounds:
        for size in (1, 4, 16):
            assert turns[size] == pytest.approx((0.1 * size, once))
    assert advice.forecast.model.shape == "proportional"
    assert advice.rows[0].throughput.value == pytest.approx(4 / (0.1 + once))


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cadence.advise.probe.ENOUGH_SECONDS", 0.0)
    monkeypatch.setattr("cadence.advise.probe.TURN_SECONDS", 0.0)


@pytest.mark.usefixtures("_short")
def test_a_probe_leaves_the_trainer_as_it_was() -> None:
    data = cut(noisy(40), [2] * 20)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    schedule = {0: 3, 60: 5}
    trainer = Trainer(model, AdamW(model.parameters(), lr=0.01), Regression(), schedule, "cpu")
    fitted = trainer.fit(data, epochs=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moments = [state["exp_avg"].clone() for state in trainer.optimizer.state.values()]
    clock = trainer.clock

    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "cadence.advise.probe.snapshot", lambda state: kept.append(1) or snapshot(state)
        )
        probe(trainer, data, step_sizes=(1, 2), halfway=40)

    assert kept == [1]  # a second copy of model and moments, in the host's memory
    assert (trainer.clock, trainer.step_size, trainer.result.updates) == (clock, 3, fitted.updates)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    now = [state["exp_avg"] for state in trainer.optimizer.state.values()]
    assert all(map(torch.equal, now, moments))
    assert all(parameter.grad is None for parameter in model.parameters())
    trainer.fit(data, epochs=2)
    assert trainer.step_size == 5  # the schedule goes on


@pytest.mark.usefixtures("_short")
def test_a_loader_without_a_length_and_ragged_mini_batches_are_probed() -> None:
    class Stream:
        def __iter__(self) -> Iterator[Pair]:
            return iter(cut(noisy(72), [3, 5] * 9))

    model = nn.Linear(3, 1).double()
    trainer = Trainer(model, SGD(model.parameters(), lr=0.01), Regression(), device="cpu")

    found = probe(trainer, Stream(), step_sizes=(1, 2, 4), halfway=72)

    assert found.minibatches is None
    assert all(turn.seconds > 0 for turns in found.rounds for turn in turns.values())


def test_an_epoch_of_one_mini_batch_is_refused() -> None:
    model = nn.Linear(3, 1).double()
    trainer = Trainer(model, SGD(model.parameters(), lr=0.01), Regression(), device="cpu")

    with pytest.raises(ValueError, match="an epoch has 1 mini-batch, so there is nothing to acc"):
        probe(trainer, cut(noisy(4), [4]))


def test_the_noise_scale_is_that_of_the_data_as_it_lies() -> None:
    """A model without inputs: each sample's gradient is 2 (w - y), so G and Sigma are known."""
    torch.manual_seed(0)
    targets = 0.5 + torch.randn(4096, 1, dtype=torch.float64)
    data = cut(Pair(torch.ones(4096, 1).double(), targets), [32] * 128)
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    trainer = Trainer(model, SGD(model.parameters(), lr=0.1), Regression(), device="cpu")

    found = noise_scale(trainer, data)

    truth = float(targets.var() / targets.mean() ** 2)  # tr(Sigma) / |G|^2, the factors 2 cancel
    assert found.low <= truth <= found.high
    assert found.value == pytest.approx(truth, rel=0.3)


# The command


def test_an_advice_is_printed_kept_and_logged(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    ended = command(f"track.uri={tracking_uri}", "optimizer.lr=0.003", module="src.advise")

    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    said = ended.stdout.splitlines()
    assert said[0] == "probe    digits mlp, 32 samples a mini-batch, on cpu"
    (sentence,) = (line for line in said if line.startswith(("accumulate: ", "do not accumulate")))
    assert {file.name for file in (tmp_path / "run").iterdir()} == {"advice.png", "advice.md"}
    assert f"**{sentence}**" in (tmp_path / "run" / "advice.md").read_text()
    run_id = said[-1].split()[1]
    run = mlflow.MlflowClient(tracking_uri).get_run(run_id)
    assert (run.info.run_name, run.info.status) == ("advice digits mlp", "FINISHED")
    assert run.data.tags["cadence.advice"] == sentence
    assert run.data.params["optimizer.lr"] == "0.003"
    assert run.data.metrics["advice/step_size"] >= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sweep=step_size",), "sweep=step_size: an advice is of one run, for all step_sizes at"),
        (("--multirun",), "--multirun: an advice is of one run, for all step_sizes at once;"),
        (("trainer.step_size=0",), "trainer.step_size=0"),
        (
            ("distributed=ddp", "distributed.processes=2"),
            "distributed=ddp: the probe trains on one process",
        ),
        (("data.batch_size=4096", "track=none"), "an epoch has 1 mini-batch, so there is nothing"),
    ],
)
def test_what_cannot_be_advised_on_is_refused_in_one_line(
    command: CommandLine, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    ended = command(*arguments, module="src.advise")

    assert ended.returncode == 1
    assert f"error: {message}" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run" / "advice.md").exists()


# The schedule of a run that has ended


def test_a_schedule_doubles_where_the_best_step_size_has_by_hand() -> None:
    # sqrt(noise / 32 * 0.5): 1.4 is nearer to 1 than to 2 by ratio, and 5.6 to 4 than to 8
    scales = {100: 64.0, 200: 125.0, 300: 256.0, 400: 1024.0, 500: 2000.0, 600: 1024.0}

    found = warmup(scales, items=32, cost=0.5)

    assert [round(each.best, 2) for each in found.growth] == [1.0, 1.4, 2.0, 4.0, 5.59, 4.0]
    assert found.schedule == {0: 1, 300: 2, 400: 4}


def test_an_outlier_does_not_change_a_schedule() -> None:
    scales = {0: 64.0, 100: 64.0 * 16, 200: 64.0, 300: 64.0 * 4, 400: 64.0 * 4}

    assert warmup(scales, items=32, cost=0.5).schedule == {0: 1, 300: 2}


@given(
    st.dictionaries(st.integers(0, 10**6), st.floats(1e-3, 1e9), min_size=1),
    st.integers(1, 4096),
    st.floats(1e-6, 1e3),
)
def test_every_schedule_is_one_that_trainer_step_size_takes_and_ascends(
    scales: dict[int, float], items: int, cost: float
) -> None:
    schedule = warmup(scales, items=items, cost=cost).schedule

    assert StepSizeSchedule(schedule).largest <= 64
    assert list(schedule.values()) == sorted(set(schedule.values()))


def test_the_schedule_of_a_run_is_an_override_that_trains(
    command: CommandLine, warm: Warm, tmp_path: Path, tracking_uri: str
) -> None:
    tiny = f"track.uri={tracking_uri}", "trainer.max_samples=256", "data.batch_size=16"
    assert command(*tiny).returncode == 0
    run = read_summary(tmp_path / "run" / "summary.json")
    minibatch = (run["time_data_ms"] + run["time_compute_ms"]) / 2  # step_size is 2
    cost = (run["time_sync_ms"] + run["time_update_ms"]) / minibatch
    grown = {64: 1.2, 128: 2.2, 256: 7.9}  # the best step_size after so many samples
    with (tmp_path / "run" / "metrics.jsonl").open("a") as journal:
        for step, best in grown.items():
            point = LoggedMetric("train/noise_scale", best**2 * 16 / cost, step, 1)
            journal.write(f"{json.dumps(point._asdict())}\n")

    ended = warm.run("src.advise", [f"run={tmp_path}/run"], tmp_path)

    assert (ended.returncode, ended.stderr) == (0, "")
    said = ended.stdout.splitlines()
    assert said[0] == f"run      {tmp_path}/run"
    assert [(line.split()[0], line.split()[2]) for line in said if line[:1].isdigit()] == [
        ("64", "1.2"),
        ("128", "2.2"),
        ("256", "7.9"),
    ]
    assert said[-1] == "schedule 'trainer.step_size={0: 1, 128: 2, 256: 8}'"
    override = said[-1].removeprefix("schedule ").strip("'")
    again = command(override, "trainer.max_epochs=1", "track=none")
    assert again.returncode == 0, again.stderr
    assert "; 2 from 128 samples on; 8 from 256 samples on" in again.stdout


def test_a_schedule_is_by_what_a_runs_windows_truly_held(
    command: CommandLine, warm: Warm, tmp_path: Path, tracking_uri: str
) -> None:
    # 1437 samples are 3 mini-batches, 479 in the mean: a window of 8 never has more
    short = "data.batch_size=512", "trainer.step_size=8", "trainer.max_epochs=4"
    assert command(*short, f"track.uri={tracking_uri}").returncode == 0
    file = tmp_path / "run" / "summary.json"
    run = read_summary(file)
    assert (run["samples"], run["items"], run["minibatches"]) == (4 * 1437, 4 * 1437, 4 * 3)
    file.write_text(json.dumps(run | {"items": run["items"] // 2}))  # as if half were masked
    minibatch = (run["time_data_ms"] + run["time_compute_ms"]) / 3
    cost = (run["time_sync_ms"] + run["time_update_ms"]) / minibatch
    with (tmp_path / "run" / "metrics.jsonl").open("a") as journal:
        point = LoggedMetric("train/noise_scale", 4.0**2 * 479 / 2 / cost, 1437, 1)
        journal.write(f"{json.dumps(point._asdict())}\n")

    ended = warm.run("src.advise", [f"run={tmp_path}/run"], tmp_path)

    assert (ended.returncode, ended.stderr) == (0, "")
    rows = [line.split() for line in ended.stdout.splitlines() if line.startswith("1,437")]
    assert [(row[0], row[2]) for row in rows] == [("1,437", "4.0")]


def test_a_run_without_a_noise_scale_has_no_schedule(
    command: CommandLine, warm: Warm, tmp_path: Path, tracking_uri: str
) -> None:
    tiny = f"track.uri={tracking_uri}", "trainer.max_samples=256"
    assert command(*tiny).returncode == 0
    run = f"run={tmp_path}/run"

    ended = warm.run("src.advise", [run], tmp_path)
    beside = warm.run("src.advise", [run, "model=cnn"], tmp_path)
    nowhere = warm.run("src.advise", [f"run={tmp_path}"], tmp_path)

    assert (ended.returncode, ended.stderr) == (
        1,
        f"error: {run}: it has no estimate of its noise scale; train with "
        "trainer.noise_scale=true, for longer, and not with track=none\n",
    )
    assert (beside.returncode, beside.stderr) == (
        1,
        f"error: {run}: an advice on a run takes no overrides; leave out the others\n",
    )
    assert nowhere.stderr.startswith(f"error: {run[:-4]}: {tmp_path} is no run folder")
