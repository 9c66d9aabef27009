"""The memory of a registry: who serves what, until when. For the sidecar's own registry and for the shared server."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fastside.registry import Address, Endpoint, Listing

MAX_INSTANCES = 100_000
MAX_TOMBSTONES = 10_000


class StoreFull(Exception):
    """One more instance does not fit; str() names the limit."""


@dataclass(slots=True)
class _Instance:
    weight: int
    deadline: float | None


class Store:
    """Instances by service and address, with leases, and an index that counts the changes.

    clock: returns seconds, monotonic. on_change: called with the name of a service after its listing changed.
    """

    def __init__(
        self, clock: Callable[[], float], on_change: Callable[[str], None], max_instances: int = MAX_INSTANCES
    ) -> None:
        self.epoch = secrets.token_hex(8)
        self.index = 1  # 0 is the index of a watcher that has seen nothing
        self.instances = 0
        self._clock = clock
        self._on_change = on_change
        self._max_instances = max_instances
        self._services: dict[str, dict[Address, _Instance]] = {}
        self._changed: dict[str, int] = {}  # of services that have instances
        # Who left by himself, and at which index. Watchers that were away ask for it later; bounded by age.
        self._tombstones: dict[str, dict[Address, int]] = {}
        self._tombstone_order: deque[tuple[str, Address, int]] = deque()

    def put(self, service: str, endpoint: Endpoint, lease: float | None) -> None:
        """Add an instance or renew it. lease: seconds, None = for ever. Raises StoreFull."""
        address, weight = endpoint
        deadline = None if lease is None else self._clock() + lease
        instance = self._services.get(service, {}).get(address)
        if instance is None:
            if self.instances >= self._max_instances:
                raise StoreFull(
                    f"the registry holds {self.instances} instances, its limit; {service} at {address} was not added"
                )
            self._services.setdefault(service, {})[address] = _Instance(weight, deadline)
            self.instances += 1
            self._tombstones.get(service, {}).pop(address, None)
            self._touch(service)
            return
        instance.deadline = deadline
        if instance.weight != weight:
            instance.weight = weight
            self._touch(service)

    def delete(self, service: str, address: Address) -> bool:
        """Take an instance out at its owner's wish. Returns whether it was there.

        Watchers are told even if it was not: they may know it from before this memory was lost.
        """
        was_there = self._remove(service, address)
        index = self.index + 1
        self._tombstones.setdefault(service, {})[address] = index
        self._tombstone_order.append((service, address, index))
        while len(self._tombstone_order) > MAX_TOMBSTONES:
            self._bury(*self._tombstone_order.popleft())
        self._touch(service)
        return was_there

    def expire(self) -> None:
        """Take out the instances whose lease is over."""
        now = self._clock()
        over = [
            (service, address)
            for service, instances in self._services.items()
            for address, instance in instances.items()
            if instance.deadline is not None and instance.deadline <= now
        ]
        for service, address in over:
            self._remove(service, address)
        for service in dict.fromkeys(service for service, _ in over):
            self._touch(service)

    def changed(self, service: str) -> int:
        """The index of a service's last change. Of one without instances nothing is kept: maybe just now."""
        return self._changed.get(service, self.index)

    def services(self) -> dict[str, int]:
        """How many instances each service has."""
        return {service: len(instances) for service, instances in sorted(self._services.items())}

    def leases(self, service: str) -> dict[Address, float | None]:
        """Seconds that each instance of a service still has without a renewal; None = for ever."""
        now = self._clock()
        return {
            address: None if instance.deadline is None else max(0.0, instance.deadline - now)
            for address, instance in self._services.get(service, {}).items()
        }

    def listing(self, service: str, since: int = 0) -> Listing:
        """A service's instances, and who left by himself after the index since."""
        return Listing(
            service,
            self.epoch,
            self.changed(service),
            tuple(Endpoint(address, instance.weight) for address, instance in self._services.get(service, {}).items()),
            frozenset(address for address, index in self._tombstones.get(service, {}).items() if index > since),
        )

    def _remove(self, service: str, address: Address) -> bool:
        instances = self._services.get(service)
        if instances is None or instances.pop(address, None) is None:
            return False
        self.instances -= 1
        if not instances:
            del self._services[service]
        return True

    def _touch(self, service: str) -> None:
        self.index += 1
        if service in self._services:
            self._changed[service] = self.index
        else:
            self._changed.pop(service, None)
        self._on_change(service)

    def _bury(self, service: str, address: Address, index: int) -> None:
        tombstones = self._tombstones.get(service)
        if tombstones is None:
            return
        if tombstones.get(address) == index:
            del tombstones[address]
        if not tombstones:
            del self._tombstones[service]
