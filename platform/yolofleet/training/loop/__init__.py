"""The training loop (`train`) and what its steps are made of (`trainer`, `update`, `non_finite`); runs without Ray."""
