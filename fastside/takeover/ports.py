"""Whether the applications are there, by their ports. Each local port is looked after once, however much is there.

A port is connected to every two seconds, and three failures in a row mean that its owner is gone; one is enough when
workers have failed to connect as well. Until it answers again, it is connected to twice a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from fastside.registry import Address

log = logging.getLogger("fastside")

INTERVAL = 2.0
"""Seconds between two looks at a port that answers."""
WAITING_INTERVAL = 0.5
"""Seconds between two looks at one that does not: connecting to a closed local port costs next to nothing."""
GLANCE = 0.25
"""Seconds between two glances at what workers' connects have come to, which look at no port."""
FAILURES = 3
CONNECT_TIMEOUT = 1.0


class Owner(StrEnum):
    WAITING = "waiting"
    """Its port has not answered yet."""
    UP = "up"
    DOWN = "down"
    """It has been withdrawn."""


@dataclass(slots=True)
class Liveness:
    """Whether the owner of a port is there, by what the port does. Pure: it is told what happened."""

    owner: Owner = Owner.WAITING
    failures: int = 0

    def observe(self, answered: bool, calls_fail: bool = False) -> bool:
        """One look at the port; calls_fail: workers cannot connect either. Returns whether `owner` changed."""
        before = self.owner
        if answered:
            self.failures, self.owner = 0, Owner.UP
        else:
            self.failures += 1
            if self.owner is Owner.UP and (calls_fail or self.failures >= FAILURES):
                self.owner = Owner.DOWN
        return self.owner is not before


@dataclass(slots=True)
class Port:
    """A port that is looked after."""

    address: Address
    liveness: Liveness
    services: dict[str, None] = field(default_factory=dict)
    """What is published there, in order."""
    calls_failed: int = 0
    """What the last glance has seen."""
    watch: asyncio.Task[None] | None = None


class Ports:
    """The ports that are looked after.

    calls_failed: returns how many connects in a row workers have failed at, for a service and its address.
    on_change: called with the services at a port whose owner has come or gone.
    """

    def __init__(self, calls_failed: Callable[[str, Address], int], on_change: Callable[[list[str]], None]) -> None:
        self._calls_failed = calls_failed
        self._on_change = on_change
        self._ports: dict[Address, Port] = {}

    async def look(self, address: Address) -> Liveness:
        """The liveness of a port that may not be looked after yet, by a look at it now unless it is known to answer."""
        liveness = self._ports[address].liveness if address in self._ports else Liveness()
        if liveness.owner is not Owner.UP:
            self._observe(address, liveness, await answers(address))
        return liveness

    def add(self, service: str, address: Address, liveness: Liveness) -> Liveness:
        """Look after the port of a service. liveness: what is known, if the port is new. Returns what counts."""
        port = self._ports.get(address)
        if port is None:
            port = self._ports[address] = Port(address, liveness)
            port.watch = asyncio.create_task(self._watch(port))
        port.services[service] = None
        return port.liveness

    def remove(self, service: str, address: Address) -> None:
        """The service is not at this port any more."""
        port = self._ports[address]
        del port.services[service]
        if not port.services:
            del self._ports[address]
            if port.watch is not None:
                port.watch.cancel()

    async def close(self) -> None:
        """Look at nothing any more."""
        tasks = [port.watch for port in self._ports.values() if port.watch is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, port: Port) -> None:
        while True:
            calls_fail = await self._pause(port)
            self._observe(port.address, port.liveness, await answers(port.address), calls_fail)

    async def _pause(self, port: Port) -> bool:
        """Wait until it is time for the next look; return True as soon as workers have failed to connect meanwhile."""
        if port.liveness.owner is not Owner.UP:
            await asyncio.sleep(WAITING_INTERVAL)
            return False
        for _ in range(round(INTERVAL / GLANCE)):
            await asyncio.sleep(GLANCE)
            before, port.calls_failed = port.calls_failed, self._calls_failed(next(iter(port.services)), port.address)
            if port.calls_failed > before:
                return True
        return False

    def _observe(self, address: Address, liveness: Liveness, answered: bool, calls_fail: bool = False) -> None:
        if liveness.observe(answered, calls_fail) and address in self._ports:
            services = list(self._ports[address].services)
            log.info("%s is %s: %s", address, liveness.owner, ", ".join(services[:5]) + ", ..." * (len(services) > 5))
            self._on_change(services)


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
