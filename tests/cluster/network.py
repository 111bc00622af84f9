"""Hosts of a network of its own on this machine: each a network namespace on a common switch, whose cable can be cut.

Only root may make namespaces, and not everywhere: `unavailable` says why not.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

SUBNET = "10.213.77"


def unavailable() -> str | None:
    """Return why no network can be made here, None if one can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need the ip command (iproute2)"
    name = f"yolofleet-{secrets.token_hex(2)}"
    done = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return f"network namespaces are not allowed here: {done.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=False)
    return None


@dataclass
class Host:
    """One host.

    Attributes:
        name: What it is called.
        address: Its IP address.
        namespace: Its network namespace.
        switch: The switch's namespace.
        cable: Its end of the cable at the switch.
    """

    name: str
    address: str
    namespace: str
    switch: str
    cable: str

    def command(self, *words: str, disk: Path | None = None, place: Path | None = None) -> list[str]:
        """Return a command that runs on this host.

        Args:
            words: The command.
            disk: A folder that it finds at ``place``: what hosts that share this machine's files have of their own.
            place: Where it finds it.
        """
        if disk is not None:  # ip gives every command its own view of what is mounted where
            mounted = 'mount --bind "$1" "$2"; shift 2; exec "$@"'
            words = ("sh", "-ec", mounted, "sh", str(disk), str(place), *words)
        return ["ip", "netns", "exec", self.namespace, *words]

    def cut(self) -> None:
        """Cut the cable: packets are lost and no one learns of it."""
        _ip("-n", self.switch, "link", "set", self.cable, "down")

    def mend(self) -> None:
        """Mend the cable."""
        _ip("-n", self.switch, "link", "set", self.cable, "up")

    def processes(self) -> list[int]:
        """Return the processes that run here."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        return [int(line) for line in listed.stdout.split()]


@dataclass
class Network:
    """A switch and the hosts that are connected to it."""

    hosts: list[Host] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._name = f"yf{secrets.token_hex(2)}"
        self._switch = f"{self._name}-switch"
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", "bridge", "type", "bridge", "forward_delay", "0")
        _ip("-n", self._switch, "link", "set", "bridge", "up")

    def add(self, name: str) -> Host:
        """Connect another host."""
        number = len(self.hosts) + 1
        cable = f"{self._name}c{number}"
        host = Host(name, f"{SUBNET}.{number}", f"{self._name}-{name}", self._switch, cable)
        _ip("netns", "add", host.namespace)
        self.hosts.append(host)
        _ip("-n", self._switch, "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
        _ip("-n", self._switch, "link", "set", cable, "master", "bridge", "up")
        _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", host.namespace, "link", "set", "lo", "up")
        _ip("-n", host.namespace, "link", "set", "eth0", "up")
        return host

    def close(self) -> None:
        """End everything that runs on the hosts, and take the network down."""
        for host in self.hosts:
            for process in host.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            _ip("netns", "del", host.namespace)
        _ip("netns", "del", self._switch)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)
