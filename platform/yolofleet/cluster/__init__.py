"""Clusters: jobs sent to one, the manifests that start one for a job, and predictions for very many images."""
