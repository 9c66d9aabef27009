"""The Python client, sync and async, against a running sidecar."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from fastside.client import (
    ApiError,
    AsyncClient,
    Client,
    FastsideError,
    NotReachable,
    Registration,
    Subscription,
)
from harness import DEADLINE, Origin, Sidecar, free_port, wait_until


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as running:
        yield running


@pytest.fixture(scope="module", params=["tcp", "unix"])
def sidecar(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sidecar]:
    """With its API on a port or on a unix socket."""
    path = tmp_path_factory.mktemp("api") / "api.sock"
    with Sidecar({"api": f"unix:{path}"} if request.param == "unix" else {}) as running:
        yield running


@pytest.fixture
def address(sidecar: Sidecar) -> str:
    return str(sidecar.config["api"])


def test_every_verb(sidecar, address, origin):
    published, called = f"127.0.0.1:{sidecar.inbound_port}", f"127.0.0.1:{sidecar.outbound_port}"
    with Client(address) as client:
        registration = client.publish("svc-a", origin.port, address="127.0.0.1", weight=2, lease=30)
        assert registration == Registration("svc-a", origin.port, published, "up", True, 30)
        client.renew("svc-a", origin.port)
        assert client.subscribe("svc-a") == Subscription("svc-a", called, (published,), "fresh")
        listed = client.services()
        assert [one["weight"] for one in listed["published"]] == [2]
        assert [one["service"] for one in listed["subscribed"]] == ["svc-a"]
        client.unpublish("svc-a", origin.port)
        client.unsubscribe("svc-a")
        assert client.services() == {"published": [], "subscribed": []}


async def test_every_verb_async(sidecar, address, origin):
    published, called = f"127.0.0.1:{sidecar.inbound_port}", f"127.0.0.1:{sidecar.outbound_port}"
    async with AsyncClient(address) as client:
        registration = await client.publish("svc-a", origin.port, address="127.0.0.1", weight=2, lease=30)
        assert registration == Registration("svc-a", origin.port, published, "up", True, 30)
        await client.renew("svc-a", origin.port)
        assert await client.subscribe("svc-a") == Subscription("svc-a", called, (published,), "fresh")
        assert [one["weight"] for one in (await client.services())["published"]] == [2]
        await client.unpublish("svc-a", origin.port)
        await client.unsubscribe("svc-a")
        assert await client.services() == {"published": [], "subscribed": []}


def test_a_watch(address, origin):
    client = Client(address)
    client.subscribe("svc-a")
    states: list[Subscription] = []
    thread = threading.Thread(target=lambda: states.extend(client.watch("svc-a")))
    thread.start()
    follow = client.watch("svc-a")
    assert next(follow).endpoints == ()
    client.publish("svc-a", origin.port)
    assert next(follow).state == "fresh"
    client.unpublish("svc-a", origin.port)
    assert next(follow).state == "gone"
    client.unsubscribe("svc-a")
    assert next(follow) == Subscription("svc-a", None, (), "gone")
    assert next(follow, None) is None
    thread.join(DEADLINE)
    assert states[-1] == Subscription("svc-a", None, (), "gone")


async def test_a_watch_async(address, origin):
    async with AsyncClient(address) as client, asyncio.timeout(DEADLINE):
        await client.subscribe("svc-a")
        async with contextlib.aclosing(client.watch("svc-a")) as follow:
            assert (await anext(follow)).endpoints == ()
            await client.publish("svc-a", origin.port)
            assert (await anext(follow)).state == "fresh"
            await client.unsubscribe("svc-a")
            assert await anext(follow) == Subscription("svc-a", None, (), "gone")
            assert await anext(follow, None) is None
        await client.unpublish("svc-a", origin.port)
        with pytest.raises(ApiError, match="not subscribed"):
            await anext(client.watch("svc-a"))


def test_a_refusal_has_status_error_and_hint(address):
    with pytest.raises(ApiError) as refusal:
        Client(address).unpublish("svc-a", 1)
    error = refusal.value
    assert isinstance(error, FastsideError)
    assert (error.status, error.error, error.hint) == (404, "svc-a is not published with port 1", "publish it first")
    assert str(error) == f"{error.error}\n{error.hint}"
    with pytest.raises(ApiError, match="not subscribed"):
        next(Client(address).watch("svc-a"))


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "unix:/nowhere/{port}"])
async def test_nobody_there(address):
    address = address.format(port=free_port())
    with pytest.raises(NotReachable, match=f"(?s)no sidecar answers at {address}: .*\nstart one with `fastside run`"):
        Client(address, timeout=5).services()
    with pytest.raises(NotReachable):
        next(Client(address, timeout=5).watch("svc-a"))
    async with AsyncClient(address, timeout=5) as client:
        with pytest.raises(NotReachable):
            await client.services()
        with pytest.raises(NotReachable):
            await anext(client.watch("svc-a"))


def test_something_else_there(origin):
    with pytest.raises(ApiError, match=r"(?s)status 200: origin.*is this fastside's API"):
        Client(f"127.0.0.1:{origin.port}").services()


async def test_a_watch_notices_the_end_of_the_sidecar():
    with Sidecar() as sidecar:
        sidecar.client.subscribe("svc-a")
        follow = sidecar.client.watch("svc-a")
        next(follow)
        errors: list[Exception] = []

        def read() -> None:
            try:
                list(follow)
            except FastsideError as error:
                errors.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        async with AsyncClient(sidecar.api) as client:
            async_follow = client.watch("svc-a")
            await anext(async_follow)
            sidecar.kill_everything()
            with pytest.raises(NotReachable):
                await anext(async_follow)
        thread.join(DEADLINE)
        assert [type(error) for error in errors] == [NotReachable]


def test_the_address_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("FASTSIDE_API", raising=False)
    assert Client().address == AsyncClient().address == "127.0.0.1:20883"
    monkeypatch.setenv("FASTSIDE_API", "unix:/run/api.sock")
    assert Client().address == AsyncClient().address == "unix:/run/api.sock"


def test_the_sync_client_needs_nothing_but_the_standard_library():
    script = "import sys, fastside.client; print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    assert not {"aiohttp", "msgspec", "yaml", "fastside.config", "fastside._core"} & set(modules)


def test_one_client_serves_several_threads(sidecar, address):
    client, errors = Client(address), []

    def work(number: int) -> None:
        try:
            client.subscribe(f"thread-{number}")
            client.unsubscribe(f"thread-{number}")
        except FastsideError as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert errors == []
    wait_until(lambda: client.services()["subscribed"] == [])
