"""What every takeover API does. An operation returns when what it changed is in force in every worker and on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from fastside.config import check_service
from fastside.desired import Key
from fastside.master_link import MasterGone, Refused
from fastside.registry import Address
from fastside.takeover.errors import TakeoverError
from fastside.takeover.publications import Publication

if TYPE_CHECKING:
    from fastside.control import Control

REGISTRY_PATIENCE = 1.0
"""Seconds that an answer waits for the registry; the rest happens by itself."""


class Operations:
    """Publish and subscribe. Every method raises TakeoverError; names are taken in any case."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def admit(self, request: web.Request) -> None:
        """Refuse a request that may not change anything, or cannot now."""
        if "Origin" in request.headers:
            # A web page that a browser of this machine shows must not publish the machine's ports.
            raise TakeoverError(403, "the API does not serve web pages", "call it from a program")
        if not self._control.link.connected:
            raise TakeoverError(503, str(MasterGone()), "start fastside again with the same configuration")
        if self._control.draining:
            raise TakeoverError(503, "the sidecar is draining", "it ends soon; try again with the next one")

    async def publish(
        self, name: str, local: Address, protocol: str, weight: int = 1, lease: float | None = None
    ) -> tuple[Publication, Address]:
        """See Publications.publish."""
        control, service = self._control, service_key(name)
        is_new = all(one.local.port != local.port for one in control.publications.of(service))
        published = await control.publications.publish(name, local, protocol, weight, lease)
        try:
            await control.desired.settle(Key("inbound", service))
        except Refused as error:
            if is_new:
                control.publications.unpublish(service, local.port)
            raise _table_refuses(error) from None
        await control.saver.flush()
        return published

    async def unpublish(self, name: str, port: int) -> None:
        """See Publications.unpublish."""
        control, service = self._control, service_key(name)
        control.publications.unpublish(service, port)
        await control.desired.settle(Key("inbound", service))
        await control.saver.flush()

    async def subscribe(self, name: str, protocol: str) -> Address:
        """See Subscriptions.subscribe; waits up to REGISTRY_PATIENCE for the first endpoints."""
        control, service = self._control, service_key(name)
        is_new = not control.subscriptions.knows(service)
        address = control.subscriptions.subscribe(name, protocol)
        await control.subscriptions.answered(service, REGISTRY_PATIENCE)
        try:
            await control.desired.settle(Key("outbound", service))
        except Refused as error:
            if is_new:
                control.subscriptions.unsubscribe(service)
            raise _table_refuses(error) from None
        await control.saver.flush()
        return address

    async def unsubscribe(self, name: str) -> None:
        """See Subscriptions.unsubscribe."""
        control, service = self._control, service_key(name)
        control.subscriptions.unsubscribe(service)
        await control.desired.settle(Key("outbound", service))
        await control.saver.flush()


def service_key(name: str) -> str:
    """The name in lower case, under which a service is known. Raises TakeoverError if it is not the name of one."""
    try:
        return check_service(name).lower()
    except ValueError as error:
        raise TakeoverError(400, f"service: {error}", "give the name that callers use, for example svc-a") from None


def _table_refuses(error: Refused) -> TakeoverError:
    return TakeoverError(507, f"the routing table is full: {error}", "raise the limit in the configuration and restart")
