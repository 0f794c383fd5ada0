"""Draw the report of a sweep again: python -m src.report step_size_digits_mlp."""

from cadence.cli.report import main

if __name__ == "__main__":
    main()
