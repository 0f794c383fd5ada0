"""Checkpoints: what is saved is read bit for bit, and nothing can leave a run without one."""

import contextlib
import errno
import hashlib
import io
import multiprocessing
import os
import pickle
import random
import re
import resource
import signal
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import CUDA, as_a_user_calls_it, same, weights
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from cadence.checkpoint import file_format as statefile
from cadence.checkpoint import folder as module
from cadence.checkpoint.file_format import read, snapshot
from cadence.checkpoint.folder import Checkpoints, latest
from cadence.checkpoint.random_state import random_states, restore_random_states
from cadence.checkpoint.state import (
    State,
    checked_model_state,
    checked_optimizer_state,
)
from cadence.plan.clock import Clock

LAST, PREVIOUS, BEST = "last.pt", "previous.pt", "best.pt"

REMEDY = "free some space or choose another run folder; what was saved before is still whole"

TRUNCATED = (
    "truncated, or not a checkpoint of cadence: its end is missing; try the previous.pt beside it"
)
DAMAGED = "damaged: its bytes do not match their checksum; try the previous.pt beside it"
REFUSED = (
    "refused: it holds more than tensors and plain values, which could run code; use a checkpoint "
    "that cadence wrote"
)


def numbered(number: int, **changes: Any) -> State:
    """A state in which every number, tensors' too, is this one."""
    tensors = {name: torch.full((size,), float(number)) for name, size in (("a", 3), ("b", 3000))}
    state = State(
        model=tensors,
        optimizer={"state": {0: {"exp_avg": tensors["b"] + 0}}, "param_groups": [{"lr": number}]},
        scaler=None,
        clock=Clock(samples=number),
        random={"torch": tensors["a"] + 0},
        record={"val_loss": number},
        config={"trainer.step_size": number},
        mlflow_run_id=None,
    )
    return replace(state, **changes)


def number_in(state: State) -> int:
    """The number of a state, which must be whole: all of it from one and the same save."""
    number = state.clock.samples
    assert_same(state, numbered(number))
    return number


def assert_same(found: Any, expected: Any) -> None:
    assert alike(found, expected), f"{found} is not {expected}"


def alike(found: Any, expected: Any) -> bool:
    """Whether two trees are equal in every type, number and bit; NaN is NaN."""
    if isinstance(expected, State):
        return all(
            alike(getattr(found, name), getattr(expected, name)) for name in statefile._KINDS
        )
    if type(found) is not type(expected):
        return False
    if isinstance(expected, dict):
        pairs = zip(found.values(), expected.values(), strict=False)
        return list(found) == list(expected) and all(alike(*pair) for pair in pairs)
    if isinstance(expected, list | tuple):
        pairs = zip(found, expected, strict=False)
        return len(found) == len(expected) and all(alike(*pair) for pair in pairs)
    if isinstance(expected, Tensor):
        return found.dtype == expected.dtype and same_bits(found, expected)
    return bool(found == expected or (found != found and expected != expected))


def same_bits(found: Tensor, expected: Tensor) -> bool:
    return (
        found.shape == expected.shape
        and found.contiguous().numpy().tobytes() == expected.contiguous().numpy().tobytes()
    )


def save(folder: Path, *states: State, best: Sequence[int] = ()) -> None:
    with Checkpoints(folder) as checkpoints:
        for state in states:
            checkpoints.save(state, best=state.clock.samples in best)


def numbers(folder: Path) -> dict[str, int]:
    """The number in each file of a folder, every one of which must be whole."""
    return {file.name: number_in(read(file)) for file in sorted(folder.iterdir())}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


# What is saved is read.

DTYPES = [torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8, torch.float16]


