"""SOFARPC over Bolt by anthunder, through the mesh or without it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from anthunder import SERVICE_MAP, AioClient
from anthunder.listener.aio_listener import AioListener
from mytracer import SpanContext

from app import Call, EchoService, Target, main

INTERFACE = "interop.Echo:1.0"


def provide(options: dict[str, Any], echo: EchoService) -> Callable[[], None]:
    class Service:
        """What anthunder makes for each call; the content of its messages is up to the application."""

        def __init__(self, context: object) -> None:
            pass

        def echo(self, content: bytes) -> bytes:
            return echo.echo(content.decode()).encode()

        def hold(self, content: bytes) -> bytes:
            return echo.hold(content.decode()).encode()

        def fail(self, content: bytes) -> bytes:
            return echo.fail(content.decode()).encode()

    listener = AioListener(("0.0.0.0", options["port"]), "interop-provider")
    for name in ("", ":named"):
        listener.handler.register_interface(INTERFACE + name, Service)
    listener.run_threading()
    listener.publish()

    def close() -> None:
        listener.unpublish()
        listener.shutdown()

    return close


def consume(options: dict[str, Any]) -> tuple[Call, Callable[[], None]]:
    client = AioClient("interop-consumer")
    subscribed = set()

    async def call(target: Target, method: str, text: str) -> str:
        interface = f"{INTERFACE}:{target['name']}" if target["name"] else INTERFACE
        if interface not in subscribed:
            subscribed.add(interface)
            if options["registry"]:
                client.subscribe(interface)
            else:
                host, _, port = options["address"].rpartition(":")
                SERVICE_MAP[interface] = (host, int(port))
        timeout = target["timeout"]
        pending = client.invoke_async(interface, method, text.encode(), spanctx=SpanContext(), timeout_ms=timeout)
        return (await asyncio.wait_for(asyncio.wrap_future(pending), timeout / 1000)).content.decode()

    def close() -> None:
        client.unsubscribe(*subscribed)

    return call, close


asyncio.run(main(provide, consume))
os._exit(0)  # anthunder's threads and the calls that it forgot would wait for ever
