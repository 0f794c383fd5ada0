"""Out of memory: what did not fit is undone, and smaller micro-batches give the same weights."""

import copy
import os
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from oracles import (
    CUDA,
    Pair,
    as_a_user_calls_it,
    cut,
    regression_pair,
    relative_error,
    same,
    weights,
)
from torch import Tensor, nn
from torch.optim import SGD

from cadence import Trainer
from cadence.data.batch import Batch, sample_count
from cadence.engine.out_of_memory import DoesNotFitError, MemoryLimit, is_out_of_memory
from cadence.objectives import Regression

SAID = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 4096 bytes. Error code 12 (Cannot allocate memory)"
)


class Small(Regression):
    """A loss for which memory suffices up to some samples, and fails after the forward."""

    def __init__(self, most: int, said: str = SAID) -> None:
        self.most = most
        self.said = said
        self.sizes: list[int] = []

    def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        total_loss = super().total_loss(model, batch)
        if sample_count(batch) > self.most:
            raise RuntimeError(self.said)
        self.sizes.append(sample_count(batch))
        return total_loss


class Restless(nn.Module):
    """A model with every kind of random number in its forward, and a buffer that it changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1).double()
        self.register_buffer("forwards", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.forwards += 1
        noise = random.random() + np.random.random()
        return self.layer(nn.functional.dropout(inputs, 0.5)) + noise


def trained(
    model: nn.Module, most: int, sizes: list[int], **settings: Any
) -> tuple[Trainer, Small]:
    objective = Small(most)
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    trainer = Trainer(model, SGD(model.parameters(), lr=0.05), objective, 3, "cpu", **settings)
    trainer.fit(cut(regression_pair(sum(sizes)), sizes), epochs=2)
    return trainer, objective


def copies(count: int, make: Any = lambda: nn.Linear(3, 1).double()) -> list[nn.Module]:
    models = []
    for _ in range(count):
        torch.manual_seed(0)
        models.append(make())
    return models


def test_a_window_that_does_not_fit_is_run_again_by_halves_with_the_same_gradient() -> None:
    free, tight = copies(2)

    trained(free, most=100, sizes=[8, 8, 8, 8])
    _, objective = trained(tight, most=5, sizes=[8, 8, 8, 8])

    assert relative_error(weights(tight), weights(free)) < 1e-12
    assert set(objective.sizes) == {4}


@pytest.mark.parametrize("sizes", [[2, 8, 8, 8], [4, 4, 4, 8, 8, 8]])
def test_the_weights_are_bitwise_those_of_a_run_that_used_the_smaller_size_from_the_start(
    sizes: list[int],
) -> None:
    surprised, warned = copies(2, Restless)

    with as_a_user_calls_it():  # the type checker of the tests draws random numbers itself
        trained(surprised, most=4, sizes=sizes)
        trained(warned, most=4, sizes=sizes, microbatch_size=4)

    assert same(weights(surprised), weights(warned))
    assert torch.equal(surprised.get_buffer("forwards"), warned.get_buffer("forwards"))


def test_what_fits_is_remembered(caplog: pytest.LogCaptureFixture) -> None:
    (model,) = copies(1)

    trainer, _ = trained(model, most=3, sizes=[16] * 6)

    assert caplog.messages == [
        "16 samples per forward and backward do not fit into memory (4096 bytes asked for); at "
        "most 8 from here on, with the same gradient",
        "8 samples per forward and backward do not fit into memory (4096 bytes asked for); at "
        "most 4 from here on, with the same gradient",
        "4 samples per forward and backward do not fit into memory (4096 bytes asked for); at "
        "most 2 from here on, with the same gradient",
    ]
    assert trainer.result.microbatch_size == 2


def test_held_out_mini_batches_are_split_to_what_fits() -> None:
    (model,) = copies(1)
    trainer, objective = trained(model, most=5, sizes=[8, 8])
    held_out = regression_pair(20)
    objective.sizes.clear()

    evaluation = trainer.evaluate([held_out])

    assert objective.sizes == [4] * 5
    truth = nn.functional.mse_loss(model(held_out.inputs), held_out.targets).item()
    assert evaluation.loss == pytest.approx(truth, rel=1e-12)


def test_one_sample_that_does_not_fit_is_an_error_that_names_the_bytes_and_the_remedy() -> None:
    (model,) = copies(1)
    before = weights(model)

    with pytest.raises(DoesNotFitError) as refused:
        trained(model, most=0, sizes=[4, 4])

    assert str(refused.value) == (
        "a forward and backward of 1 sample does not fit into memory (4096 bytes asked for); try "
        "a smaller model, shorter inputs, or device.precision=bf16"
    )
    assert same(weights(model), before)


def test_a_refusal_that_names_no_bytes_is_told_as_it_was_said(
    caplog: pytest.LogCaptureFixture,
) -> None:
    (model,) = copies(1)
    objective = Small(4, "could not create a primitive")  # oneDNN's, out of memory
    trainer = Trainer(model, SGD(model.parameters(), lr=0.05), objective, 1, "cpu")

    trainer.fit(cut(regression_pair(8), [8]), epochs=1)

    assert objective.sizes == [4, 4]
    assert caplog.messages == [
        "8 samples per forward and backward do not fit into memory (could not create a primitive); "
        "at most 4 from here on, with the same gradient"
    ]


def test_what_couples_its_samples_is_not_split_but_refused() -> None:
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double()

    with pytest.raises(DoesNotFitError) as refused:
        trained(model, most=3, sizes=[4, 4])

    assert str(refused.value) == (
        "a forward and backward of 4 samples does not fit into memory (4096 bytes asked for), and "
        "what couples its samples keeps it from being split; try a smaller model, shorter inputs, "
        "a smaller data.batch_size, or device.precision=bf16"
    )


def test_shorter_inputs_may_have_more_samples_in_a_micro_batch() -> None:
    long, short = torch.zeros(8, 100), torch.zeros(64, 10)
    limit = MemoryLimit()

    limit.lower((long,), None, SAID)

    assert limit.within((long,), None) == 4
    assert limit.within((short,), None) == 40
    assert limit.within((short[:40],), None) is None
    assert limit.within((short,), 20) == 20


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    assert is_out_of_memory(RuntimeError(SAID))
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError(SAID))


LIMITED = """
import resource, sys, torch
from torch import nn
from cadence import Trainer
from cadence.objectives import Regression

