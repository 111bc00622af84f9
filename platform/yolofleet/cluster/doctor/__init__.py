"""The doctor: checks every node of a cluster before a job runs there, each finding with its cure.

Others use `access` (examine a cluster by connection or through its Jobs API), `examine` (the order of the checks, run
on the cluster) and `finding` (the report). `authentication`, `devices`, `disk`, `node_checks`, `storage_probe`,
`cluster_checks` and `all_reduce` each hold pairs of functions: `probe_x` gathers facts on a node, `check_x` is a pure
function from the facts to a finding.
"""
