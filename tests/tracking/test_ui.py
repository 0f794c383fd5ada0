"""The pages that `make ui` serves, seen by a real browser."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from browsing import mlflow_pages, needs_browser, save_picture
from conftest import ROOT
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pages")]

PICTURE = "compare.png"


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder as mlruns/ is, holding a run of step_size 2 and one of 16, and their ids."""
    folder = tmp_path_factory.mktemp("mlruns")
    uri = f"sqlite:///{folder}/mlflow.db"
    for step_size in (2, 16):
        overrides = (
            "experiment=digits_mlp",
            f"trainer.step_size={step_size}",
            "trainer.max_epochs=20",
            f"track.uri={uri}",
            f"hydra.run.dir={folder}/runs/{step_size}",
        )
        subprocess.run([sys.executable, "-m", "src.train", *overrides], cwd=ROOT, check=True)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("cadence")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    return folder, sorted(run.info.run_id for run in runs)


@pytest.fixture(scope="module")
def address(two_runs: tuple[Path, list[str]]) -> Iterator[str]:
    with mlflow_pages(two_runs[0]) as pages:
        yield pages


@needs_browser
def test_two_step_sizes_are_compared_in_the_ui_by_name_and_params(
    two_runs: tuple[Path, list[str]], address: str, browser: WebDriver
) -> None:
    runs = ",".join(f'"{run}"' for run in two_runs[1])

    browser.get(f'{address}/#/compare-runs?runs=[{runs}]&experiments=["1"]')

    WebDriverWait(browser, 60).until(
        lambda page: "trainer.step_size" in page.find_element(By.TAG_NAME, "body").text
    )
    shown = browser.find_element(By.TAG_NAME, "body").text
    assert "step_size=2 digits mlp" in shown
    assert "step_size=16 digits mlp" in shown


@needs_browser
def test_the_loss_curves_of_two_step_sizes_lie_over_each_other_in_one_chart(
    address: str, browser: WebDriver, tmp_path: Path
) -> None:
    browser.get(
        f"{address}/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART"
    )
    wait = WebDriverWait(browser, 60)
    search = wait.until(
        lambda page: page.find_element(By.XPATH, "//input[@placeholder='Search metric charts']")
    )
    search.send_keys("loss")

    wait.until(lambda page: len(page.find_elements(By.CLASS_NAME, "js-plotly-plot")) == 2)
    shown = browser.find_element(By.TAG_NAME, "body").text
    for name in ("train/loss", "val/loss", "step_size=2 digits mlp", "step_size=16 digits mlp"):
        assert name in shown
    save_picture(browser, tmp_path, PICTURE)


@needs_browser
def test_the_ui_listens_on_this_machine_alone(address: str) -> None:
    port = int(address.rpartition(":")[2])
    listening = [
        line.split()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].split(":")[1], 16) == port
    ]

    assert listening == [f"0100007F:{port:04X}"]
