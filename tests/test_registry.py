"""The shared registry as a real process, and the client that every sidecar has."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import signal
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from fastside.registry import Address, BadRecord, Endpoint, Listing, parse_address, parse_listing
from fastside.registry.memory import MemoryRegistry
from fastside.registry.remote import RemoteRegistry
from fastside.registry.server import Server, main
from fastside.registry.store import Store, StoreFull
from harness import Raw, free_port
from registry_process import RegistryProcess, eventually

A, B = Endpoint(Address("10.0.0.1", 20881)), Endpoint(Address("10.0.0.2", 20881), weight=3)


class Ear:
    """A listener that keeps what it heard."""

    def __init__(self) -> None:
        self.listings: list[Listing] = []
        self.latest: dict[str, Listing] = {}
        self.currents: list[frozenset[str]] = []
        self.errors: list[str] = []

    def listing(self, listing: Listing) -> None:
        self.listings.append(listing)
        self.latest[listing.service] = listing

    def current(self, services: frozenset[str]) -> None:
        self.currents.append(services)

    def away(self, error: str) -> None:
        self.errors.append(error)

    def endpoints(self, service: str) -> set[Endpoint] | None:
        return set(self.latest[service].endpoints) if service in self.latest else None


@pytest.fixture
def registry() -> Iterator[RegistryProcess]:
    with RegistryProcess() as running:
        yield running


@contextlib.asynccontextmanager
async def client(url: str, lease: float = 10.0) -> AsyncIterator[tuple[RemoteRegistry, Ear]]:
    remote, ear = RemoteRegistry(url, lease), Ear()
    await remote.start(ear)
    try:
        yield remote, ear
    finally:
        await remote.close()


# What comes from a registry.


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("10.0.0.1:80", Address("10.0.0.1", 80)),
        ("[2001:DB8::1]:80", Address("2001:db8::1", 80)),
        ("[::ffff:10.0.0.1]:80", Address("10.0.0.1", 80)),
    ],
)
def test_addresses(text, parsed):
    assert parse_address(text) == parsed
    assert parse_address(str(parsed)) == parsed


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.1", "10.0.0.1:0", "10.0.0.1:65536", "host:80", "0.0.0.0:80", "[::]:80", "224.0.0.1:80",
     "[fe80::1%eth0]:80", "10.0.0.01:80", "10.0.0.1:80 ", None, 5, ["10.0.0.1:80"]],
)  # fmt: skip
def test_bad_addresses(text):
    with pytest.raises(BadRecord):
        parse_address(text)


def test_bad_records_are_left_out_and_named():
    data = {
        "service": "svc-a",
        "epoch": "e",
        "index": 4,
        "endpoints": [
            {"address": "10.0.0.1:20881", "weight": 1},
            {"address": "10.0.0.1:20881", "weight": 2},
            {"address": "nowhere:1", "weight": 1},
            {"address": "10.0.0.3:20881", "weight": 0},
            {"address": "10.0.0.4:20881", "weight": True},
            "10.0.0.5:20881",
            {"address": "10.0.0.2:20881", "weight": 3, "zone": "later versions may say more"},
        ],
        "deregistered": ["10.0.0.9:1", "10.0.0.1:20881", "x"],
    }
    listing = parse_listing(data, {"svc-a"}.__contains__)
    assert listing.endpoints == (A, B)
    assert listing.deregistered == {Address("10.0.0.9", 1)}
    assert len(listing.rejected) == 6
    assert all(text.startswith("svc-a: ") for text in listing.rejected)


@pytest.mark.parametrize(
    "change",
    [{"service": "other"}, {"service": None}, {"epoch": ""}, {"epoch": 1}, {"index": -1}, {"index": True},
     {"endpoints": {}}, {"endpoints": None}, {"deregistered": 1}],
)  # fmt: skip
def test_a_bad_listing_is_refused_as_a_whole(change):
    good = {"service": "svc-a", "epoch": "e", "index": 4, "endpoints": []}
    parse_listing(good, {"svc-a"}.__contains__)
    with pytest.raises(BadRecord):
        parse_listing(good | change, {"svc-a"}.__contains__)


# The memory.


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_leases_end_unless_they_are_renewed():
    clock, changes = Clock(), []
    store = Store(clock, changes.append)
    store.put("svc-a", A, lease=10)
    store.put("svc-a", B, lease=10)
    store.put("svc-b", A, lease=None)
    clock.now += 6
    store.put("svc-a", B, lease=10)
    assert changes == ["svc-a", "svc-a", "svc-b"]
    clock.now += 4
    store.expire()
    assert set(store.listing("svc-a").endpoints) == {B}
    assert store.listing("svc-a").deregistered == frozenset()
    assert changes[3:] == ["svc-a"]
    clock.now += 6
    store.expire()
    assert store.services() == {"svc-b": 1}


def test_the_store_says_who_left_by_himself_since_when():
    store = Store(Clock(), lambda service: None)
    store.put("svc-a", A, lease=None)
    store.put("svc-a", B, lease=None)
    assert store.delete("svc-a", A.address)
    seen = store.index
    assert not store.delete("svc-a", A.address)
    assert store.delete("svc-a", B.address)
    assert store.listing("svc-a").deregistered == {A.address, B.address}
    assert store.listing("svc-a", since=seen + 1).deregistered == {B.address}
    store.put("svc-a", A, lease=None)
    assert store.listing("svc-a").deregistered == {B.address}


def test_the_store_is_bounded():
    store = Store(Clock(), lambda service: None, max_instances=2)
    store.put("svc-a", A, lease=None)
    store.put("svc-b", A, lease=None)
    with pytest.raises(StoreFull, match="holds 2 instances"):
        store.put("svc-c", A, lease=None)
    store.put("svc-a", A._replace(weight=5), lease=None)  # what is there may change
    for number in range(30_000):
        store.delete(f"svc-{number}", A.address)
    assert (len(store._tombstones), len(store._changed)) == (10_000, 2)


# The server.


def test_put_list_and_delete(registry):
    status, answer = registry.call("PUT", "/v1/instances/com.Foo:1.0@a/b/10.0.0.1:20881", {"weight": 2, "lease": 10})
    assert status == 200
    assert answer["epoch"]
    status, listed = registry.call("GET", "/v1/services/com.foo:1.0@a/b")
    assert [(endpoint["address"], endpoint["weight"]) for endpoint in listed["endpoints"]] == [("10.0.0.1:20881", 2)]
    assert 0 < listed["endpoints"][0]["lease_left"] <= 10
    assert registry.call("GET", "/v1/services")[1]["services"] == {"com.foo:1.0@a/b": 1}
    assert registry.call("DELETE", "/v1/instances/com.foo:1.0@a/b/10.0.0.1:20881")[1]["removed"] is True
    assert registry.call("DELETE", "/v1/instances/com.foo:1.0@a/b/10.0.0.1:20881")[1]["removed"] is False
    assert registry.addresses("com.foo:1.0@a/b") == set()


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "text"),
    [
        ("PUT", "/v1/instances/svc-a/nowhere:1", {"lease": 10}, 400, "names are not looked up"),
        ("PUT", "/v1/instances/svc%20a/10.0.0.1:1", {"lease": 10}, 400, "not a service name"),
        ("PUT", "/v1/instances/svc-a/10.0.0.1:1", {}, 400, "lease None"),
        ("PUT", "/v1/instances/svc-a/10.0.0.1:1", {"lease": 0.1}, 400, "from 1 to 3600"),
        ("PUT", "/v1/instances/svc-a/10.0.0.1:1", {"lease": 10, "weight": 0}, 400, "weight 0"),
        ("PUT", "/v1/instances/svc-a/10.0.0.1:1", b"{", 400, "not JSON"),
        ("PUT", "/v1/instances/svc-a/10.0.0.1:1", [], 400, "not a JSON object"),
        ("GET", "/v1/watch", None, 400, "name the services"),
        ("POST", "/v1/watch", {"services": []}, 400, "not an object"),
        ("POST", "/v1/watch", {"services": {"svc-a": -1}}, 400, "not a number from 0"),
        ("GET", "/v2", None, 404, "Not Found"),
        ("PUT", "/v1/instances/svc-a/10.0.0.1:1", b" " * (9 << 20), 413, "Too Large"),
    ],
)
def test_bad_requests_are_named(registry, method, path, body, status, text):
    got, answer = registry.call(method, path, body)
    assert got == status
    assert text in answer["error"]


def test_a_lease_ends_by_itself(registry):
    registry.call("PUT", "/v1/instances/svc-a/10.0.0.1:20881", {"lease": 2})
    with Raw(("127.0.0.1", registry.port)) as raw:
        raw.send(b"GET /v1/watch?service=svc-a HTTP/1.1\r\nHost: registry\r\n\r\n")
        raw.read_until(b'"address":"10.0.0.1:20881"')
        assert b'"deregistered":[]' in raw.read_until(b'"endpoints":[],"deregistered":[]')


def test_the_number_of_watchers_is_bounded():
    async def scenario() -> None:
        from aiohttp import web

        runner = web.AppRunner(Server(max_watchers=1).application(), handler_cancellation=True)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()

        async def watch() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /v1/watch?service=svc-a HTTP/1.1\r\nHost: registry\r\n\r\n")
            return reader, writer

        reader, writer = await watch()
        await reader.readuntil(b"event: current")
        second, second_writer = await watch()
        assert b" 503 " in await second.readuntil(b"\r\n")
        second_writer.close()
        writer.close()
        while True:  # the first one's place is free again once its end was noticed
            third, third_writer = await watch()
            status = await third.readuntil(b"\r\n")
            third_writer.close()
            if b" 200 " in status:
                break
        await runner.cleanup()

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_port_in_use_is_said(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        assert main(bind) == 1
    assert f"cannot serve on {bind}" in capsys.readouterr().err


# The client.


async def test_register_and_watch(registry):
    async with client(registry.url) as (provider, _), client(registry.url) as (caller, ear):
        caller.watch("svc-a")
        await eventually(lambda: ear.endpoints("svc-a") == set(), "an empty listing")
        provider.register("svc-a", A)
        provider.register("svc-a", B)
        assert await provider.settle(10)
        await eventually(lambda: ear.endpoints("svc-a") == {A, B}, "both endpoints")
        provider.register("svc-a", A._replace(weight=7))
        await eventually(lambda: ear.endpoints("svc-a") == {A._replace(weight=7), B}, "the other weight")
        provider.deregister("svc-a", B.address)
        assert await provider.settle(10)
        await eventually(lambda: ear.endpoints("svc-a") == {A._replace(weight=7)}, "one left")
        assert B.address in ear.latest["svc-a"].deregistered
        assert ear.errors == []


async def test_a_new_watch_does_not_repeat_what_is_known(registry):
    async with client(registry.url) as (remote, ear):
        remote.register("svc-a", A)
        assert await remote.settle(10)
        remote.watch("svc-a")
        await eventually(lambda: ear.endpoints("svc-a") == {A})
        remote.watch("svc-b")
        await eventually(lambda: ear.endpoints("svc-b") == set())
        assert [listing.service for listing in ear.listings] == ["svc-a", "svc-b"]
        remote.unwatch("svc-a")
        remote.deregister("svc-a", A.address)
        remote.register("svc-b", B)
        await eventually(lambda: ear.endpoints("svc-b") == {B})
        assert ear.endpoints("svc-a") == {A}


async def test_registrations_are_renewed(registry):
    async with client(registry.url, lease=3.0) as (remote, ear):
        remote.watch("svc-a")
        remote.register("svc-a", A)
        await eventually(lambda: ear.endpoints("svc-a") == {A})
        heard = len(ear.listings)
        lefts = []

        def renewed() -> bool:
            lefts.append(registry.call("GET", "/v1/services/svc-a")[1]["endpoints"][0]["lease_left"])
            return sum(later > earlier for earlier, later in itertools.pairwise(lefts)) >= 4  # more than a lease's time

        await eventually(renewed, "the lease is renewed four times")
        assert len(ear.listings) == heard
    # Closed without deregistering, as when the process dies: the lease ends, and it is not an explicit withdrawal.
    async with client(registry.url) as (remote, ear):
        remote.watch("svc-a")
        await eventually(lambda: ear.endpoints("svc-a") == set(), "the lease has ended")
        assert ear.latest["svc-a"].deregistered == frozenset()


async def test_a_registry_that_is_not_there_yet():
    registry = RegistryProcess()
    async with client(registry.url) as (remote, ear):
        remote.watch("svc-a")
        remote.register("svc-a", A)
        assert not await remote.settle(0.05)
        await eventually(lambda: ear.errors, "the registry is away")
        assert not remote.status.connected
        assert str(registry.port) in remote.status.last_error
        with registry:
            await eventually(lambda: ear.endpoints("svc-a") == {A}, "registered and listed once it is there")
            assert remote.status.connected


async def test_a_registry_that_restarts_without_its_memory(registry):
    async with client(registry.url) as (remote, ear):
        remote.watch("svc-a")
        remote.register("svc-a", A)
        await eventually(lambda: ear.endpoints("svc-a") == {A})
        epoch = ear.latest["svc-a"].epoch
        registry.kill()
        await eventually(lambda: ear.errors, "its end is noticed")
        registry.start()
        await eventually(lambda: remote.status.connected and ear.endpoints("svc-a") == {A}, "registered again")
        await eventually(lambda: ear.latest["svc-a"].epoch != epoch, "in a new epoch")
        assert registry.addresses("svc-a") == {str(A.address)}
        assert remote.status.reconnects == 1


async def test_a_registry_that_hangs_counts_as_away(registry):
    async with client(registry.url) as (remote, ear):
        remote.watch("svc-a")
        remote.register("svc-a", A)
        await eventually(lambda: ear.endpoints("svc-a") == {A})
        heard, confirmed = len(ear.listings), len(ear.currents)
        registry.signal(signal.SIGSTOP)
        await eventually(lambda: not remote.status.connected, "its silence is noticed")
        remote.deregister("svc-a", A.address)
        registry.signal(signal.SIGCONT)
        await eventually(lambda: remote.status.connected, "it is reached again")
        await eventually(lambda: {"svc-a"} in ear.currents[confirmed:], "what it said last is in force again")
        await eventually(lambda: ear.endpoints("svc-a") == set(), "what was wanted meanwhile is done")
        assert ear.latest["svc-a"].deregistered == {A.address}
        assert len(ear.listings) == heard + 1


async def test_a_refused_registration_does_not_hold_up_the_others(registry):
    async with client(registry.url) as (remote, _):
        remote.register("no name", A)
        remote.register("svc-a", A)
        await eventually(lambda: registry.addresses("svc-a") == {str(A.address)})
        await eventually(lambda: "not a service name" in remote.status.last_error, "the refusal is kept")


async def test_what_is_no_registry():
    """Whatever answers, the client says so, goes on, and works when a registry is there."""
    answers = [
        b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nevent: hello\ndata: {\n\n",
        b"HTTP/1.1 200 OK\r\n\r\nevent: hello\ndata: []\n\n",
        b'HTTP/1.1 200 OK\r\n\r\nevent: listing\ndata: {"service": 5}\n\nevent: listing\ndata: '
        + json.dumps({"service": "svc-a", "epoch": "e", "index": 1, "endpoints": [{"address": "x"}]}).encode()
        + b"\n\n",
    ]
    left = iter(answers)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(next(left, answers[0]))
        await writer.drain()
        writer.close()

    registry = RegistryProcess()
    server = await asyncio.start_server(answer, "127.0.0.1", registry.port)
    async with client(registry.url) as (remote, ear):
        remote.watch("svc-a")
        await eventually(lambda: len(ear.errors) > len(answers), "every answer was an error")
        assert remote.status.rejected_records == 2
        assert not remote.status.connected
        server.close()
        await server.wait_closed()
        with registry:
            await eventually(lambda: remote.status.connected)


async def test_the_own_registry():
    memory, ear = MemoryRegistry(), Ear()
    await memory.start(ear)
    memory.watch("svc-a")
    await eventually(lambda: ear.endpoints("svc-a") == set())
    memory.register("svc-a", A)
    assert ear.endpoints("svc-a") == {A}
    memory.register("svc-b", A)
    memory.deregister("svc-a", A.address)
    assert ear.endpoints("svc-a") == set()
    assert ear.latest["svc-a"].deregistered == {A.address}
    memory.unwatch("svc-a")
    memory.register("svc-a", A)
    assert ear.endpoints("svc-a") == set()
    assert ear.endpoints("svc-b") is None
    await memory.close()
