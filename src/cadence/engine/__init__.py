"""One window: its gradient, its memory, its micro-batches, its update."""
