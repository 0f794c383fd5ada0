"""One run on several processes: their shares of a window, and one synchronisation per update.

Each process accumulates the gradient of its own mini-batches alone, divided by the items of the
whole window, and then the parts are summed. So nothing is sent during forward and backward: a
micro-batch that does not fit into memory is run again where it did not fit, parameters that some
micro-batches or processes do not use are no special case, and neither is a process without data in
a short last window. Two things are exchanged for an update: before it one small vector of counts
(items, samples, requests to stop), in which all processes agree, and after it the gradients, by one
all-reduce per bucket. One more such vector goes round at the end of an epoch.

The buckets are a second copy of the gradients in memory. Buffers, such as BatchNorm's running
means, are each process's own after the start; process 0's are evaluated and saved.

This is the only module that knows torch.distributed.
"""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import compress, islice
from time import perf_counter
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from cadence.data.batch import Batch, first_samples, samples_in
from cadence.distributed.partition import (
    GathersWindows,
    Now,
    PlannedWindow,
    as_planned,
    own_windows,
)
from cadence.distributed.random_numbers import RandomStreams
from cadence.engine.accumulation import NUMBERS, Summed
from cadence.engine.private_torch import copy_each, zero_each
from cadence.objectives import HALF, Objective, items_in
from cadence.plan.clock import Limits
from cadence.plan.shares import Balance, Plan, Share
from cadence.plan.window import windows
from cadence.system.secrets import in_one_line
from cadence.system.signals import SIGNALS, Interruption

log = logging.getLogger(__name__)

BUCKET_BYTES = 25 * 2**20
"""Bytes of gradients that are summed at once, about: enough for the full speed of a network."""


class ProcessLostError(RuntimeError):
    """Another process of the run failed, was killed, or did not answer in time."""


class WindowCounts(NamedTuple):
    """What all processes together have in a window, and what they agreed on before it."""

    items: int | None
    """The divisor of its gradient; None = the items of this process's part, which is all of it."""
    samples: int
    minibatches: int
    stop: bool
    """Whether a process asked to stop before this window."""
    interrupted: bool = False
    """Whether a process was sent a signal, so that the boundary before it is the last."""
    step_sizes: tuple[int, ...] | None = None
    """The mini-batches of each process from the next window on; None = as before."""


@runtime_checkable
class ProcessGroup(Protocol):
    """The processes of a run, as one of them sees them."""

    rank: int
    """Which process this is, from 0; process 0 evaluates, writes and tells."""
    count: int
    waited: float
    """Seconds that the last window spent waiting for others."""

    def begin(self, model: nn.Module) -> None:
        """Start from process 0's parameters and buffers."""

    def check_same(self, what: str, text: str) -> None:
        """Refuse to go on where something differs between the processes.

        Args:
            what: What an error calls it.
            text: What it is, in words that are the same on every process.

        Raises:
            ValueError: It differs.
        """

    def windows(
        self, loader: Iterable[Batch], plan: Plan, now: Now, limits: Limits
    ) -> Iterator[PlannedWindow]:
        """Return this process's mini-batches of each window in the rest of an epoch.

        Args:
            loader: Yields the mini-batches of the epoch.
            plan: The mini-batches of each process; it may change between two windows.
            now: Returns how far the run is.
            limits: Where it ends.
        """

    def watch(self, interruption: Interruption) -> None:
        """Tell the others when a signal comes here, and take theirs for one that came here."""

    def agree(self, stop: bool) -> bool:
        """Return whether any process asks to stop; all of them call it at the same place."""

    def count_window(
        self, window: Sequence[Batch], objective: Objective, stop: bool
    ) -> WindowCounts:
        """Count a window with all processes, before it is run.

        Args:
            window: This process's part, which may be empty.
            objective: What counts its items.
            stop: Whether this process asks to stop.
        """

    @property
    def sum(self) -> Summed | None:
        """Sums a window's gradients, and some numbers, over all processes; None = there is one.

        It takes the numbers of this process's part, and the gradients of half-precision parameters
        in float32; those of the others are in ``.grad``. Both gradients change in place, and the
        numbers' sums are returned.
        """


