"""Before the first step: checks (`preflight`), decisions that a run keeps (`preparation`), its parts (`builders`)."""
