"""A consumer and a provider on two hosts, published and subscribed as their SDKs do it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness import wait_until
from hosts import MESH, MESH_OUTBOUND, OUTBOUND, Host, Hosts
from sdks import DUBBO_JAVA, DUBBO_NODE, SOFARPC_JAVA, SOFARPC_NODE, SOFARPC_PYTHON, App, Sdk, consumer, provider

PAIRS = (
    (SOFARPC_JAVA, SOFARPC_JAVA),
    (SOFARPC_NODE, SOFARPC_JAVA),
    (SOFARPC_JAVA, SOFARPC_NODE),
    (SOFARPC_PYTHON, SOFARPC_PYTHON),
    (DUBBO_JAVA, DUBBO_JAVA),
    (DUBBO_NODE, DUBBO_JAVA),
)
"""Consumer and provider."""
SERVICES = {
    "bolt": ("interop.Echo:1.0", "interop.Echo:1.0:named"),
    "dubbo": ("interop.Echo", "named/interop.Echo", "interop.Echo:2.0.0", "named/interop.Echo:2.0.0"),
}
"""What every provider provides, as sidecars know it, by protocol."""


def only(*pairs: tuple[Sdk, Sdk]) -> pytest.MarkDecorator:
    """For a test that not all pairs can pass."""
    return pytest.mark.parametrize("running_pair", pairs, indirect=True, ids=pair_id, scope="session")


def pair_id(pair: tuple[Sdk, Sdk]) -> str:
    return "-to-".join(map(str, pair))


class Pair:
    """A running consumer and provider. Each calls or is called through its own host's sidecar."""

    def __init__(self, hosts: Hosts, consumer: Sdk, provider: Sdk, logs: Path) -> None:
        self.hosts = hosts
        self.services = SERVICES[provider.protocol]
        self._consumer_sdk = consumer
        self._provider_sdk = provider
        self._logs = logs
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Pair:
        with contextlib.ExitStack() as stack:
            self.provider = stack.enter_context(self.provider_on(self.hosts.provider))
            self.consumer = stack.enter_context(self._running_consumer())
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def errors(self) -> Mapping[str, str]:
        """What the consumer gets to see of each kind of failure."""
        return self._consumer_sdk.errors

    @property
    def payload(self) -> int:
        """The largest text that both can be made to carry, in bytes."""
        return min(self._consumer_sdk.payload, self._provider_sdk.payload)

    def consumer_connections(self) -> int:
        """The connections that the consumer has to its sidecar."""
        return self.hosts.caller.connections_to(MESH_OUTBOUND if self._consumer_sdk.mesh else OUTBOUND)

    @contextmanager
    def withdrawn(self) -> Iterator[None]:
        """Nobody finds the provider, although it is there."""
        host, sdk = self.hosts.provider, self._provider_sdk
        for service in self.services:
            host.unpublish(service, sdk.port)
        wait_until(lambda: not self._found(host), what=f"{sdk} is withdrawn")
        yield
        for service in self.services:
            host.publish(service, sdk.protocol, sdk.port)
        wait_until(lambda: self._found(host), what=f"{sdk} is published")

    def recover(self) -> None:
        """Bring everything back to where it was at the beginning, whatever a test has done and left undone."""
        for host in (self.hosts.caller, self.hosts.provider):
            host.sidecar.recover()
        self.provider.recover()
        self.consumer.stop_runs()
        self.provider.open_gate()
        self.provider.wait_held(0)
        self.provider.close_gate()

    @contextmanager
    def provider_on(self, host: Host, **options: Any) -> Iterator[App]:
        """A provider on a host, which others find when the block begins, and no more when it has ended."""
        sdk = self._provider_sdk
        with provider(sdk, host, self._logs, registry=MESH if sdk.mesh else None, **options) as app:
            if not sdk.mesh:
                for service in self.services:
                    host.publish(service, sdk.protocol, sdk.port)
            wait_until(lambda: self._found(host), what=f"{sdk} is published")
            yield app
            if not sdk.mesh:
                for service in self.services:
                    host.unpublish(service, sdk.port)
        wait_until(lambda: not self._found(host), what=f"{sdk} is withdrawn")

    def _found(self, host: Host) -> bool:
        return all(host.inbound in self.hosts.endpoints(service) for service in self.services)

    @contextmanager
    def _running_consumer(self) -> Iterator[App]:
        sdk = self._consumer_sdk
        host = self.hosts.caller
        if sdk.mesh:
            options: dict[str, Any] = {"registry": MESH}
        else:
            options = {"address": sdk.outbound}
            for service in self.services:
                host.subscribe(service, sdk.protocol)
        with consumer(sdk, host, self._logs, **options) as app:
            yield app
        if not sdk.mesh:
            for service in self.services:
                host.unsubscribe(service)
