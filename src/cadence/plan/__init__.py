"""Numbers of a run that are known without torch: windows, step sizes, learning rates, the clock."""
