"""Clusters: the manifests that start one for a job."""
