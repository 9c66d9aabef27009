"""The takeover API: how an application, or its SDK, publishes and subscribes. HTTP/JSON, described by openapi.yaml."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from aiohttp import web
from msgspec import Meta

from fastside.config import Protocol, join_host_port
from fastside.master_link import MasterGone
from fastside.registry import MAX_WEIGHT, BadRecord, parse_address
from fastside.takeover.addresses import calling_address
from fastside.takeover.errors import TakeoverError
from fastside.takeover.operations import REGISTRY_PATIENCE, Operations, service_key
from fastside.takeover.publications import Publication

if TYPE_CHECKING:
    from fastside.control import Control

KEEPALIVE = 10.0
"""Seconds between two signs of life on a watch."""
MAX_WATCHES = 1024
MAX_BODY = 64 << 10

Port = Annotated[int, Meta(ge=1, le=65535)]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    service: str


class Publish(Request, frozen=True, kw_only=True):
    port: Port
    address: str = "127.0.0.1"
    protocol: Protocol = "http"
    weight: Annotated[int, Meta(ge=1, le=MAX_WEIGHT)] = 1
    lease: Annotated[float, Meta(ge=1, le=86400)] | None = None


class PublicationOf(Request, frozen=True, kw_only=True):
    """What renew and unpublish name."""

    port: Port


class Subscribe(Request, frozen=True, kw_only=True):
    protocol: Protocol = "http"


Body = TypeVar("Body", bound=Request)


def application(control: Control) -> web.Application:
    """The API of a control process."""
    takeover = Takeover(control)
    app = web.Application(client_max_size=MAX_BODY, middlewares=[errors_as_json])
    app.add_routes(
        [
            web.post("/v1/publish", takeover.publish),
            web.post("/v1/unpublish", takeover.unpublish),
            web.post("/v1/renew", takeover.renew),
            web.post("/v1/subscribe", takeover.subscribe),
            web.post("/v1/unsubscribe", takeover.unsubscribe),
            web.get("/v1/services", takeover.services),
            web.get("/v1/watch", takeover.watch),
            web.get("/openapi.yaml", takeover.openapi),
        ]
    )
    return app


class Takeover:
    """The handlers. Each answers when what it says is in force and on disk."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._operations = Operations(control)
        self._watches = 0

    async def publish(self, request: web.Request) -> web.Response:
        control = self._control
        body = await self._change(request, Publish)
        try:
            local = parse_address(join_host_port(body.address, body.port))
        except BadRecord as error:
            raise TakeoverError(
                400, f"address: {error}", "give the IP address that the application listens on; 127.0.0.1 if on all"
            ) from None
        publication, address = await self._operations.publish(
            body.service, local, body.protocol, body.weight, body.lease
        )
        service = publication.service
        confirmed = await control.registry.settle(REGISTRY_PATIENCE, service)
        return web.json_response(
            {
                "service": service,
                "published": str(address),
                "owner": publication.liveness.owner,
                "registered": confirmed and control.publications.published(service) is not None,
            }
        )

    async def unpublish(self, request: web.Request) -> web.Response:
        body = await self._change(request, PublicationOf)
        await self._operations.unpublish(body.service, body.port)
        service = service_key(body.service)
        confirmed = await self._control.registry.settle(REGISTRY_PATIENCE, service)
        return web.json_response({"service": service, "port": body.port, "withdrawn": confirmed})

    async def renew(self, request: web.Request) -> web.Response:
        body = await self._change(request, PublicationOf)
        publication = self._control.publications.renew(service_key(body.service), body.port)
        return web.json_response({"service": publication.service, "port": body.port, "lease": publication.lease})

    async def subscribe(self, request: web.Request) -> web.Response:
        body = await self._change(request, Subscribe)
        await self._operations.subscribe(body.service, body.protocol)
        return web.json_response(self._state(service_key(body.service)))

    async def unsubscribe(self, request: web.Request) -> web.Response:
        body = await self._change(request, Request)
        await self._operations.unsubscribe(body.service)
        return web.json_response({"service": service_key(body.service)})

    async def services(self, request: web.Request) -> web.Response:
        control = self._control
        return web.json_response(
            {
                "published": [self._published(one) for one in control.publications],
                "subscribed": [self._state(name) for name in control.subscriptions.names()],
            }
        )

    async def watch(self, request: web.Request) -> web.StreamResponse:
        """Server-Sent Events: the state of a service at once and after each change, and an "end"."""
        service = service_key(request.query.get("service", ""))
        subscriptions = self._control.subscriptions
        subscriptions.endpoints(service)  # refuses what is not subscribed to, before the stream begins
        if self._watches >= MAX_WATCHES:
            raise TakeoverError(503, f"{MAX_WATCHES} watches are the limit", "end those that nobody reads")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        self._watches += 1
        try:
            with subscriptions.follow(service) as changes:
                await response.prepare(request)
                while subscriptions.knows(service):
                    changes.clear()
                    await response.write(_event(self._state(service)))
                    await self._next_change(changes, response)
                gone = {"service": service, "name": service, "address": None, "state": "gone"}
                await response.write(b"event: end\n" + _event({**gone, "endpoints": []}))
        except ConnectionError:
            pass  # the client went away, as clients do
        finally:
            self._watches -= 1
        return response

    async def openapi(self, request: web.Request) -> web.Response:
        text = files("fastside.takeover").joinpath("openapi.yaml").read_text()
        return web.Response(text=text, content_type="application/yaml")

    @staticmethod
    async def _next_change(changes: asyncio.Event, response: web.StreamResponse) -> None:
        while True:
            try:
                async with asyncio.timeout(KEEPALIVE):
                    await changes.wait()
                    return
            except TimeoutError:
                await response.write(b":\n\n")

    async def _change(self, request: web.Request, kind: type[Body]) -> Body:
        """The body of a request that changes something. Raises TakeoverError if it cannot be, or is no good."""
        self._operations.admit(request)
        try:
            return msgspec.json.decode(await request.read(), type=kind)
        except msgspec.DecodeError as error:
            fields = ", ".join(kind.__struct_fields__)
            raise TakeoverError(400, f"the body is no good: {error}", f"send JSON with the fields {fields}") from None

    def _state(self, service: str) -> dict[str, Any]:
        subscriptions = self._control.subscriptions
        state, endpoints = subscriptions.endpoints(service)
        try:
            address = str(calling_address(self._control.config, service, subscriptions.protocol(service)))
        except TakeoverError:  # a reload took the listener away
            address = None
        return {
            "service": service,
            "name": subscriptions.spelling(service),
            "address": address,
            "endpoints": sorted(str(known.endpoint.address) for known in endpoints),
            "state": state,
        }

    def _published(self, publication: Publication) -> dict[str, Any]:
        registered = self._control.publications.published(publication.service)
        return {
            "service": publication.service,
            "name": publication.name,
            "protocol": publication.protocol,
            "address": publication.local.ip,
            "port": publication.local.port,
            "weight": publication.weight,
            "lease": publication.lease,
            "owner": publication.liveness.owner,
            "published": None if registered is None else str(registered.address),
        }


def _event(data: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answers {"error", "hint"} for what went wrong."""
    try:
        return await handler(request)
    except TakeoverError as error:
        return web.json_response({"error": error.error, "hint": error.hint}, status=error.status)
    except MasterGone as error:
        hint = "start fastside again with the same configuration"
        return web.json_response({"error": str(error), "hint": hint}, status=503)
    except web.HTTPException as error:
        message = f"{request.method} {request.path}: {error.reason}"
        return web.json_response({"error": message, "hint": "see /openapi.yaml"}, status=error.status)
