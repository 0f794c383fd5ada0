"""Which step_size is worth choosing, predicted from a short probe."""