def _tensor(dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    return (torch.arange(float(np.prod(shape))).reshape(tuple(shape)) - 1).to(dtype)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
TENSORS = st.builds(_tensor, st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3))
TREES = st.recursive(
    PLAIN | TENSORS,
    lambda trees: (
        st.lists(trees, max_size=3)
        | st.lists(trees, max_size=3).map(tuple)
        | st.dictionaries(st.text() | st.integers(), trees, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(), TREES, max_size=4))
def test_every_tree_of_tensors_and_plain_values_is_read_as_it_was(
    tmp_path: Path, tree: dict[str, Any]
) -> None:
    state = numbered(1, record=tree, scaler={"scale": 65536.0}, mlflow_run_id="abc")

    save(tmp_path, state)

    assert_same(read(tmp_path / LAST), state)


def test_a_state_dict_keeps_its_order_its_versions_and_its_tied_weights(folder: Path) -> None:
    model = nn.ModuleDict({"out": nn.Linear(64, 999), "norm": nn.BatchNorm1d(64)})
    model["tokens"] = nn.Embedding(999, 64)
    model["out"].weight = model["tokens"].weight

    save(folder, numbered(1, model=model.state_dict()))
    found = read(folder / LAST).model

    assert type(found) is OrderedDict
    assert_same(found, model.state_dict())
    assert found._metadata == model.state_dict()._metadata  # type: ignore[attr-defined]
    assert found["out.weight"].data_ptr() == found["tokens.weight"].data_ptr()


def test_a_view_is_saved_without_the_rest_of_what_it_looks_at(folder: Path) -> None:
    save(folder, numbered(1, random={"view": torch.zeros(1_000_000)[::250_000]}))

    assert (folder / LAST).stat().st_size < 100_000
    assert_same(read(folder / LAST).random, {"view": torch.zeros(4)})


def test_numpys_float_is_saved_as_pythons(folder: Path) -> None:
    save(folder, numbered(1, record={"val_loss": np.float64(0.5)}))

    assert_same(read(folder / LAST).record, {"val_loss": 0.5})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"record": {"best": {"at": {1, 2}}}}, "record.best.at is of type set"),
        ({"record": {"means": [1.0, np.ones(3)]}}, "record.means[1] is of type ndarray"),
        ({"config": {"folder": Path("/")}}, "config.folder is of type PosixPath"),
        ({"record": {"best": {Path("a"): 1}}}, "record.best's key a is of type PosixPath"),
        ({"record": {"clock": Clock()}}, "record.clock is of type Clock"),
    ],
)
def test_what_could_not_be_read_again_is_not_saved(
    folder: Path, changes: dict[str, Any], told: str
) -> None:
    save(folder, numbered(1))
    message = (
        f"checkpoint: {told}, which could not be read again; keep tensors, numbers, strings, None, "
        "and lists, tuples and dicts of these"
    )

    with (
        Checkpoints(folder) as checkpoints,
        pytest.raises(ValueError, match=f"^{re.escape(message)}$"),
    ):
        checkpoints.save(numbered(2, **changes), best=True)

    assert numbers(folder) == {LAST: 1}


def test_a_file_is_one_that_torch_opens(folder: Path) -> None:
    save(folder, numbered(7))

    found = torch.load(folder / LAST, weights_only=True)

    assert_same(found["model"], numbered(7).model)
    assert found["schema"] == 1


@pytest.fixture
def _as_a_user_calls_it() -> Iterator[None]:
    """Without the tests' type checks: beartype itself draws from Python's generator."""
    with as_a_user_calls_it():
        yield