class SingleProcess:
    """A run on one process, which has nobody to wait for."""

    rank = 0
    count = 1
    waited = 0.0

    def begin(self, model: nn.Module) -> None:
        """Do nothing; for this and the others see `ProcessGroup`."""

    def check_same(self, what: str, text: str) -> None:
        """Do nothing: there is no other to differ from."""

    def windows(
        self, loader: Iterable[Batch], plan: Plan, now: Now, limits: Limits
    ) -> Iterator[PlannedWindow]:
        """Return the windows in the rest of an epoch."""
        if isinstance(loader, GathersWindows):
            return as_planned(
                plan,
                now,
                lambda step_sizes, clock: loader.windows(
                    *step_sizes,
                    skip=clock.batches_of_epoch,
                    samples=limits.samples_left(clock),
                    own=slice(None),
                ),
            )
        minibatches = iter(loader)
        for _ in islice(minibatches, now().batches_of_epoch):
            pass
        unseen = first_samples(minibatches, limits.samples_left(now()))
        return as_planned(plan, now, lambda step_sizes, _: windows(unseen, *step_sizes))

    def watch(self, interruption: Interruption) -> None:
        """Do nothing."""

    def agree(self, stop: bool) -> bool:
        """Return ``stop``."""
        return stop

    def count_window(
        self, window: Sequence[Batch], objective: Objective, stop: bool
    ) -> WindowCounts:
        """Count the window."""
        return WindowCounts(None, samples_in(window), len(window), stop)

    @property
    def sum(self) -> None:
        """Nobody else has a part."""


