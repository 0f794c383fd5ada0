"""The training loop, and when its state is saved."""
