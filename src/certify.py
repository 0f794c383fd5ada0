"""Certify the gradient of a model: python -m src.certify experiment=digits_mlp."""

from cadence.cli.certify import main

if __name__ == "__main__":
    main()
