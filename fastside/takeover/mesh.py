"""SOFARPC's mesh registry API, as its clients (registry protocol `mesh`, and anthunder) call it.

A client says what it publishes and subscribes to once, never again, and calls the sidecar from then on. It tells no
address: the application listens on `mesh.app_port` of this machine unless it says another port.

Sources: SOFARPC's registry-mesh (MeshApiClient, MeshRegistry and the model classes), anthunder's MeshClient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from fastside.registry import Address
from fastside.takeover.errors import TakeoverError
from fastside.takeover.lenient import MAX_BODY, failures_as, read_body
from fastside.takeover.operations import Operations, service_key

if TYPE_CHECKING:
    from fastside.control import Control

PROTOCOLS = {"": "bolt", "default": "bolt", "bolt": "bolt", "dubbo": "dubbo", "springcloud": "http"}
"""By the protocol type of a request, in lower case."""

Port = Annotated[int, Meta(ge=1, le=65535)]


class ServiceOf(msgspec.Struct, frozen=True, rename="camel"):
    """The service that a request is about."""

    service_name: str
    """interface:version[:uniqueId]; for other protocols than bolt, @ and the protocol may follow."""
    protocol_type: str | None = None

    @property
    def name(self) -> str:
        return self.service_name.partition("@")[0]

    @property
    def protocol(self) -> str:
        """Raises TakeoverError for one that is not carried."""
        try:
            return PROTOCOLS[(self.protocol_type or "").lower()]
        except KeyError:
            supported = ", ".join(filter(None, PROTOCOLS))
            raise TakeoverError(
                400, f"protocolType {self.protocol_type} is not supported; use one of {supported}", ""
            ) from None


class Properties(msgspec.Struct, frozen=True):
    port: Port | None = None


class ProviderMetaInfo(msgspec.Struct, frozen=True):
    properties: Properties | None = None


class Publish(ServiceOf, frozen=True, rename="camel"):
    port: Port | None = None
    provider_meta_info: ProviderMetaInfo | None = None

    @property
    def app_port(self) -> int | None:
        """Where the application listens, if it says so."""
        meta = self.provider_meta_info
        return self.port or (meta.properties.port if meta is not None and meta.properties is not None else None)


def application(control: Control) -> web.Application:
    """The API of a control process whose configuration has a `mesh`."""
    mesh = Mesh(control)
    app = web.Application(client_max_size=MAX_BODY, middlewares=[failures_as(_failure)])
    app.add_routes(
        [
            web.post("/configs/application", mesh.application),
            web.post("/services/publish", mesh.publish),
            web.post("/services/unpublish", mesh.unpublish),
            web.post("/services/subscribe", mesh.subscribe),
            web.post("/services/unsubscribe", mesh.unsubscribe),
        ]
    )
    return app


class Mesh:
    """The handlers. Whatever is repeated, or taken back without having been there, succeeds."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._operations = Operations(control)

    async def application(self, request: web.Request) -> web.Response:
        """An application says its name, which nothing here depends on."""
        self._operations.admit(request)
        return _success()

    async def publish(self, request: web.Request) -> web.Response:
        self._operations.admit(request)
        body = await read_body(request, Publish)
        assert self._control.config.mesh is not None
        local = Address("127.0.0.1", body.app_port or self._control.config.mesh.app_port)
        await self._operations.publish(body.name, local, body.protocol)
        return _success()

    async def unpublish(self, request: web.Request) -> web.Response:
        """The request names no port, so all of them are meant."""
        self._operations.admit(request)
        body = await read_body(request, ServiceOf)
        for publication in self._control.publications.of(service_key(body.name)):
            await self._operations.unpublish(body.name, publication.local.port)
        return _success()

    async def subscribe(self, request: web.Request) -> web.Response:
        self._operations.admit(request)
        body = await read_body(request, ServiceOf)
        address = await self._operations.subscribe(body.name, body.protocol)
        # Java connects to port 12220 of the API's host whatever is said here, and reads the parameters only; Python
        # connects to the address if it has some. v=4.0 and p=1 say Bolt.
        place = f"{address}?v=4.0&p=1" if body.protocol == "bolt" else f"{body.protocol_type}://{address}?v=4.0"
        return _success(serviceName=body.service_name, datas=[place])

    async def unsubscribe(self, request: web.Request) -> web.Response:
        self._operations.admit(request)
        body = await read_body(request, ServiceOf)
        if self._control.subscriptions.get(service_key(body.name)) is not None:
            await self._operations.unsubscribe(body.name)
        return _success()


def _success(**more: Any) -> web.Response:
    return web.json_response({"success": True, **more})


def _failure(reason: str) -> dict[str, Any]:
    return {"success": False, "errorMessage": reason}
