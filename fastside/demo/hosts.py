"""The demo's two hosts: network namespaces with a cable between, or loopback addresses where those are refused."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface
from typing import Any, NamedTuple

from fastside.netns import Namespace, join


class Ports(NamedTuple):
    """The ports of the demo, those of the sidecars at their defaults."""

    provider: int = 20880
    inbound: int = 20881
    outbound: int = 20882
    api: int = 20883
    metrics: int = 20884
    registry: int = 20885
    second_provider: int = 20890

    def moved(self, by: int) -> Ports:
        return Ports(*(port + by for port in self))


@dataclass(frozen=True)
class Host:
    """A place for a sidecar and an application."""

    name: str
    address: str
    """Where the other host reaches it."""
    local: str
    """Its own loopback address."""
    ports: Ports
    namespace: Namespace | None = None

    def entered(self) -> AbstractContextManager[None]:
        """What the block connects to and starts, it does on this host."""
        return self.namespace.entered() if self.namespace else contextlib.nullcontext()

    @property
    def any_address(self) -> str:
        """What an application listens on that everybody may reach."""
        return "0.0.0.0" if self.namespace else self.local

    def at(self, port: int) -> str:
        """The port as the host's own programs reach it."""
        return f"{self.local}:{port}"

    def sidecar_config(self, directory: str, registry: str) -> dict[str, Any]:
        """What a sidecar on this host has to be told; in a namespace all its addresses are the defaults."""
        config: dict[str, Any] = {
            "advertise": self.address,
            "registry": {"url": f"http://{registry}"},
            "runtime_dir": f"{directory}/run",
            "state_dir": f"{directory}/state",
            "drain": {"delay": 0, "deadline": "2s"},
        }
        if not self.namespace:
            config |= {
                "listeners": [
                    {"name": "inbound", "bind": self.at(self.ports.inbound)},
                    {"name": "outbound", "bind": self.at(self.ports.outbound)},
                ],
                "api": self.at(self.ports.api),
                "metrics": self.at(self.ports.metrics),
            }
        return config


@dataclass(frozen=True)
class Hosts:
    provider: Host
    caller: Host
    mode: str
    """namespaces or loopback."""
    reason: str = ""
    """Why there are no namespaces."""


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    """Hosts in namespaces if the kernel lets this process make them. They end with the block."""
    with contextlib.ExitStack() as stack:
        try:
            hosts = _namespace_hosts(stack)
        except OSError as error:
            hosts = _loopback_hosts(error.strerror or str(error))
        yield hosts


def _namespace_hosts(stack: contextlib.ExitStack) -> Hosts:
    provider = stack.enter_context(contextlib.closing(Namespace()))
    caller = stack.enter_context(contextlib.closing(Namespace()))
    join(provider, IPv4Interface("10.88.0.1/24"), caller, IPv4Interface("10.88.0.2/24"))
    return Hosts(
        Host("provider's host", "10.88.0.1", "127.0.0.1", Ports(), provider),
        Host("caller's host", "10.88.0.2", "127.0.0.1", Ports(), caller),
        "namespaces",
    )


def _loopback_hosts(reason: str) -> Hosts:
    addresses = "127.0.0.2", "127.0.0.3"
    moved = (Ports().moved(by) for by in range(0, 20_000, 100))
    ports = next(ports for ports in moved if all(_free(address, port) for address in addresses for port in ports))
    provider, caller = (
        Host(name, address, address, ports)
        for name, address in zip(("provider's host", "caller's host"), addresses, strict=True)
    )
    return Hosts(provider, caller, "loopback", reason)


def _free(address: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
