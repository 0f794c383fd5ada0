"""Measure throughput against step_size where processes are joined by a slow network.

    python -m benchmarks.communication --quick
    python -m benchmarks.communication --out communication.png

Two processes train together over a link of `--rate` with a delay of `--delay` milliseconds. As root
on Linux with iproute2 each lives in a network namespace of its own, joined by a virtual cable whose
ends `tc` slows down. `tc` without netem cannot delay; then, and without namespaces, each collective
sleeps that long before it begins, and without namespaces nothing limits the rate: what was done is
printed. The step_sizes (mini-batches per update of each process) take turns.

The two smallest and one in the middle are the probe. From their parts alone, t_compute being a
mini-batch's data, forward and backward,

    samples/s = k B P / (k t_compute + t_sync + t_update)

says what the others take, and that is held against what was measured there. The same line predicts
more processes: a ring all-reduce of S bytes among P of them sends 2 (P - 1) / P * S over
each link, in 2 (P - 1) steps that are each delayed once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch.distributed as dist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.figures import conditions, line, progress, said, spread
from benchmarks.jobs import JOBS, Job
from benchmarks.memory import minibatches
from cadence import Trainer
from cadence.distributed.torch_group import init_process_group
from cadence.metrics.window_time_model import Model, Round, Turn, median_turns, simple
from cadence.sweeps.figures import FRONT, INK, KNEE, PALE
from cadence.system.malloc import keep_memory

PROCESSES = 2

CLUSTERS = (8, 64, 1024)
"""Processes of which a throughput is predicted."""

WIDTH, HEIGHT = 1200, 620
"""Pixels of the picture."""


@dataclass(frozen=True, slots=True)
class Network:
    """How the two processes reach each other."""

    hosts: tuple[Sequence[str], Sequence[str]]
    """What stands before each one's command."""
    address: str
    interface: str
    """The name of process 0's end; that of process 1 ends with 1 in place of 0."""
    is_limited: bool
    """Whether the link has the rate that was asked for."""
    is_delayed: bool
    """Whether it has the delay; else the collectives sleep."""


LOOPBACK = Network(((), ()), "127.0.0.1", "lo", False, False)


