"""Starting and watching workers: one here or under torchrun (`worker`), or a group on Ray (`launch` and the others)."""
