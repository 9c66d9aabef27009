"""What the application calls: subscribed services, their endpoints in use, and the outbound routing records.

Only what is subscribed to is watched in the registry, so that memory and work follow the application and not the size
of the registry. An outbound listener with a service in the configuration counts as a subscription; a service with
endpoints in the configuration needs none and is in no registry.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from fastside.config import Config, ServicePolicy, host_port
from fastside.registry import Address, BadRecord, Endpoint, Listing, Registry, parse_address
from fastside.registry.snapshot import SavedEndpoint, SavedSubscription, Snapshot
from fastside.registry.view import KnownEndpoint, Saved, State, View
from fastside.takeover.addresses import calling_address
from fastside.takeover.errors import TakeoverError
from fastside.takeover.flags import FlaggedTable
from fastside.takeover.records import outbound_record

log = logging.getLogger("fastside")


@dataclass(slots=True)
class Subscription:
    """One service that the application calls."""

    name: str
    """The service as who subscribed first spells it."""
    service: str
    """The name in lower case, under which it is known everywhere."""
    protocol: str
    view: View
    configured: bool = False
    """It is there because of a listener in the configuration."""
    expiry: asyncio.TimerHandle | None = None


class Subscriptions:
    """All subscriptions of this sidecar; the `Listener` of its registry.

    on_change: called when what a snapshot keeps has changed.
    """

    def __init__(
        self, config: Config, registry: Registry, desired: FlaggedTable, on_change: Callable[[], None]
    ) -> None:
        self._config = config
        self._registry = registry
        self._desired = desired
        self._on_change = on_change
        self._subscriptions: dict[str, Subscription] = {}
        self._static: set[str] = set()
        self._followers: dict[str, set[asyncio.Event]] = {}

    def __iter__(self) -> Iterator[Subscription]:
        return iter(self._subscriptions.values())

    def get(self, service: str) -> Subscription | None:
        return self._subscriptions.get(service)

    def is_static(self, service: str) -> bool:
        """Whether the endpoints of a service come from the configuration."""
        return service in self._static

    def subscribe(self, name: str, protocol: str) -> Address:
        """Subscribe, if it has not been done before, and return the address to call. Raises TakeoverError."""
        service = name.lower()
        address = calling_address(self._config, service, protocol)
        present = self._subscriptions.get(service)
        if present is not None:
            if present.protocol != protocol:
                raise TakeoverError(
                    409,
                    f"{service} is subscribed to with protocol {present.protocol}",
                    "use the same protocol, or unsubscribe first",
                )
            return address
        if self.is_static(service):
            if protocol != (in_force := self._static_protocol(service)):
                raise TakeoverError(
                    409, f"{service} is configured with protocol {in_force}", f"subscribe with protocol {in_force}"
                )
            return address
        if len(self._subscriptions) >= self._config.limits.services:
            raise TakeoverError(
                507,
                f"{len(self._subscriptions)} subscriptions are the limit",
                "raise limits.services in the configuration and restart, or unsubscribe what is not called any more",
            )
        self._add(Subscription(name, service, protocol, self._new_view()))
        self._on_change()
        return address

    def unsubscribe(self, service: str) -> None:
        """Forget a service. Raises TakeoverError if it is not subscribed to."""
        subscription = self._subscriptions.get(service)
        if subscription is None:
            raise TakeoverError(404, f"{service} is not subscribed to", "subscribe to it first")
        if subscription.configured:
            raise TakeoverError(
                409,
                f"{service} is subscribed to by a listener in the configuration",
                "remove that listener from the configuration, then reload",
            )
        self._remove(subscription)
        self._on_change()

    def endpoints(self, service: str) -> tuple[str, list[KnownEndpoint]]:
        """State and endpoints in use; those from the configuration are "static". Raises TakeoverError."""
        if self.is_static(service):
            return "static", [
                KnownEndpoint(endpoint, State.FRESH) for endpoint in self._static_endpoints(self._policy(service))
            ]
        subscription = self._subscriptions.get(service)
        if subscription is None:
            raise TakeoverError(404, f"{service} is not subscribed to", "subscribe to it first")
        return str(subscription.view.state), subscription.view.endpoints

    def names(self) -> list[str]:
        """All services that are subscribed to or configured, sorted."""
        return sorted(self._subscriptions.keys() | self._static)

    def protocol(self, service: str) -> str:
        """Of a service that is known."""
        subscription = self._subscriptions.get(service)
        return subscription.protocol if subscription is not None else self._static_protocol(service)

    def spelling(self, service: str) -> str:
        """The name of a service that is known, as who subscribed spells it."""
        subscription = self._subscriptions.get(service)
        return subscription.name if subscription is not None else service

    def knows(self, service: str) -> bool:
        """Whether a service is subscribed to or configured."""
        return service in self._subscriptions or service in self._static

    async def answered(self, service: str, timeout: float) -> None:
        """Return when the registry has said something about a service, or after timeout seconds."""
        with self.follow(service) as changes, contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while (one := self.get(service)) is not None and not one.view.answered:
                    await changes.wait()
                    changes.clear()

    @contextlib.contextmanager
    def follow(self, service: str) -> Iterator[asyncio.Event]:
        """An event that is set at each change of a service, its end included; whoever waits for it clears it."""
        changes = asyncio.Event()
        self._followers.setdefault(service, set()).add(changes)
        try:
            yield changes
        finally:
            self._followers[service].discard(changes)
            if not self._followers[service]:
                del self._followers[service]

    def restore(self, snapshot: Snapshot) -> None:
        """Take back what an earlier process has kept; what does not fit the configuration any more is left out."""
        now, age = time.monotonic(), snapshot.age()
        for one in snapshot.subscriptions:
            try:
                calling_address(self._config, one.service, one.protocol)
                saved = Saved(
                    one.epoch,
                    one.away,
                    [(Endpoint(parse_address(each.address), each.weight), each.missing) for each in one.endpoints],
                )
            except (BadRecord, TakeoverError) as error:
                log.warning("%s is not subscribed to again: %s", one.service, error)
                continue
            view = View.restore(saved, self._config.registry.protection, self._config.registry.stale, now, age)
            self._add(Subscription(one.name or one.service, one.service, one.protocol, view))

    def adopt(self, service: str, protocol: str, endpoints: list[Endpoint]) -> None:
        """Take over a service that is in the routing table but in no snapshot: an earlier control process knew it."""
        saved = Saved(endpoints=[(endpoint, None) for endpoint in endpoints])
        registry = self._config.registry
        view = View.restore(saved, registry.protection, registry.stale, time.monotonic(), 0.0)
        self._add(Subscription(service, service, protocol, view))

    def save(self) -> list[SavedSubscription]:
        """What `restore` takes."""
        now = time.monotonic()
        saved = []
        for one in self:
            view = one.view.save(now)
            endpoints = [
                SavedEndpoint(str(endpoint.address), endpoint.weight, missing) for endpoint, missing in view.endpoints
            ]
            saved.append(SavedSubscription(one.service, one.protocol, view.epoch, view.away, endpoints, one.name))
        return saved

    def reconfigure(self, config: Config) -> None:
        """Take over a configuration: static endpoints, listeners, policies, times."""
        self._config = config
        before, self._static = self._static, {name for name, policy in config.services.items() if policy.endpoints}
        named = self._passed_through() - self._static
        for subscription in list(self):
            if subscription.service in self._static or (subscription.configured and subscription.service not in named):
                self._remove(subscription)
        for service in before - self._static:
            self._desired.delete("outbound", service)
            self._wake(service)
        for service in sorted(named):
            present = self._subscriptions.get(service)
            if present is None:
                self._add(Subscription(service, service, "tcp", self._new_view(), configured=True))
            else:
                present.configured = True
        for subscription in self:
            subscription.view.tune(config.registry.protection, config.registry.stale)
            subscription.view.expire(time.monotonic())
            self._apply(subscription)
        for service in self._static:
            policy = self._policy(service)
            self._desired.put(
                outbound_record(service, self._static_protocol(service), policy, self._static_endpoints(policy))
            )
            self._wake(service)
        self._on_change()

    def move(self, registry: Registry) -> None:
        """Ask another registry from now on."""
        self._registry = registry
        for service in self._subscriptions:
            registry.watch(service)

    # What the registry says.

    def listing(self, listing: Listing) -> None:
        subscription = self._subscriptions.get(listing.service)
        if subscription is None:
            return
        first = not subscription.view.answered
        if subscription.view.listing(listing, time.monotonic()) or first:
            self._changed(subscription)
        else:
            self._plan_expiry(subscription)

    def current(self, services: frozenset[str]) -> None:
        now = time.monotonic()
        for service in services:
            subscription = self._subscriptions.get(service)
            if subscription is not None and subscription.view.current(now):
                self._changed(subscription)

    def away(self, error: str) -> None:
        now = time.monotonic()
        for subscription in self:
            if subscription.view.away(now):
                self._changed(subscription)

    def _add(self, subscription: Subscription) -> None:
        self._subscriptions[subscription.service] = subscription
        self._apply(subscription)
        self._registry.watch(subscription.service)

    def _remove(self, subscription: Subscription) -> None:
        del self._subscriptions[subscription.service]
        self._registry.unwatch(subscription.service)
        self._desired.delete("outbound", subscription.service)
        if subscription.expiry is not None:
            subscription.expiry.cancel()
        self._wake(subscription.service)

    def _changed(self, subscription: Subscription) -> None:
        self._apply(subscription)
        self._wake(subscription.service)
        self._on_change()

    def _apply(self, subscription: Subscription) -> None:
        endpoints = [known.endpoint for known in subscription.view.endpoints]
        policy = self._policy(subscription.service)
        self._desired.put(outbound_record(subscription.service, subscription.protocol, policy, endpoints))
        self._plan_expiry(subscription)

    def _plan_expiry(self, subscription: Subscription) -> None:
        if subscription.expiry is not None:
            subscription.expiry.cancel()
            subscription.expiry = None
        deadline = subscription.view.deadline()
        if deadline is not None:
            loop = asyncio.get_running_loop()
            # The loop's clock is time.monotonic, but it may fire a tick early.
            subscription.expiry = loop.call_at(deadline + 0.001, self._expire, subscription)

    def _expire(self, subscription: Subscription) -> None:
        subscription.expiry = None
        if subscription.view.expire(time.monotonic()):
            log.warning("%s: endpoints are given up: %d left", subscription.service, len(subscription.view.endpoints))
            self._changed(subscription)
        else:
            self._plan_expiry(subscription)

    def _wake(self, service: str) -> None:
        for changes in self._followers.get(service, ()):
            changes.set()

    def _new_view(self) -> View:
        return View(self._config.registry.protection, self._config.registry.stale, time.monotonic())

    def _policy(self, service: str) -> ServicePolicy:
        return self._config.services.get(service, ServicePolicy())

    def _static_protocol(self, service: str) -> str:
        return self._policy(service).protocol or ("tcp" if service in self._passed_through() else "http")

    def _passed_through(self) -> set[str]:
        """The services that listeners in the configuration pass everything to that does not name its own."""
        return {one.service for one in self._config.listeners if one.direction == "outbound" and one.service}

    @staticmethod
    def _static_endpoints(policy: ServicePolicy) -> list[Endpoint]:
        return [Endpoint(Address(*host_port(one.address)), one.weight) for one in policy.endpoints]