@contextmanager
def network(rate: str, delay: float) -> Iterator[Network]:
    """Join two network namespaces by a slow cable; where that cannot be, give the loopback.

    Args:
        rate: As `tc` writes it, such as ``1gbit``.
        delay: Milliseconds from one end to the other.
    """
    names = [f"cadence{os.getpid()}-{end}" for end in range(2)]
    ends = [f"cad{os.getpid()}-{end}"[-13:] for end in range(2)]
    with ExitStack() as stack:
        for name in names:
            if not _done("ip", "netns", "add", name):
                yield LOOPBACK
                return
            stack.callback(_done, "ip", "netns", "del", name)
        _do("ip", "link", "add", ends[0], "netns", names[0], "type", "veth",
            "peer", "name", ends[1], "netns", names[1])  # fmt: skip
        is_limited = is_delayed = True
        for index, (name, end) in enumerate(zip(names, ends, strict=True)):
            _do("ip", "-n", name, "addr", "add", f"10.88.77.{index + 1}/24", "dev", end)
            _do("ip", "-n", name, "link", "set", end, "up")
            _do("ip", "-n", name, "link", "set", "lo", "up")
            slow = ("ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", end, "root")
            is_delayed &= _done(*slow, "netem", "rate", rate, "delay", f"{delay}ms")
            if not is_delayed:
                is_limited &= _done(*slow, "tbf", "rate", rate, "burst", "128kb", "latency", "1s")
        prefixes = tuple(("ip", "netns", "exec", name) for name in names)
        yield Network((prefixes[0], prefixes[1]), "10.88.77.1", ends[0], is_limited, is_delayed)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _done(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def measured(net: Network, name: str, options: argparse.Namespace) -> list[Round]:
    """Train a job on two processes, and return the rounds as process 0 saw them."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "turns.json"
        words = [
            *(sys.executable, "-m", "benchmarks.communication", "--worker", str(out)),
            *("--jobs", name, "--rounds", str(options.rounds)),
            *("--windows", str(options.windows)),
            *("--delay", str(0 if net.is_delayed else options.delay)),
            *("--step-sizes", *map(str, options.step_sizes)),
        ]
        workers = [
            subprocess.Popen([*net.hosts[rank], *words], env=_environment(net, rank))
            for rank in range(PROCESSES)
        ]
        try:
            codes = [worker.wait() for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        if any(codes):
            raise RuntimeError(f"the processes ended with {codes}; what they said is above")
        rounds = json.loads(out.read_text())
    return [{int(size): Turn(*turn) for size, turn in turns.items()} for turns in rounds]


def _environment(net: Network, rank: int) -> dict[str, str]:
    interface = net.interface[:-1] + str(rank) if net.hosts[rank] else net.interface
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(PROCESSES),
        "MASTER_ADDR": net.address,
        "MASTER_PORT": "29577",
        "GLOO_SOCKET_IFNAME": interface,
        "OMP_NUM_THREADS": "1",
    }


def work(options: argparse.Namespace) -> None:
    """Be one of the processes: let the step_sizes take turns, and write what they took."""
    keep_memory(True)
    job = JOBS[options.jobs[0]]()
    if options.delay:
        _delay_collectives(options.delay / 1000)
    with init_process_group("cpu", seed=0, timeout=300) as processes:
        model = job.model()
        optimizer = job.optimizer(model)
        trainer = Trainer(model, optimizer, job.objective, 1, "cpu", processes=processes)
        loader = minibatches(job)
        rounds = []
        for number in range(options.rounds + 1):
            sizes = options.step_sizes if number % 2 else options.step_sizes[::-1]
            rounds.append(
                {size: _turn(trainer, loader, job, size, options.windows) for size in sizes}
            )
    if processes.rank == 0:
        Path(options.worker).write_text(json.dumps(rounds[1:]))  # the first one warms up


def _turn(trainer: Trainer, loader: Any, job: Job, step_size: int, windows: int) -> Turn:
    trainer.step_size = step_size
    trainer.fit(loader, max_samples=windows * step_size * job.batch_size * PROCESSES)
    full = trainer.window_parts.full()
    passes, once = full.data + full.compute, full.sync + full.update
    return Turn(float(passes.mean()), float(once.mean()))


def _delay_collectives(seconds: float) -> None:
    all_reduce = dist.all_reduce

    def delayed(*given: Any, **named: Any) -> Any:
        time.sleep(seconds)
        return all_reduce(*given, **named)

    dist.all_reduce = delayed


@dataclass(frozen=True, slots=True)
class Answer:
    """A job's measured throughput, and the model that a few of its step_sizes give."""

    job: Job
    rounds: list[Round]
    model: Model
    bytes_sent: int
    """Of one process's gradient."""

    @property
    def step_sizes(self) -> list[int]:
        """Return what was measured, ascending."""
        return sorted(self.rounds[0])

    def throughputs(self, step_size: int) -> list[float]:
        """Return the samples per second of each round."""
        samples = step_size * self.job.batch_size * PROCESSES
        return [samples / turns[step_size].seconds for turns in self.rounds]

    def with_processes(self, count: int, rate: float, delay: float) -> Model:
        """Return the model of more processes in a ring.

        Args:
            count: Processes, at least 2.
            rate: Bytes per second of a link.
            delay: Seconds from one end of it to the other.
        """
        here, there = (
            2 * (each - 1) / each * self.bytes_sent / rate + 2 * (each - 1) * delay
            for each in (PROCESSES, count)
        )
        once = max(0.0, self.model.once - here) + there
        return simple(once, self.model.lines[0].slope, count * self.job.batch_size)


def probe_of(step_sizes: Sequence[int]) -> list[int]:
    """Return the step_sizes that the model is result to."""
    sizes = sorted(step_sizes)
    return sorted({sizes[0], sizes[1], sizes[len(sizes) // 2]})


def answered(job: Job, rounds: list[Round]) -> Answer:
    """Take the model from a part of what was measured."""
    turns = median_turns(rounds)
    probe = probe_of(list(turns))
    once = median(turns[size].once for size in probe)
    each = median(turns[size].passes / size for size in probe)
    model = simple(once, each, job.batch_size * PROCESSES)
    parameters = sum(each.numel() * each.element_size() for each in job.model().parameters())
    return Answer(job, rounds, model, parameters)


def table(answer: Answer) -> Iterator[str]:
    """Yield what was measured beside what the model says."""
    yield (
        f"**{answer.job.name}**, {answer.job.batch_size} samples a mini-batch, "
        f"{answer.bytes_sent / 1e6:.3g} MB of gradient; t_sync + t_update "
        f"{1000 * answer.model.once:.3g} ms, t_compute {1000 * answer.model.lines[0].slope:.3g} ms"
    )
    yield ""
    yield line(["step_size", "measured, samples/s", "model, samples/s", "error", "of the ceiling"])
    yield line(["---:"] * 5)
    probe = probe_of(answer.step_sizes)
    for size in answer.step_sizes:
        found = spread(answer.throughputs(size))
        says = answer.model.throughput(size)
        yield line(
            [
                f"{size}{' (probe)' if size in probe else ''}",
                f"{found.median:,.4g} ({found.low:,.4g} to {found.high:,.4g})",
                f"{says:,.4g}",
                f"{says / found.median - 1:+.1%}",
                f"{says / answer.model.ceiling:.0%}",
            ]
        )
    errors = [
        abs(answer.model.throughput(size) / spread(answer.throughputs(size)).median - 1)
        for size in answer.step_sizes
        if size not in probe
    ]
    yield ""
    yield f"error beside the probe: median {median(errors):.1%}, worst {max(errors):.1%}"


def forecasts(answer: Answer, rate: float, delay: float) -> Iterator[str]:
    """Yield what the model says of more processes; see `Answer.with_processes`."""
    yield line(["processes", "t_sync + t_update, ms", "step_size 1, of the ceiling", "95 % of it"])
    yield line(["---:"] * 4)
    for count in (PROCESSES, *CLUSTERS):
        model = answer.with_processes(count, rate, delay)
        yield line(
            [
                f"{count:,}",
                f"{1000 * model.once:,.4g}",
                f"{model.throughput(1) / model.ceiling:.1%}",
                f"step_size {model.reaching():,.0f}",
            ]
        )


def draw(answers: Sequence[Answer], caption: str, link: tuple[float, float], out: Path) -> None:
    """Draw the measured points, the model's line, and those of more processes."""
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    title = f"Throughput of {PROCESSES} processes on a slow network, by step_size"
    figure.text(0.02, 0.94, title, size=16, weight="bold", color=INK)
    lines = "\n".join(textwrap.wrap(caption, 150, max_lines=3))
    figure.text(0.02, 0.92, lines, size=9, color=PALE, va="top", parse_math=False)
    for index, answer in enumerate(answers):
        left, width = 0.075 + index * 0.93 / len(answers), 0.78 / len(answers)
        _plot(figure.add_axes((left, 0.11, width, 0.62)), answer, link)
    figure.savefig(out, format="png", dpi=100)


def _plot(axes: Axes, answer: Answer, link: tuple[float, float]) -> None:
    sizes = answer.step_sizes
    spreads = [spread(answer.throughputs(size)) for size in sizes]
    share = answer.model.ceiling
    axes.errorbar(
        sizes,
        [each.median / share for each in spreads],
        yerr=[
            [(each.median - each.low) / share for each in spreads],
            [(each.high - each.median) / share for each in spreads],
        ],
        fmt="o",
        color=INK,
        capsize=3,
        label="measured",
    )
    fine = [2 ** (step / 8) for step in range(8 * 11)]
    says = [answer.model.throughput(size) / share for size in fine]
    axes.plot(fine, says, color=FRONT, linewidth=2, label=f"model, {PROCESSES} processes")
    for count, style in zip(CLUSTERS, ("--", "-.", ":"), strict=True):
        model = answer.with_processes(count, *link)
        says = [model.throughput(size) / model.ceiling for size in fine]
        axes.plot(fine, says, style, color=KNEE, linewidth=1.2, label=f"{count:,} processes")
    axes.set_title(answer.job.name, size=12, loc="left")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator([4**power for power in range(6)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_ylim(0, 1.05 * max(1.0, *(each.high / share for each in spreads)))
    axes.set_xlabel("step_size (mini-batches per update of each process)", size=11)
    axes.set_ylabel("throughput, of the ceiling", size=11)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.grid(color="#e4e4e4", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.communication",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--jobs", nargs="+", choices=list(JOBS), default=["cnn", "gpt"])
    add("--step-sizes", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    add("--rounds", type=int, default=5, help="turns of each step_size that count")
    add("--windows", type=int, default=6, help="trained in a turn")
    add("--rate", default="1gbit", help="of the link, as tc writes it")
    add("--delay", type=float, default=5.0, help="milliseconds from one end to the other")
    add("--quick", action="store_true", help="2 rounds of the CNN at four step_sizes")
    add("--out", type=Path, default=None, help="draw the picture here")
    add("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.jobs, options.step_sizes, options.rounds = ["cnn"], [1, 2, 4, 8], 2
    if min([options.rounds, options.windows, *options.step_sizes]) < 1:
        parser.error("--rounds, --windows and --step-sizes must be at least 1")
    if len(set(options.step_sizes)) < 4 and not options.worker:
        parser.error("--step-sizes: name at least four, three of which are the probe")
    if options.out is not None and not options.out.parent.is_dir():
        parser.error(f"--out {options.out}: there is no folder {options.out.parent}")
    return options


def bytes_per_second(rate: str) -> float:
    """Return a rate as `tc` writes it (``1gbit``, ``200mbit``) in bytes per second."""
    units = {"gbit": 1e9, "mbit": 1e6, "kbit": 1e3}
    unit = next((each for each in units if rate.endswith(each)), None)
    if unit is None:
        raise ValueError(f"--rate {rate}: write it as 1gbit or 200mbit")
    return float(rate.removesuffix(unit)) * units[unit] / 8


def main() -> None:
    """Run the command line."""
    options = parsed()
    if options.worker:
        work(options)
        return
    link = bytes_per_second(options.rate), options.delay / 1000
    answers = []
    with network(options.rate, options.delay) as net:
        for name in options.jobs:
            progress(name)
            answers.append(answered(JOBS[name](), measured(net, name, options)))
            progress("")
            print(*table(answers[-1]), "", sep="\n", flush=True)
            print(*forecasts(answers[-1], *link), "", sep="\n", flush=True)
    facts = conditions(
        processes=f"{PROCESSES} of one thread",
        rate=f"{options.rate} by tc" if net.is_limited else "loopback's",
        delay=f"{options.delay:g} ms by {'tc' if net.is_delayed else 'sleeping'} a collective",
        rounds=f"{options.rounds} of {options.windows} windows",
    )
    print(said(facts))
    if options.out is not None:
        draw(answers, said(facts), link, options.out)


if __name__ == "__main__":
    main()
