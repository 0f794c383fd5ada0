"""One run on several processes: the weights of one process, and one synchronisation per update."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import relative_error, same
from processes import (
    Case,
    Plain,
    Sometimes,
    cases,
    noise_scale,
    on_each,
    regression_data,
    train_all,
)

from cadence.plan.clock import Clock

pytestmark = pytest.mark.xdist_group("processes")  # which are started once


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Run the cases on a number of processes, once, and return where they left what they found."""

    @cache
    def run(count: int) -> Path:
        folder = tmp_path_factory.mktemp("processes")
        on_each(count, train_all, folder)
        return folder

    return run


@pytest.fixture(params=[1, 2, pytest.param(4, marks=pytest.mark.slow)])
def trained(request: pytest.FixtureRequest, ran: Callable[[int], Path]) -> Any:
    """How many processes there were, and what each of them found."""
    count: int = request.param
    return count, [torch.load(ran(count) / f"{rank}.pt") for rank in range(count)]


def test_the_weights_are_those_of_one_process_however_windows_are_shared_out(trained: Any) -> None:
    count, (first, *others) = trained
    for name, case in cases(count).items():
        expected = case.trained(sum(case.step_sizes), None)

        assert relative_error(first[name]["weights"], expected.model.parameters()) < 1e-12, name
        assert first[name]["clock"] == tuple(expected.clock), name
        assert first[name]["loss"] == pytest.approx(expected.result.train_loss, rel=1e-12), name
        for other in others:
            assert same(other[name]["weights"], first[name]["weights"]), name


def test_a_parameter_that_no_process_uses_stays_without_a_gradient(trained: Any) -> None:
    _, (found, *_) = trained
    for name, case in found.items():
        if name.startswith("ragged"):
            assert set(case["unused"]) >= {"never.weight", "never.bias"}


@pytest.fixture
def further(ran: Callable[[int], Path]) -> list[Any]:
    """What two processes found in cases of their own."""
    return [torch.load(ran(2) / f"further{rank}.pt") for rank in range(2)]


def test_the_parts_of_all_processes_tell_the_noise_scale_that_one_process_finds(
    further: list[Any],
) -> None:
    expected = noise_scale((4,), None)

    assert 0 < expected[1] < expected[0] < expected[2]
    for found in further:
        assert found["noise scale"] == pytest.approx(expected, rel=1e-9)


def test_an_update_costs_one_exchange_of_counts_and_one_all_reduce_of_gradients(
    further: list[Any],
) -> None:
    for found in further:
        counted = found["counted"]
        counts, gradients = 6 + 2, counted["parameters"] + 3 + 9  # numbers; users of 9 tensors
        updates = counted["updates"]
        assert updates == 3 * 2  # 32 mini-batches, 16 in a window
        assert counted["calls"].count(gradients) == updates
        assert counted["calls"].count(counts) == updates + 1 + 3  # the start, and each epoch's end
        assert len(counted["calls"]) == 2 * updates + 4 + 1  # whether the models are one, once


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads in /proc")
def test_no_thread_of_the_process_group_outlives_it(ran: Callable[[int], Path]) -> None:
    for rank in range(2):  # one would abort Python's end, now and then
        assert "gloo" not in (ran(2) / f"threads{rank}").read_text()


def test_what_does_not_fit_on_one_process_is_run_again_there_alone(further: list[Any]) -> None:
    expected = Case((4,), Plain).trained(4, None)

    for found in further:
        weights = found["out of memory"]["weights"]
        assert relative_error(weights, expected.model.parameters()) < 1e-12
    assert [found["out of memory"]["microbatch_size"] for found in further] == [None, 2]


def test_nan_on_one_process_is_refused_by_all(further: list[Any]) -> None:
    torch.manual_seed(0)
    untouched = Sometimes()
    for found in further:
        clock = Clock(*found["refused"]["clock"])
        assert (clock.updates_attempted, clock.updates, clock.samples) == (1, 0, 16)
        assert same(found["refused"]["weights"], untouched.parameters())


@pytest.mark.parametrize("name", ["torch's shuffle", "a stream", "a list"])
def test_any_loader_gives_every_process_other_samples_of_one_order(
    further: list[Any], name: str
) -> None:
    ours, theirs = (found["loaders"][name] for found in further)
    first_epoch = sorted(map(tuple, regression_data().tensors[0].tolist()))

    assert same(ours["weights"], theirs["weights"])
    assert ours["clock"] == theirs["clock"]
    # Windows of 3 mini-batches of 4 samples: 8 and 4 of them, and 2 samples at the epoch's end.
    seen = [*ours["seen"][: 8 * 3 + 2].tolist(), *theirs["seen"][: 4 * 3].tolist()]
    assert sorted(map(tuple, seen)) == first_epoch
    assert len(ours["seen"]) + len(theirs["seen"]) == 70


def test_a_map_style_data_set_is_read_in_part(further: list[Any]) -> None:
    read = [found["loaders"]["rows read"] for found in further]

    assert sum(read) == 70


def test_gradients_of_half_precision_weights_are_summed_in_float32(further: list[Any]) -> None:
    for found in further:
        assert found["half"]["wide"].tolist() == [[256.75, 256.75]]  # bfloat16 would give 256


def test_models_that_several_processes_cannot_train_together_are_refused(
    further: list[Any],
) -> None:
    for found in further:
        assert found["errors"] == [
            "model: it has sparse gradients, which several processes cannot sum up here; try "
            "sparse=False in its Embedding layers, or distributed=none",
            "the model differs between the 2 processes; start all of them by the same command, "
            "with the same code, data and checkpoints",
            "model: SyncBatchNorm waits for the other processes in each forward, and they may have "
            "more or fewer of them; use BatchNorm, or GroupNorm",
        ]


def test_processes_that_go_on_from_elsewhere_or_have_other_data_are_refused(
    further: list[Any],
) -> None:
    remedy = (
        "differs between the 2 processes; start all of them by the same command, with the same "
        "code, data and checkpoints"
    )
    for found in further:
        assert found["other runs"] == [
            f"where the run goes on {remedy}",
            f"the number of training samples {remedy}",
        ]


@pytest.mark.parametrize("kind", ["cadence's", "torch's"])
def test_shares_that_change_within_an_epoch_change_no_window(further: list[Any], kind: str) -> None:
    expected = Case((4,), Plain, data=lambda: regression_data(60)).trained(4, None)

    for rank, found in enumerate(further):
        of_kind = found["shared anew"][kind]
        assert of_kind["step_sizes"] == (3, 1)
        assert of_kind["said"] == [
            "distributed.step_sizes=auto: [3, 1] from here on, as a mini-batch takes 12.5, 40 ms"
        ] * (rank == 0)
        assert of_kind["clock"] == tuple(expected.clock)
        assert relative_error(of_kind["weights"], expected.model.parameters()) < 1e-12