class Dice(nn.Module):
    """A model that draws from every generator at each forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.inner(inputs + random.random() + np.random.rand())
        return outputs


def _built(make: Callable[..., Optimizer], device: str) -> tuple[nn.Module, Optimizer]:
    model = Dice().to(device)
    return model, make(model.parameters())


def _trained(model: nn.Module, optimizer: Optimizer, updates: int) -> None:
    device = next(model.parameters()).device
    for _ in range(updates):
        model(torch.randn(16, 4, device=device)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.usefixtures("_as_a_user_calls_it")
@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(
    "make",
    [
        partial(SGD, lr=0.1, momentum=0.9),
        partial(AdamW, lr=0.1, fused=True),
        partial(AdamW, lr=0.1, amsgrad=True),
    ],
    ids=["momentum", "adamw", "amsgrad"],
)
def test_a_run_that_goes_on_ends_bit_for_bit_as_an_undisturbed_one(
    folder: Path, make: Callable[..., Optimizer], device: str
) -> None:
    model, optimizer = _built(make, device)
    _trained(model, optimizer, updates=3)
    state = numbered(
        3, model=model.state_dict(), optimizer=optimizer.state_dict(), random=random_states()
    )
    save(folder, state)
    _trained(model, optimizer, updates=4)

    other, its_optimizer = _built(make, device)  # draws, and is drawn otherwise
    found = latest(folder)
    other.load_state_dict(checked_model_state(other, found))
    its_optimizer.load_state_dict(checked_optimizer_state(its_optimizer, found))
    restore_random_states(found.random)
    _trained(other, its_optimizer, updates=4)

    assert same(weights(other), weights(model))
    assert_same(*(list(o.state_dict()["state"].values()) for o in (its_optimizer, optimizer)))


# Which files there are.


def test_the_last_the_one_before_and_the_best_are_kept(folder: Path) -> None:
    found = []
    with Checkpoints(folder) as checkpoints:
        for number in range(1, 6):
            checkpoints.save(numbered(number), best=number in (1, 3))
            checkpoints.wait()
            found.append(numbers(folder))

    assert found == [
        {BEST: 1, LAST: 1},
        {BEST: 1, LAST: 2, PREVIOUS: 1},
        {BEST: 3, LAST: 3, PREVIOUS: 2},
        {BEST: 3, LAST: 4, PREVIOUS: 3},
        {BEST: 3, LAST: 5, PREVIOUS: 4},
    ]


def test_a_disk_without_links_gets_copies(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOTSUP, "no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)

    save(folder, *map(numbered, (1, 2, 3)), best=[2])

    assert numbers(folder) == {BEST: 2, LAST: 3, PREVIOUS: 2}


def test_a_damaged_last_never_takes_the_place_of_a_whole_previous(folder: Path) -> None:
    save(folder, numbered(1), numbered(2))
    (folder / LAST).write_bytes((folder / LAST).read_bytes()[:-1])

    save(folder, numbered(3))

    assert numbers(folder) == {LAST: 3, PREVIOUS: 1}


def test_leftovers_of_a_killed_save_go_and_what_they_share_bytes_with_stays(folder: Path) -> None:
    save(folder, numbered(1), best=[1])
    for name in (LAST, PREVIOUS, BEST):
        (folder / f"{name}.part").hardlink_to(folder / BEST)

    save(folder, numbered(2))

    assert numbers(folder) == {BEST: 1, LAST: 2, PREVIOUS: 1}


# Kills.

CALLS: list[tuple[Any, str]] = [
    (Path, "open"),
    (os, "fsync"),
    (Path, "hardlink_to"),
    (Path, "replace"),
    (Path, "unlink"),
]
"""By these a save changes a folder."""


def _save_killed_before(folder: Path, number: int, nth: int) -> None:
    """Save, and die before the nth call that changes the folder."""
    calls = count()

    def or_die(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if next(calls) == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted

    for owner, name in CALLS:
        setattr(owner, name, or_die(getattr(owner, name)))
    save(folder, numbered(number), best=[number])


def _save_until_killed(folder: Path, first: int, done: Connection) -> None:
    with Checkpoints(folder) as checkpoints:
        for number in count(first):
            checkpoints.save(numbered(number), best=number % 3 == 0)
            checkpoints.wait()
            done.send(number)


def _save_with_a_full_disk(folder: Path, number: int, told: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    try:
        save(folder, numbered(number), best=[number])
    except OSError as error:
        told.send(str(error))


@pytest.fixture(scope="module")
def forked() -> Iterator[Any]:
    """Processes that start at once: forked from one that has imported all this."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        yield context


def test_a_save_killed_anywhere_leaves_a_whole_last_and_the_next_save_cleans_up(
    tmp_path: Path, forked: Any
) -> None:
    kills = 0
    for nth in count():
        folder = tmp_path / str(nth)
        save(folder, numbered(1), numbered(2), best=[1])
        process = forked.Process(target=_save_killed_before, args=(folder, 3, nth))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        kills += 1
        last, previous, best = (number_in(read(folder / name)) for name in (LAST, PREVIOUS, BEST))
        assert (best, previous, last) in [(1, 1, 2), (3, 1, 2), (3, 2, 2), (3, 2, 3)]

        save(folder, numbered(4), best=[4])
        assert numbers(folder) == {BEST: 4, LAST: 4, PREVIOUS: last}

    assert numbers(folder) == {BEST: 3, LAST: 3, PREVIOUS: 2}
    # Write and sync the file, link and rename best, look at last, link and rename previous,
    # rename last, sync the folder: nine.
    assert kills == 9


