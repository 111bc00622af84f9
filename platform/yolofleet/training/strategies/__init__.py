"""How the work of a step is divided among workers: `strategy` is the interface and DDP, `sharded` is ZeRO."""
