"""A sweep from the command line: links, resume, duplicates, refusals, failures."""

import dataclasses
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import mlflow
import optuna
import pytest
from conftest import ROOT, CommandLine
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial
from sqlalchemy import event
from told import in_mlflow, in_the_folder
from waiting import until

from cadence.sweeps import study as studies
from cadence.sweeps.definition import SearchDefinition
from cadence.sweeps.next_points import remaining
from cadence.sweeps.points import points as points_of
from cadence.sweeps.trials import SUMMARY, attributes
from cadence.tracking.mlflow.sweep_runs import SweepRuns, parent_of_folder
from cadence.tracking.run_file import RunFile, UploadState

TINY = ("trainer.max_samples=128", "trainer.max_epochs=null")
NAME = "step_size_digits_mlp"
CHOICE = "hydra.sweeper.params={trainer.step_size:'choice(1,2,4)'}"


def options(folder: Path, *more: str) -> list[str]:
    return ["--multirun", "sweep=step_size", f"hydra.sweep.dir={folder}/sweep", *TINY, *more]


def study_of(folder: Path, name: str = NAME) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{folder}/sweep/study.db")


def step_sizes(study: optuna.Study) -> list[int]:
    return [trial.params["trainer.step_size"] for trial in study.trials]


def test_every_trial_is_linked_to_its_run_and_its_folder_and_back(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    ended = command(*options(tmp_path, "hydra.sweeper.n_trials=3", f"track.uri={tracking_uri}"))
    assert ended.returncode == 0, ended.stderr
    study = study_of(tmp_path)
    client = mlflow.MlflowClient(tracking_uri)
    parent = client.get_run(study.user_attrs["mlflow_parent_run_id"])

    assert parent.info.run_name == NAME
    assert parent.info.status == "FINISHED"
    kept = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert kept == {"report.md", "pareto.png", "pareto.html"}
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    for trial in study.trials:
        run = client.get_run(trial.user_attrs["mlflow_run_id"])
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["optuna.trial_number"] == str(trial.number)
        assert run.data.params["trainer.step_size"] == str(trial.params["trainer.step_size"])
        assert run.data.metrics["val/loss"] == trial.values[0]
        folder = tmp_path / "sweep" / "trials" / str(trial.number)
        assert trial.user_attrs["folder"] == run.data.tags["cadence.run_folder"] == str(folder)
        assert (folder / "summary.json").is_file()
        assert attributes(trial)["samples"] == 128
    names = {file.name for file in (tmp_path / "sweep").iterdir()}
    assert names >= {
        *("study.db", "trials", "trials.csv", "optimization_results.yaml"),
        *("report.md", "pareto.png", "pareto.html"),
    }


@pytest.mark.slow
def test_a_longer_sweep_goes_on_where_the_shorter_one_ended(
    command: CommandLine, tmp_path: Path
) -> None:
    for total in (2, 4, 4):
        ended = command(*options(tmp_path, f"hydra.sweeper.n_trials={total}", "track=none"))
        assert ended.returncode == 0, ended.stderr
        assert len(study_of(tmp_path).trials) == total
    at_once = tmp_path / "at once"
    command(*options(at_once, "hydra.sweeper.n_trials=4", "track=none"))

    assert len(set(step_sizes(study_of(tmp_path)))) == 4
    assert step_sizes(study_of(tmp_path)) == step_sizes(study_of(at_once))
    folders = sorted((tmp_path / "sweep" / "trials").iterdir())
    assert [folder.name for folder in folders] == ["0", "1", "2", "3"]


def test_a_trials_summary_reaches_the_disk_at_once(tmp_path: Path) -> None:
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
    study = studies.open_study(studies.open_storage(storage), "s", DEFINITION)
    trial = study.ask()
    commits: list[object] = []
    event.listen(storage.engine, "commit", commits.append)
    summary = {f"number {index}": index for index in range(20)}

    trial.set_user_attr(SUMMARY, summary)

    assert len(commits) == 1
    assert attributes(study.trials[0]) == summary


def test_a_space_with_fewer_points_than_trials_ends_when_all_are_done_and_says_so(
    command: CommandLine, tmp_path: Path
) -> None:
    ended = command(*options(tmp_path, CHOICE, "track=none"))

    assert ended.returncode == 0, ended.stderr
    assert "every point of the search space is done" in ended.stdout
    assert sorted(step_sizes(study_of(tmp_path))) == [1, 2, 4]


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (FloatDistribution(0.1, 0.3, step=0.1), [0.1, 0.2, 0.3]),
        (FloatDistribution(0.0, 1.0, step=0.25), [0.0, 0.25, 0.5, 0.75, 1.0]),
        (IntDistribution(1, 7, step=3), [1, 4, 7]),
        (CategoricalDistribution((1, 2, 4, 4, 2)), [1, 2, 4]),
    ],
)
def test_the_points_of_a_space_lie_in_it_once_each(
    distribution: BaseDistribution, values: list[float]
) -> None:
    points = points_of({"x": distribution})

    assert points == [{"x": value} for value in values]
    assert all(
        distribution._contains(distribution.to_internal_repr(point["x"])) for point in points or ()
    )