def test_a_run_killed_at_random_goes_on_from_the_last_save_it_was_told_of_or_a_later_one(
    folder: Path, forked: Any
) -> None:
    moments = random.Random(0)
    first = 1
    for _ in range(8):
        receiver, sender = forked.Pipe(duplex=False)
        process = forked.Process(target=_save_until_killed, args=(folder, first, sender))
        process.start()
        sender.close()
        done = receiver.recv()
        time.sleep(moments.uniform(0, 0.05))
        process.kill()
        process.join()
        with contextlib.suppress(EOFError):
            while True:
                done = receiver.recv()
        found = number_in(latest(folder))
        whole = [number_in(read(file)) for file in folder.glob("*.pt")]
        assert found in (done, done + 1)
        assert max(whole) <= done + 1
        first = found + 1


def test_the_bytes_are_on_the_disk_before_the_name_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a power cut a rename may be on the disk long before bytes that were not synced."""
    save(folder, numbered(1))
    calls: list[str] = []
    fsync, rename = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        calls.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def renamed(self: Path, target: Path) -> Path:
        calls.append(f"{self.name} to {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    save(folder, numbered(2), best=[2])

    assert calls == [
        "sync last.pt.part",
        "best.pt.part to best.pt",
        "previous.pt.part to previous.pt",
        "last.pt.part to last.pt",
        "sync checkpoints",
    ]


# Errors of a write.


def test_a_full_disk_costs_the_new_checkpoint_alone(folder: Path, forked: Any) -> None:
    save(folder, numbered(1), numbered(2), best=[1])
    receiver, sender = forked.Pipe(duplex=False)

    process = forked.Process(target=_save_with_a_full_disk, args=(folder, 3, sender))
    process.start()
    sender.close()

    assert receiver.recv() == f"checkpoint {folder / LAST}: not saved (File too large); {REMEDY}"
    process.join()
    assert numbers(folder) == {BEST: 1, LAST: 2, PREVIOUS: 1}


@pytest.mark.parametrize("nth", range(8), ids=lambda nth: f"call {nth}")
def test_an_error_anywhere_in_a_save_leaves_whole_files_and_no_leftover(
    folder: Path, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    save(folder, numbered(1), numbered(2), best=[1])
    monkeypatch.setattr(Path, "hardlink_to", _failing)  # copies: they need space, as links do not
    calls = count()

    def or_full(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            return _failing() if next(calls) == nth else call(*arguments, **options)

        return counted

    for owner, name in ((os, "fsync"), (Path, "replace"), (module.shutil, "copyfileobj")):
        monkeypatch.setattr(owner, name, or_full(getattr(owner, name)))
    message = f"checkpoint {folder / LAST}: not saved (No space left on device); {REMEDY}"
    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        save(folder, numbered(3), best=[3])

    found = numbers(folder)
    assert found.keys() == {BEST, LAST, PREVIOUS}
    assert (found[LAST], found[BEST]) in {(2, 1), (2, 3), (3, 3)}


def _failing(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_folder_that_cannot_be_made_is_refused_before_any_training(tmp_path: Path) -> None:
    occupied = tmp_path / "checkpoints"
    occupied.write_text("a file")
    message = f"checkpoint {occupied}: not saved (File exists); {REMEDY}"

    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        Checkpoints(occupied)

    assert occupied.read_text() == "a file"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write where no one may")
def test_a_read_only_folder_costs_the_new_checkpoint_alone(folder: Path) -> None:
    save(folder, numbered(1))
    folder.chmod(0o500)
    message = f"checkpoint {folder / LAST}: not saved (Permission denied); {REMEDY}"

    with pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        save(folder, numbered(2))

    assert numbers(folder) == {LAST: 1}
    folder.chmod(0o700)


def test_an_error_of_a_write_is_raised_once_and_then_saving_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Checkpoints(folder) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _failing)
            checkpoints.save(numbered(1), best=False)
            with pytest.raises(OSError, match="No space left on device"):
                checkpoints.save(numbered(2), best=False)
        checkpoints.save(numbered(3), best=False)

    assert numbers(folder) == {LAST: 3}


def test_an_error_of_the_last_write_takes_no_other_errors_place(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "fsync", _failing)

    def interrupted() -> None:
        with Checkpoints(folder) as checkpoints:
            checkpoints.save(numbered(1), best=False)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    told = f"checkpoint {folder / LAST}: not saved (No space left on device); {REMEDY}"
    assert caplog.messages == [told]


# Training does not wait.


def test_save_returns_before_the_disk_has_it_and_the_state_may_change_at_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk_answers, fsync = threading.Event(), os.fsync

    def slow(descriptor: int) -> None:
        disk_answers.wait(timeout=400)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    state = numbered(1)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state, best=False)
        assert not (folder / LAST).exists()
        state.model["a"].fill_(2)
        state.record["val_loss"] = 2
        disk_answers.set()

    assert numbers(folder) == {LAST: 1}


def test_one_write_is_under_way_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots, written = [], []
    write = module.write_synced

    def taken(state: State) -> dict[str, Any]:
        snapshots.append(len(written))
        return snapshot(state)

    def wrote(contents: dict[str, Any], file: Path) -> None:
        time.sleep(0.01)
        write(contents, file)
        written.append(file)

    monkeypatch.setattr(module, "snapshot", taken)
    monkeypatch.setattr(module, "write_synced", wrote)
    save(folder, *map(numbered, range(1, 6)))

    assert snapshots == [0, 1, 2, 3, 4]  # each copy is made when the one before is on the disk
    assert numbers(folder) == {LAST: 5, PREVIOUS: 4}


def test_saving_is_affordable_while_it_took_at_most_a_fiftieth_of_the_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: 1 s in `save` and 3 s in a write are 4 s, 2 % of 200 s."""
    now, writing, saved = [100.0], threading.Event(), threading.Event()
    write = module.write_synced

    def snapshot_of_a_second(state: State) -> dict[str, Any]:
        now[0] += 1
        return snapshot(state)

    def write_of_three_seconds(contents: dict[str, Any], file: Path) -> None:
        writing.set()
        saved.wait(timeout=400)
        now[0] += 3
        write(contents, file)

    monkeypatch.setattr(module, "perf_counter", lambda: now[0])
    monkeypatch.setattr(module, "snapshot", snapshot_of_a_second)
    monkeypatch.setattr(module, "write_synced", write_of_three_seconds)

    with Checkpoints(folder) as checkpoints:
        assert checkpoints.affordable()
        checkpoints.save(numbered(1), best=False)
        writing.wait(timeout=400)
        now[0] = 1000.0
        assert not checkpoints.affordable()  # the write is under way
        now[0] = 101.0
        saved.set()
        checkpoints.wait()
        now[0] = 299.0
        assert not checkpoints.affordable()
        now[0] = 300.0
        assert checkpoints.affordable()


