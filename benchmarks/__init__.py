"""How fast cadence trains, beside what else trains a PyTorch model."""
