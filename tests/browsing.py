"""Pages served on this machine, and a real browser that looks at them."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import ROOT
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait
from serving import free_port
from waiting import until

needs_browser = pytest.mark.skipif(
    not (shutil.which("chromium") and shutil.which("chromedriver")) and not os.environ.get("CI"),
    reason="needs Chromium and its driver (apt-get install chromium chromium-driver)",
)

WITHOUT_ASSISTANT = "localStorage['mlflow.assistant.fab.autoOpenedOnFirstLoad_v1'] = true"
"""Else it opens by itself, over a fourth of the first page."""


@contextmanager
def chromium(profile: Path) -> Iterator[WebDriver]:
    """Open a browser without a window, to which MLflow's assistant is no news."""
    options = Options()
    options.binary_location = shutil.which("chromium") or "chromium"
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--window-size=1800,900",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
    try:
        driver.execute_cdp_cmd(
            "Page.addScriptToEvaluateOnNewDocument", {"source": WITHOUT_ASSISTANT}
        )
        yield driver
    finally:
        driver.quit()


@contextmanager
def mlflow_pages(mlruns: Path) -> Iterator[str]:
    """Serve a folder as mlruns/ is by `make ui`; give the address."""
    port = free_port()
    venv = Path(sys.executable).parents[1]
    command = [
        *("make", "--no-print-directory", "ui", f"PORT={port}", f"MLRUNS={mlruns}"),
        *(f"VENV={venv}", f"--old-file={venv}/.installed"),  # this environment, as it is
    ]
    with serving(command) as said:
        wait_for(f"http://127.0.0.1:{port}/health")
        page = f"http://127.0.0.1:{port}/#/experiments/1?workflowType=machine_learning"
        assert said.read_text().startswith(f"compare the runs at {page}\n")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def serving(command: Sequence[str], **environment: str) -> Iterator[Path]:
    """Run a server in a process group of its own, and leave none of the group behind.

    Gives the file with what it says: a pipe that no one reads would fill, and stop the server.
    """
    with tempfile.NamedTemporaryFile() as said:
        server = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=said,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            yield Path(said.name)
        finally:
            end(server)


def end(server: "subprocess.Popen[bytes]") -> None:
    os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(timeout=400)
        until(lambda: not living(server.pid), f"{server.args} leaves no process", seconds=120)
    except BaseException:
        os.killpg(server.pid, signal.SIGKILL)
        raise


def living(group: int) -> list[int]:
    """Return the processes of a group that have not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(int(folder.name))
    return found


def wait_for(url: str) -> None:
    until(lambda: answers(url), f"{url} answers", every=0.5)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except OSError:
        return False
    return True


def save_picture(browser: WebDriver, folder: Path, name: str) -> None:
    """Save what the window shows, once it stands still, in $PICTURES or else in the folder."""
    browser.execute_script("document.activeElement.blur()")
    pointer = ActionBuilder(browser)
    pointer.pointer_action.move_to_location(1, 1)  # charts under it show their tools
    pointer.perform()
    WebDriverWait(browser, 30).until(stands_still)
    assert browser.save_screenshot(str(Path(os.environ.get("PICTURES", folder)) / name))


def stands_still(browser: WebDriver) -> bool:
    before = browser.get_screenshot_as_png()
    time.sleep(1)
    return browser.get_screenshot_as_png() == before