logging = __import__("logging")
logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")

def trained(mib, samples):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 20_000), nn.Tanh(), nn.Linear(20_000, 1)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    data = [(torch.randn(samples, 64).double(), torch.randn(samples, 1).double())] * 4
    trainer = Trainer(model, optimizer, Regression(), 2, "cpu")
    if mib is not None:
        used = int(open("/proc/self/statm").read().split()[0]) * 4096
        resource.setrlimit(resource.RLIMIT_AS, (used + mib * 2**20, resource.RLIM_INFINITY))
    trainer.fit(data, epochs=1)
    return [p.detach().clone() for p in model.parameters()], trainer.result.microbatch_size

free, _ = trained(None, 1024)
tight, size = trained(400, 1024)
gap = max(((a - b).norm() / b.norm()).item() for a, b in zip(tight, free))
print("micro-batch", size, "error below 1e-12:", gap < 1e-12)
"""
"""A hidden layer of 1,024 x 20,000 float64 is 156 MiB: a pass needs several of them."""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit on address space")
def test_a_real_memory_limit_halves_the_micro_batch_until_it_fits() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )

    assert ended.returncode == 0, ended.stderr
    *halvings, last = ended.stdout.splitlines()
    assert halvings
    assert all(
        "samples per forward and backward do not fit into memory" in line for line in halvings
    )
    assert last == f"micro-batch {1024 >> len(halvings)} error below 1e-12: True"


@pytest.mark.parametrize("device", [CUDA])
def test_a_gpu_that_is_full_halves_the_micro_batch_until_it_fits(device: str) -> None:
    free, tight = (model.float() for model in copies(2))
    data = [
        Pair(part.inputs.float(), part.targets.float()) for part in cut(regression_pair(8), [8])
    ]
    for model, share in ((free, 1.0), (tight, 1e-6)):
        torch.cuda.set_per_process_memory_fraction(share)
        trainer = Trainer(model, SGD(model.parameters(), lr=0.05), Regression(), 1, device)
        if share < 1:
            with pytest.raises(DoesNotFitError, match="does not fit into memory"):
                trainer.fit(data, epochs=1)
        else:
            trainer.fit(data, epochs=1)
    torch.cuda.set_per_process_memory_fraction(1.0)


def test_an_operation_that_is_not_there_is_not_taken_for_a_lack_of_memory() -> None:
    assert is_out_of_memory(RuntimeError("could not create a primitive"))
    assert is_out_of_memory(RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert is_out_of_memory(RuntimeError("CUDA error: out of memory"))
    assert not is_out_of_memory(RuntimeError("could not create a primitive descriptor for conv"))


class Remembers(nn.Module):
    """A model whose forward changes a buffer, in one of the ways in which that is done."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1).double()
        self.way = way
        self.register_buffer("mean", None if way == "made" else torch.zeros(3).double())
        self.register_buffer("positions", torch.arange(3.0).expand(2, 3))

    def forward(self, inputs: Tensor) -> Tensor:
        seen = inputs.detach().mean(0)
        if self.way == "in place":
            self.mean += seen
        elif self.way == "data":
            self.mean.data.add_(seen)
        else:
            self.mean = seen if self.mean is None else self.mean + seen
        return self.layer(inputs * self.mean)


