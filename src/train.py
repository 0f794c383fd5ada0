"""Train a PyTorch model as a config says: python -m src.train trainer.step_size=16."""

from cadence.cli.train import main

if __name__ == "__main__":
    main()
