"""How the work of a step is divided among workers: what each holds of the gradients and of the optimiser."""
