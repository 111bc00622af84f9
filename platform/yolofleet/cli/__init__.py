"""The command line: one thin file for each group of commands.

No other room imports it. `main` is the entry point, `options` holds the shared arguments and the way of printing. The
modules import nothing heavy at their top, so that ``yolofleet --help`` answers at once: each command imports what it
needs when it runs.
"""
