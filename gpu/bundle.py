"""Collect what a GPU machine without a network lacks, as wheels with a manifest.

    python gpu/bundle.py --out gpu/bundle

The machine is taken to have torch, numpy, scikit-learn, pytest and the peers of the benchmarks.
Everything else that cadence and its tests need, in the versions of constraints.txt, is downloaded
for its Python and platform; gpu/run.sh unpacks the wheels there.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOTS = (
    "hydra-core",
    "omegaconf",
    "hydra-optuna-sweeper",
    "optuna",
    "sqlalchemy",
    "psutil",
    "rich",
    "filelock",
    "matplotlib",
    "jaxtyping",
    "beartype",
    "hypothesis",
    "pytest-timeout",
)
"""What the tests and recipes import there. MLflow and plotly are too large: runs are untracked."""

THERE = {
    *("torch", "numpy", "scipy", "scikit-learn", "joblib", "threadpoolctl", "pillow", "six"),
    *("transformers", "timm", "torchmetrics", "lightning", "accelerate"),
    *("pytest", "pluggy", "iniconfig", "packaging", "pyyaml", "setuptools", "typing-extensions"),
}
"""What the machine has."""

LARGEST_MIB = 64
"""The most that can be carried there."""

PLATFORMS = ("2_28", "2_27", "2_24", "2_17")


def needed(names: Sequence[str], seen: set[str]) -> Iterator[str]:
    """Yield ``name==version`` of some distributions and all they require, but what is there.

    Args:
        names: Names of distributions that are installed here.
        seen: Names that were met before; it grows.

    Raises:
        SystemExit: One of them is not installed here.
    """
    for name in map(canonicalize_name, names):
        if name in seen or name in THERE:
            continue
        seen.add(name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            sys.exit(f"{name} is not installed here; run make test once, then make gpu-bundle")
        yield f"{name}=={found.version}"
        required = map(Requirement, found.requires or [])
        markers = [each for each in required if each.marker is None or _holds(each)]
        yield from needed([each.name for each in markers], seen)


def _holds(requirement: Requirement) -> bool:
    marker = requirement.marker
    return marker is None or marker.evaluate({"extra": "", "python_version": "3.12"})


def download(pinned: Sequence[str], folder: Path, python: str) -> None:
    """Download wheels for another machine.

    Args:
        pinned: ``name==version`` of each.
        folder: Where they go.
        python: The version of Python there, such as ``3.12``.

    Raises:
        subprocess.CalledProcessError: One is not to be had as a wheel.
    """
    platforms = [f"--platform=manylinux_{each}_x86_64" for each in PLATFORMS]
    platforms.append("--platform=manylinux2014_x86_64")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", f"--python-version={python}", "--implementation=cp"]
    subprocess.run([*command, *platforms, f"--dest={folder}", *pinned], check=True)


def manifest(folder: Path) -> dict[str, dict[str, str | int]]:
    """Return the size in bytes and the SHA-256 of each wheel of a folder, by file name."""
    return {
        wheel.name: {
            "bytes": wheel.stat().st_size,
            "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        }
        for wheel in sorted(folder.glob("*.whl"))
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu/bundle"))
    parser.add_argument("--python", default="3.12", help="the version of Python there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for old in options.out.glob("*.whl"):  # two versions of one package would both be unpacked
        old.unlink()
    download(list(needed(ROOTS, set())), options.out, options.python)
    wheels = manifest(options.out)
    (options.out / "manifest.json").write_text(json.dumps(wheels, indent=1) + "\n")
    size = sum(int(wheel["bytes"]) for wheel in wheels.values()) / 2**20
    print(f"{options.out}: {len(wheels)} wheels, {size:.1f} of at most {LARGEST_MIB} MiB")
    if size > LARGEST_MIB:
        sys.exit(f"that is too much to carry; shorten ROOTS in {Path(__file__).name}")


if __name__ == "__main__":
    main()
