"""Fetching the next shards into the cache while the present ones are read."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from yolofleet.errors import UserError

logger = logging.getLogger(__name__)


class Prefetcher:
    """Fetches shards one after the other in a daemon thread of its own.

    It is a help and never a need: a shard that it could not fetch is fetched by whoever reads it, who then meets the
    error. Asking again for a shard that is there costs next to nothing, and keeps it from being evicted next.

    Args:
        fetch: Brings a shard, by number, into the cache unless it is there.
    """

    def __init__(self, fetch: Callable[[int], None]) -> None:
        self._fetch = fetch
        self._wanted: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._asked: set[int] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def ask(self, shards: list[int]) -> None:
        """Ask for shards, in this order; those of earlier calls that are not asked for again are forgotten."""
        with self._lock:
            self._asked = set(shards)
            for shard in shards:
                self._wanted.put(shard)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="shard-prefetch", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            shard = self._wanted.get()
            with self._lock:
                is_wanted = shard in self._asked
            if not is_wanted:
                continue  # its window is over
            try:
                self._fetch(shard)
            except UserError as error:
                logger.warning("fetching shard %d ahead failed: %s", shard, error)