def test_a_space_is_done_when_each_of_its_points_has_all_its_trials() -> None:
    space: dict[str, BaseDistribution] = {"x": CategoricalDistribution((1, 2, 4))}
    study = optuna.create_study(directions=["minimize", "maximize"])
    for x in (1, 1, 1):
        study.add_trial(create_trial(values=[0, 1], params={"x": x}, distributions=space))

    assert remaining(study, space) == 2
    assert remaining(study, space, repeats=3) == 6
    study.add_trial(create_trial(state=TrialState.FAIL, params={"x": 2}, distributions=space))
    study.enqueue_trial({"x": 4})
    assert remaining(study, space) == 1
    assert remaining(study, {"x": FloatDistribution(0, 1)}) is None


@pytest.mark.slow
def test_fewer_repeats_than_before_leave_no_point_out(command: CommandLine, tmp_path: Path) -> None:
    for repeats, trials in ((3, 3), (1, 100)):
        ended = command(
            *options(tmp_path, CHOICE, f"sweep.repeats={repeats}", "track=none"),
            f"hydra.sweeper.n_trials={trials}",
        )
        assert ended.returncode == 0, ended.stderr
        is_done = "every point of the search space is done" in ended.stdout
        assert is_done == (repeats == 1)

    assert sorted({*step_sizes(study_of(tmp_path))}) == [1, 2, 4]
    assert len(study_of(tmp_path).trials) == 5


def test_what_is_held_fixed_is_what_the_trials_share_with_its_types(
    command: CommandLine, tmp_path: Path
) -> None:
    constants = "trainer.step_size:2,optimizer:sgd,model.channels:[4,8]"
    pinned = "trainer.max_seconds:'choice(1,2)'"
    ended = command(
        *("--multirun", "sweep=equal_seconds", f"hydra.sweep.dir={tmp_path}/sweep", "track=none"),
        f"++hydra.sweeper.params={{model:'choice(cnn)',{pinned},{constants}}}",
        *("trainer.max_seconds=0.1", "hydra.sweeper.study_name=s", "hydra.sweeper.n_trials=2"),
    )

    assert ended.returncode == 0, ended.stderr
    question = study_of(tmp_path, "s").user_attrs["question"]
    assert list(question["space"]) == ["model"]
    assert question["fixed"]["trainer.max_seconds"] == 0.1
    assert question["fixed"]["trainer.step_size"] == 2
    assert question["fixed"]["optimizer._target_"] == "torch.optim.SGD"
    assert "optimizer.betas" not in question["fixed"]
    of_the_model = {key: question["fixed"][key] for key in question["fixed"] if "model." in key}
    assert of_the_model == {"model.channels": [4, 8]}  # all that is given for every model


@pytest.mark.slow
def test_repeats_run_each_point_with_seeds_of_its_own(command: CommandLine, tmp_path: Path) -> None:
    ended = command(*options(tmp_path, CHOICE, "sweep.repeats=2", "track=none", "seed=5"))

    assert ended.returncode == 0, ended.stderr
    study = study_of(tmp_path)
    assert sorted(step_sizes(study)) == [1, 1, 2, 2, 4, 4]
    for step_size in (1, 2, 4):
        replicates = [t for t in study.trials if t.params["trainer.step_size"] == step_size]
        assert [attributes(trial)["seed"] for trial in replicates] == [5, 6]


