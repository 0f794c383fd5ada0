"""The sweeper that `hydra/sweeper: cadence` names."""
