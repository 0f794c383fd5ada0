"""The processes of a run that sum by torch.distributed: gloo on the CPU, NCCL on CUDA devices."""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from time import perf_counter

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor, nn

from cadence.data.batch import Batch, samples_in
from cadence.distributed.buckets import Buckets, finish
from cadence.distributed.lost import lost_process
from cadence.distributed.partition import Now, PlannedWindow, as_planned, own_windows
from cadence.distributed.process_group import WindowCounts
from cadence.distributed.random_numbers import RandomStreams
from cadence.engine.private_torch import batch_norms
from cadence.objectives import Objective, items_in
from cadence.plan.clock import Limits
from cadence.plan.shares import Balance, Share, WindowPlan
from cadence.system.signals import SIGNALS, Interruption

log = logging.getLogger(__name__)


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
        self._streams = RandomStreams(seed, self.rank)
        self._window = 0
        self._interruption: Interruption | None = None
        self._buckets: Buckets | None = None
        self._loading = self._seconds_of_minibatch = 0.0
        self._own_minibatches = 0
        self._counted_at = perf_counter()

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
        norms = (module for module in model.modules() if isinstance(module, batch_norms()))
        if self.rank == 0 and any(norm.training and norm.track_running_stats for norm in norms):
            log.warning(
                "BatchNorm's running means are those of each process's own mini-batches, and "
                "process 0's are evaluated and saved: shuffle the data, or use GroupNorm or "
                "LayerNorm"
            )
        tensors = [*model.parameters(), *model.buffers()]
        self.check_same("the model", repr([(tensor.shape, tensor.dtype) for tensor in tensors]))
        with torch.no_grad(), lost_process():
            for tensor in tensors:
                first = tensor.detach().contiguous()
                dist.broadcast(first, 0)
                if not torch.equal(tensor, first):  # an expanded buffer takes no copy
                    tensor.copy_(first)
        self._buckets = Buckets([each for each in model.parameters() if each.requires_grad])

    def check_same(self, what: str, text: str) -> None:
        """Refuse to go on where something differs between the processes; see `ProcessGroup`."""
        digest = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
        ends = torch.tensor([digest, -digest], dtype=torch.float64)  # its maximum and minimum
        with lost_process():
            dist.all_reduce(ends, dist.ReduceOp.MAX)
        if ends[0] != -ends[1]:
            raise ValueError(
                f"{what} differs between the {self.count} processes; start all of them by the "
                "same command, with the same code, data and checkpoints"
            )

    def windows(
        self, loader: Iterable[Batch], plan: WindowPlan, now: Now, limits: Limits
    ) -> Iterator[PlannedWindow]:
        """Yield this process's mini-batches of each window in the rest of an epoch."""
        stream = as_planned(
            plan,
            now,
            lambda step_sizes, clock: own_windows(
                loader,
                Share(step_sizes, self.rank),
                self._streams,
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

    def epoch_is_read(self) -> bool:
        """Take the loader's own word for it: each process reads a part of an epoch."""
        return True

    def watch(self, interruption: Interruption) -> None:
        """Let the others learn of a signal that came here, and this process of theirs."""
        self._interruption = interruption

    def agree(self, stop: bool) -> bool:
        """Return whether any process asks to stop; see `ProcessGroup`."""
        total, _ = self._exchange((0, 0, 0), stop)
        return total.stop

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
        total, seconds = self._exchange(counts, stop)
        self._counted_at = perf_counter()
        self.waited = self._counted_at - started
        self._own_minibatches = len(window)
        self._seconds_of_minibatch = 0.0
        if self.balance is None:
            return total
        step_sizes = self.balance.take(seconds, self._window)
        if step_sizes is not None and self.rank == 0:
            log.warning(
                "distributed.step_sizes=auto: %s from here on, as a mini-batch takes %s ms",
                list(step_sizes),
                ", ".join(f"{1000 * each:.3g}" for each in self.balance.seconds),
            )
        return total._replace(step_sizes=step_sizes)

    def sum(
        self,
        numbers: Float[Tensor, " numbers"],
        wide: MutableMapping[nn.Parameter, Tensor | None],
    ) -> Float[Tensor, " numbers"]:
        """Sum a window's gradients and numbers over all processes, in place of this one's part."""
        assert self._buckets is not None, "begin() comes first"
        finish(numbers)  # else the time of its passes would count as waiting
        started = perf_counter()
        if self._own_minibatches:
            own = self._loading + started - self._counted_at
            self._seconds_of_minibatch = own / self._own_minibatches
        sums = self._buckets.sum(numbers, wide)
        self.waited += perf_counter() - started
        return sums

    def _exchange(
        self, counts: tuple[float, int, int], stop: bool
    ) -> tuple[WindowCounts, Sequence[float]]:
        """Sum up the counts of all; also return the seconds that a mini-batch took each last."""
        came = None if self._interruption is None else self._interruption.came
        seconds = [0.0] * self.count
        seconds[self.rank] = self._seconds_of_minibatch
        sent = [*counts, stop, *(came == number for number in SIGNALS), *seconds]
        vector = torch.tensor(sent, dtype=torch.float64)
        with lost_process():
            dist.all_reduce(vector)
        items, samples, minibatches, stops, *rest = vector.tolist()
        signals, seconds = rest[: len(SIGNALS)], rest[len(SIGNALS) :]
        for number, times in zip(SIGNALS, signals, strict=True):
            if times and self._interruption is not None:
                self._interruption.agree(number)
        items = int(items) if items.is_integer() else items
        total = WindowCounts(items, int(samples), int(minibatches), stops > 0, any(signals))
        return total, seconds


@contextmanager
def init_process_group(
    device: str, seed: int, timeout: float, *, balances: bool = False
) -> Iterator[TorchProcessGroup]:
    """Join the processes that were started together, at the address that the environment holds.

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
    torch.compiler.disable(_leave)  # type: ignore[no-untyped-call]
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    with lost_process():
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
    processes = TorchProcessGroup(seed, balances=balances)
    try:
        yield processes
    except KeyboardInterrupt:
        _leave()  # all of them were interrupted, and process 0 has saved
        raise
    _leave()


def _leave() -> None:
    with lost_process():
        dist.all_reduce(torch.zeros(1))
    dist.destroy_process_group()
