"""Predict which step_size pays: python -m src.advise experiment=digits_mlp."""

from cadence.cli.advise import main

if __name__ == "__main__":
    main()
