"""What each of several test processes runs: many cases, so that starting them is paid once."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from serving import free_port
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset, IterableDataset

from cadence import Trainer
from cadence.cli.processes import check_same_run
from cadence.data import TensorData, loader
from cadence.distributed.torch_group import TorchProcessGroup, init_process_group
from cadence.objectives import Classification, Regression
from cadence.plan.clock import Clock
from cadence.plan.shares import Balance
from cadence.training.noise_scale import NoiseScaleEstimate

SAID = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."

Found = dict[str, Any]


def on_each(processes: int, run: Callable[[TorchProcessGroup, Path], None], folder: Path) -> None:
    """Run a function on several gloo processes on the loopback interface, until all have ended."""
    port = free_port()
    if processes == 1:
        _joins(0, 1, port, run, folder)
    else:
        torch.multiprocessing.spawn(_joins, (processes, port, run, folder), nprocs=processes)


def _joins(
    rank: int, count: int, port: int, run: Callable[[TorchProcessGroup, Path], None], folder: Path
) -> None:
    torch.set_num_threads(1)
    here = {"RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)}
    there = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (here | there).items():
            patch.setenv(name, value)
        with init_process_group("cpu", seed=7, timeout=300) as processes:
            run(processes, folder)
    threads = [name.read_text() for name in Path("/proc/self/task").glob("*/comm")]
    (folder / f"threads{rank}").write_text("".join(threads))


class Sometimes(nn.Module):
    """A model with a branch that few mini-batches use, one that none does, and tied weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.rare = nn.Linear(3, 3)
        self.never = nn.Linear(3, 3)
        self.again = nn.Linear(3, 3)
        self.again.weight = self.first.weight
        self.last = nn.Linear(3, 1)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        features = self.again(self.first(inputs).tanh()).tanh()
        if inputs[0, 0] > 0.8:
            features = features + self.rare(features)
        return self.last(features)


class Plain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.double()


class Classes(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))
        self.double()


class Small(Regression):
    """Squared error for which memory suffices up to some samples, on one of the processes."""

    def __init__(self, most: int) -> None:
        self.most = most

    def total_loss(self, model: nn.Module, batch: Any) -> Tensor:
        total_loss = super().total_loss(model, batch)
        if len(batch[0]) > self.most:
            raise RuntimeError(SAID)
        return total_loss


class Rows(Dataset[Any]):
    """A map-style data set that is not in memory as tensors."""

    def __init__(self, data: TensorData) -> None:
        self.data = data
        self.read = 0

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> Any:
        self.read += 1
        return self.data[index]


class Stream(IterableDataset[Any]):
    def __init__(self, data: TensorData) -> None:
        self.data = data

    def __iter__(self) -> Any:
        order = torch.randperm(len(self.data))  # of the global random numbers
        return iter([self.data[int(index)] for index in order])


def regression_data(samples: int = 38) -> TensorData:
    generator = torch.Generator().manual_seed(samples)
    inputs = torch.randn(samples, 3, dtype=torch.float64, generator=generator)
    noise = torch.randn(samples, 1, dtype=torch.float64, generator=generator)
    return TensorData(inputs, inputs.sum(1, keepdim=True).tanh() + noise)


def masked_data(samples: int = 38) -> TensorData:
    """Return classes of which many are absent; whole mini-batches have none when in order."""
    inputs, _ = regression_data(samples).tensors
    targets = torch.arange(samples) % 4
    targets[torch.arange(samples) % 3 > 0] = -100
    targets[4:12] = -100
    return TensorData(inputs, targets)


class Case(NamedTuple):
    """A training whose weights must not depend on how its windows are shared out."""

    step_sizes: tuple[int, ...]
    model: Callable[[], nn.Module] = Sometimes
    data: Callable[[], TensorData] = regression_data
    objective: Any = Regression()
    in_order: bool = False
    batch_size: int = 4
    settings: dict[str, Any] = {}  # noqa: RUF012
    fit: dict[str, Any] = {"epochs": 2}  # noqa: RUF012

    def trained(self, step_sizes: Any, processes: Any, objective: Any = None) -> Trainer:
        torch.manual_seed(0 if processes is None else processes.rank)
        model = self.model()
        trainer = Trainer(
            model, SGD(model.parameters(), lr=0.3), objective or self.objective, step_sizes, "cpu",
            processes=processes, **self.settings,
        )  # fmt: skip
        seed = None if self.in_order else 3
        trainer.fit(loader(self.data(), self.batch_size, shuffle_seed=seed), **self.fit)
        return trainer


