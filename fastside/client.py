"""Python client of the takeover API: an application publishes and subscribes through its sidecar.

    from fastside.client import Client

    with Client() as sidecar:
        sidecar.publish("svc-a", 20880)
        address = sidecar.subscribe("svc-b").address      # call http://{address}/ with `Host: svc-b`

`AsyncClient` has the same methods as coroutines. Neither does anything in the background: a publication without a lease
is looked after by the sidecar, and one with a lease ends unless the application calls `renew` in time.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

if TYPE_CHECKING:
    import aiohttp

DEFAULT_ADDRESS = "127.0.0.1:20883"
WATCH_SILENCE = 30.0
"""Seconds without a sign of life after which a watch is given up. The sidecar gives one every 10 s."""


class FastsideError(Exception):
    """Something went wrong. str() has what (`error`) and, on a second line, what to do about it (`hint`)."""

    def __init__(self, error: str, hint: str = "") -> None:
        super().__init__(f"{error}\n{hint}" if hint else error)
        self.error = error
        self.hint = hint


class ApiError(FastsideError):
    """The sidecar refused; `status` is that of its HTTP answer."""

    def __init__(self, status: int, error: str, hint: str = "") -> None:
        super().__init__(error, hint)
        self.status = status


class NotReachable(FastsideError):
    """No sidecar answers at the address, or not in time."""


@dataclass(frozen=True, slots=True)
class Registration:
    """What `publish` did."""

    service: str
    port: int
    published: str
    """IP:PORT that others find in the registry: the sidecar's inbound port."""
    owner: str
    """"up": the application is there. "waiting": its port does not answer yet; it is registered when it does."""
    registered: bool
    """Whether the registry has confirmed it yet."""
    lease: float | None = None
    """Seconds until it ends without `renew`; None: the sidecar looks whether the port answers."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A subscribed service as it is at the moment."""

    service: str
    address: str | None
    """IP:PORT to call instead of the endpoints: the sidecar's outbound port. For HTTP the Host header, or the
    listener's service header, names the service. None once there is no listener for it."""
    endpoints: tuple[str, ...]
    """IP:PORT of each endpoint behind it."""
    state: str
    """fresh, stale (the registry is away), protected (it sent an empty list), static (configured) or gone (none)."""


