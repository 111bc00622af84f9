"""What happens before the first step: checks, decisions kept in the run directory, building the parts of a run."""
