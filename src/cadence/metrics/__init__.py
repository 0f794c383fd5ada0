"""What is measured of a run.

`timing` measures windows and their parts, `memory` the peak, `evaluation` a model on held-out data;
`record` collects them into a run's result, `summary` is the result as summary.json has it, and
`window_time_model` predicts a window's time.
"""
