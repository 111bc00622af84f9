"""A process that promotes, for tests that kill it or set many against each other.

python promotion_worker.py race TRACKING_URI NAME VERSION   with VERSION or the next one; a line in and out a round
python promotion_worker.py die TRACKING_URI NAME VERSION EXPECTED NUM_WRITES   killed before a write
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any

from yolofleet.registry.alias_history import PromotionLostError, move_alias
from yolofleet.registry.versions import ModelTags

ALIAS = "champion"


class DyingTags(ModelTags):
    """A store whose process is killed before its write number `num_writes`."""

    def __init__(self, tracking_uri: str, name: str, num_writes: int) -> None:
        super().__init__(tracking_uri, name)
        self._left = num_writes

    def _count(self) -> None:
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1

    def set_tag(self, key: str, value: str) -> None:
        self._count()
        super().set_tag(key, value)

    def delete_tag(self, key: str) -> None:
        self._count()
        super().delete_tag(key)

    def set_alias(self, alias: str, version: int) -> None:
        self._count()
        super().set_alias(alias, version)


def race(store: ModelTags, version: int) -> None:
    """For each round's expected champion on standard input, promote and tell how it ended."""
    for line in sys.stdin:
        expected: int | None = json.loads(line)
        answer: dict[str, Any]
        try:
            own = version + 1 if version == expected else version
            answer = {"won": move_alias(store, ALIAS, own, expected=expected, action="promote", reason="race").version}
        except PromotionLostError as error:
            answer = {"lost": str(error)}
        print(json.dumps(answer), flush=True)


def main() -> None:
    """Do as the arguments say."""
    how, uri, name, version, *rest = sys.argv[1:]
    if how == "race":
        store = ModelTags(uri, name)
        store.read()
        print("ready", flush=True)
        race(store, int(version))
    else:
        expected, num_writes = int(rest[0]) or None, int(rest[1])
        dying = DyingTags(uri, name, num_writes)
        move_alias(dying, ALIAS, int(version), expected=expected, action="promote", reason="die")
        print("done", flush=True)


if __name__ == "__main__":
    main()
