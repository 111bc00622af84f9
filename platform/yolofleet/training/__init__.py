"""Training a detector: the loop, its checkpoints and evaluations, and how workers are started and watched.

The loop is `loop.train`; it reads from top to bottom and needs no Ray. Other rooms import only these modules (nothing
is imported here, so that the command line answers at once):

- `setup.preflight`: check a job before it starts (`check_job`, `run_storage`);
- `setup.builders`, `setup.preparation`, `setup.pretrained`: a job's datasets, model table, anchors, initial weights;
- `supervision.worker`: run a worker here (`run_in_process`, `run_worker`); `supervision.launch`: on Ray (`run_on_ray`);
- `supervision.nodes`: what a cluster has room for;
- `checkpoint.store`, `checkpoint.run_state`: read checkpoints;
- `evaluation`: figures of checkpoints, and the best one;
- `loop.worker_group`, `loop.progress`, `loop.schedule`, `loop.sample_log`: what describes a run step by step.
"""
