"""What a tracking server that fails costs a run: the ratio of its length to an undisturbed run's.

    python -m benchmarks.outage

The same training, tracked by a real MLflow server, which is well, or is killed and restarted three
times, or accepts and never answers from the run's first quarter to its end. The three take turns
for some rounds. Afterwards what is left is delivered, and the logged numbers are counted, those of
all rounds together.
"""

import argparse
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import torch
from tests.serving import MlflowServer

from benchmarks.figures import conditions, line, progress, said, spread
from benchmarks.jobs import digits_mlp
from cadence import Trainer
from cadence.data import TensorData, loader
from cadence.tracking.metrics_file import FILE
from cadence.tracking.mlflow.tracker import Tracker
from cadence.tracking.sync import delivered

POINTS = 1000
"""Windows of a run whose numbers are kept."""

DOWN_SECONDS = 1.0
"""How long a killed server stays away before it is started again, which takes seconds more."""


@dataclass(frozen=True, slots=True)
class Told:
    """One tracked run."""

    training: float
    """Seconds of training."""
    ending: float
    """Seconds that the end of the tracking takes after it."""
    points: int
    missing: int
    """Points in the run's folder and not in MLflow, once all is delivered."""


def well(server: MlflowServer, seconds: float) -> None:
    """Let the server be."""


def restarted(server: MlflowServer, seconds: float) -> None:
    """Kill and restart the server in the run's first, second and third quarter."""
    for _ in range(3):
        time.sleep(seconds / 4)
        server.kill()
        time.sleep(DOWN_SECONDS)
        server.start()


def silent(server: MlflowServer, seconds: float) -> None:
    """Let the server accept and never answer from the first quarter on."""
    time.sleep(seconds / 4)
    server.send(signal.SIGSTOP)


TROUBLES: dict[str, Callable[[MlflowServer, float], None]] = {
    "well": well,
    "killed and restarted three times": restarted,
    "never answers": silent,
}


def told(server: MlflowServer, trouble: str, seconds: float, epochs: int, folder: Path) -> Told:
    """Train and track while the server has its trouble.

    Args:
        server: Up and well.
        trouble: One of `TROUBLES`.
        seconds: What the run takes undisturbed, about.
        epochs: How long it is.
        folder: The run's folder.
    """
    job = digits_mlp()
    model = job.model()
    trainer = Trainer(model, job.optimizer(model), job.objective, device="cpu")
    train_loader = loader(TensorData(job.inputs, job.targets), job.batch_size, shuffle_seed=0)
    every = max(1, epochs * len(job.inputs) // POINTS)
    nothing: dict[str, str] = {}
    tracker = Tracker(
        server.uri, "outage", trouble, folder=folder, params=nothing, tags=nothing, texts=nothing,
        every=every,
    )  # fmt: skip
    troubled = threading.Thread(target=TROUBLES[trouble], args=(server, seconds))
    with tracker:
        troubled.start()
        start = time.perf_counter()
        trainer.callbacks = [tracker]
        trainer.fit(train_loader, epochs=epochs)
        trained = time.perf_counter()
    ended = time.perf_counter()
    troubled.join()
    server.send(signal.SIGCONT)
    delivered(folder, None)
    client, run_id = mlflow.MlflowClient(server.uri), str(tracker.run_id)
    keys = client.get_run(run_id).data.metrics
    there = sum(len(client.get_metric_history(run_id, key)) for key in keys)
    points = len((folder / FILE).read_text().splitlines())
    return Told(trained - start, ended - trained, points, points - there)


def table(found: dict[str, list[Told]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    head = ["server", "training / well", "training, s", "end of tracking, s", "numbers", "missing"]
    yield line(head)
    yield line(["---", *["---:"] * (len(head) - 1)])
    undisturbed = [each.training for each in found["well"]]
    for trouble, runs in found.items():
        pairs = zip(runs, undisturbed, strict=True)
        yield line(
            [
                trouble,
                str(spread([each.training / other for each, other in pairs])),
                str(spread([each.training for each in runs])),
                str(spread([each.ending for each in runs])),
                f"{sum(each.points for each in runs):,}",
                f"{sum(each.missing for each in runs):,}",
            ]
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.outage",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=2000, help="the length of a run")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each of the three")
    given = parser.parse_args()
    torch.set_num_threads(1)  # the server that starts again on this machine has a core of its own
    found: dict[str, list[Told]] = {trouble: [] for trouble in TROUBLES}
    with tempfile.TemporaryDirectory() as scratch:
        server = MlflowServer(Path(scratch))
        server.start()
        try:
            warm = told(server, "well", 0, max(1, given.epochs // 10), Path(scratch) / "warm")
            seconds = warm.training * 10
            for number in range(given.rounds):
                for trouble, runs in found.items():
                    progress(f"round {number + 1} of {given.rounds}: {trouble}")
                    folder = Path(scratch) / f"{trouble} {number}"
                    runs.append(told(server, trouble, seconds, given.epochs, folder))
        finally:
            server.kill()
    progress("")
    print("\n".join(table(found)))
    facts = conditions(("torch", "mlflow"), threads=1, epochs=given.epochs, rounds=given.rounds)
    print("", said(facts), sep="\n")


if __name__ == "__main__":
    main()
