"""Measure what a setting is worth: the speed with it over the speed without.

    python -m benchmarks.settings --quick
    python -m benchmarks.settings --only channels_last fused

Both trainers live in one process and take turns, their order swapped from round to round; each
ratio is of one round. The first turn of each, in which a model may be compiled, is not counted; the
seconds of the one with the setting are told apart.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import nn
from torch.optim import AdamW

from benchmarks.figures import Spread, conditions, line, progress, said, spread
from benchmarks.jobs import Job, digits_cnn, digits_mlp, pydocs_gpt
from cadence import Trainer
from cadence.data import TensorData, loader
from cadence.engine.device import compile_forward
from cadence.system.malloc import keep_memory
from cadence.training.noise_scale import NoiseScaleEstimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A trainer to be made, all but what is compared left alike."""

    job: Callable[[], Job]
    step_size: int = 2
    prepare: Callable[[nn.Module], object] = lambda model: None
    fused: bool = True
    threads: int = 1
    noise_scale: bool = False


@dataclass(frozen=True, slots=True)
class Question:
    """A setting, where it is tried, and the two runs it tells apart."""

    setting: str
    on: str
    samples: int
    """Trained on in each turn."""
    without: Run
    with_it: Run


def channels_last(model: nn.Module) -> None:
    """Lay a model's images out pixel by pixel, the channels last."""
    model.to(memory_format=torch.channels_last)


def questions() -> Iterator[Question]:
    """Yield what is asked."""
    cnn, gpt = Run(job=digits_cnn), Run(job=pydocs_gpt)
    yield Question(
        "channels_last", "digits CNN", 1437, cnn, Run(job=digits_cnn, prepare=channels_last)
    )
    yield Question("compile", "pydocs GPT", 64, gpt, Run(job=pydocs_gpt, prepare=compile_forward))
    yield Question("compile", "digits CNN", 1437, cnn, Run(job=digits_cnn, prepare=compile_forward))
    yield Question("noise_scale", "digits CNN", 1437, cnn, Run(job=digits_cnn, noise_scale=True))
    for size in (1, 16):
        on = f"digits MLP, step_size {size}"
        mlp = Run(job=digits_mlp, step_size=size)
        plain = Run(job=digits_mlp, step_size=size, fused=False)
        compiled = Run(job=digits_mlp, step_size=size, prepare=compile_forward)
        two = Run(job=digits_mlp, step_size=size, threads=2)
        measured = Run(job=digits_mlp, step_size=size, noise_scale=True)
        yield Question("fused", on, 14370, plain, mlp)
        yield Question("compile", on, 14370, mlp, compiled)
        yield Question("1 thread over 2", on, 7185, two, mlp)
        yield Question("noise_scale", on, 14370, mlp, measured)


def turn(run: Run, samples: int) -> tuple[float, Callable[[], float]]:
    """Build a run and let it settle in a first turn.

    Returns:
        The seconds of that, and what trains it once more and gives the seconds.
    """
    job = run.job()
    model = job.model()
    run.prepare(model)
    optimizer = AdamW(model.parameters(), lr=job.lr, fused=run.fused)
    trainer = Trainer(
        model,
        optimizer,
        job.objective,
        run.step_size,
        "cpu",
        threads=run.threads,
        callbacks=[NoiseScaleEstimate()] * run.noise_scale,
    )
    minibatches = loader(TensorData(job.inputs, job.targets), job.batch_size, shuffle_seed=0)

    def seconds() -> float:
        start = perf_counter()
        trainer.fit(minibatches, max_samples=samples)
        return perf_counter() - start

    return seconds(), seconds


def answered(question: Question, rounds: int) -> tuple[Spread, float]:
    """Return how many times as fast it is with the setting, and the seconds of its first turn."""
    _, without = turn(question.without, question.samples)
    first, with_it = turn(question.with_it, question.samples)
    turns = {"without": without, "with": with_it}
    ratios = []
    for number in range(rounds):
        order = list(turns) if number % 2 else list(turns)[::-1]
        taken = {name: turns[name]() for name in order}
        ratios.append(taken["without"] / taken["with"])
    return spread(ratios), first


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    names = sorted({question.setting for question in questions()})
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.settings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--only", nargs="+", choices=names, default=names)
    add("--rounds", type=int, default=20, help="pairs of turns")
    add("--quick", action="store_true", help="2 rounds, nothing compiled")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds = 2
        options.only = [name for name in options.only if name != "compile"]
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def main() -> None:
    """Run the command line."""
    options = parsed()
    keep_memory(True)
    print(line(["setting", "on", "speed with over without", "first turn with, s"]))
    print(line(["---", "---", "---:", "---:"]))
    for question in questions():
        if question.setting in options.only:
            progress(f"{question.setting}, {question.on}")
            found, first = answered(question, options.rounds)
            progress("")
            told = [question.setting, question.on, str(found), f"{first:.3g}"]
            print(line(told), flush=True)
    print("", said(conditions(pairs=options.rounds)), sep="\n")


if __name__ == "__main__":
    main()
