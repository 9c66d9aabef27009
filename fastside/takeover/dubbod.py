"""MOSN's dubbod API, by which Dubbo applications are taken over: /pub, /unpub, /sub and /unsub.

A request names a registry, which is not looked at: what is published goes to the sidecar's own registry. It tells no
address either: the application listens on `dubbod.app_port` of this machine.

Source: MOSN's pkg/upstream/servicediscovery/dubbod.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from fastside.registry import Address
from fastside.takeover.lenient import MAX_BODY, failures_as, read_body
from fastside.takeover.operations import Operations, service_key

if TYPE_CHECKING:
    from fastside.control import Control


class Service(msgspec.Struct, frozen=True):
    interface: str
    version: str | None = None
    group: str | None = None

    @property
    def name(self) -> str:
        """[group/]interface[:version], as calls are routed; version 0.0.0 is none."""
        group = f"{self.group}/" if self.group else ""
        version = f":{self.version}" if self.version and self.version != "0.0.0" else ""
        return f"{group}{self.interface}{version}"


class Body(msgspec.Struct, frozen=True):
    service: Service


def application(control: Control) -> web.Application:
    """The API of a control process whose configuration has a `dubbod`."""
    dubbod = Dubbod(control)
    app = web.Application(client_max_size=MAX_BODY, middlewares=[failures_as(lambda reason: _answer(1, reason))])
    app.add_routes(
        [
            web.post("/pub", dubbod.publish),
            web.post("/unpub", dubbod.unpublish),
            web.post("/sub", dubbod.subscribe),
            web.post("/unsub", dubbod.unsubscribe),
        ]
    )
    return app


class Dubbod:
    """The handlers. Whatever is repeated, or taken back without having been there, succeeds."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._operations = Operations(control)

    async def publish(self, request: web.Request) -> web.Response:
        name = await self._name(request)
        await self._operations.publish(name, Address("127.0.0.1", self._app_port), "dubbo")
        return web.json_response(_answer(0, "publish success"))

    async def unpublish(self, request: web.Request) -> web.Response:
        name = await self._name(request)
        if any(one.local.port == self._app_port for one in self._control.publications.of(service_key(name))):
            await self._operations.unpublish(name, self._app_port)
        return web.json_response(_answer(0, "unpub success"))

    async def subscribe(self, request: web.Request) -> web.Response:
        name = await self._name(request)
        await self._operations.subscribe(name, "dubbo")
        return web.json_response(_answer(0, "subscribe success"))

    async def unsubscribe(self, request: web.Request) -> web.Response:
        name = await self._name(request)
        if self._control.subscriptions.get(service_key(name)) is not None:
            await self._operations.unsubscribe(name)
        return web.json_response(_answer(0, "unsubscribe success"))

    @property
    def _app_port(self) -> int:
        assert self._control.config.dubbod is not None
        return self._control.config.dubbod.app_port

    async def _name(self, request: web.Request) -> str:
        """The service that a request is about."""
        self._operations.admit(request)
        return (await read_body(request, Body)).service.name


def _answer(number: int, message: str) -> dict[str, Any]:
    return {"err_no": number, "err_msg": message}
