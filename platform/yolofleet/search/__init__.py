"""The search: finds the best job of a search space by training candidates as trials on a cluster.

From top to bottom: `controller` runs a search on Ray Tune; `session` puts it together; `engine` decides which trial
trains next, by `schedulers` (how much is spent on each trial) and `searcher` (which candidate is tried next, by one of
its algorithms); `feasibility` profiles candidates, `space` maps them to jobs; `trials` is the record of everything.

Other rooms may import `controller.run_search`, `directory.SearchDirectory`, `feasibility.profile_job`, `forecast`,
`report.write_report`, `results`, `session.SearchSession` and `space`; plugins import `searcher.ALGORITHMS`.
"""