class Client:
    """A client for threads. Every call has a connection of its own, so one client may be used by several threads.

    address: IP:PORT or unix:/path of the sidecar's takeover API; without one, $FASTSIDE_API or 127.0.0.1:20883.
    timeout: seconds for a call.

    Every method raises ApiError when the sidecar refuses and NotReachable when nobody answers.
    """

    def __init__(self, address: str | None = None, timeout: float = 10.0) -> None:
        self.address = address or _default_address()
        self.timeout = timeout

    def publish(
        self,
        service: str,
        port: int,
        *,
        address: str = "127.0.0.1",
        protocol: str = "http",
        weight: int = 1,
        lease: float | None = None,
    ) -> Registration:
        """Publish what listens on address:port of this machine as a service. Several ports share a service's calls.

        protocol: "http", "tcp", "bolt", "dubbo" or "tls". weight: 1 to 10000, the share of the calls. lease: seconds,
        1 to 86400, after which the publication ends unless it is renewed; None: it is withdrawn while the port does not
        answer.
        """
        body = _publish_body(service, port, address, protocol, weight, lease)
        return _registration(self._call("publish", body), port, lease)

    def unpublish(self, service: str, port: int) -> None:
        """Withdraw at once what was published so."""
        self._call("unpublish", {"service": service, "port": port})

    def renew(self, service: str, port: int) -> None:
        """Start the lease of a publication anew."""
        self._call("renew", {"service": service, "port": port})

    def subscribe(self, service: str, *, protocol: str = "http") -> Subscription:
        """Subscribe to a service. When this returns, calls to the given address reach it, if it has endpoints."""
        return _subscription(self._call("subscribe", {"service": service, "protocol": protocol}))

    def unsubscribe(self, service: str) -> None:
        """End a subscription."""
        self._call("unsubscribe", {"service": service})

    def services(self) -> dict[str, Any]:
        """What is published and subscribed: {"published": [...], "subscribed": [...]}, see the OpenAPI description."""
        return self._request("GET", "/v1/services", None)

    def watch(self, service: str) -> Iterator[Subscription]:
        """Yield a subscribed service as it is, and after each change. Ends when it is unsubscribed from.

        Raises NotReachable when the sidecar goes away. Close the iterator to end the watch.
        """
        connection = _connection(self.address, WATCH_SILENCE)
        try:
            response = _send(connection, "GET", _watch_path(service), None)
            if response.status != 200:
                raise _error(response.status, response.read())
            ended = False
            while line := response.readline():
                ended = ended or line.startswith(b"event: end")
                if line.startswith(b"data:"):
                    yield _subscription(json.loads(line[5:]))
            if not ended:
                raise _not_reachable(self.address, EOFError("it ended the watch"))
        except (OSError, http.client.HTTPException) as error:
            raise _not_reachable(self.address, error) from None
        finally:
            connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        pass  # nothing is kept open between calls

    def _call(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        return self._request("POST", f"/v1/{verb}", body)

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        connection = _connection(self.address, self.timeout)
        try:
            response = _send(connection, method, path, body)
            text = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise _not_reachable(self.address, error) from None
        finally:
            connection.close()
        return _answer(response.status, text)


class AsyncClient:
    """`Client` for asyncio; needs aiohttp. Use it as `async with AsyncClient() as sidecar:`."""

    def __init__(self, address: str | None = None, timeout: float = 10.0) -> None:
        import aiohttp  # here: those who use Client do without it

        self.address = address or _default_address()
        self._url = "http://localhost" if self.address.startswith("unix:") else f"http://{self.address}"
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._watch_timeout = aiohttp.ClientTimeout(total=None, connect=timeout, sock_read=WATCH_SILENCE)
        self._errors = (aiohttp.ClientError, OSError)  # TimeoutError is an OSError
        self._session: aiohttp.ClientSession | None = None

    async def publish(
        self,
        service: str,
        port: int,
        *,
        address: str = "127.0.0.1",
        protocol: str = "http",
        weight: int = 1,
        lease: float | None = None,
    ) -> Registration:
        """See Client.publish."""
        body = _publish_body(service, port, address, protocol, weight, lease)
        return _registration(await self._call("publish", body), port, lease)

    async def unpublish(self, service: str, port: int) -> None:
        """See Client.unpublish."""
        await self._call("unpublish", {"service": service, "port": port})

    async def renew(self, service: str, port: int) -> None:
        """See Client.renew."""
        await self._call("renew", {"service": service, "port": port})

    async def subscribe(self, service: str, *, protocol: str = "http") -> Subscription:
        """See Client.subscribe."""
        return _subscription(await self._call("subscribe", {"service": service, "protocol": protocol}))

    async def unsubscribe(self, service: str) -> None:
        """See Client.unsubscribe."""
        await self._call("unsubscribe", {"service": service})

    async def services(self) -> dict[str, Any]:
        """See Client.services."""
        return await self._request("GET", "/v1/services", None)

    async def watch(self, service: str) -> AsyncIterator[Subscription]:
        """See Client.watch."""
        async with self._open("GET", _watch_path(service), None, self._watch_timeout) as response:
            if response.status != 200:
                raise _error(response.status, await response.read())
            ended = False
            async for line in response.content:
                ended = ended or line.startswith(b"event: end")
                if line.startswith(b"data:"):
                    yield _subscription(json.loads(line[5:]))
            if not ended:
                raise _not_reachable(self.address, EOFError("it ended the watch"))

    async def close(self) -> None:
        """Close the connections that are kept for the next call."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        return await self._request("POST", f"/v1/{verb}", body)

    async def _request(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        async with self._open(method, path, body, self._timeout) as response:
            return _answer(response.status, await response.read())

    @asynccontextmanager
    async def _open(
        self, method: str, path: str, body: dict[str, Any] | None, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        import aiohttp

        if self._session is None:
            unix = self.address.removeprefix("unix:") if self.address.startswith("unix:") else None
            # Events of a watch are lines, and one of 65,535 endpoints has 1.5 MB.
            self._session = aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(unix) if unix else aiohttp.TCPConnector(), read_bufsize=4 << 20
            )
        try:
            async with self._session.request(method, self._url + path, json=body, timeout=timeout) as response:
                yield response
        except self._errors as error:
            raise _not_reachable(self.address, error) from None


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _default_address() -> str:
    return os.environ.get("FASTSIDE_API") or DEFAULT_ADDRESS


def _connection(address: str, timeout: float) -> http.client.HTTPConnection:
    if address.startswith("unix:"):
        return _UnixConnection(address.removeprefix("unix:"), timeout)
    return http.client.HTTPConnection(address, timeout=timeout)


def _send(
    connection: http.client.HTTPConnection, method: str, path: str, body: dict[str, Any] | None
) -> http.client.HTTPResponse:
    headers = {"Content-Type": "application/json"} if body is not None else {}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    return connection.getresponse()


def _watch_path(service: str) -> str:
    return f"/v1/watch?service={quote(service, safe='')}"


def _publish_body(
    service: str, port: int, address: str, protocol: str, weight: int, lease: float | None
) -> dict[str, Any]:
    body = {"service": service, "port": port, "address": address, "protocol": protocol, "weight": weight}
    return body if lease is None else {**body, "lease": lease}


def _registration(answer: dict[str, Any], port: int, lease: float | None) -> Registration:
    return Registration(answer["service"], port, answer["published"], answer["owner"], answer["registered"], lease)


def _subscription(answer: dict[str, Any]) -> Subscription:
    return Subscription(answer["service"], answer["address"], tuple(answer["endpoints"]), answer["state"])


def _answer(status: int, text: bytes) -> dict[str, Any]:
    if status != 200:
        raise _error(status, text)
    try:
        answer: dict[str, Any] = json.loads(text)
    except ValueError:
        raise _error(status, text) from None
    return answer


def _error(status: int, text: bytes) -> ApiError:
    try:
        said = json.loads(text)
        return ApiError(status, said["error"], said.get("hint", ""))
    except (ValueError, KeyError, TypeError):
        return ApiError(status, f"status {status}: {text[:200].decode(errors='replace')}", "is this fastside's API?")


def _not_reachable(address: str, error: Exception) -> NotReachable:
    reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    return NotReachable(f"no sidecar answers at {address}: {reason}", "start one with `fastside run`")
