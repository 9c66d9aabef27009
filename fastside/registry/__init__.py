"""Registries: where services are published and found.

`Registry` is the interface that control works with; `memory` and `remote` implement it. What a registry says goes
through `parse_listing`, so that nothing malformed gets further; `view` decides which endpoints stay in use.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from fastside.config import host_port, join_host_port

MAX_ENDPOINTS = 65535
"""Endpoints of one service; what is beyond is left out."""
MAX_WEIGHT = 10000


class Address(NamedTuple):
    """Where an endpoint listens. Together with the service's name it identifies the endpoint."""

    ip: str
    port: int

    def __str__(self) -> str:
        return join_host_port(self.ip, self.port)


class Endpoint(NamedTuple):
    """One place that serves a service, and its share of the calls."""

    address: Address
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Listing:
    """What a registry says about one service."""

    service: str
    epoch: str
    """Of the registry's memory: a registry that forgot everything comes back with another one."""
    index: int
    """Of the last change, within the epoch."""
    endpoints: tuple[Endpoint, ...]
    deregistered: frozenset[Address]
    """Addresses that their owners took out, as opposed to those that just are not there."""
    rejected: tuple[str, ...] = ()
    """Why records were left out."""


@dataclass(slots=True)
class RegistryStatus:
    """How a registry is doing. Times are those of `time.monotonic`."""

    name: str
    connected: bool
    since: float
    epoch: str = ""
    last_error: str = ""
    rejected_records: int = 0
    reconnects: int = 0

    def age(self) -> float:
        """Seconds since it was reached or lost."""
        return time.monotonic() - self.since


class Listener(Protocol):
    """Who hears from a registry. The calls come from the event loop's thread."""

    def listing(self, listing: Listing) -> None:
        """A watched service's endpoints, at first and after each change."""

    def current(self, services: frozenset[str]) -> None:
        """The registry is reached, and these watched services are as it last said."""

    def away(self, error: str) -> None:
        """The registry cannot be reached any more."""


class Registry(Protocol):
    """A registry as control uses it.

    Nothing here waits for the network: register, deregister, watch and unwatch say what is wanted, and the registry
    keeps at it until it is so, also after it was away. Registrations that are not renewed (because this process died)
    end by their lease.
    """

    status: RegistryStatus

    async def start(self, listener: Listener) -> None:
        """Begin, without waiting for the registry to be reached."""

    def register(self, service: str, endpoint: Endpoint) -> None:
        """Publish, or change the weight."""

    def deregister(self, service: str, address: Address) -> None:
        """Take out; counts at once for everybody who watches."""

    def watch(self, service: str) -> None:
        """Have the listener told about a service."""

    def unwatch(self, service: str) -> None:
        """End that."""

    async def settle(self, timeout: float, service: str | None = None) -> bool:
        """Wait until the registry confirmed what was registered and deregistered so far (of one service, or of all).

        Waits at most timeout seconds. Returns whether it is confirmed.
        """

    async def close(self, patience: float = 0.0) -> None:
        """Tell the listener nothing more, try for up to patience seconds to get confirmed what is not yet, and stop.

        What is registered stays so until its lease ends.
        """


class BadRecord(ValueError):
    """A record that cannot be used; str() says why."""


def parse_address(value: object) -> Address:
    """Return the address in "IP:PORT" or "[IPv6]:PORT". Raises BadRecord."""
    try:
        ip, port = host_port(value)
    except ValueError as error:
        raise BadRecord(str(error)) from None
    parsed = ipaddress.ip_address(ip)
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.scope_id:
            raise BadRecord(f"`{value}` has a zone, which means nothing on another machine")
        if parsed.ipv4_mapped:
            parsed = parsed.ipv4_mapped
    if parsed.is_unspecified or parsed.is_multicast:
        raise BadRecord(f"`{value}` is not an address that can be connected to")
    return Address(str(parsed), port)


def parse_endpoint(record: Any) -> Endpoint:
    """Return the endpoint in {"address": "IP:PORT", "weight": N}. Raises BadRecord."""
    if not isinstance(record, dict):
        raise BadRecord(f"`{record!r:.80}` is not an object with an address")
    weight = record.get("weight", 1)
    if type(weight) is not int or not 1 <= weight <= MAX_WEIGHT:
        raise BadRecord(f"weight {weight!r:.80} is not a number from 1 to {MAX_WEIGHT}")
    return Endpoint(parse_address(record.get("address")), weight)


def parse_listing(data: Any, known: Callable[[str], bool]) -> Listing:
    """Return the listing in a decoded JSON object, without the records that are no good (`rejected` says why).

    known: whether the service is one that was asked for. Raises BadRecord if the object as a whole is no good.
    """
    if not isinstance(data, dict):
        raise BadRecord("a listing is not an object")
    service, epoch, index = data.get("service"), data.get("epoch"), data.get("index")
    if not isinstance(service, str) or not known(service):
        raise BadRecord(f"a listing is for {service!r:.80}, which is not watched")
    if not isinstance(epoch, str) or not 1 <= len(epoch) <= 64 or type(index) is not int or index < 0:
        raise BadRecord(f"the listing of {service} has no usable epoch and index")
    records, gone = data.get("endpoints"), data.get("deregistered", [])
    if not isinstance(records, list) or not isinstance(gone, list):
        raise BadRecord(f"the listing of {service} has no list of endpoints")
    rejected: list[str] = []
    endpoints: dict[Address, Endpoint] = {}
    for record in records:
        try:
            endpoint = parse_endpoint(record)
        except BadRecord as error:
            rejected.append(f"{service}: {error}")
            continue
        if endpoint.address in endpoints:
            rejected.append(f"{service}: {endpoint.address} is listed twice")
        elif len(endpoints) == MAX_ENDPOINTS:
            rejected.append(f"{service}: {endpoint.address} is beyond {MAX_ENDPOINTS} endpoints")
        else:
            endpoints[endpoint.address] = endpoint
    deregistered: set[Address] = set()
    for value in gone:
        try:
            deregistered.add(parse_address(value))
        except BadRecord as error:
            rejected.append(f"{service}: {error}")
    return Listing(
        service, epoch, index, tuple(endpoints.values()), frozenset(deregistered - endpoints.keys()), tuple(rejected)
    )


def dump_listing(listing: Listing) -> dict[str, Any]:
    """Return the JSON object that `parse_listing` reads."""
    return {
        "service": listing.service,
        "epoch": listing.epoch,
        "index": listing.index,
        "endpoints": [{"address": str(address), "weight": weight} for address, weight in listing.endpoints],
        "deregistered": [str(address) for address in listing.deregistered],
    }
