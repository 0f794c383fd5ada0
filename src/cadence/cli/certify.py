"""Certify that the gradient of a window does not depend on how it is split, or say why it does.

    python -m src.certify experiment=digits_cnn trainer.step_size=16

It takes the config and the overrides of src.train, trains nothing and leaves nothing behind.
"""

import sys

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from cadence.cli.build import build
from cadence.cli.compose import run_task
from cadence.cli.conf_folders import with_conf_folders
from cadence.cli.errors import command_line, errors_in_one_line
from cadence.cli.overrides import with_one_schedule
from cadence.cli.processes import WITHOUT_A_TRACE
from cadence.cli.secrets import MULTIRUN
from cadence.cli.usage import with_own_help
from cadence.config.checks import checked
from cadence.config.errors import ConfigError

USAGE = "usage: python -m src.certify [overrides]"


def certify(cfg: DictConfig) -> None:
    """Print the certificate of the config's model, objective and first window."""
    with errors_in_one_line():
        sys.exit(0 if _certify(cfg) else 1)


def _certify(cfg: DictConfig) -> bool:
    settings = checked(cfg)
    if settings.sweep is not None:
        option = HydraConfig.get().runtime.choices["sweep"]
        raise ConfigError(
            f"sweep={option}: a certificate is of one run; leave it out, and give one step_size"
        )
    run = build(settings)

    from cadence.certify.certificate import certify
    from cadence.certify.printed import print_certificate
    from cadence.display.terminal import open_console
    from cadence.engine.device import autocast_dtype
    from cadence.plan.window import windows

    trainer, size = run.trainer, settings.trainer.microbatch_size
    certificate = certify(
        trainer.model,
        trainer.objective,
        next(windows(run.train_loader, trainer.step_size)),
        trainer.optimizer,
        autocast=autocast_dtype(settings.device.precision, trainer.device),
        microbatch_size=size if isinstance(size, int) else None,
    )
    print_certificate(certificate, open_console())
    return certificate.passed


def main() -> None:
    """Run the command line; the exit code is 0 if the certificate is passed, else 1."""
    with command_line():
        sys.argv[1:] = with_own_help(sys.argv[1:], f"{__doc__}\n{USAGE}\n")
        if MULTIRUN & set(sys.argv):
            raise ConfigError(
                "--multirun: a certificate is of one run; try python -m src.certify once for each"
            )
        sys.argv[1:] = [*with_one_schedule(with_conf_folders(sys.argv[1:])), *WITHOUT_A_TRACE]
        run_task(certify)
