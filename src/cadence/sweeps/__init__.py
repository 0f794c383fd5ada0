"""A search over runs: the study, its Pareto front and its report."""
