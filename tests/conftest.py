"""What the tests share: the command line as a user types it, and one MLflow database."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from warm import Warm

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")  # here, before any test is read: no test asserts a time

ROOT = Path(__file__).resolve().parents[1]

SLOW_SECONDS = 3600
"""After which a slow test is ended; any other has what pyproject.toml says."""

UNTIL = "TESTS_UNTIL"
"""The variable with the seconds since 1970 after which no further test is begun."""

CommandLine = Callable[..., "subprocess.CompletedProcess[str]"]


def pytest_configure(config: pytest.Config) -> None:
    # Tests run beside each other: torch processes of several threads each slow each other down.
    os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_SECONDS))


def pytest_runtest_setup(item: pytest.Item) -> None:
    until = os.environ.get(UNTIL)
    if until and time.time() > float(until):
        pytest.skip("the time for tests is over on this machine; run make test, make test-slow")


@pytest.fixture(scope="session")
def tracking_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An MLflow database for the whole session, because making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlruns')}/mlflow.db"


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


@pytest.fixture
def command(warm: Warm, tmp_path: Path) -> CommandLine:
    """Run ``python -m src.train`` in an empty folder, with a run folder of its own there."""

    def run(
        *arguments: str, module: str = "src.train", **limits: Any
    ) -> "subprocess.CompletedProcess[str]":
        folder = (
            []
            if any(part.startswith(("hydra.", "resume=", "-")) for part in arguments)
            else [f"hydra.run.dir={tmp_path / 'run'}"]
        )
        return warm.run(module, [*arguments, *folder], tmp_path, **limits)

    return run


@pytest.fixture
def quick_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a tracker deliver, and try again, at once instead of after seconds."""
    from cadence.tracking import upload as delivery

    monkeypatch.setattr(delivery, "UPLOAD_SECONDS", 0.05)
    monkeypatch.setattr(delivery, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(delivery, "DOUBLINGS", 0)


@pytest.fixture
def browser(tmp_path: Path) -> "Iterator[WebDriver]":
    from browsing import chromium

    with chromium(tmp_path / "profile") as driver:
        yield driver
