"""Which nodes come and go while a run lasts, noted in its events: a thread of the driver."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from yolofleet.tracking.run_directory import RunDirectory
from yolofleet.training.cluster_view import NodeSeen

POLL_SECONDS = 2.0
CLOSE_TIMEOUT_SECONDS = 10.0
UNKNOWN = "Ray gives no reason"

logger = logging.getLogger(__name__)


class NodeWatch:
    """Notes nodes that join and leave for the length of a with block.

    Args:
        run: Gets the events ``node_joined`` and ``node_gone``.
        nodes_seen: Returns every node that the cluster has ever had, by its id.
        poll_seconds: Pause between two looks.
    """

    def __init__(
        self,
        run: RunDirectory,
        nodes_seen: Callable[[], dict[str, NodeSeen]],
        *,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._run = run
        self._poll_seconds = poll_seconds
        self._nodes_seen = nodes_seen
        self._known: set[str] | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="node-watch", daemon=True)

    def __enter__(self) -> NodeWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(timeout=CLOSE_TIMEOUT_SECONDS)

    def look(self) -> None:
        """Note what is different from the last look; the first one notes nothing."""
        seen = self._nodes_seen()
        alive = {node for node, found in seen.items() if found.alive}
        if self._known is not None:
            for node in sorted(alive - self._known):
                self._run.append_event("node_joined", node=seen[node].name, node_id=node, offers=seen[node].offers)
            for node in sorted(self._known - alive):
                gone = seen.get(node)
                name, reason = (node[:8], "") if gone is None else (gone.name, gone.end)
                self._run.append_event("node_gone", node=name, node_id=node, reason=reason or UNKNOWN)
        self._known = alive

    def _watch(self) -> None:
        failing = False
        while True:
            try:
                self.look()
                failing = False
            except Exception as error:  # Ray's head may be away; the nodes are looked at again when it is back
                if not failing:
                    logger.warning("the cluster's nodes cannot be looked at: %s", error)
                failing = True
            if self._over.wait(self._poll_seconds):
                return
