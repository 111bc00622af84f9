"""The run directory, which holds everything about a run, and its copy in MLflow.

Other rooms import only these modules (nothing is imported here, so that the command line answers at once):

- `run_directory`: one run's directory (`RunDirectory`); `json_lines`: its logs, row by row (`Row`, `utc_now`);
- `goodput`: the summary of a run from its events;
- `run_page`: the page of a run, from its directory alone (`run_record`, `run_facts`, `run_curves`, `run_advice`);
- `mirror`, `search_mirror`, `mirrored_run`, `tensorboard_mirror`: the copy of a run or of a search in MLflow;
- `mlflow_store`: reaching an MLflow server or database.
"""
