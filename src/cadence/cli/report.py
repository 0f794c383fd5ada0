"""Draw a sweep's report again, from its study alone.

    python -m src.report step_size_digits_mlp

It writes report.md, its pictures and trials.csv anew.
"""

import argparse
import sys
from pathlib import Path

from cadence.config import project


def main() -> None:
    """Run the command line; an error is one line on stderr and exit code 1."""
    parser = argparse.ArgumentParser(
        prog=project.command("report"),
        description=project.as_typed(__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", help="the study's name: its folder in sweeps/")
    parser.add_argument("--folder", type=Path, help="where to write; default sweeps/STUDY")
    parser.add_argument("--storage", help="the study's database; default FOLDER/study.db")
    given = parser.parse_args()

    from cadence.display.terminal import open_console
    from cadence.sweeps.printed import print_report
    from cadence.sweeps.report import load, write_report
    from cadence.system.secrets import redacted

    folder = given.folder or project.root() / "sweeps" / given.study
    try:
        study = load(given.storage or f"sqlite:///{folder}/study.db", given.study)
        report = write_report(study, folder)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {redacted(str(error))}")
    print_report(report, open_console())
