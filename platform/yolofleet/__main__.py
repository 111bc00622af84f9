"""``python -m yolofleet`` is the same as ``yolofleet``: Ctrl-C has an answer from the first import on."""

import sys


def run() -> None:
    """Entry point of the console script."""
    try:
        from yolofleet.cli.main import run as run_command

        run_command()
    except KeyboardInterrupt:  # before a command was there to answer it, or again while one was ending
        sys.stderr.write("\nstopped (Ctrl-C): run the same command again\n")
        sys.exit(130)


if __name__ == "__main__":
    run()
