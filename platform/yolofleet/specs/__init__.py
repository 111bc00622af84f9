"""What a user writes: job, model, dataset specs; strict, checked before anything starts."""
