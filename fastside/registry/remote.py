"""Client of a shared `fastside registry`."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import random
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import aiohttp

from fastside.registry import Address, BadRecord, Endpoint, Listener, Listing, RegistryStatus, parse_listing

log = logging.getLogger("fastside.registry")

CONNECT_TIMEOUT = 2.0
REQUEST_TIMEOUT = 5.0
SILENCE = 7.0
"""Seconds without a sign of life after which the registry counts as away. The server gives one every 2 s."""
FIRST_RETRY, LAST_RETRY = 0.1, 5.0
MAX_EVENT = 16 << 20
"""Bytes of one event; a listing of 65,535 endpoints has about 4 MiB."""

Key = tuple[str, Address]


class RegistryError(Exception):
    """The registry answered with something other than what was asked for."""


TROUBLE = (aiohttp.ClientError, TimeoutError, OSError, RegistryError)
"""What the network and the registry may do; anything else is a mistake of ours."""


class RemoteRegistry:
    """A `Registry` that is reached over HTTP.

    Two tasks: one follows the watch stream and by it knows whether the registry is there; the other keeps the
    registrations as they should be, renewing them each third of the lease. Both come back by themselves.

    url: http://host:port. lease: seconds.
    """

    def __init__(self, url: str, lease: float) -> None:
        self.status = RegistryStatus(url, connected=False, since=time.monotonic())
        self._url = url
        self._lease = lease
        self._listener: Listener | None = None
        self._session: aiohttp.ClientSession | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._watched: dict[str, int] = {}  # and the index that was seen last
        self._watches_changed = asyncio.Event()
        self._in_doubt = True
        self._wanted: dict[Key, Endpoint] = {}
        self._due: dict[Key, float] = {}  # when to register (again)
        self._leaving: dict[Key, float] = {}  # to take out, until when it is worth trying
        self._registrations_changed = asyncio.Event()
        self._settled = asyncio.Condition()

    async def start(self, listener: Listener) -> None:
        self._listener = listener
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=REQUEST_TIMEOUT, connect=CONNECT_TIMEOUT),
            headers={"User-Agent": "fastside"},
        )
        self._tasks = [asyncio.create_task(self._follow()), asyncio.create_task(self._keep_registered())]

    def register(self, service: str, endpoint: Endpoint) -> None:
        key = (service, endpoint.address)
        self._leaving.pop(key, None)
        self._wanted[key] = endpoint
        self._due[key] = 0.0
        self._registrations_changed.set()

    def deregister(self, service: str, address: Address) -> None:
        key = (service, address)
        self._wanted.pop(key, None)
        self._due.pop(key, None)
        self._leaving[key] = time.monotonic() + self._lease
        self._registrations_changed.set()

    def watch(self, service: str) -> None:
        if service not in self._watched:
            self._watched[service] = 0
            self._watches_changed.set()

    def unwatch(self, service: str) -> None:
        if self._watched.pop(service, None) is not None:
            self._watches_changed.set()

    async def settle(self, timeout: float, service: str | None = None) -> bool:
        def settled() -> bool:
            unconfirmed = itertools.chain(self._leaving, (key for key, due in self._due.items() if not due))
            return not any(service in (None, name) for name, _ in unconfirmed)

        try:
            async with asyncio.timeout(timeout), self._settled:
                await self._settled.wait_for(settled)
        except TimeoutError:
            return False
        return True

    async def close(self, patience: float = 0.0) -> None:
        for follow in self._tasks[:1]:
            follow.cancel()
        if patience:
            await self.settle(patience)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    # The watch.

    async def _follow(self) -> None:
        """Keeps a watch stream open for what is watched; a change of that opens another one."""
        failures = 0
        while True:
            self._watches_changed.clear()
            stream = asyncio.create_task(self._stream())
            change = asyncio.create_task(self._watches_changed.wait())
            try:
                await asyncio.wait((stream, change), return_when=asyncio.FIRST_COMPLETED)
            finally:
                error = await _end(stream)
                await _end(change)
            if error is None:
                continue
            failures = 0 if self.status.connected else failures + 1
            self._away(error)
            await asyncio.sleep(_delay(failures))

    async def _stream(self) -> None:
        """One watch stream. Ends by an exception only."""
        assert self._session is not None
        assert self._listener is not None
        body = {"epoch": self.status.epoch, "services": dict(self._watched)}
        # If it was away, those that have not changed meanwhile are to be told; else nobody has doubts about any.
        confirmed = frozenset(self._watched) if self._in_doubt else frozenset()
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_read=SILENCE)
        async with self._session.post(f"{self._url}/v1/watch", json=body, timeout=timeout) as response:
            if response.status != 200:
                raise RegistryError(f"watch: {response.status}: {await _error_text(response)}")
            async for name, data in _events(response.content):
                if name == "hello":
                    self._reached(str(data.get("epoch", ""))[:64])
                elif name == "current":
                    self._in_doubt = False
                    self._listener.current(confirmed)
                elif name == "listing" and (listing := self._read(data)) is not None:
                    self._watched[listing.service] = listing.index
                    self._listener.listing(listing)
        raise RegistryError("the registry ended the watch")

    def _read(self, data: Any) -> Listing | None:
        try:
            listing = parse_listing(data, self._watched.__contains__)
        except BadRecord as error:
            rejected: tuple[str, ...] = (str(error),)
            result = None
        else:
            rejected, result = listing.rejected, listing
        if rejected:
            self.status.rejected_records += len(rejected)
            log.warning("registry %s: %d unusable record(s), the first: %s", self._url, len(rejected), rejected[0])
        return result

    def _reached(self, epoch: str) -> None:
        same_memory = epoch == self.status.epoch
        if same_memory and self.status.connected:
            return
        if not same_memory:
            self.status.epoch = epoch
            self._watched = dict.fromkeys(self._watched, 0)
        if not self.status.connected:
            log.info("registry %s: reached", self._url)
            self.status.connected, self.status.since, self.status.last_error = True, time.monotonic(), ""
        # It may have dropped what it knew of us, with its memory or with the leases.
        self._due = dict.fromkeys(self._wanted, 0.0)
        self._registrations_changed.set()

    def _away(self, error: Exception) -> None:
        self._in_doubt = True
        self.status.last_error = str(error) or type(error).__name__
        if self.status.connected:
            log.warning("registry %s: away: %s", self._url, self.status.last_error)
            self.status.connected, self.status.since = False, time.monotonic()
            self.status.reconnects += 1
        assert self._listener is not None
        self._listener.away(self.status.last_error)

    # The registrations.

    async def _keep_registered(self) -> None:
        failures = 0
        while True:
            self._registrations_changed.clear()
            try:
                await self._reconcile()
                failures = 0
                wait = min(self._due.values(), default=float("inf")) - time.monotonic()
            except TROUBLE as error:
                failures += 1
                self.status.last_error = str(error) or type(error).__name__
                wait = _delay(failures)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if wait == float("inf") else wait):
                    await self._registrations_changed.wait()

    async def _reconcile(self) -> None:
        """Takes out what leaves, then registers what is due. What fails stays to be done.

        Raises RegistryError after all were tried if the registry refused some, and the client's errors at once.
        """
        refusal: RegistryError | None = None
        for key, until in list(self._leaving.items()):
            try:
                if time.monotonic() < until:
                    await self._call("DELETE", key, None)
                # Else the lease has ended by now and there is nothing left to take out.
                if self._leaving.get(key) == until:
                    del self._leaving[key]
            except RegistryError as error:
                refusal = error
        now = time.monotonic()
        for key in [key for key, due in self._due.items() if due <= now]:
            endpoint = self._wanted.get(key)
            if endpoint is None:
                continue  # deregistered while the others were registered
            try:
                await self._call("PUT", key, {"weight": endpoint.weight, "lease": self._lease})
                if self._wanted.get(key) == endpoint:
                    # A third of the lease, spread so that many registrations do not renew in step.
                    self._due[key] = time.monotonic() + self._lease / 3 * random.uniform(0.8, 1.0)
            except RegistryError as error:
                refusal = error
        async with self._settled:
            self._settled.notify_all()
        if refusal is not None:
            raise refusal

    async def _call(self, method: str, key: Key, body: dict[str, Any] | None) -> None:
        assert self._session is not None
        service, address = key
        url = f"{self._url}/v1/instances/{quote(service)}/{quote(str(address), safe='[]:')}"
        async with self._session.request(method, url, json=body) as response:
            if response.status != 200:
                problem = await _error_text(response)
                raise RegistryError(f"{method} {service} at {address}: {response.status}: {problem}")
            await response.read()


async def _error_text(response: aiohttp.ClientResponse) -> str:
    return (await response.content.read(300)).decode("utf-8", "replace").strip()


async def _events(stream: aiohttp.StreamReader) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """The Server-Sent Events of a stream with their decoded data. Raises RegistryError for what is not one."""
    buffer = bytearray()
    async for data in stream.iter_any():
        buffer += data
        while (end := buffer.find(b"\n\n")) >= 0:
            name, body = "message", b""
            for line in bytes(buffer[:end]).split(b"\n"):
                field, _, value = line.partition(b":")
                if field == b"event":
                    name = value.strip().decode("utf-8", "replace")
                elif field == b"data":
                    body += value
            del buffer[: end + 2]
            if body:
                try:
                    fields = json.loads(body)
                except ValueError:
                    raise RegistryError("the registry sent an event that is not JSON") from None
                if not isinstance(fields, dict):
                    raise RegistryError("the registry sent an event that is not a JSON object")
                yield name, fields
        if len(buffer) > MAX_EVENT:
            raise RegistryError(f"the registry sent an event of more than {MAX_EVENT} bytes")


def _delay(failures: int) -> float:
    """Seconds before the next try: doubling, bounded, and never in step with other sidecars."""
    return min(LAST_RETRY, FIRST_RETRY * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1.0)


async def _end(task: asyncio.Task[Any]) -> Exception | None:
    """Cancels a task if it still runs. Returns the error that ended it."""
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        if not task.cancelled():
            raise
        return None
    except Exception as error:
        if not isinstance(error, TROUBLE):
            log.exception("the watch of the registry failed")
        return error
    return None
