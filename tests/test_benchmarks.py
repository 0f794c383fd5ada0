"""The benchmarks run to their end and print their tables; how fast they are is not asked here."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PNG = b"\x89PNG\r\n\x1a\n"


def printed(module: str, *arguments: str) -> str:
    """Return what a benchmark prints; it needs the peers, which `make test-slow` installs."""
    if not os.environ.get("CI"):
        pytest.importorskip("lightning", reason="needs the extra benchmarks")
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_memory_prints_its_tables_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "memory.png"

    lines = printed("memory", "--quick", "--out", str(picture)).splitlines()

    assert "**Peak memory above the start of training, MiB**" in lines
    assert any(line.startswith("| step_size | cadence, memory kept |") for line in lines)
    assert "| under the limit | samples at once | outcome |" in lines
    whole, cadence = (
        next(line for line in lines if line.startswith(start))
        for start in ("| one pass a window | 256 |", "| cadence | 8 |")
    )
    assert "can't allocate memory" in whole
    assert "trains 256 samples an update (32 x 8)" in cadence
    assert picture.read_bytes().startswith(PNG)


@pytest.mark.slow
def test_scaling_prints_its_tables_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "scaling.png"

    lines = printed("scaling", "--quick", "--out", str(picture)).splitlines()

    for heading in ("samples", "parameters", "journal", "tracker's calls", "until MLflow has them"):
        assert f"| {heading} | seconds | microseconds each |" in lines
    assert "| step_size | seconds |" in lines
    assert sum(line.startswith("exponent ") for line in lines) == 6
    assert picture.read_bytes().startswith(PNG)


@pytest.mark.slow
def test_parts_prints_shares_that_are_a_whole() -> None:
    lines = printed("parts", "--quick", "--step-sizes", "2").splitlines()

    rows = [line.strip("| ").split(" | ") for line in lines[2 : lines.index("") - 1]]
    assert rows[0][0] == "forward and loss"
    assert sum(int(share.rstrip("%")) for _, _, share in rows) == pytest.approx(100, abs=4)
    assert all(int(microseconds) > 0 for _, microseconds, _ in rows)


@pytest.mark.slow
def test_throughput_prints_its_table() -> None:
    lines = printed("throughput", "--quick", "--jobs", "mlp", "--step-sizes", "2").splitlines()

    assert any(line.startswith("**digits MLP**") for line in lines)
    assert any(line.startswith("| step_size | tight, samples/s |") for line in lines)


@pytest.mark.slow
def test_the_gpus_benchmark_is_rehearsed_on_the_cpu() -> None:
    lines = printed("gpu", "--device", "cpu", "--quick").splitlines()

    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    assert rows[0] == ["job", "step_size", "contender", "samples/s", "of tight", "peak MiB",
                       "of the peak"]  # fmt: skip
    assert {row[0] for row in rows[1:]} == {"MLP", "CNN", "GPT-2 small", "ResNet-50"}
    assert {row[2] for row in rows[1:]} == {
        *("tight", "cadence", "cadence auto", "DataLoader loop", "Lightning", "Accelerate")
    }


@pytest.mark.slow
def test_overhead_prints_its_difference() -> None:
    lines = printed("overhead", "--trials", "4", "--rounds", "1").splitlines()

    assert any(line.startswith("difference of medians:") for line in lines)


@pytest.mark.slow
def test_startup_prints_each_command_beside_the_import_of_torch() -> None:
    lines = printed("startup", "--quick", "--only", "help", "typo").splitlines()

    rows = [[cell.strip() for cell in each.split("|")[1:-1]] for each in lines[2:5]]
    assert [row[:2] for row in rows] == [
        ["here", "import torch"],
        ["here", "help"],
        ["here", "typo"],
    ]
    assert [row[-1] for row in rows] == ["", "0.35", "0.35"]


@pytest.mark.slow
def test_settings_prints_its_table() -> None:
    lines = printed("settings", "--quick", "--only", "fused").splitlines()

    assert lines[0] == "| setting | on | speed with over without | first turn with, s |"
    assert [line.split(" | ")[:2] for line in lines[2:4]] == [
        ["| fused", "digits MLP, step_size 1"],
        ["| fused", "digits MLP, step_size 16"],
    ]


@pytest.mark.slow
def test_communication_prints_its_tables_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "communication.png"

    lines = printed("communication", "--quick", "--out", str(picture)).splitlines()

    measured = [line.split(" | ")[0] for line in lines if line.startswith("| ")]
    assert measured[:6] == [
        "| step_size",
        "| ---:",
        "| 1 (probe)",
        "| 2 (probe)",
        "| 4 (probe)",
        "| 8",
    ]
    assert measured[-4:] == ["| 2", "| 8", "| 64", "| 1,024"]
    assert picture.read_bytes().startswith(PNG)


@pytest.mark.slow
def test_prediction_prints_its_tables() -> None:
    lines = printed("prediction", "--quick").splitlines()

    for mode in ("sequential", "auto"):
        assert any(line.startswith(f"**digits MLP, {mode}**: passes ") for line in lines)
    assert "| step_size | measured, samples/s | predicted | error, % | measured again, % |" in lines
    assert any(line.startswith("all: error: median ") for line in lines)


@pytest.mark.slow
def test_shares_prints_its_table() -> None:
    lines = printed("shares", "--samples", "5000", "--rounds", "1").splitlines()

    assert lines[0].startswith("| round | alone, samples/s |")
    assert "[4, 4]: " in lines[-1]
    assert "[6, 2]: " in lines[-1]


@pytest.mark.slow
def test_outage_prints_that_no_point_is_missing() -> None:
    lines = printed("outage", "--epochs", "100", "--rounds", "1").splitlines()

    (start,) = (number for number, each in enumerate(lines) if each.startswith("| server |"))
    rows = [[cell.strip() for cell in each.split("|")[1:-1]] for each in lines[start + 2 :][:3]]
    assert [row[0] for row in rows] == ["well", "killed and restarted three times", "never answers"]
    assert [row[-1] for row in rows] == ["0", "0", "0"]
