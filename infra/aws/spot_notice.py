"""Turns AWS's notice that a spot machine will be taken away into a drain of its Ray node, two minutes before it goes.

    python spot_notice.py [--node-id HEX]

Runs on the machine until the notice comes, which AWS gives in the machine's metadata (IMDSv2) and nowhere else. `ray
drain-node` then tells the cluster: a run saves its step and leaves, and nothing new is placed there. The metadata
service may be away for a while, so only its clear answer counts; the drain is tried until it is accepted.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

METADATA = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
"""The address, by the variable that AWS's own clients read."""
TOKEN_SECONDS = 21_600
POLL_SECONDS = 5.0
"""AWS's advice."""
ANSWER_SECONDS = 2.0
DRAIN_SECONDS = 30.0
"""For one attempt to drain the node."""
RESERVE_SECONDS = 10
"""The drain ends this long before the machine does."""
RAY = str(Path(sys.executable).parent / "ray")


class Metadata:
    """The metadata service of this machine; it answers only those who hold a token, which lasts for a while."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._token: str | None = None

    def interruption(self) -> dict[str, str] | None:
        """Return the notice: ``action`` (terminate, stop, hibernate) and ``time``; None while there is none."""
        try:
            if self._token is None:
                self._token = self._ask("/latest/api/token", "PUT", {"ttl-seconds": str(TOKEN_SECONDS)})
            notice = json.loads(self._ask("/latest/meta-data/spot/instance-action", "GET", {"": self._token}))
        except urllib.error.HTTPError as error:
            if error.code == 401:  # the token has expired
                self._token = None
            return None
        except (OSError, ValueError):
            return None
        return notice if isinstance(notice, dict) and "action" in notice else None

    def _ask(self, path: str, method: str, headers: dict[str, str]) -> str:
        named = {f"X-aws-ec2-metadata-token{'-' if name else ''}{name}": value for name, value in headers.items()}
        request = urllib.request.Request(self._url + path, method=method, headers=named)
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            text: str = answer.read(4096).decode()
            return text


def seconds_left(notice: dict[str, str], now: datetime) -> int:
    """Return how long the node may still work; without a time that can be read, half of AWS's two minutes."""
    try:
        end = datetime.fromisoformat(notice["time"].replace("Z", "+00:00"))
        left = (end if end.tzinfo else end.replace(tzinfo=UTC)) - now
    except (KeyError, ValueError, AttributeError):
        return 60
    return max(int(left.total_seconds()) - RESERVE_SECONDS, 1)


def drain(seconds: int, action: str, node_id: str | None) -> bool:
    """Tell the cluster that this node goes; returns whether it has accepted that."""
    command = [
        RAY, "drain-node", "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message",
        f"AWS announced: {action}", "--deadline-remaining-seconds", str(seconds),
    ]  # fmt: skip
    command += ["--node-id", node_id] if node_id is not None else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DRAIN_SECONDS, check=False)
    except subprocess.TimeoutExpired:  # the head does not answer at the moment
        print(f"the drain was not accepted within {DRAIN_SECONDS:g} s", flush=True)
        return False
    if done.returncode:
        print(f"the drain was not accepted: {(done.stderr or done.stdout).strip()[-500:]}", flush=True)
    return done.returncode == 0


def watch(metadata: Metadata, leave: Callable[[int, str], bool], poll_seconds: float = POLL_SECONDS) -> None:
    """Return once the notice has come and the cluster knows of it."""
    while (notice := metadata.interruption()) is None:
        time.sleep(poll_seconds)
    print(f"AWS announced: {notice}", flush=True)
    while not leave(seconds_left(notice, datetime.now(UTC)), str(notice["action"])[:40]):
        time.sleep(poll_seconds)
    print("the node is being drained", flush=True)


def main() -> None:
    """Watch, unless another process of this machine does."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--node-id", help="Ray's id of the node; that of this machine unless given")
    node_id = parser.parse_args().node_id
    with (Path(tempfile.gettempdir()) / f"yolofleet-spot-notice-{os.getuid()}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit("another process of this machine watches already")
        watch(Metadata(METADATA), lambda seconds, action: drain(seconds, action, node_id))


if __name__ == "__main__":
    main()
