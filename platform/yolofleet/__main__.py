"""``python -m yolofleet`` is the same as ``yolofleet``: Ctrl-C has an answer from the first import on."""

import os
import sys

WAITING_TURNS = "1000"
"""How often a thread of OpenMP looks before it sleeps; libgomp's own 300,000 are milliseconds. Beside a busy core they
took most of the machine: a forward pass with two threads eight times the processor time of one with one thread."""


def run() -> None:
    """Entry point of the console script."""
    if "OMP_WAIT_POLICY" not in os.environ:  # libgomp reads both once, when torch is imported
        os.environ.setdefault("GOMP_SPINCOUNT", WAITING_TURNS)
    try:
        from yolofleet.cli.main import run as run_command

        run_command()
    except KeyboardInterrupt:  # before a command was there to answer it, or again while one was ending
        sys.stderr.write("\nstopped (Ctrl-C): run the same command again\n")
        sys.exit(130)


if __name__ == "__main__":
    run()