# Files that cannot be read.


def refused(file: Path, problem: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'checkpoint {file}: {problem}')}$"):
        read(file)


def sealed(contents: bytes) -> bytes:
    """Bytes with the right checksum behind them, as an attacker would make them."""
    return contents + statefile._FOOTER + hashlib.sha256(contents).digest()


def in_torchs_format(contents: Any) -> bytes:
    written = io.BytesIO()
    torch.save(contents, written)
    return written.getvalue()


def test_a_file_cut_anywhere_is_refused(folder: Path) -> None:
    save(folder, numbered(1))
    file = folder / LAST
    whole = file.read_bytes()

    for length in {*range(0, len(whole), 97), *range(len(whole) - 80, len(whole))}:
        file.write_bytes(whole[:length])
        refused(file, TRUNCATED)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    save(folder, numbered(1))
    return folder / LAST


@given(st.data())
def test_a_file_with_any_bit_flipped_is_refused(whole_file: Path, data: st.DataObject) -> None:
    damaged = bytearray(whole_file.read_bytes())
    place = data.draw(st.integers(0, len(damaged) - 1), label="byte")
    damaged[place] ^= 1 << data.draw(st.integers(0, 7), label="bit")
    file = whole_file.with_name("damaged.pt")
    file.write_bytes(damaged)

    in_footer_text = 0 <= place - (len(damaged) - statefile._FOOTER_BYTES) < len(statefile._FOOTER)
    refused(file, TRUNCATED if in_footer_text else DAMAGED)


class Hostile:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._target}",)


