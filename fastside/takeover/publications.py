"""What the application publishes: kept in the registry while its owner is there, and in the inbound routing records.

An owner without a lease is looked for (see ports.py): a new publication enters the registry when its port answers for
the first time, and is withdrawn while the port does not. An owner with a lease is taken at its word until the lease is
not renewed, which ends the publication.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fastside import _core
from fastside.config import Config, ServicePolicy
from fastside.registry import MAX_WEIGHT, Address, BadRecord, Endpoint, Registry, parse_address
from fastside.registry.snapshot import SavedPublication
from fastside.takeover.addresses import is_local, own_listener, published_address
from fastside.takeover.errors import TakeoverError
from fastside.takeover.flags import FlaggedTable
from fastside.takeover.ports import Liveness, Owner, Ports
from fastside.takeover.records import inbound_record

log = logging.getLogger("fastside")

MAX_PUBLICATIONS = 10_000


@dataclass(slots=True)
class Publication:
    """One local port that serves a service. Service and port identify it."""

    name: str
    """The service as its owner spells it."""
    service: str
    """The name in lower case, under which it is known everywhere."""
    protocol: str
    local: Address
    weight: int
    lease: float | None
    liveness: Liveness
    lease_ends: float = 0.0
    lease_watch: asyncio.Task[None] | None = None


class Publications:
    """All publications of this sidecar.

    table: the routing table, in which workers note what their connects came to.
    on_change: called when the set of publications changed, so that it is saved.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        desired: FlaggedTable,
        table: _core.Table,
        on_change: Callable[[], None],
    ) -> None:
        self._config = config
        self._registry = registry
        self._desired = desired
        self._table = table
        self._on_change = on_change
        self._ports = Ports(self._calls_failed, self._owner_changed)
        self._services: dict[str, dict[int, Publication]] = {}
        self._count = 0
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
        self, name: str, local: Address, protocol: str, weight: int, lease: float | None
    ) -> tuple[Publication, Address]:
        """Publish, or change what was published with this port; returns also the address that others see.

        Raises TakeoverError.
        """
        service = name.lower()
        self._check(service, local, protocol)
        address = published_address(self._config, service, protocol)
        liveness = Liveness(Owner.UP) if lease is not None else await self._ports.look(local)
        self._add(Publication(name, service, protocol, local, weight, lease, liveness))
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
            name = one.name or one.service
            self._add(Publication(name, one.service, one.protocol, local, one.weight, one.lease, liveness))

    def adopt(self, service: str, protocol: str, endpoints: list[Endpoint]) -> None:
        """Take over a service that is in the routing table but in no snapshot: an earlier process published it."""
        for local, weight in endpoints:
            self._add(Publication(service, service, protocol, local, weight, None, Liveness(Owner.UP)))

    def save(self) -> list[SavedPublication]:
        """What `restore` takes."""
        return [
            SavedPublication(
                one.service,
                one.protocol,
                str(one.local),
                one.weight,
                one.lease,
                one.liveness.owner is Owner.UP,
                one.name,
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
        tasks = [publication.lease_watch for publication in self if publication.lease_watch is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, self._ports.close(), return_exceptions=True)

    def _check(self, service: str, local: Address, protocol: str) -> None:
        if self._count >= MAX_PUBLICATIONS:
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
        if (before := ports.get(publication.local.port)) is not None:
            self._look_no_more(before)
        else:
            self._count += 1
        ports[publication.local.port] = publication
        if publication.lease is None:
            publication.liveness = self._ports.add(publication.service, publication.local, publication.liveness)
        else:
            publication.lease_ends = time.monotonic() + publication.lease
            publication.lease_watch = asyncio.create_task(self._watch_lease(publication))
        self._refresh(publication.service)

    def _look_no_more(self, publication: Publication) -> None:
        if publication.lease is None:
            self._ports.remove(publication.service, publication.local)
        elif publication.lease_watch is not None:
            publication.lease_watch.cancel()

    def _remove(self, publication: Publication) -> None:
        self._look_no_more(publication)
        ports = self._services[publication.service]
        del ports[publication.local.port]
        self._count -= 1
        if not ports:
            del self._services[publication.service]
        self._refresh(publication.service)

    def _calls_failed(self, service: str, local: Address) -> int:
        said = self._table.explain_pick("inbound", service)
        return next((int(one["failures"]) for one in said if one["address"] == str(local)), 0)

    def _owner_changed(self, services: list[str]) -> None:
        for service in services:
            self._refresh(service)
        self._on_change()

    async def _watch_lease(self, publication: Publication) -> None:
        while (left := publication.lease_ends - time.monotonic()) > 0:
            await asyncio.sleep(left)
        log.info("%s at %s was not renewed within its lease", publication.service, publication.local)
        publication.lease_watch = None  # this very task
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
