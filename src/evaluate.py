"""Evaluate the best model of a run: python -m src.evaluate run=last."""

from cadence.cli.evaluate import main

if __name__ == "__main__":
    main()
