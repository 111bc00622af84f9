"""The MLflow Model Registry: package, register, resolve."""
