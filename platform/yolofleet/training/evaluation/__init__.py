"""Evaluation of a run: by its workers (`checkpoint_evaluations`), or beside them (`async_evaluation`)."""