class TorchProcessGroup:
    """One of several processes, in torch.distributed's default group.

    Args:
        seed: The run's seed, the same on every process.
        balances: Whether to share windows out by the speeds found in the first ones.
    """

    def __init__(self, seed: int, *, balances: bool = False) -> None:
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.waited = 0.0
        self.balance = Balance() if balances else None
        """How fast each process is; None = nobody asked."""
        self._draws = RandomStreams(seed, self.rank)
        self._window = 0
        self._interruption: Interruption | None = None
        self._buckets: _Buckets | None = None
        self._loading = self._seconds_of_minibatch = 0.0
        self._own_minibatches = 0
        self._met_at = perf_counter()

    def begin(self, model: nn.Module) -> None:
        """Start from process 0's parameters and buffers.

        Raises:
            ValueError: The processes have different models, or one whose forward waits for others.
            ProcessLostError: A process is lost.
        """
        if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
            raise ValueError(
                "model: SyncBatchNorm waits for the other processes in each forward, and they may "
                "have more or fewer of them; use BatchNorm, or GroupNorm"
            )
        tensors = [*model.parameters(), *model.buffers()]
        self.check_same("the model", repr([(tensor.shape, tensor.dtype) for tensor in tensors]))
        with torch.no_grad(), _lost():
            for tensor in tensors:
                first = tensor.detach().contiguous()
                dist.broadcast(first, 0)
                if not torch.equal(tensor, first):  # an expanded buffer takes no copy
                    tensor.copy_(first)
        self._buckets = _Buckets([each for each in model.parameters() if each.requires_grad])

    def check_same(self, what: str, text: str) -> None:
        """Refuse to go on where something differs between the processes; see `ProcessGroup`."""
        digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
        ends = torch.tensor([digest, -digest], dtype=torch.float64)  # its maximum and minimum
        with _lost():
            dist.all_reduce(ends, dist.ReduceOp.MAX)
        if ends[0] != -ends[1]:
            raise ValueError(
                f"{what} differs between the {self.count} processes; start all of them by the "
                "same command, with the same code, data and checkpoints"
            )

    def windows(
        self, loader: Iterable[Batch], plan: Plan, now: Now, limits: Limits
    ) -> Iterator[PlannedWindow]:
        """Yield this process's mini-batches of each window in the rest of an epoch."""
        stream = as_planned(
            plan,
            now,
            lambda step_sizes, clock: own_windows(
                loader,
                Share(step_sizes, self.rank),
                self._draws,
                clock,
                limits.samples_left(clock),
            ),
        )
        while True:
            started = perf_counter()
            planned = next(stream, None)
            self._loading = perf_counter() - started
            if planned is None:
                return
            self._window = sum(planned[0])
            yield planned

    def watch(self, interruption: Interruption) -> None:
        """Tell the others when a signal comes here, and take theirs for one that came here."""
        self._interruption = interruption

    def agree(self, stop: bool) -> bool:
        """Return whether any process asks to stop; see `ProcessGroup`."""
        whole, _ = self._exchange((0, 0, 0), stop)
        return whole.stop

    def count_window(
        self, window: Sequence[Batch], objective: Objective, stop: bool
    ) -> WindowCounts:
        """Count a window with all processes, before it is run."""
        counts = (
            sum(items_in(objective, batch) for batch in window),
            samples_in(window),
            len(window),
        )
        started = perf_counter()
        whole, seconds = self._exchange(counts, stop)
        self._met_at = perf_counter()
        self.waited = self._met_at - started
        self._own_minibatches = len(window)
        self._seconds_of_minibatch = 0.0
        if self.balance is None:
            return whole
        step_sizes = self.balance.take(seconds, self._window)
        if step_sizes is not None and self.rank == 0:
            log.warning(
                "distributed.step_sizes=auto: %s from here on, as a mini-batch takes %s ms",
                list(step_sizes),
                ", ".join(f"{1000 * each:.3g}" for each in self.balance.seconds),
            )
        return whole._replace(step_sizes=step_sizes)

    def sum(
        self,
        numbers: Float[Tensor, " numbers"],
        wide: MutableMapping[nn.Parameter, Tensor | None],
    ) -> Float[Tensor, " numbers"]:
        """Sum a window's gradients and numbers over all processes, in place of this one's part."""
        assert self._buckets is not None, "begin() comes first"
        _finish(numbers)  # else the time of its passes would count as waiting
        started = perf_counter()
        if self._own_minibatches:
            own = self._loading + started - self._met_at
            self._seconds_of_minibatch = own / self._own_minibatches
        sums = self._buckets.sum(numbers, wide)
        self.waited += perf_counter() - started
        return sums

    def _exchange(
        self, counts: tuple[int, int, int], stop: bool
    ) -> tuple[WindowCounts, Sequence[float]]:
        """Sum up what all tell; also return the seconds that a mini-batch took each last."""
        came = None if self._interruption is None else self._interruption.came
        seconds = [0.0] * self.count
        seconds[self.rank] = self._seconds_of_minibatch
        told = [*counts, stop, *(came == number for number in SIGNALS), *seconds]
        vector = torch.tensor(told, dtype=torch.float64)
        with _lost():
            dist.all_reduce(vector)
        items, samples, minibatches, stops, *rest = vector.tolist()
        signals, seconds = rest[: len(SIGNALS)], rest[len(SIGNALS) :]
        for number, times in zip(SIGNALS, signals, strict=True):
            if times and self._interruption is not None:
                self._interruption.agree(number)
        whole = WindowCounts(int(items), int(samples), int(minibatches), stops > 0, any(signals))
        return whole, seconds


@contextmanager
def init_process_group(
    device: str, seed: int, timeout: float, *, balances: bool = False
) -> Iterator[TorchProcessGroup]:
    """Join the processes that were started together, as the environment tells where they meet.

    gloo sums on the CPU, NCCL on CUDA devices, where the counts still go by gloo: it notices at
    once when a process is gone. At the end the processes wait for each other.

    Args:
        device: ``cpu`` or ``cuda``; on CUDA each process of a machine has a device of its own.
        seed: The run's seed.
        timeout: Seconds that a process waits for the others, as during an evaluation, above 0.
        balances: See `TorchProcessGroup`.

    Raises:
        ProcessLostError: The others are not there in time, or one is lost.
    """
    # An optimizer's first step imports torch's compiler. If there is a process group by then it is
    # never let go: its threads live on into Python's end, and now and then abort a process that has
    # done well. So it is imported before, by the public function that needs it.
    torch.compiler.disable(_lost)
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    with _lost():
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    processes = TorchProcessGroup(seed, balances=balances)
    try:
        yield processes
    except KeyboardInterrupt:
        _leave()  # all of them were interrupted, and process 0 has saved
        raise
    _leave()


def _leave() -> None:
    with _lost():
        dist.all_reduce(torch.zeros(1))
    dist.destroy_process_group()


