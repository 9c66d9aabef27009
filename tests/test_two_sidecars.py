"""Clients that others wrote, through the caller's and the provider's sidecar and a shared registry."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import pytest
import websockets.asyncio.server
from websockets.asyncio.client import connect

from harness import Origin, Sidecar, pattern, require_program, wait_until
from load import Load
from registry_process import RegistryProcess

MIB = 1 << 20


@dataclass
class Path:
    """A caller's sidecar, a provider's, and the provider, published as svc-a."""

    caller: Sidecar
    provider: Sidecar
    origin: Origin

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.caller.outbound_port}"


@pytest.fixture(scope="module")
def path() -> Iterator[Path]:
    with RegistryProcess() as registry, Origin() as origin:
        shared = {"registry": {"url": registry.url}}
        with Sidecar(shared) as provider, Sidecar(shared) as caller:
            provider.cli("publish", "svc-a", "--port", str(origin.port))
            caller.cli("subscribe", "svc-a")
            yield Path(caller, provider, origin)


def test_the_caller_sees_the_provider_s_sidecar_alone(path: Path) -> None:
    assert path.caller.client.subscribe("svc-a").endpoints == (f"127.0.0.1:{path.provider.inbound_port}",)


def test_curl(path: Path) -> None:
    curl = [require_program("curl"), "-s", "-H", "Host: svc-a"]
    assert subprocess.check_output([*curl, f"{path.url}/"]) == b"origin"
    assert subprocess.check_output([*curl, f"{path.url}/chunked/{MIB}"]) == pattern(MIB)
    # curl waits for 100 Continue before it sends a body of this size.
    echoed = subprocess.run(
        [*curl, "--data-binary", "@-", f"{path.url}/echo"], input=pattern(4 * MIB), capture_output=True, check=True
    )
    assert echoed.stdout == pattern(4 * MIB)


def test_httpx(path: Path) -> None:
    with httpx.Client(base_url=path.url, headers={"Host": "svc-a"}) as client:
        assert client.get("/").text == "origin"
        assert client.head("/bytes/1000").headers["content-length"] == "1000"
        assert client.post("/echo", content=(pattern(100_000) for _ in range(3))).content == 3 * pattern(100_000)
        assert client.get("/status/204").status_code == 204
        assert client.get("/until-close").text == "origin"
        with client.stream("GET", f"/bytes/{MIB}") as response:
            assert b"".join(response.iter_bytes()) == pattern(MIB)


async def test_httpx_with_many_calls_at_once(path: Path) -> None:
    async with httpx.AsyncClient(base_url=path.url, headers={"Host": "svc-a"}) as client:
        responses = await asyncio.gather(*(client.get(f"/bytes/{size}") for size in range(0, 20000, 200)))
    assert [len(response.content) for response in responses] == list(range(0, 20000, 200))


async def test_websocket(path: Path) -> None:
    async def echo(connection: websockets.asyncio.server.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with websockets.asyncio.server.serve(echo, "127.0.0.1", 0, max_size=None) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        path.provider.client.publish("svc-ws", port)
        path.caller.client.subscribe("svc-ws")
        async with connect(
            "ws://svc-ws/chat", host="127.0.0.1", port=path.caller.outbound_port, max_size=None, compression=None
        ) as client:
            for message in ("hello", "", pattern(100), pattern(MIB)):
                await client.send(message)
                assert await client.recv() == message
        path.caller.client.unsubscribe("svc-ws")
        path.provider.client.unpublish("svc-ws", port)


def test_wrk(path: Path) -> None:
    wrk = require_program("wrk")
    command = [wrk, "-t1", "-c32", "-d1s", "-H", "Host: svc-a", f"{path.url}/bytes/100"]
    output = subprocess.check_output(command, text=True)
    requests = re.search(r"(\d+) requests in", output)
    assert requests
    assert int(requests[1]) > 0
    assert "Non-2xx" not in output
    assert "Socket errors" not in output


def test_ab(path: Path) -> None:
    """It speaks HTTP/1.0, with and without keep-alive."""
    ab = [require_program("ab"), "-q", "-n", "300", "-c", "8", "-H", "Host: svc-a"]
    for keep_alive in ([], ["-k"]):
        output = subprocess.check_output([*ab, *keep_alive, f"{path.url}/bytes/1000"], text=True)
        assert re.search(r"Complete requests: +300\n", output)
        assert re.search(r"Failed requests: +0\n", output)
        assert "Non-2xx" not in output
        assert ("Keep-Alive requests:    300" in output) == bool(keep_alive)


def test_curl_with_http_1_0(path: Path) -> None:
    curl = [require_program("curl"), "-s", "--http1.0", "-H", "Host: svc-a"]
    assert subprocess.check_output([*curl, f"{path.url}/bytes/{MIB}"]) == pattern(MIB)
    assert subprocess.check_output([*curl, f"{path.url}/until-close"]) == b"origin"


def test_a_dead_provider_costs_no_call_but_those_that_it_had() -> None:
    """Its sidecar lives, is asked, and refuses what it cannot send on. The leases keep the publications as they are."""
    with RegistryProcess() as registry, Origin("one") as one, Origin("two") as two:
        shared = {"registry": {"url": registry.url}}
        with Sidecar(shared) as first, Sidecar(shared) as second, Sidecar(shared) as caller:
            first.client.publish("svc-a", one.port, lease=3600)
            second.client.publish("svc-a", two.port, lease=3600)
            caller.client.subscribe("svc-a")
            wait_until(lambda: len(caller.client.subscribe("svc-a").endpoints) == 2)
            with Load(caller.outbound, "svc-a", callers=8) as load:
                one.crash()
                load.wait_for_calls()
                in_flight = len(load.failures)
                load.wait_for_calls(50)
            assert len(load.failures) == in_flight <= 8
            # httpx sends head and body apart.
            url = f"http://127.0.0.1:{caller.outbound_port}/echo"
            with httpx.Client(headers={"Host": "svc-a"}) as client:
                for size in range(0, 15000, 500):
                    assert client.post(url, content=pattern(size)).content == pattern(size)
            assert caller.metrics()["fastside_retries_total"] >= 8 * 50 // 2
