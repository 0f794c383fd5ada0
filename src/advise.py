"""Advise which step_size (mini-batches per update) to train with, or not to accumulate at all.

    python -m src.advise experiment=pydocs_gpt device.name=cuda

It takes the config and the overrides of ``src.train``, trains for seconds to a few minutes, by the
model's size and what is ``auto``, keeps none of it, and says what to expect of each step_size and
why. The picture and the table are kept under ``mlruns/advice`` (or where ``hydra.run.dir=`` says)
and in MLflow.
"""

import os
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cadence import config as configs
from src.build import build
from src.errors import errors_in_one_line, interruptible
from src.launch import WITHOUT_A_TRACE
from src.tell import OF_NOW, ROOT
from src.train import TRUSTED_TARGETS

if TYPE_CHECKING:
    from cadence.advice import Advice
    from cadence.probe import Probe
    from cadence.schema import Config


@hydra.main(
    config_path=str(ROOT / "conf"), config_name="config", execution_whitelist=TRUSTED_TARGETS
)
def advise(cfg: DictConfig) -> None:
    """Print what is predicted for each step_size of the config's run, and what to choose."""
    with errors_in_one_line():
        _advise(cfg)


def _advise(cfg: DictConfig) -> None:
    settings = configs.checked(cfg)
    _check_question(settings)
    settings.trainer.noise_scale = False  # it has turns of its own, which no other time is beside
    run = build(settings)

    from cadence.advice import advise
    from cadence.console import open_console, print_advice
    from cadence.device import autocast_dtype
    from cadence.probe import probe
    from cadence.throughput import forecast

    console = open_console()
    console.print(f"probe    {_what(settings)}, on {run.trainer.device}", markup=False)
    precision = settings.device.precision
    found = probe(
        run.trainer,
        run.train_loader,
        halfway=run.total_samples and max(1, run.total_samples // 2),
        autocast=None if precision == "fp16" else autocast_dtype(precision, run.trainer.device),
    )
    advice = advise(
        forecast(found.rounds, found.samples),
        found.noise,
        found.items,
        found.memory_mib,
        found.minibatches,
        found.first_samples,
    )
    print_advice(advice, console)
    folder = _keep(advice, found, settings)
    console.print(f"picture  {folder / PICTURE}", markup=False)
    if settings.track.name != "none" and not settings.track.offline:
        run_id = _note(cfg, settings, advice, folder)
        console.print(f"MLflow   {run_id} in experiment {settings.track.experiment}", markup=False)


PICTURE, TABLE = "advice.png", "advice.md"


def _check_question(settings: "Config") -> None:
    if settings.sweep is not None:
        option = HydraConfig.get().runtime.choices["sweep"]
        raise configs.ConfigError(
            f"sweep={option}: an advice is of one run, for all step_sizes at once; leave it out"
        )
    if settings.resume is not None:
        raise configs.ConfigError(
            f"resume={settings.resume}: an advice is for a run from its beginning; leave it out"
        )
    if settings.distributed.name != "none":
        raise configs.ConfigError(
            f"distributed={settings.distributed.name}: the probe trains on one process and cannot "
            "tell what others cost; leave it out"
        )


def _what(settings: "Config") -> str:
    choices = HydraConfig.get().runtime.choices
    return (
        f"{choices['data']} {choices['model']}, {settings.data['batch_size']} samples a mini-batch"
    )


def _keep(advice: "Advice", found: "Probe", settings: "Config") -> Path:
    """Keep the picture and the table, and return their folder."""
    from cadence.advice import advice_markdown
    from cadence.curve import advice_png
    from cadence.throughput import median_turns
    from cadence.whole import write_whole

    chosen = HydraConfig.get().run.dir
    folder = ROOT / "mlruns" / "advice" / f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    folder = folder if chosen == "." else Path(chosen).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    picture = advice_png(advice, median_turns(found.rounds), _what(settings))
    (folder / PICTURE).write_bytes(picture)
    write_whole(folder / TABLE, advice_markdown(advice))
    return folder


def _note(cfg: DictConfig, settings: "Config", advice: "Advice", folder: Path) -> str:
    """Log the advice to MLflow, and return its run."""
    from cadence.note import note
    from cadence.provenance import git_tags

    choices = HydraConfig.get().runtime.choices
    chosen = next(row for row in advice.rows if row.step_size == advice.step_size)
    return note(
        settings.track.uri,
        settings.track.experiment,
        f"advice {choices['data']} {choices['model']}",
        params={key: value for key, value in configs.flattened(cfg).items() if key not in OF_NOW},
        metrics={
            "advice/step_size": advice.step_size,
            "advice/step_size_flat_low": advice.flat[0],
            "advice/step_size_flat_high": advice.flat[1],
            "advice/samples_per_second": chosen.throughput.value,
        },
        tags={"cadence.advice": advice.sentence, **git_tags(ROOT)},
        files=[folder / PICTURE, folder / TABLE],
    )


def main() -> None:
    """Run the command line."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands errors on instead of printing its own
    with errors_in_one_line(), interruptible():
        if {"-m", "--multirun"} & set(sys.argv):
            raise configs.ConfigError(
                "--multirun: an advice is of one run, for all step_sizes at once; leave it out"
            )
        sys.argv[1:1] = WITHOUT_A_TRACE
        advise()


if __name__ == "__main__":
    main()