SHARES = {1: [(3,)], 2: [(2, 2), (4, 2), (1, 7), (9, 3), (12, 3)], 4: [(1, 1, 1, 1), (3, 1, 2, 2)]}
"""By the number of processes. Of 10 mini-batches in an epoch some of these leave a process without
any in the last window, one of them in every window."""


def cases(processes: int) -> dict[str, Case]:
    kinds: dict[str, dict[str, Any]] = {
        "ragged": {},
        "masked": {"model": Classes, "data": masked_data, "objective": Classification(),
                   "in_order": True},
        "split": {"model": Plain, "settings": {"microbatch_size": 3}},
        "joined": {"model": Plain, "settings": {"microbatch_size": 7}},
        "clipped": {"settings": {"clip_norm": 0.1}},
        "cut to samples": {"fit": {"max_samples": 61}},
    }  # fmt: skip
    return {
        f"{kind} {shares}": Case(shares, **given)
        for shares in SHARES[processes]
        for kind, given in kinds.items()
    }


def train_all(processes: TorchProcessGroup, folder: Path) -> None:
    """Train every case, and leave this process's weights behind."""
    found: Found = {}
    for name, case in cases(processes.count).items():
        trainer = case.trained(case.step_sizes, processes)
        found[name] = {
            "weights": [each.detach() for each in trainer.model.parameters()],
            "clock": tuple(trainer.clock),
            "loss": trainer.result.train_loss,
            "unused": sorted(
                name
                for name, each in trainer.model.named_parameters()
                if id(each) not in map(id, trainer.optimizer.state)
            ),
        }
    torch.save(found, folder / f"{processes.rank}.pt")
    if processes.count == 2:
        further_cases(processes, folder)


def further_cases(processes: TorchProcessGroup, folder: Path) -> None:
    """Leave behind what is asked of two processes alone."""
    found: Found = {
        "counted": counted(processes),
        "out of memory": out_of_memory(processes),
        "refused": refused(processes),
        "loaders": other_loaders(processes),
        "half": half_precision(processes),
        "errors": errors(processes),
        "other runs": other_runs(processes),
        "shared anew": shared_anew(processes),
        "noise scale": noise_scale((3, 1), processes),
    }
    torch.save(found, folder / f"further{processes.rank}.pt")


def counted(processes: TorchProcessGroup) -> Found:
    """Return the sizes of what each collective call moved, in 3 epochs at step_size 8."""
    calls: list[int] = []
    all_reduce = dist.all_reduce

    def watched(tensor: Tensor, *arguments: Any, **named: Any) -> Any:
        calls.append(tensor.numel())
        return all_reduce(tensor, *arguments, **named)

    dist.all_reduce = watched
    try:
        case = Case((8, 8), data=lambda: regression_data(128), fit={"epochs": 3})
        trainer = case.trained(case.step_sizes, processes)
    finally:
        dist.all_reduce = all_reduce
    parameters = sum(each.numel() for each in trainer.model.parameters())
    return {"calls": calls, "updates": trainer.clock.updates, "parameters": parameters}


def out_of_memory(processes: TorchProcessGroup) -> Found:
    case = Case((2, 2), Plain)
    trainer = case.trained((2, 2), processes, Small(100 if processes.rank == 0 else 2))
    return {
        "weights": [each.detach() for each in trainer.model.parameters()],
        "microbatch_size": trainer.result.microbatch_size,
    }


def refused(processes: TorchProcessGroup) -> Found:
    """Return what becomes of a window with NaN in one process's part alone."""
    data = regression_data(16)
    data.tensors[0][13] = torch.nan
    trainer = Case((2, 2), data=lambda: data, in_order=True, fit={"epochs": 1}).trained(
        (2, 2), processes
    )
    return {
        "clock": tuple(trainer.clock),
        "weights": [each.detach() for each in trainer.model.parameters()],
    }


