"""Checkpoints of a run (`store`), the state that they hold (`run_state`), and its packing for a file (`packing`)."""
