"""What is measured of a run: time, memory, evaluation, and the result."""