@pytest.mark.parametrize("form", ["torch", "legacy torch", "pickle"])
@pytest.mark.parametrize("where", ["all", "a field", "another field"])
def test_code_in_a_file_never_runs(tmp_path: Path, form: str, where: str) -> None:
    file, harm = tmp_path / "hostile.pt", tmp_path / "harm"
    contents: Any = {
        "all": Hostile(harm),
        "a field": snapshot(numbered(1)) | {"record": Hostile(harm)},
        "another field": snapshot(numbered(1)) | {"more": Hostile(harm)},
    }[where]
    if form == "pickle":
        hostile = pickle.dumps(contents, protocol=2)
    else:
        written = io.BytesIO()
        torch.save(contents, written, _use_new_zipfile_serialization=form == "torch")
        hostile = written.getvalue()

    file.write_bytes(hostile)
    refused(file, TRUNCATED)
    file.write_bytes(sealed(hostile))
    refused(file, REFUSED)
    assert not harm.exists()

    torch.load(io.BytesIO(in_torchs_format(Hostile(harm))), weights_only=False)
    assert harm.exists()  # so the test could have failed


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"schema": 2}, "schema 2, and this cadence reads 1; use the cadence that wrote it"),
        ({"schema": "1"}, "not a checkpoint of cadence; use one that it wrote"),
        ({"model": None}, "lacks model; use the cadence that wrote it"),
        (
            {"model": None, "random": None, "clock": None, "config": None, "lr": 1},
            "lacks model, clock, random and 1 more and has the unknown lr; use the cadence that "
            "wrote it",
        ),
        (
            {"clock": Clock()._asdict() | {"minutes": 3}},
            "has the unknown clock.minutes; use the cadence that wrote it",
        ),
        (
            {"optimizer": torch.ones(2)},
            "optimizer is float32[2]; use one that cadence wrote",
        ),
        (
            {"record": (1.5,)},
            "record is of type tuple; use one that cadence wrote",
        ),
    ],
)
def test_a_file_of_another_make_is_refused(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    contents = snapshot(numbered(1)) | changes
    present = {
        key: value for key, value in contents.items() if value is not None or key in OPTIONAL
    }
    file = tmp_path / "other.pt"
    file.write_bytes(sealed(in_torchs_format(present)))

    refused(file, problem)


OPTIONAL = ("scaler", "mlflow_run_id")


@pytest.mark.parametrize("contents", [[1, 2], {"a": 1}, torch.ones(3)])
def test_other_data_in_a_whole_file_is_refused(tmp_path: Path, contents: Any) -> None:
    file = tmp_path / "other.pt"
    file.write_bytes(sealed(in_torchs_format(contents)))

    refused(file, "not a checkpoint of cadence; use one that it wrote")


@pytest.mark.parametrize("contents", [b"", b"hello", b"PK\x03\x04" + bytes(1000)])
def test_a_file_of_something_else_is_refused(tmp_path: Path, contents: bytes) -> None:
    file = tmp_path / "other.pt"
    file.write_bytes(contents)
    refused(file, TRUNCATED)


def test_a_sealed_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    file.write_bytes(sealed(b""))
    refused(file, REFUSED)
    file.write_bytes(sealed(b"PK\x03\x04" + bytes(1000)))
    reason = "PytorchStreamReader failed reading zip archive: failed finding central directory"
    refused(file, f"it cannot be loaded ({reason}); try the previous.pt beside it")


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    remedy = "give the last.pt of a run's checkpoints folder"

    refused(tmp_path / "none.pt", f"No such file or directory; {remedy}")
    refused(tmp_path, f"Is a directory; {remedy}")


def test_where_the_last_is_damaged_the_previous_is_gone_on_from_with_a_warning(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(folder, numbered(1), numbered(2))
    (folder / LAST).write_bytes((folder / LAST).read_bytes()[:1000])

    assert number_in(latest(folder)) == 1
    assert caplog.messages == [
        f"checkpoint {folder / LAST}: {TRUNCATED}; going on from {folder / PREVIOUS}"
    ]


def test_where_neither_can_be_read_the_last_is_what_is_told_of(folder: Path) -> None:
    save(folder, numbered(1), numbered(2))
    for name in (LAST, PREVIOUS):
        (folder / name).write_bytes(b"")

    message = f"checkpoint {folder / LAST}: {TRUNCATED}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        latest(folder)


# Random generators.


def _draws(device: str) -> list[Any]:
    return [
        random.random(),
        random.gauss(0, 1),  # keeps a second one for the next call
        np.random.rand(3).tolist(),
        np.random.randn(),
        torch.rand(3).tolist(),
        torch.randn(17, device=device).tolist(),
    ]


@pytest.mark.usefixtures("_as_a_user_calls_it")
@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("numpys", [np.random.MT19937, np.random.PCG64, np.random.Philox])
def test_what_is_drawn_after_a_restore_is_what_an_undisturbed_run_draws(
    folder: Path, numpys: Callable[[int], Any], device: str
) -> None:
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(numpys(0))
        _draws(device)
        save(folder, numbered(1, random=random_states()))
        undisturbed = [_draws(device), _draws(device)]

        restore_random_states(read(folder / LAST).random)

        assert [_draws(device), _draws(device)] == undisturbed
    finally:
        np.random.set_bit_generator(before)


@pytest.mark.usefixtures("_as_a_user_calls_it")
def test_random_states_of_devices_that_are_not_there_are_left_out_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    states = random_states()
    expected = _draws("cpu")

    restore_random_states(states | {"cuda": [torch.zeros(16, dtype=torch.uint8)]})

    assert _draws("cpu") == expected
    assert caplog.messages == [
        "the checkpoint holds random states of devices that this machine lacks: what is drawn "
        "there differs from an undisturbed run"
    ]


# Another model, another optimizer.


def test_the_same_model_gets_its_weights() -> None:
    model = nn.Linear(3, 4)
    state = numbered(1, model=deepcopy(model.state_dict()))

    assert checked_model_state(nn.Linear(3, 4), state) is state.model


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            nn.Sequential(nn.Linear(3, 5), nn.Linear(4, 4)),
            "differ 0.weight is float32[4, 3] there and float32[5, 3] here, "
            "0.bias is float32[4] there and float32[5] here",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2, bias=False)),
            "it lacks 2.weight float32[2, 4]",
        ),
        (nn.Sequential(nn.Linear(3, 4)), "it has too 1.weight float32[4, 4], 1.bias float32[4]"),
        (
            nn.Sequential(nn.Linear(3, 4).double(), nn.Linear(4, 4).double()),
            "differ 0.weight is float32[4, 3] there and float64[4, 3] here, "
            "0.bias is float32[4] there and float64[4] here, "
            "1.weight is float32[4, 4] there and float64[4, 4] here and 1 more",
        ),
        (
            nn.ModuleDict({"a": nn.Linear(1, 1)}),
            "it lacks a.weight float32[1, 1], a.bias float32[1]; it has too "
            "0.weight float32[4, 3], 0.bias float32[4], 1.weight float32[4, 4] and 1 more",
        ),
    ],
    ids=["other widths", "deeper", "shallower", "another dtype", "other names"],
)
def test_another_models_weights_are_refused(model: nn.Module, told: str) -> None:
    saved = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    message = (
        f"the checkpoint is of another model: {told}; choose the model options that it was trained "
        "with"
    )

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        checked_model_state(model, numbered(1, model=saved.state_dict()))


def _groups(*sizes: int) -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(1)) for _ in range(size)]} for size in sizes]


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        (
            SGD(_groups(2)),
            "it lacks dampening, momentum, nesterov; it has too amsgrad, betas, capturable and 2 "
            "more",
        ),
        (AdamW(_groups(3)), "differ params is 2 tensors there and 3 tensors here"),
    ],
    ids=["another kind", "more parameters"],
)
def test_another_optimizers_state_is_refused(optimizer: Optimizer, told: str) -> None:
    state = numbered(1, optimizer=AdamW(_groups(2)).state_dict())
    message = (
        f"the checkpoint is of another optimizer: {told}; choose the optimizer options that it was "
        "trained with"
    )

    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        checked_optimizer_state(optimizer, state)


def test_an_optimizer_of_several_groups_is_compared_by_group() -> None:
    state = numbered(1, optimizer=AdamW(_groups(2, 1)).state_dict())

    assert checked_optimizer_state(AdamW(_groups(2, 1), lr=9.0), state) is state.optimizer
    with pytest.raises(ValueError, match="differ group 0: params is 2 tensors there and 1 tensors"):
        checked_optimizer_state(AdamW(_groups(1, 2)), state)
