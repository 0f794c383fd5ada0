"""Whether the gradient of a window depends on how it is split, and why."""
