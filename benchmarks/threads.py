"""Measure the default number of threads: its speed beside one thread's and all of torch's.

    python -m benchmarks.threads --quick
    python -m benchmarks.threads --rounds 9

Trainers that differ only in their threads take turns in one process, first as the machine is and
then beside a process that never rests on one core. Each ratio is of one round. Without
OMP_NUM_THREADS, which would name the default.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from time import perf_counter

import torch
from torch.optim import AdamW

from benchmarks.figures import conditions, line, progress, said, spread
from benchmarks.jobs import Job, digits_cnn, digits_mlp, pydocs_gpt
from cadence import Trainer
from cadence.data import TensorData, loader
from cadence.engine.threads import DefaultThreads
from cadence.models.mlp import mlp
from cadence.system.malloc import keep_memory

Turn = Callable[[], float]
"""Trains for some windows; returns samples per second."""


def wide_mlp(width: int, batch_size: int = 256) -> Job:
    """Return the digits with two hidden layers of a width."""
    job = digits_mlp()
    return replace(
        job,
        name=f"MLP 64-{width}-{width}-10",
        make_model=lambda: mlp(job.inputs.shape[1:], 10, [width, width]),
        batch_size=batch_size,
    )


def jobs(quick: bool) -> Iterator[tuple[Job, int]]:
    """Yield what is trained, and the samples of a turn."""
    yield digits_mlp(), 2874
    yield digits_cnn(), 479
    if not quick:
        yield pydocs_gpt(), 16
        for width in (256, 1024, 2048):
            yield wide_mlp(width), 1024


def turn(job: Job, threads: int | None, samples: int) -> Turn:
    """Return what trains a job with some threads; None = the default."""
    model = job.model()
    optimizer = AdamW(model.parameters(), lr=job.lr, fused=True)
    trainer = Trainer(model, optimizer, job.objective, 2, "cpu", threads=threads)
    data = loader(TensorData(job.inputs, job.targets), job.batch_size, shuffle_seed=0)

    def speed() -> float:
        start = perf_counter()
        trainer.fit(data, max_samples=samples)
        return samples / (perf_counter() - start)

    speed()
    return speed


def by_default(job: Job) -> int:
    """Return the threads that a job has by default."""
    threads = DefaultThreads()
    threads.take(job.model())
    size = job.batch_size
    return threads.for_window(((job.inputs[:size], job.targets[:size]),), None)


@contextmanager
def busy_process() -> Iterator[None]:
    """Let a process that never rests run beside."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measured(turns: dict[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Return the speeds of contenders that take turns, their order swapped from round to round."""
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds):
        for name in list(turns) if number % 2 else list(turns)[::-1]:
            speeds[name].append(turns[name]())
    return speeds


def row(job: Job, beside: str, speeds: dict[str, list[float]]) -> str:
    """Return a job's line of the table."""
    one = speeds["one"]
    ratios = [
        str(spread([each / base for each, base in zip(speeds[name], one, strict=True)]))
        for name in ("all", "default")
    ]
    alone = f"{spread(one).median:,.0f}"
    return line([f"{job.name} x {job.batch_size}", beside, str(by_default(job)), alone, *ratios])


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.threads",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=9, help="turns of each")
    parser.add_argument("--quick", action="store_true", help="2 rounds of the two smallest models")
    options = parser.parse_args(arguments)
    options.rounds = 2 if options.quick else options.rounds
    return options


def main() -> None:
    """Run the command line."""
    options = parsed()
    keep_memory(True)
    threads = torch.get_num_threads()
    columns = ["model x samples", "beside", "default", "1 thread, samples/s"]
    print(line([*columns, f"{threads} threads / 1", "default / 1"]))
    print(line(["---", "---", "---:", "---:", "---:", "---:"]))
    for job, samples in jobs(options.quick):
        numbers = {"one": 1, "all": threads, "default": None}
        turns = {name: turn(job, number, samples) for name, number in numbers.items()}
        progress(f"{job.name}, as it is")
        print(row(job, "nothing of ours", measured(turns, options.rounds)), flush=True)
        progress(f"{job.name}, beside a busy process")
        with busy_process():
            print(row(job, "a busy process", measured(turns, options.rounds)), flush=True)
    progress("")
    print("", said(conditions(rounds=options.rounds)), sep="\n")


if __name__ == "__main__":
    main()
