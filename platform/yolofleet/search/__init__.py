"""The search: spaces, feasibility, searcher, schedulers, Pareto front, and their execution on Ray Tune."""
