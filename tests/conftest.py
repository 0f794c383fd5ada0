"""What the tests share: the command line as a user types it, and one MLflow database."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import warm

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver

ROOT = Path(__file__).resolve().parents[1]

CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure(config: pytest.Config) -> None:
    # Tests run beside each other: torch processes of several threads each slow each other down.
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow database for the whole session, because making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlruns')}/mlflow.db"


@pytest.fixture
def command(tmp_path: Path) -> CommandLine:
    """Run ``python -m src.train`` in an empty folder, with a run folder of its own there."""

    def run(
        *arguments: str,
        module: str = "src.train",
        environment: dict[str, str] | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        folder = (
            []
            if any(part.startswith(("hydra.", "-")) for part in arguments)
            else [f"hydra.run.dir={tmp_path / 'run'}"]
        )
        return warm.run(
            module,
            [*arguments, *folder],
            folder=tmp_path,
            environment={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            timeout=timeout,
        )

    return run


@pytest.fixture
def browser(tmp_path: Path) -> "Iterator[WebDriver]":
    from browsing import chromium

    with chromium(tmp_path / "profile") as driver:
        yield driver
