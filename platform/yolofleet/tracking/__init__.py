"""The run directory and its MLflow mirror."""
