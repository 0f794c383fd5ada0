"""A sweep as its user meets it: in MLflow's pages and in Optuna's, seen by a real browser."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import mlflow
import numpy as np
import optuna
import pytest
from browsing import mlflow_pages, needs_browser, save_picture, serving, wait_for
from conftest import ROOT
from PIL import Image
from scipy import ndimage
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.expected_conditions import element_to_be_clickable
from selenium.webdriver.support.ui import WebDriverWait
from serving import free_port

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("pages of a sweep")]

STUDY = "step_size_grid_digits_mlp"
STEP_SIZES = (1, 2, 4, 8, 16, 32)
CHILDREN = [f"step_size={step_size} digits mlp" for step_size in STEP_SIZES]
RUN_NAME = "[col-id*='Run Name']"
CHART = ".js-plotly-plot"
PARETO_FRONT = "#graph-pareto-front"


class Sweep(NamedTuple):
    mlruns: Path
    storage: str

    @property
    def children(self) -> list[mlflow.entities.Run]:
        client = mlflow.MlflowClient(f"sqlite:///{self.mlruns}/mlflow.db")
        (parent,) = client.search_runs(["1"], f"tags.mlflow.runName = '{STUDY}'")
        return client.search_runs(["1"], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    folder = tmp_path_factory.mktemp("sweep")
    overrides = (
        "sweep=step_size_grid",
        f"hydra.sweep.dir={folder}/sweep",
        f"track.uri=sqlite:///{folder}/mlruns/mlflow.db",
        "trainer.max_samples=20000",
        "trainer.max_epochs=null",
    )
    subprocess.run(
        [sys.executable, "-m", "src.train", "--multirun", *overrides], cwd=ROOT, check=True
    )
    return Sweep(folder / "mlruns", f"sqlite:///{folder}/sweep/study.db")


@pytest.fixture(scope="module")
def runs_pages(sweep: Sweep) -> Iterator[str]:
    with mlflow_pages(sweep.mlruns) as address:
        yield address


@pytest.fixture(scope="module")
def study_pages(sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    program = str(Path(sys.executable).with_name("optuna-dashboard"))
    runtime = str(tmp_path_factory.mktemp("runtime"))  # or its control socket is in ~
    command = [program, sweep.storage, "--host", "127.0.0.1", "--port", str(port)]
    with serving(command, XDG_RUNTIME_DIR=runtime):
        wait_for(f"http://127.0.0.1:{port}/dashboard")
        yield f"http://127.0.0.1:{port}/dashboard"


@needs_browser
def test_a_sweeps_run_unfolds_into_its_trials_and_folds_again(
    runs_pages: str, browser: WebDriver, tmp_path: Path
) -> None:
    browser.set_window_size(1600, 800)
    browser.get(f"{runs_pages}/#/experiments/1/runs?workflowType=machine_learning")

    assert_soon(lambda: names_of_runs(browser), [STUDY])
    widen_names(browser)
    fold_or_unfold(browser)
    assert_soon(lambda: names_of_runs(browser), sorted([STUDY, *CHILDREN]))
    save_picture(browser, tmp_path, "sweep_runs.png")
    fold_or_unfold(browser)
    assert_soon(lambda: names_of_runs(browser), [STUDY])


@needs_browser
def test_all_trials_of_a_sweep_are_points_of_one_chart_of_throughput_against_step_size(
    sweep: Sweep, runs_pages: str, browser: WebDriver, tmp_path: Path
) -> None:
    browser.set_window_size(1600, 800)
    runs = ",".join(f'"{run.info.run_id}"' for run in sweep.children)
    browser.get(
        f'{runs_pages}/#/compare-runs?runs=[{runs}]&experiments=["1"]&workflowType=machine_learning'
    )
    click(browser, "//button[@role='tab'][.='Scatter Plot']")

    axes = ["trainer.step_size", "throughput/samples_per_second"]
    for selector, name in zip(("x-axis-selector", "y-axis-selector"), axes, strict=True):
        choose(browser, selector, name)

    assert_soon(lambda: texts(browser, f"{CHART} .xtitle, {CHART} .ytitle"), axes)
    save_picture(browser, tmp_path, "sweep.png")
    assert traces(browser, CHART) == [
        sorted(
            [float(run.data.params[axes[0]]), run.data.metrics[axes[1]]] for run in sweep.children
        )
    ]
    assert dots(browser.find_element(By.CSS_SELECTOR, f"{CHART} .nsewdrag")) == len(STEP_SIZES)


@needs_browser
def test_optunas_dashboard_draws_the_pareto_front_of_a_sweep_by_its_objectives(
    sweep: Sweep, study_pages: str, browser: WebDriver, tmp_path: Path
) -> None:
    study = optuna.load_study(study_name=STUDY, storage=sweep.storage)
    browser.set_window_size(1600, 800)
    browser.get(study_pages)
    click(browser, f"//a[contains(., '{STUDY}')]")

    assert_soon(lambda: len(texts(browser, f"{PARETO_FRONT} path.point")), len(STEP_SIZES))
    save_picture(browser, tmp_path, "dashboard.png")
    drawn = traces(browser, PARETO_FRONT)
    assert sorted(trial.values for trial in study.best_trials) in drawn
    assert sorted(point for trace in drawn for point in trace) == sorted(
        trial.values for trial in study.trials
    )
    names = study.metric_names
    assert names == ["val_loss", "samples_per_second"]
    assert [chosen_objective(browser, axis) for axis in ("X", "Y")] == names


def assert_soon(read: Callable[[], object], expected: object) -> None:
    deadline = time.monotonic() + 60
    while read() != expected and time.monotonic() < deadline:
        time.sleep(0.5)
    assert read() == expected


def names_of_runs(browser: WebDriver) -> list[str]:
    return sorted(texts(browser, f"{RUN_NAME} a"))


def fold_or_unfold(browser: WebDriver) -> None:
    browser.find_element(By.CSS_SELECTOR, f"[role=gridcell]{RUN_NAME} button").click()


def widen_names(browser: WebDriver) -> None:
    edge = browser.find_element(
        By.CSS_SELECTOR, f"[role=columnheader]{RUN_NAME} .ag-header-cell-resize"
    )
    ActionChains(browser).drag_and_drop_by_offset(edge, 150, 0).perform()


def choose(browser: WebDriver, selector: str, option: str) -> None:
    click(browser, f"//*[@id='{selector}']")
    click(browser, f"//*[@role='option'][.='{option}']")


def click(browser: WebDriver, xpath: str) -> None:
    WebDriverWait(browser, 60).until(element_to_be_clickable((By.XPATH, xpath))).click()


def chosen_objective(browser: WebDriver, axis: str) -> str:
    select = f"//*[.='Objective {axis}:']/following::*[@role='combobox'][1]"
    return browser.find_element(By.XPATH, select).text


def texts(browser: WebDriver, selector: str) -> list[str]:
    """Return the texts of the visible elements, which may change meanwhile."""
    return browser.execute_script(
        "return [...document.querySelectorAll(arguments[0])]"
        ".filter(element => element.checkVisibility()).map(element => element.textContent)",
        selector,
    )


def traces(browser: WebDriver, chart: str) -> list[list[list[float]]]:
    """Return the points [x, y] of each trace of a Plotly chart, in order."""
    drawn = browser.execute_script(
        "return document.querySelector(arguments[0]).data.map(trace => [trace.x, trace.y])", chart
    )
    return [sorted([float(x), float(y)] for x, y in zip(*trace, strict=True)) for trace in drawn]


def dots(chart: WebElement) -> int:
    """Count the spots of colour between the axes of a chart, whose lines are grey."""
    pixels = np.asarray(Image.open(BytesIO(chart.screenshot_as_png)).convert("RGB"), dtype=int)
    return ndimage.label(np.ptp(pixels, axis=2) > 60, structure=np.ones((3, 3)))[1]