@pytest.mark.slow
def test_a_grid_is_repeated_in_whole_rounds(command: CommandLine, tmp_path: Path) -> None:
    ended = command(
        *("--multirun", "sweep=step_size_grid", f"hydra.sweep.dir={tmp_path}/sweep", *TINY),
        *(CHOICE, "sweep.repeats=2", "track=none"),
    )

    assert ended.returncode == 0, ended.stderr
    name = "step_size_grid_digits_mlp"
    assert step_sizes(study_of(tmp_path, name)) == [1, 2, 4, 1, 2, 4]


def test_a_changed_search_definition_is_refused_with_the_difference(
    command: CommandLine, tmp_path: Path
) -> None:
    assert command(*options(tmp_path, "hydra.sweeper.n_trials=1", "track=none")).returncode == 0

    ended = command(
        *options(tmp_path, "hydra.sweeper.n_trials=2", "track=none", CHOICE, "optimizer.lr=0.1")
    )

    assert ended.returncode == 1
    assert ended.stderr == (
        f"error: study {NAME}: its search definition has changed (trainer.step_size: was "
        "IntDistribution(high=32, log=True, low=1, step=1), now "
        "CategoricalDistribution(choices=(1, 2, 4)); optimizer.lr: was 0.001, now 0.1); give the "
        "same one to go on, or another hydra.sweeper.study_name= to begin anew\n"
    )
    assert len(study_of(tmp_path).trials) == 1


DEFINITION = SearchDefinition(
    {"trainer.step_size": IntDistribution(1, 8)}, ["minimize", "maximize"], {"seed": 0}
)
ANOTHER = dataclasses.replace(DEFINITION, fixed={"seed": 1})


@pytest.mark.parametrize("comes_to_something", [True, False])
def test_a_changed_search_definition_is_taken_until_a_trial_has_come_to_something(
    comes_to_something: bool,
) -> None:
    storage = studies.open_storage(None)
    study = studies.open_study(storage, "s", DEFINITION)
    running, waiting = study.ask(), 1
    study.enqueue_trial({"trainer.step_size": 4})

    if comes_to_something:
        with pytest.raises(ValueError, match=r"seed: was 0, now 1"):
            studies.open_study(storage, "s", ANOTHER, lambda trial: trial.number == running.number)
        assert study.user_attrs["question"] == DEFINITION.as_json()
        assert study.trials[waiting].state == TrialState.WAITING
        return
    again = studies.open_study(storage, "s", ANOTHER)

    assert again.user_attrs["question"] == ANOTHER.as_json()
    assert [trial.state for trial in again.trials] == [TrialState.FAIL] * 2
    assert studies.finished(again) == studies.waiting(again) == []
    again.tell(again.ask(), state=TrialState.FAIL)
    with pytest.raises(ValueError, match=r"seed: was 1, now 0"):
        studies.open_study(storage, "s", DEFINITION)


def test_a_sweep_without_multirun_says_how_to_start_it(command: CommandLine) -> None:
    ended = command("sweep=step_size")

    assert ended.returncode == 1
    assert ended.stderr == (
        "error: sweep=step_size: a sweep is many runs; try python -m src.train --multirun "
        "sweep=step_size\n"
    )


