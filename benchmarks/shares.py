"""What sharing windows out by speed is worth where one process is slower than the other.

    python -m benchmarks.shares

Two processes train the digits MLP; each mini-batch of the second takes three times as long. It is
slowed by sleeping, so that the other work of a busy machine changes little. The limit is the sum of
what each trains alone.
"""

import argparse
import os
import socket
import tempfile
import time
from pathlib import Path

import torch
import torch.multiprocessing
from torch import Tensor, nn

from cadence import Trainer
from cadence.data import loader
from cadence.data.batch import Batch
from cadence.data.digits import digits
from cadence.distributed.process_group import ProcessGroup, SingleProcess
from cadence.distributed.torch_group import init_process_group
from cadence.models.mlp import mlp
from cadence.objectives import Classification

BATCH_SIZE = 32
STEP_SIZE = 4
SECONDS = (0.03, 0.09)
"""What each process sleeps in a mini-batch."""

Result = tuple[float, tuple[int, ...]]
"""Samples per second, and the mini-batches per update of each process at the end."""


class Slowed(Classification):
    """Classification whose every forward takes some seconds more."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def total_loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Sleep, and return the sum of the items' cross-entropies."""
        time.sleep(self.seconds)
        return super().total_loss(model, batch)


def trained(processes: ProcessGroup, seconds: float, samples: int) -> Result:
    """Train, and return what it came to."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    data = digits()
    model = mlp(data.input_shape, data.outputs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    trainer = Trainer(model, optimizer, Slowed(seconds), STEP_SIZE, "cpu", processes=processes)
    minibatches = loader(data.train, BATCH_SIZE, shuffle_seed=0)
    result = trainer.fit(minibatches, max_samples=samples)
    return result.samples_per_second, trainer.step_sizes


def _beside(rank: int, port: int, balances: bool, samples: int, file: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with init_process_group("cpu", seed=0, timeout=60, balances=balances) as processes:
        result = trained(processes, SECONDS[rank], samples)
    if rank == 0:
        torch.save(result, file)


def together(balances: bool, samples: int) -> Result:
    """Return what both processes come to together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "result.pt"
        torch.multiprocessing.spawn(_beside, (port, balances, samples, file), nprocs=2)
        result: Result = torch.load(file)
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.shares",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=10_000, help="in each training")
    parser.add_argument("--rounds", type=int, default=3, help="times that all is measured")
    given = parser.parse_args()
    print("| round | alone, samples/s | even shares | of the limit | auto shares | of the limit |")
    print("| ---: | --- | --- | ---: | --- | ---: |")
    for number in range(1, given.rounds + 1):
        alone = [trained(SingleProcess(), seconds, given.samples // 4)[0] for seconds in SECONDS]
        told = []
        for balances in (False, True):
            speed, shares = together(balances, given.samples)
            told.append(f"{list(shares)}: {speed:,.0f} | {speed / sum(alone):.3f}")
        both = " and ".join(f"{speed:,.0f}" for speed in alone)
        print(f"| {number} | {both} | {' | '.join(told)} |", flush=True)


if __name__ == "__main__":
    main()
