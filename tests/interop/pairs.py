"""A consumer and a provider on two hosts, published and subscribed as their SDKs do it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import wait_until
from hosts import MESH, OUTBOUND, Host, Hosts
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
    "dubbo": ("interop.Echo",),
}
"""What every provider provides, as sidecars know it, by protocol."""


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
            options = {"registry": MESH}
        else:
            options = {"address": f"127.0.0.1:{OUTBOUND}"}
            for service in self.services:
                host.subscribe(service, sdk.protocol)
        with consumer(sdk, host, self._logs, **options) as app:
            yield app
        if not sdk.mesh:
            for service in self.services:
                host.unsubscribe(service)