@contextmanager
def _lost() -> Iterator[None]:
    """Say what an error of a collective means: torch names sockets and streams."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLostError(
            "another process of this run failed, was killed, or did not answer within "
            f"distributed.timeout; its own error says why ({in_one_line(error)})"
        ) from error


class _Part(NamedTuple):
    """A parameter's place in a bucket."""

    parameter: nn.Parameter
    number: int
    """Which parameter of the model it is, from 0."""
    view: Tensor


class _Buckets:
    """Flat buffers through which gradients are summed, kept from one update to the next.

    The first bucket of the widest dtype starts with the numbers and, for each parameter, how many
    processes have a gradient of it: one that none has keeps ``.grad`` None, as on one process.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for index, parameter in enumerate(parameters):
            groups.setdefault((parameter.device, _wide(parameter.dtype)), []).append(index)
        device = parameters[0].device
        told = (device, torch.float64 if (device, torch.float64) in groups else torch.float32)
        groups.setdefault(told, [])
        self._flat: list[Tensor] = []
        self._parts: list[_Part] = []
        for (place, dtype), indices in groups.items():
            first = NUMBERS + len(parameters) if (place, dtype) == told else 0
            for bucket in _cut(indices, parameters, torch.empty((), dtype=dtype).itemsize):
                size = first + sum(parameters[index].numel() for index in bucket)
                flat = torch.zeros(size, dtype=dtype, device=place)
                if first:
                    self._numbers, self._users = flat[:NUMBERS], flat[NUMBERS:first]
                self._flat.append(flat)
                at, first = first, 0
                for index in bucket:
                    parameter = parameters[index]
                    view = flat[at : at + parameter.numel()].view(parameter.shape)
                    self._parts.append(_Part(parameter, index, view))
                    at += parameter.numel()
        self._parts.sort(key=lambda part: part.number)
        self._views = [part.view for part in self._parts]

    def sum(self, numbers: Tensor, wide: MutableMapping[nn.Parameter, Tensor | None]) -> Tensor:
        """Put this process's gradients and numbers in, sum them with the others', take them out."""
        parts = self._parts
        gradients = [wide.get(part.parameter, part.parameter.grad) for part in parts]
        if any(gradient is not None and gradient.is_sparse for gradient in gradients):
            raise ValueError(
                "model: it has sparse gradients, which several processes cannot sum up here; try "
                "sparse=False in its Embedding layers, or distributed=none"
            )
        uses = [gradient is not None for gradient in gradients]
        self._numbers.copy_(numbers)
        self._users.copy_(torch.tensor(uses))
        found = [gradient for gradient in gradients if gradient is not None]
        if found:
            copy_each([*compress(self._views, uses)], found)
        if not all(uses):
            zero_each([*compress(self._views, (not used for used in uses))])
        with _lost():
            sums = [dist.all_reduce(flat, async_op=True) for flat in self._flat]
            for each in sums:
                each.wait()
            for flat in self._flat:
                _finish(flat)  # NCCL's wait lets the stream wait, and returns
        if found:
            copy_each(found, [*compress(self._views, uses)])
        if not all(uses):
            self._take_from_others(uses, wide)
        return self._numbers.to(numbers.dtype, copy=True)

    def _take_from_others(
        self, uses: Sequence[bool], wide: MutableMapping[nn.Parameter, Tensor | None]
    ) -> None:
        """Take the gradients of parameters that other processes alone have used."""
        for part, here, users in zip(self._parts, uses, self._users.tolist(), strict=True):
            if here or users == 0:
                continue
            if part.parameter in wide:
                wide[part.parameter] = part.view.clone()
            else:
                part.parameter.grad = torch.empty_like(part.parameter).copy_(part.view)


def _finish(tensor: Tensor) -> None:
    """Wait until all is computed that was begun on a tensor's device."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


def _cut(
    indices: Iterable[int], parameters: Sequence[nn.Parameter], itemsize: int
) -> list[list[int]]:
    """Return the parameters of each bucket: at least one bucket, and one parameter in each."""
    buckets: list[list[int]] = [[]]
    filled = 0
    for index in indices:
        size = parameters[index].numel() * itemsize
        if filled and filled + size > BUCKET_BYTES:
            buckets.append([])
            filled = 0
        buckets[-1].append(index)
        filled += size
    return buckets


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in HALF else dtype
