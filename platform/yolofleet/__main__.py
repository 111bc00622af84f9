"""``python -m yolofleet`` is the same as ``yolofleet``."""

from yolofleet.cli.main import run

run()
