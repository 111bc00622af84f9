"""Evaluation of a run: by its workers (`checkpoint_evaluations`), or beside them (`async_`, `cluster_evaluation`)."""
