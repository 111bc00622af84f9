"""Metrics of a run for a monitoring system, and what a restart cost."""
