"""`fastside registry`: a small registry for development and for the sidecars of one machine. HTTP/JSON, memory only.

    PUT    /v1/instances/{service}/{address}   {"weight": 1, "lease": 10}   add or renew; lease in seconds
    DELETE /v1/instances/{service}/{address}                                take out; watchers hear of it at once
    GET    /v1/services                                                     how many instances each service has
    GET    /v1/services/{service}                                           its instances
    GET    /v1/watch?service=a&service=b                                    Server-Sent Events, see `Watcher`
    POST   /v1/watch    {"epoch": "...", "services": {"a": 12, "b": 0}}     the same, from where another watch ended

Errors are {"error": ...} with a 4xx or 503. Whoever reaches the port may register: bind it to loopback or to a network
that is trusted.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import setproctitle
from aiohttp import web

from fastside.config import host_port, parse_service
from fastside.registry import Address, BadRecord, dump_listing, parse_address, parse_endpoint
from fastside.registry.store import MAX_INSTANCES, Store, StoreFull

DEFAULT_BIND = "127.0.0.1:20885"
KEEPALIVE = 2.0
"""Seconds between two signs of life on a watch. A client that misses three of them looks for the registry anew."""
MIN_LEASE, MAX_LEASE = 1.0, 3600.0
MAX_WATCHERS = 4096
MAX_WATCHED = 100_000
"""Services of one watcher."""
MAX_BODY = 8 << 20

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Watcher:
    """One watch: an event stream that says how things are and then what changes.

    Events: `hello` {"epoch", "keepalive"}; `listing`, one service as in `dump_listing`; `current` {}: every watched
    service for which no listing came is as it was at the index that the client named. Comments come as signs of life.
    Changes of a service that follow each other faster than the client reads become one.
    """

    def __init__(self, store: Store, services: dict[str, int]) -> None:
        self.services = services
        self._store = store
        self._dirty = {service: None for service, index in services.items() if store.changed(service) > index}
        self._wake = asyncio.Event()

    def changed(self, service: str) -> None:
        self._dirty[service] = None
        self._wake.set()

    async def events(self) -> AsyncIterator[bytes]:
        yield _event("hello", {"epoch": self._store.epoch, "keepalive": KEEPALIVE})
        current = False
        while True:
            self._wake.clear()
            while self._dirty:
                service = next(iter(self._dirty))
                del self._dirty[service]
                listing = self._store.listing(service, since=self.services[service])
                self.services[service] = self._store.index
                yield _event("listing", dump_listing(listing))
            if not current:
                current = True
                yield _event("current", {})
            try:
                async with asyncio.timeout(KEEPALIVE):
                    await self._wake.wait()
            except TimeoutError:
                yield b":\n\n"


class Server:
    """The HTTP side of a `Store`."""

    def __init__(self, max_instances: int = MAX_INSTANCES, max_watchers: int = MAX_WATCHERS) -> None:
        self._store = Store(time.monotonic, self._changed, max_instances)
        self._max_watchers = max_watchers
        self._watchers: set[Watcher] = set()
        self._watching: dict[str, set[Watcher]] = {}

    def application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY, middlewares=[_errors_as_json])
        instance = "/v1/instances/{service:.+}/{address:[^/]+}"
        app.add_routes(
            [
                web.put(instance, self.put),
                web.delete(instance, self.delete),
                web.get("/v1/services", self.services),
                web.get("/v1/services/{service:.+}", self.service),
                web.get("/v1/watch", self.watch),
                web.post("/v1/watch", self.watch),
            ]
        )
        return app

    async def expire(self) -> None:
        """Runs for ever: takes out what is not renewed."""
        while True:
            await asyncio.sleep(MIN_LEASE / 2)
            self._store.expire()

    async def put(self, request: web.Request) -> web.Response:
        service, address = _instance(request)
        body = await _json_object(request)
        endpoint = parse_endpoint({"address": str(address), "weight": body.get("weight", 1)})
        lease = body.get("lease")
        if not isinstance(lease, int | float) or isinstance(lease, bool) or not MIN_LEASE <= lease <= MAX_LEASE:
            raise BadRecord(f"lease {lease!r:.80} is not a number of seconds from {MIN_LEASE:g} to {MAX_LEASE:g}")
        self._store.put(service, endpoint, float(lease))
        return self._answer()

    async def delete(self, request: web.Request) -> web.Response:
        service, address = _instance(request)
        return self._answer(removed=self._store.delete(service, address))

    async def services(self, request: web.Request) -> web.Response:
        return self._answer(services=self._store.services())

    async def service(self, request: web.Request) -> web.Response:
        service = _service(request.match_info["service"])
        leases = self._store.leases(service)
        return web.json_response(
            {
                "service": service,
                "epoch": self._store.epoch,
                "index": self._store.changed(service),
                "endpoints": [
                    {"address": str(address), "weight": weight, "lease_left": leases[address]}
                    for address, weight in self._store.listing(service).endpoints
                ],
            }
        )

    async def watch(self, request: web.Request) -> web.StreamResponse:
        services = await self._watched(request)
        if len(self._watchers) >= self._max_watchers:
            raise StoreFull(f"the registry has {self._max_watchers} watchers, its limit")
        watcher = Watcher(self._store, services)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        self._watchers.add(watcher)
        for service in services:
            self._watching.setdefault(service, set()).add(watcher)
        try:
            await response.prepare(request)
            async for event in watcher.events():
                await response.write(event)
        except ConnectionError:
            pass  # the client went away, as clients do
        finally:
            self._watchers.discard(watcher)
            for service in services:
                self._watching[service].discard(watcher)
                if not self._watching[service]:
                    del self._watching[service]
        return response

    async def _watched(self, request: web.Request) -> dict[str, int]:
        """The watched services and the index that the client has seen of each."""
        if request.method == "GET":
            wanted = {_service(name): 0 for name in request.query.getall("service", [])}
            if not wanted:
                raise BadRecord("name the services to watch, as in /v1/watch?service=svc-a")
        else:
            body = await _json_object(request)
            services = body.get("services")
            if not isinstance(services, dict):
                raise BadRecord('"services" is not an object of names and indices')
            wanted = {}
            for name, index in services.items():
                if type(index) is not int or index < 0:
                    raise BadRecord(f"the index {index!r:.80} of {name:.80} is not a number from 0")
                wanted[_service(name)] = index if body.get("epoch") == self._store.epoch else 0
        if len(wanted) > MAX_WATCHED:
            raise BadRecord(f"{len(wanted)} services are too many for one watch; at most {MAX_WATCHED}")
        return wanted

    def _changed(self, service: str) -> None:
        for watcher in self._watching.get(service, ()):
            watcher.changed(service)

    def _answer(self, **fields: Any) -> web.Response:
        return web.json_response({"epoch": self._store.epoch, "index": self._store.index, **fields})


async def serve(bind: str, stop: asyncio.Event, ready: Callable[[str], None]) -> None:
    """Serve on bind ("IP:PORT") until stop is set; ready is called with the bound address.

    Raises OSError or ValueError if it cannot be bound.
    """
    server = Server()
    runner = web.AppRunner(server.application(), access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    expiry = asyncio.create_task(server.expire())
    try:
        sock = _listen(*host_port(bind))
        await web.SockSite(runner, sock).start()
        ready(str(Address(*sock.getsockname()[:2])))
        await stop.wait()
    finally:
        expiry.cancel()
        await runner.cleanup()


def main(bind: str = DEFAULT_BIND) -> int:
    """Run until SIGTERM or SIGINT. Returns the exit code: 1 if the port cannot be had."""

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await serve(bind, stop, lambda address: print(f"fastside registry: serving http://{address}", flush=True))

    setproctitle.setproctitle("fastside: registry")
    try:
        asyncio.run(run())
    except (OSError, ValueError) as error:
        print(f"fastside registry: cannot serve on {bind}: {error}", file=sys.stderr)
        return 1
    return 0


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _service(name: str) -> str:
    try:
        return parse_service(name)
    except ValueError as error:
        raise BadRecord(str(error)) from None


def _instance(request: web.Request) -> tuple[str, Address]:
    return _service(request.match_info["service"]), parse_address(request.match_info["address"])


async def _json_object(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError:
        raise BadRecord("the body is not JSON") from None
    if not isinstance(body, dict):
        raise BadRecord("the body is not a JSON object")
    return body


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except BadRecord as error:
        return web.json_response({"error": str(error)}, status=400)
    except StoreFull as error:
        return web.json_response({"error": str(error)}, status=503)
    except web.HTTPException as error:
        return web.json_response({"error": f"{error.reason}: {request.method} {request.path}"}, status=error.status)
