"""Evaluation of a run and of its checkpoints, during training or beside it."""
