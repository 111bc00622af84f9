"""The network interface by which workers find each other.

Ray Train's processes find each other by gloo, which asks the host for the address of its own name. Where that is
127.0.1.1, as on Debian, or belongs to a network that other hosts do not reach, workers on two hosts never find each
other. So each worker names the interface of the network that Ray itself uses.

Ray Train's controller, a process of its own, imports this file and nothing else of the training.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from typing import Any

from ray.train.torch import TorchConfig

GLOO_INTERFACE = "GLOO_SOCKET_IFNAME"
GET_INTERFACE_ADDRESS = 0x8915
"""SIOCGIFADDR of Linux."""


def interface_of(address: str) -> str | None:
    """Return the network interface of this host that has an IPv4 address, None if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, GET_INTERFACE_ADDRESS, struct.pack("256s", name.encode()))
            except OSError:  # no IPv4 address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def name_interface() -> None:
    """Name the interface that gloo uses, unless the environment does."""
    import ray

    interface = interface_of(ray.util.get_node_ip_address())
    if interface is not None:
        os.environ.setdefault(GLOO_INTERFACE, interface)


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray has no types here
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


class ConnectedTorchConfig(TorchConfig):  # type: ignore[misc]
    """Ray Train's settings for torch, with the interface named before the processes connect."""

    @property
    def backend_cls(self) -> type:
        """What Ray Train calls before and after training."""
        return _Backend
