"""Work on a cluster from outside of training: the doctor, jobs sent to Ray, manifests for Kubernetes, many predictions.

Others use `bundle` and `service` (send a job), `follow` (its output), `manifest` and `manifest_work` (render for
KubeRay), `batch_prediction` and `prediction_parts` (predict on Ray), and the package `doctor`.
"""