def other_loaders(processes: TorchProcessGroup) -> Found:
    """Return the weights after loaders that know nothing of processes, and what they read."""
    found: Found = {}
    rows = Rows(regression_data())
    given = {
        "torch's shuffle": DataLoader(rows, batch_size=4, shuffle=True),
        "a stream": DataLoader(Stream(regression_data()), batch_size=4),
        "a list": [tuple(part) for part in zip(*(t.split(4) for t in rows.data.tensors),
                                               strict=True)],
    }  # fmt: skip
    for name, minibatches in given.items():
        torch.manual_seed(processes.rank)
        model = Sometimes()
        trainer = Trainer(
            model, SGD(model.parameters(), lr=0.3), Regression(), (2, 1), "cpu",
            processes=processes,
        )  # fmt: skip
        seen: list[Tensor] = []
        handle = model.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        trainer.fit(minibatches, max_samples=70)
        handle.remove()
        found[name] = {
            "weights": [each.detach() for each in model.parameters()],
            "clock": tuple(trainer.clock),
            "seen": torch.cat(seen),
        }
    found["rows read"] = rows.read
    return found


def half_precision(processes: TorchProcessGroup) -> Found:
    """Return the gradient of bfloat16 weights, of which one process has large and one small."""
    model = nn.Linear(2, 1, bias=False).bfloat16()
    processes.begin(model)
    processes.count_window([], Regression(), False)
    total = torch.tensor(256.0 if processes.rank == 0 else 0.75)
    wide: dict[nn.Parameter, Tensor | None] = {model.weight: total.expand(1, 2).clone()}
    processes.sum(total, wide)
    return {"wide": wide[model.weight]}


def errors(processes: TorchProcessGroup) -> list[str]:
    embedding = nn.Embedding(3, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    processes.begin(embedding)
    with pytest.raises(ValueError, match="sparse") as sparse:
        processes.sum(torch.tensor(0.0), {})
    with pytest.raises(ValueError, match="model") as another:
        processes.begin(nn.Linear(2, 1 + processes.rank))
    with pytest.raises(ValueError, match="SyncBatchNorm") as waiting:
        processes.begin(nn.SyncBatchNorm(2))
    return [str(sparse.value), str(another.value), str(waiting.value)]


def other_runs(processes: TorchProcessGroup) -> list[str]:
    """Return the errors where one process goes on from elsewhere, or has other data."""
    own, said = processes.rank, []
    for samples, clock in ((60, Clock()), (60, Clock(samples=own)), (60 + own, Clock())):
        run: Any = SimpleNamespace(data=SimpleNamespace(train=range(samples)),
                                   trainer=SimpleNamespace(clock=clock))  # fmt: skip
        try:
            check_same_run(processes, run)
        except ValueError as error:
            said.append(str(error))
    return said


def noise_scale(
    step_sizes: tuple[int, ...], processes: TorchProcessGroup | None
) -> tuple[float, ...]:
    """Return the noise scale that 160 windows of 4 mini-batches tell, and its interval."""
    case = Case(
        step_sizes,
        Plain,
        data=lambda: regression_data(64),
        settings={"callbacks": [NoiseScaleEstimate()]},
        fit={"epochs": 40},
    )
    result = case.trained(step_sizes, processes).result
    low, high = result.reported["noise_scale_low"], result.reported["noise_scale_high"]
    return result.reported["noise_scale"], low, high


@contextmanager
def said(module: str) -> Iterator[list[str]]:
    """Collect what a module logs."""
    lines: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(module).addHandler(handler)
    yield lines
    logging.getLogger(module).removeHandler(handler)


class Switch(Balance):
    """Finds at the third window of a run, within an epoch, that the first process is faster."""

    def __init__(self) -> None:
        super().__init__()
        self.windows = 0

    def take(self, seconds: Sequence[float], window: int) -> tuple[int, ...] | None:
        self.windows += 1
        if self.windows != 3:
            return None
        self.seconds = (0.0125, 0.04)
        return 3, 1


def shared_anew(processes: TorchProcessGroup) -> Found:
    """Return what becomes of a run whose shares change within an epoch, by each kind of loader."""
    found: Found = {}
    for kind in ("cadence's", "torch's"):
        processes.balance = Switch()
        data = regression_data(60)
        minibatches = loader(data, 4, shuffle_seed=3)
        if kind == "torch's":
            minibatches = DataLoader(Rows(data), batch_sampler=minibatches.batch_sampler)
        torch.manual_seed(0)
        model = Plain()
        optimizer = SGD(model.parameters(), lr=0.3)
        trainer = Trainer(model, optimizer, Regression(), 2, "cpu", processes=processes)
        with said("cadence.distributed.torch_group") as lines:
            trainer.fit(minibatches, epochs=2)
        found[kind] = {
            "weights": [each.detach() for each in model.parameters()],
            "clock": tuple(trainer.clock),
            "step_sizes": trainer.step_sizes,
            "said": lines,
        }
    processes.balance = None
    return found
