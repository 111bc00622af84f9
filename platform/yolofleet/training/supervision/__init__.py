"""Starting workers and watching over them: a plain process, torchrun, or Ray Train."""
