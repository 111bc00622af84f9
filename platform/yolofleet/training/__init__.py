"""Training: the loop, what surrounds it, and who starts it."""