def test_a_failed_trial_is_failed_everywhere_with_its_reason_and_the_sweep_goes_on(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    ended = command(
        *options(
            tmp_path,
            *("optimizer.lr=choice(0.001,1e30)", "trainer.step_size=2", "optimizer=sgd"),
            "trainer.max_skipped=0",
            f"track.uri={tracking_uri}",
        )
    )

    assert ended.returncode == 0, ended.stderr
    states = {trial.params["optimizer.lr"]: trial for trial in study_of(tmp_path).trials}
    assert states[0.001].state == TrialState.COMPLETE
    failed = states[1e30]
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs["reason"].startswith("DivergedError: samples=")
    run = mlflow.MlflowClient(tracking_uri).get_run(failed.user_attrs["mlflow_run_id"])
    assert run.info.status == "FAILED"
    assert run.data.tags["cadence.reason"] == failed.user_attrs["reason"]
    assert f"trial {failed.number}: optimizer.lr=1e+30: failed: DivergedError" in ended.stdout
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("jobs", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_point_that_does_not_compose_fails_with_its_reason_and_the_sweep_goes_on(
    command: CommandLine, tmp_path: Path, tracking_uri: str, jobs: int
) -> None:
    ended = command(
        *("--multirun", "sweep=step_size_grid", f"hydra.sweep.dir={tmp_path}/sweep", *TINY),
        *("model=choice(cnnn,mlp)", "trainer.step_size=choice(2,0)", f"track.uri={tracking_uri}"),
        *(f"hydra.sweeper.n_jobs={jobs}", "hydra.sweeper.study_name=typing"),
        "hydra.sweeper.max_failure_rate=1",
    )

    assert ended.returncode == 0, ended.stderr
    trials = study_of(tmp_path, "typing").trials
    states = {(t.params["model"], t.params["trainer.step_size"]): t for t in trials}
    assert states["mlp", 2].state == TrialState.COMPLETE
    failed = states["cnnn", 2]
    assert failed.state == states["mlp", 0].state == states["cnnn", 0].state == TrialState.FAIL
    reason = "ConfigError: model=cnnn: no such option; choose one of cnn, gpt, mlp"
    assert failed.user_attrs["reason"] == reason
    run = mlflow.MlflowClient(tracking_uri).get_run(failed.user_attrs["mlflow_run_id"])
    assert (run.info.status, run.data.tags["cadence.reason"]) == ("FAILED", reason)
    for trial in trials:
        assert trial.user_attrs["folder"] == str(tmp_path / "sweep" / "trials" / str(trial.number))


DIVERGING = ("optimizer=sgd", "optimizer.lr=1e30", "trainer.max_skipped=0", "track=none")


def test_too_many_failures_stop_the_sweep_with_their_reasons_at_each_start(
    command: CommandLine, tmp_path: Path
) -> None:
    limits = ("hydra.sweeper.n_trials=4", "hydra.sweeper.max_failure_rate=0.25")
    for _ in range(2):
        ended = command(*options(tmp_path, *DIVERGING, *limits))

        assert ended.returncode == 1
        assert "hydra.sweeper.max_failure_rate=0.25: 2 of 4 trials failed (trial 0: " in (
            ended.stderr
        )
        assert ended.stderr.endswith(
            "); raise it, or correct the cause and give another hydra.sweeper.study_name=\n"
        )
        assert len(study_of(tmp_path).trials) == 2


def test_a_sweep_whose_trials_all_failed_is_an_error_at_each_start(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    limits = ("hydra.sweeper.n_trials=1", "hydra.sweeper.max_failure_rate=1")
    tracked = ("track=mlflow", f"track.uri={tracking_uri}")
    for _ in range(2):
        ended = command(*options(tmp_path, *DIVERGING, *limits, *tracked))

        assert ended.returncode == 1
        assert "1 of 1 trials failed (trial 0: " in ended.stderr
        assert ended.stderr.endswith(
            "); correct the cause and give another hydra.sweeper.study_name=\n"
        )
        parent = study_of(tmp_path).user_attrs["mlflow_parent_run_id"]
        assert mlflow.MlflowClient(tracking_uri).get_run(parent).info.status == "FAILED"


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_sweep_that_was_cut_off_goes_on_and_asks_the_lost_point_again(
    tmp_path: Path, tracking_uri: str, number: signal.Signals
) -> None:
    arguments = [
        *options(tmp_path, CHOICE, f"track.uri={tracking_uri}"),
        *("trainer.max_samples=null", "trainer.max_seconds=3"),
    ]
    dying = subprocess.Popen(
        [sys.executable, "-m", "src.train", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert dying.stdout is not None
    assert next(line for line in dying.stdout if line.startswith("trial 0: "))
    saved = tmp_path / "sweep" / "trials" / "1" / "checkpoints" / "last.pt"
    until(saved.exists, "a checkpoint", alive=lambda: dying.poll() is None)
    dying.send_signal(number)
    dying.communicate(timeout=400)
    assert dying.returncode == (-9 if number == signal.SIGKILL else 130)

    again = subprocess.run(
        [sys.executable, "-m", "src.train", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert again.returncode == 0, again.stderr
    study = study_of(tmp_path)
    client = mlflow.MlflowClient(tracking_uri)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.COMPLETE, TrialState.FAIL, *[TrialState.COMPLETE] * 2]
    lost, asked_again = study.trials[1], study.trials[2]
    assert lost.params == asked_again.params
    went_on = (tmp_path / "sweep" / "trials" / "2" / ".hydra" / "overrides.yaml").read_text()
    assert f"resume='{tmp_path}/sweep/trials/1'" in went_on
    assert client.get_run(lost.user_attrs["mlflow_run_id"]).info.status == "KILLED"
    assert sorted({*step_sizes(study)}) == [1, 2, 4]
    parents = {
        client.get_run(trial.user_attrs["mlflow_run_id"]).data.tags["mlflow.parentRunId"]
        for trial in study.trials
    }
    assert parents == {study.user_attrs["mlflow_parent_run_id"]}


def test_a_trial_whose_training_had_ended_when_its_sweep_died_is_told_and_not_run_again(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    arguments = options(tmp_path, "hydra.sweeper.n_trials=1", f"track.uri={tracking_uri}")
    assert command(*arguments).returncode == 0
    (told,) = study_of(tmp_path).trials
    forget_the_end_of_the_only_trial(tmp_path / "sweep" / "study.db")
    (untold,) = study_of(tmp_path).trials
    assert untold.state == TrialState.RUNNING
    assert untold.values is None

    ended = command(*arguments)

    assert ended.returncode == 0, ended.stderr
    assert "trial 0" not in ended.stdout
    (trial,) = study_of(tmp_path).trials
    assert trial.state == TrialState.COMPLETE
    assert trial.values == told.values
    run = mlflow.MlflowClient(tracking_uri).get_run(trial.user_attrs["mlflow_run_id"])
    assert run.info.status == "FINISHED"


def test_a_point_at_which_each_process_dies_is_asked_so_often_and_then_fails() -> None:
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, directions=["minimize", "maximize"])
    study.enqueue_trial({"trainer.step_size": 4}, user_attrs={"replicate": 2})
    closed = []
    for _ in range(studies.DEATHS):
        assert len(studies.waiting(study)) == 1
        study.ask()
        closed += studies.close_abandoned(
            study, storage, lambda trial: None, lambda trial: trial.user_attrs.get("deaths", 0) + 1
        )

    assert [reason for _, reason in closed] == [None] * 4 + [
        "its process died 5 times at this point"
    ]
    *again, last = study.trials
    assert all(trial.user_attrs["abandoned"] for trial in again)
    assert [trial.user_attrs["replicate"] for trial in again] == [2] * 4
    assert studies.finished(study) == [last]
    assert (last.state, last.user_attrs["reason"]) == (TrialState.FAIL, closed[-1][1])
    assert studies.waiting(study) == []


@pytest.mark.parametrize(("deaths", "at_once"), [((0, 1), 3), ((0, 2), 1), ((), 3)])
def test_a_point_that_died_twice_is_asked_alone(deaths: tuple[int, ...], at_once: int) -> None:
    study = optuna.create_study()
    for count in deaths:
        study.enqueue_trial({"trainer.step_size": 4}, user_attrs={"deaths": count})

    assert studies.batch_size(study, 3) == at_once


@pytest.mark.parametrize("got_on", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_point_whose_process_died_too_often_is_failed_everywhere_unless_it_got_on(
    command: CommandLine, tmp_path: Path, tracking_uri: str, got_on: bool
) -> None:
    arguments = options(tmp_path, "hydra.sweeper.n_trials=1", f"track.uri={tracking_uri}")
    assert command(*arguments).returncode == 0
    forget_the_end_of_the_only_trial(tmp_path / "sweep" / "study.db")
    study = study_of(tmp_path)
    (trial,) = study.trials
    storage = studies.open_storage(f"sqlite:///{tmp_path}/sweep/study.db")
    studies.set_user_attrs(study, storage, trial, {"deaths": studies.DEATHS - 1})
    (tmp_path / "sweep" / "trials" / "0" / "summary.json").unlink()
    if not got_on:
        shutil.rmtree(tmp_path / "sweep" / "trials" / "0" / "checkpoints")

    ended = command(*arguments)

    if got_on:
        assert ended.returncode == 0, ended.stderr
        assert [t.state for t in study_of(tmp_path).trials] == [
            TrialState.FAIL,
            TrialState.COMPLETE,
        ]
        return
    reason = "its process died 5 times at this point"
    assert ended.returncode == 1
    assert f"1 of 1 trials failed (trial 0: {reason})" in ended.stderr
    (trial,) = study_of(tmp_path).trials
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, reason)
    run = mlflow.MlflowClient(tracking_uri).get_run(trial.user_attrs["mlflow_run_id"])
    assert (run.info.status, run.data.tags["cadence.reason"]) == ("FAILED", reason)
    assert reason in (tmp_path / "sweep" / "report.md").read_text()


@pytest.mark.parametrize(
    "lost", ["the trial's end", pytest.param("nothing", marks=pytest.mark.slow)]
)
def test_what_mlflow_did_not_take_of_a_finished_trial_a_later_sweep_delivers(
    command: CommandLine, tmp_path: Path, tracking_uri: str, lost: str
) -> None:
    arguments = options(tmp_path, "hydra.sweeper.n_trials=1", f"track.uri={tracking_uri}")
    assert command(*arguments).returncode == 0
    (told,) = study_of(tmp_path).trials
    folder, run_id = Path(told.user_attrs["folder"]), told.user_attrs["mlflow_run_id"]
    points = in_the_folder(folder)
    forget_the_last_point_in_mlflow(folder, tracking_uri, run_id)
    if lost == "the trial's end":
        forget_the_end_of_the_only_trial(tmp_path / "sweep" / "study.db")

    ended = command(*arguments)

    assert ended.returncode == 0, ended.stderr
    (trial,) = study_of(tmp_path).trials
    assert (trial.state, trial.values) == (TrialState.COMPLETE, told.values)
    run = mlflow.MlflowClient(tracking_uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert "cadence.reason" not in run.data.tags
    assert in_mlflow(tracking_uri, run_id) == points


def forget_the_last_point_in_mlflow(folder: Path, uri: str, run_id: str) -> None:
    """Leave the run as a sweep does whose server went away before the run's end."""
    lines = (folder / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    last = json.loads(lines[-1])
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as connection:
        connection.execute(
            "delete from metrics where run_uuid = ? and key = ?", (run_id, last["key"])
        )
        connection.commit()
    taken = next(at for at, line in enumerate(lines) if json.loads(line)["key"] == last["key"])
    size = len(b"".join(lines[:taken]))
    file = RunFile.load(folder)
    assert file is not None
    assert file.run.run_id == run_id
    file.update(upload=UploadState(described=True, sending=size, points=size))
    client = mlflow.MlflowClient(uri)
    client.set_tag(run_id, "cadence.reason", "its sweep died")
    client.set_terminated(run_id, "KILLED")


def forget_the_end_of_the_only_trial(database: Path) -> None:
    """Leave the study as a sweep does that dies before it tells what its trial came to."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("update trials set state = 'RUNNING', datetime_complete = null")
        connection.execute("delete from trial_values")
        connection.commit()


def test_a_sweep_whose_tracking_moved_gets_a_parent_at_the_new_place(
    tmp_path: Path, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    there = (tracking_uri, "moved", "a sweep", tmp_path, "an id")

    lineage = SweepRuns(*there, parent="0" * 32)

    assert caplog.messages == [
        f"{tracking_uri} does not know the sweep's run {'0' * 32}; it gets another there"
    ]
    assert SweepRuns(*there, parent=lineage.parent).parent == lineage.parent
    run = mlflow.MlflowClient(tracking_uri).get_run(lineage.parent)
    assert run.info.run_name == "a sweep"
    assert not lineage.has_finished("0" * 32)


def test_a_study_begun_anew_gets_a_parent_of_its_own(tmp_path: Path, tracking_uri: str) -> None:
    two = [studies.open_study(studies.open_storage(None), "s", DEFINITION) for _ in range(2)]
    ids = [studies.study_id(study) for study in two]

    first, anew, after_a_crash = (
        SweepRuns(tracking_uri, "anew", "s", tmp_path, ids[index], parent=None)
        for index in (0, 1, 0)
    )

    assert studies.study_id(two[0]) == ids[0]
    assert first.parent != anew.parent
    assert after_a_crash.parent == first.parent


def test_a_parent_that_was_deleted_in_mlflow_is_replaced(
    tmp_path: Path, tracking_uri: str, caplog: pytest.LogCaptureFixture
) -> None:
    there = (tracking_uri, "deleted", "a sweep", tmp_path, "an id")
    before = SweepRuns(*there, parent=None)
    child = before.child(0)
    client = mlflow.MlflowClient(tracking_uri)
    client.delete_run(before.parent)

    lineage = SweepRuns(*there, parent=before.parent)

    assert lineage.parent != before.parent
    assert caplog.messages == [
        f"the sweep's run {before.parent} was deleted in {tracking_uri}; it gets another there"
    ]
    lineage.end_lost()
    assert client.get_run(child).info.status == "KILLED"


def test_a_sweep_in_another_experiment_gets_a_parent_there_and_leaves_nothing_running(
    tmp_path: Path, tracking_uri: str
) -> None:
    before = SweepRuns(tracking_uri, "before", "a sweep", tmp_path, "an id", parent=None)
    lost, alive = before.child(0), before.child(1)
    client = mlflow.MlflowClient(tracking_uri)

    after = SweepRuns(tracking_uri, "after", "a sweep", tmp_path, "an id", before.parent)
    after.end_lost([alive])

    experiment = client.get_experiment_by_name("after")
    assert experiment is not None
    assert client.get_run(after.parent).info.experiment_id == experiment.experiment_id
    statuses = [client.get_run(run).info.status for run in (before.parent, lost, alive)]
    assert statuses == ["KILLED", "KILLED", "RUNNING"]


def test_jobs_that_begin_at_once_make_one_parent(tmp_path: Path, tracking_uri: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        parents = [
            pool.submit(parent_of_folder, tracking_uri, "at once", tmp_path) for _ in range(4)
        ]

    assert len({parent.result() for parent in parents}) == 1


def test_trials_stay_in_folders_of_their_numbers(command: CommandLine, tmp_path: Path) -> None:
    ended = command(*options(tmp_path, "track=none", "hydra.sweep.subdir=elsewhere"))

    assert ended.returncode == 1
    assert ended.stderr == (
        "error: hydra.sweep.subdir=elsewhere: a sweep goes on by its trials' numbers, so it must "
        "be trials/${hydra.job.num}; hydra.sweep.dir= moves the whole sweep\n"
    )
    assert not (tmp_path / "sweep").exists()


def test_a_plain_multirun_is_grouped_under_a_parent(
    command: CommandLine, tmp_path: Path, tracking_uri: str
) -> None:
    ended = command(
        *("-m", "trainer.step_size=1,2", f"hydra.sweep.dir={tmp_path}/plain", *TINY),
        *(f"track.uri={tracking_uri}", "track.experiment=plain"),
    )

    assert ended.returncode == 0, ended.stderr
    client = mlflow.MlflowClient(tracking_uri)
    experiment = client.get_experiment_by_name("plain")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run is not parent]
    assert {run.data.params["trainer.step_size"] for run in children} == {"1", "2"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}


@pytest.mark.parametrize(
    ("sweep", "recipe"),
    [
        ("step_size", "digits_cnn"),
        ("step_size_grid", "pydocs_gpt"),
        ("step_size_lr_batch", "digits_mlp"),
        ("equal_seconds", "digits_cnn"),
    ],
)
@pytest.mark.slow
def test_each_sweep_runs_with_a_recipe(
    command: CommandLine, tmp_path: Path, sweep: str, recipe: str
) -> None:
    ended = command(
        *("--multirun", f"sweep={sweep}", f"experiment={recipe}", "trainer.max_samples=16"),
        *(f"hydra.sweep.dir={tmp_path}/sweep", "hydra.sweeper.n_trials=1", "track=none"),
        *(["data.validation_share=0.005"] if recipe == "pydocs_gpt" else []),
    )

    assert ended.returncode == 0, ended.stderr
    (name,) = optuna.get_all_study_names(f"sqlite:///{tmp_path}/sweep/study.db")
    assert name.startswith(sweep)
