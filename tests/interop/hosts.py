"""Two hosts in network namespaces, each with a sidecar on the ports that SDKs expect; a registry that both share."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from fastside.netns import Namespace, join
from harness import DEADLINE, Sidecar
from registry_process import RegistryProcess

INBOUND, OUTBOUND, API, METRICS = 20881, 20882, 20883, 20884
MESH = "http://127.0.0.1:13330"
"""SOFARPC's mesh API."""
MESH_OUTBOUND = 12220
"""Where SOFARPC calls if it subscribed by its mesh API."""
DUBBOD = 22222
"""MOSN's dubbod API."""


class HostSidecar(Sidecar):
    """A sidecar in a network namespace, where it has the default ports."""

    def __init__(self, namespace: Namespace, address: str, registry: str, directory: Path) -> None:
        config = {
            "advertise": address,
            "registry": {"url": registry},
            "api": f"127.0.0.1:{API}",
            "metrics": f"127.0.0.1:{METRICS}",
            "mesh": MESH.removeprefix("http://"),
            "dubbod": f"127.0.0.1:{DUBBOD}",
            "listeners": [
                {"name": "inbound", "bind": f"0.0.0.0:{INBOUND}"},
                {"name": "outbound", "bind": f"127.0.0.1:{OUTBOUND}"},
                # Dubbo in Java takes "127.0.0.1" for the host's own address.
                {"name": "dubbo", "direction": "outbound", "bind": f"[::1]:{OUTBOUND}", "protocol": "dubbo"},
            ],
        }
        super().__init__(config, directory=directory)
        self.inbound_port, self.outbound_port, self.api_port, self.metrics_port = INBOUND, OUTBOUND, API, METRICS
        self._namespace = namespace

    def start(self) -> Sidecar:
        with self._namespace.entered():
            return super().start()

    def health(self, probe: str) -> int:
        with self._namespace.entered():
            return super().health(probe)

    def metrics(self) -> dict[str, float]:
        with self._namespace.entered():
            return super().metrics()

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """Begin to stop it in the orderly way; it has ended when the block has."""
        assert self.process
        self.process.terminate()
        yield
        self.process.wait(DEADLINE)
        self.stop()

    def recover(self) -> None:
        """Start it if it has ended."""
        assert self.process
        if self.process.poll() is not None:
            self.start()

    def restart(self) -> None:
        """Stop it in the orderly way, and start it again."""
        self.stop()
        self.start()


@dataclass(frozen=True)
class Host:
    """A place for applications, with their sidecar."""

    namespace: Namespace
    sidecar: HostSidecar
    address: str

    @property
    def inbound(self) -> str:
        """Where other hosts reach this one's applications."""
        return f"{self.address}:{INBOUND}"

    def entered(self) -> AbstractContextManager[None]:
        """What the block connects to and starts, it does on this host."""
        return self.namespace.entered()

    def publish(self, service: str, protocol: str, port: int) -> None:
        with self.entered():
            self.sidecar.client.publish(service, port, protocol=protocol)

    def unpublish(self, service: str, port: int) -> None:
        with self.entered():
            self.sidecar.client.unpublish(service, port)

    def subscribe(self, service: str, protocol: str) -> None:
        with self.entered():
            self.sidecar.client.subscribe(service, protocol=protocol)

    def unsubscribe(self, service: str) -> None:
        with self.entered():
            self.sidecar.client.unsubscribe(service)

    def dubbod(self, call: str, service: str) -> Any:
        """Call the dubbod API (pub, unpub, sub, unsub), and return its answer."""
        body = {"registry": {"type": "zookeeper"}, "service": {"interface": service, "methods": ["echo"]}}
        with self.entered():
            connection = http.client.HTTPConnection("127.0.0.1", DUBBOD, timeout=DEADLINE)
            with contextlib.closing(connection):
                connection.request("POST", f"/{call}", json.dumps(body))
                return json.loads(connection.getresponse().read())

    def connections_to(self, port: int) -> int:
        """The established connections that were accepted on a port of this host."""
        with self.entered():
            tables = [Path(f"/proc/thread-self/net/{name}").read_text() for name in ("tcp", "tcp6")]
        fields = (line.split() for table in tables for line in table.splitlines()[1:])
        return sum(local.endswith(f":{port:04X}") and state == "01" for _, local, _, state, *_ in fields)


@dataclass(frozen=True)
class Hosts:
    caller: Host
    provider: Host
    registry: RegistryProcess

    def endpoints(self, service: str) -> set[str]:
        """What the registry has of a service."""
        with self.provider.entered():
            return self.registry.addresses(service.lower())


@contextmanager
def two_hosts(directory: Path) -> Iterator[Hosts]:
    """Hosts with running sidecars. Raises OSError where the kernel does not let this process make namespaces."""
    provider_address, caller_address = "10.88.0.1", "10.88.0.2"
    with contextlib.ExitStack() as stack:
        provider = stack.enter_context(contextlib.closing(Namespace()))
        caller = stack.enter_context(contextlib.closing(Namespace()))
        join(provider, IPv4Interface(f"{provider_address}/24"), caller, IPv4Interface(f"{caller_address}/24"))
        with provider.entered():
            registry = stack.enter_context(RegistryProcess(provider_address))

        def host(name: str, namespace: Namespace, address: str) -> Host:
            sidecar = HostSidecar(namespace, address, registry.url, directory / name)
            stack.enter_context(sidecar)
            return Host(namespace, sidecar, address)

        yield Hosts(host("caller", caller, caller_address), host("provider", provider, provider_address), registry)