class Masked(Small):
    """A loss that has no item where the first target is masked."""

    def items(self, batch: Batch) -> int:
        return 0 if bool(batch[1][0] == -100) else super().items(batch)


@pytest.mark.parametrize("counts_writes", [True, False])
@pytest.mark.parametrize("way", ["in place", "data", "replaced", "made"])
def test_a_buffer_is_undone_in_whichever_way_a_forward_changes_it(
    way: str, counts_writes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not counts_writes:  # as in a torch without this private name
        monkeypatch.setattr("cadence.engine.out_of_memory.version_of", lambda tensor: None)
    torch.manual_seed(0)
    failing = Remembers(way)
    undisturbed = copy.deepcopy(failing)
    nothing = Pair(torch.ones(2, 3).double(), torch.full((2, 1), -100).double())
    data = [nothing, *cut(regression_pair(16), [2, 6, 4, 4])]

    for model, most, size in ((failing, 3, None), (undisturbed, 6, 3)):
        optimizer = SGD(model.parameters(), lr=0.05)
        trainer = Trainer(model, optimizer, Masked(most), 1, "cpu", microbatch_size=size)
        trainer.fit(data, epochs=1)

    assert same(weights(failing), weights(undisturbed))
    assert same(failing.buffers(), undisturbed.buffers())


def test_a_refused_window_leaves_no_trace_in_the_models_buffers() -> None:
    data = regression_pair(12)
    data.inputs[5] = torch.nan
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)).double()
    without = copy.deepcopy(model)

    for trained_on, windows in ((model, [0, 1, 2]), (without, [0, 2])):
        every = cut(data, [4, 4, 4])
        trainer = Trainer(trained_on, SGD(trained_on.parameters(), lr=0.1), Regression(), 1, "cpu")
        trainer.fit([every[window] for window in windows], epochs=1)

    assert trainer.clock.updates == 2
    assert same(model.state_dict().values(), without.state_dict().values())
