"""Upload what MLflow does not have of a run: python -m src.sync RUN_FOLDER."""

from cadence.cli.sync import main

if __name__ == "__main__":
    main()
