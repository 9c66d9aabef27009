"""What the application publishes: kept in the registry while its owner is there, and in the inbound routing records.

An owner without a lease is looked for: its port is connected to every two seconds, and after three failures in a row
the service is withdrawn until the port answers again. A new publication enters the registry when its port answers for
the first time. An owner with a lease is taken at its word until the lease is not renewed, which ends the publication.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from fastside.config import Config, ServicePolicy
from fastside.desired import DesiredTable
from fastside.registry import MAX_WEIGHT, Address, BadRecord, Endpoint, Registry, parse_address
from fastside.registry.snapshot import SavedPublication
from fastside.takeover.addresses import is_local, own_listener, published_address
from fastside.takeover.errors import TakeoverError
from fastside.takeover.records import inbound_record

log = logging.getLogger("fastside")

INTERVAL = 2.0
"""Seconds between two looks at a port that answers."""
WAITING_INTERVAL = 0.5
"""Seconds between two looks at one that does not: connecting to a closed local port costs next to nothing."""
FAILURES = 3
CONNECT_TIMEOUT = 1.0
MAX_PUBLICATIONS = 10_000


class Owner(StrEnum):
    WAITING = "waiting"
    """Its port has not answered yet."""
    UP = "up"
    DOWN = "down"
    """It has been withdrawn."""


@dataclass(slots=True)
class Liveness:
    """Whether the owner of a publication is there, by what its port does. Pure: it is told what happened."""

    owner: Owner = Owner.WAITING
    failures: int = 0

    def observe(self, answered: bool) -> bool:
        """One look at the port. Returns whether `owner` changed."""
        before = self.owner
        if answered:
            self.failures, self.owner = 0, Owner.UP
        else:
            self.failures += 1
            if self.owner is Owner.UP and self.failures >= FAILURES:
                self.owner = Owner.DOWN
        return self.owner is not before


@dataclass(slots=True)
class Publication:
    """One local port that serves a service. Name and port identify it."""

    service: str
    protocol: str
    local: Address
    weight: int
    lease: float | None
    liveness: Liveness = field(default_factory=Liveness)
    watch: asyncio.Task[None] | None = None
    lease_ends: float = 0.0


class Publications:
    """All publications of this sidecar.

    on_change: called when the set of publications changed, so that it is saved.
    """

    def __init__(
        self, config: Config, registry: Registry, desired: DesiredTable, on_change: Callable[[], None]
    ) -> None:
        self._config = config
        self._registry = registry
        self._desired = desired
        self._on_change = on_change
        self._services: dict[str, dict[int, Publication]] = {}
        self._registered: dict[str, Endpoint] = {}
        self._withdrawn = False

    def __iter__(self) -> Iterator[Publication]:
        return (publication for ports in self._services.values() for publication in ports.values())

    def of(self, service: str) -> list[Publication]:
        """The publications of one service."""
        return list(self._services.get(service, {}).values())

    def published(self, service: str) -> Endpoint | None:
        """What is registered for a service, or None while no owner is there."""
        return self._registered.get(service)

    async def publish(
        self, service: str, local: Address, protocol: str, weight: int, lease: float | None
    ) -> tuple[Publication, Address]:
        """Publish, or change what was published with this port; returns also the address that others see.

        Raises TakeoverError.
        """
        self._check(service, local, protocol)
        address = published_address(self._config, service, protocol)
        liveness = Liveness(Owner.UP) if lease is not None else Liveness()
        if lease is None:
            liveness.observe(await answers(local))
        self._add(Publication(service, protocol, local, weight, lease, liveness))
        self._on_change()
        return self._services[service][local.port], address

    def unpublish(self, service: str, port: int) -> None:
        """Withdraw at once. Raises TakeoverError if nothing is published so."""
        publication = self._find(service, port)
        self._remove(publication)
        self._on_change()

    def renew(self, service: str, port: int) -> Publication:
        """Start the lease anew. Raises TakeoverError if nothing is published so, or without a lease."""
        publication = self._find(service, port)
        if publication.lease is None:
            raise TakeoverError(
                409,
                f"{service} on port {port} was published without a lease",
                "the sidecar looks whether its port answers; publish it again with a lease to change that",
            )
        publication.lease_ends = time.monotonic() + publication.lease
        return publication

    def restore(self, saved: list[SavedPublication]) -> None:
        """Take back what an earlier process has kept. Owners that were there are so until they are seen to be gone.

        What does not fit the configuration any more is left out and logged.
        """
        for one in saved:
            try:
                local = parse_address(one.address)
                self._check(one.service, local, one.protocol)
                published_address(self._config, one.service, one.protocol)
            except (BadRecord, TakeoverError) as error:
                log.warning("%s at %s is not published again: %s", one.service, one.address, error)
                continue
            liveness = Liveness(Owner.UP if one.up else Owner.WAITING)
            self._add(Publication(one.service, one.protocol, local, one.weight, one.lease, liveness))

    def adopt(self, service: str, protocol: str, endpoints: list[Endpoint]) -> None:
        """Take over a service that is in the routing table but in no snapshot: an earlier process published it."""
        for local, weight in endpoints:
            self._add(Publication(service, protocol, local, weight, None, Liveness(Owner.UP)))

    def save(self) -> list[SavedPublication]:
        """What `restore` takes."""
        return [
            SavedPublication(
                one.service, one.protocol, str(one.local), one.weight, one.lease, one.liveness.owner is Owner.UP
            )
            for one in self
        ]

    def reconfigure(self, config: Config) -> None:
        """Take over another configuration: the address that others see may be another one."""
        self._config = config
        for service in self._services:
            self._refresh(service)

    def move(self, registry: Registry) -> None:
        """Leave the registry for another one."""
        for service, endpoint in self._registered.items():
            self._registry.deregister(service, endpoint.address)
            registry.register(service, endpoint)
        self._registry = registry

    def withdraw(self) -> None:
        """Take everything out of the registry, for good; the application's side stays for the next process."""
        self._withdrawn = True
        for service in list(self._registered):
            self._refresh(service)

    async def close(self) -> None:
        """Stop looking after owners."""
        tasks = [publication.watch for publication in self if publication.watch is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _check(self, service: str, local: Address, protocol: str) -> None:
        if sum(map(len, self._services.values())) >= MAX_PUBLICATIONS:
            raise TakeoverError(
                507, f"{MAX_PUBLICATIONS} publications are the limit", "unpublish what is not served any more"
            )
        if (loop := own_listener(self._config, local)) is not None:
            raise TakeoverError(
                409,
                f"{local} is this sidecar's own {loop}: calls would go round in a loop",
                "publish the port that the application listens on",
            )
        if not is_local(local.ip):
            raise TakeoverError(
                400,
                f"{local.ip} is not an address of this machine",
                "give the address that the application listens on here; 127.0.0.1 if it listens on all",
            )
        for other in self.of(service):
            if other.protocol != protocol and other.local.port != local.port:
                raise TakeoverError(
                    409,
                    f"{service} is published with protocol {other.protocol}",
                    "use the same protocol, or another name",
                )

    def _find(self, service: str, port: int) -> Publication:
        publication = self._services.get(service, {}).get(port)
        if publication is None:
            ports = ", ".join(map(str, self._services.get(service, {})))
            raise TakeoverError(
                404,
                f"{service} is not published with port {port}",
                f"{service} is published with port {ports}" if ports else "publish it first",
            )
        return publication

    def _add(self, publication: Publication) -> None:
        ports = self._services.setdefault(publication.service, {})
        before = ports.get(publication.local.port)
        if before is not None and before.watch is not None:
            before.watch.cancel()
        ports[publication.local.port] = publication
        if publication.lease is None:
            publication.watch = asyncio.create_task(self._watch_port(publication))
        else:
            publication.lease_ends = time.monotonic() + publication.lease
            publication.watch = asyncio.create_task(self._watch_lease(publication))
        self._refresh(publication.service)

    def _remove(self, publication: Publication) -> None:
        if publication.watch is not None:
            publication.watch.cancel()
        ports = self._services[publication.service]
        del ports[publication.local.port]
        if not ports:
            del self._services[publication.service]
        self._refresh(publication.service)

    async def _watch_port(self, publication: Publication) -> None:
        liveness = publication.liveness
        while True:
            await asyncio.sleep(INTERVAL if liveness.owner is Owner.UP else WAITING_INTERVAL)
            if liveness.observe(await answers(publication.local)):
                log.info("%s at %s is %s", publication.service, publication.local, liveness.owner)
                self._refresh(publication.service)
                self._on_change()

    async def _watch_lease(self, publication: Publication) -> None:
        while (left := publication.lease_ends - time.monotonic()) > 0:
            await asyncio.sleep(left)
        log.info("%s at %s was not renewed within its lease", publication.service, publication.local)
        publication.watch = None  # this very task
        self._remove(publication)
        self._on_change()

    def _refresh(self, service: str) -> None:
        """Bring the registry and the routing record in line with the owners of a service."""
        publications = self.of(service)
        present = [one for one in publications if one.liveness.owner is Owner.UP]
        wanted = None
        if present and not self._withdrawn:
            try:
                address = published_address(self._config, service, present[0].protocol)
            except TakeoverError as error:  # a reload took the listener away
                log.warning("%s is withdrawn: %s", service, error)
            else:
                wanted = Endpoint(address, min(MAX_WEIGHT, sum(one.weight for one in present)))
        self._register(service, wanted)
        if not publications:
            self._desired.delete("inbound", service)
            return
        # With nobody there, calls still go to the ports: the answer is a failed connect, not an unknown service.
        policy = self._config.services.get(service, ServicePolicy())
        endpoints = [Endpoint(one.local, one.weight) for one in present or publications]
        self._desired.put(inbound_record(service, publications[0].protocol, policy, endpoints))

    def _register(self, service: str, wanted: Endpoint | None) -> None:
        present = self._registered.get(service)
        if wanted == present:
            return
        if present is not None and (wanted is None or wanted.address != present.address):
            self._registry.deregister(service, present.address)
            del self._registered[service]
        if wanted is not None:
            self._registry.register(service, wanted)
            self._registered[service] = wanted


async def answers(address: Address) -> bool:
    """Whether somebody accepts connections there."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, writer = await asyncio.open_connection(address.ip, address.port)
    except OSError:  # TimeoutError is one
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
