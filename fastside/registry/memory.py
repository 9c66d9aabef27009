"""The sidecar's own registry: what it publishes is what it finds. For one sidecar on its own."""

from __future__ import annotations

import asyncio
import time

from fastside.registry import Address, Endpoint, Listener, RegistryStatus
from fastside.registry.store import Store


class MemoryRegistry:
    """A `Registry` inside the control process. Always reached; empty after a restart, like any other memory."""

    def __init__(self) -> None:
        self._store = Store(time.monotonic, self._changed)
        self._listener: Listener | None = None
        self._watched: set[str] = set()
        self.status = RegistryStatus("own", connected=True, since=time.monotonic(), epoch=self._store.epoch)

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        for service in self._watched:
            self._changed(service)

    def register(self, service: str, endpoint: Endpoint) -> None:
        # No lease: the registrations end with this process, and it looks after their owners itself.
        self._store.put(service, endpoint, lease=None)

    def deregister(self, service: str, address: Address) -> None:
        self._store.delete(service, address)

    def watch(self, service: str) -> None:
        if service not in self._watched:
            self._watched.add(service)
            # Later, as every registry answers: the caller is still in the middle of subscribing.
            asyncio.get_running_loop().call_soon(self._changed, service)

    def unwatch(self, service: str) -> None:
        self._watched.discard(service)

    async def settle(self, timeout: float, service: str | None = None) -> bool:
        return True

    async def close(self, patience: float = 0.0) -> None:
        self._listener = None

    def _changed(self, service: str) -> None:
        if self._listener is not None and service in self._watched:
            self._listener.listing(self._store.listing(service))
