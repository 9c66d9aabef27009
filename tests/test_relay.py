"""The opaque relay: whatever bytes, in both directions, with both sides' ends and resets passed on."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator

import pytest

from core_worker import SERVICE, Server, Workers, exact, was_reset
from fastside import _core
from harness import DEADLINE, Raw, Stream, free_port, wait_until

MIB = 1 << 20
NOISE = os.urandom(16 * MIB)
LISTENERS = [{}, {"protocol": "tcp", "service": SERVICE}]
NOT_HTTP = b"\0\r\nGET / HTTP/1.1\r\n\r\n\xff"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def workers(server: Server) -> Iterator[Workers]:
    """One worker with an http and an opaque listener, and a server for the latter."""
    with Workers(listeners=LISTENERS) as running:
        running.put(SERVICE, [server.address], protocol="tcp")
        yield running


@pytest.fixture
def pair(workers: Workers, server: Server) -> Iterator[tuple[Raw, Stream]]:
    """Both ends of a relayed connection."""
    with workers.connect(1) as client:
        upstream = server.accept()
        workers.settle()
        yield client, upstream


def is_broken(stream: Stream) -> bool:
    """Tell whether the connection was reset, also when the peer's end was read before."""
    poll = select.poll()
    poll.register(stream.socket, select.POLLERR)
    return bool(poll.poll(0))


def test_the_server_may_speak_first(pair: tuple[Raw, Stream]) -> None:
    client, upstream = pair
    upstream.send(NOT_HTTP)
    exact(client, NOT_HTTP)
    client.send(NOT_HTTP)
    exact(upstream, NOT_HTTP)


def test_bytes_sent_before_the_server_is_connected(workers: Workers, server: Server) -> None:
    with workers.connect(1) as client:
        client.send(NOT_HTTP)
        client.end()
        upstream = server.accept()
        assert upstream.read_all() == NOT_HTTP
        upstream.send(NOT_HTTP)
        upstream.end()
        assert client.read_all() == NOT_HTTP
    workers.wait_for(downstreams=0, upstreams=0, close_done=1)


@pytest.mark.parametrize("first", [0, 1], ids=["client", "server"])
def test_each_side_ends_by_itself(first: int, workers: Workers, pair: tuple[Raw, Stream]) -> None:
    ending, other = pair[first], pair[1 - first]
    ending.send(b"last words")
    ending.end()
    assert other.read_all() == b"last words"
    for _ in range(3):
        other.send(NOT_HTTP)
        exact(ending, NOT_HTTP)
    assert workers.silent(ending)
    other.end()
    assert ending.read_all() == b""
    workers.wait_for(downstreams=0, upstreams=0, buffers=0, close_done=1)


@pytest.mark.parametrize("half_closed", [False, True])
@pytest.mark.parametrize("first", [0, 1], ids=["client", "server"])
def test_a_reset_is_passed_on(first: int, half_closed: bool, workers: Workers, pair: tuple[Raw, Stream]) -> None:
    breaking, other = pair[first], pair[1 - first]
    other.send(b"x")  # the relay runs: before, a reset of the server is a connect that failed
    assert breaking.read(1) == b"x"
    if half_closed:
        breaking.end()
        assert other.read_all() == b""
    breaking.reset()
    wait_until(lambda: is_broken(other), what="the other side is reset")
    workers.wait_for(downstreams=0, upstreams=0, close_downstream_reset=1)


@pytest.mark.parametrize("first", [0, 1], ids=["client", "server"])
def test_a_side_that_is_gone_breaks_the_relay_when_the_other_sends(
    first: int, workers: Workers, pair: tuple[Raw, Stream]
) -> None:
    """Its end is only seen as an end; the next bytes for it are answered by a reset."""
    gone, other = pair[first], pair[1 - first]
    gone.close()
    assert other.read_all() == b""
    other.send(b"x")
    wait_until(lambda: is_broken(other), what="the other side is reset")
    workers.wait_for(downstreams=0, upstreams=0)


@pytest.mark.parametrize("first", [0, 1], ids=["client", "server"])
def test_a_half_closed_connection_has_a_time_limit(first: int, workers: Workers, pair: tuple[Raw, Stream]) -> None:
    workers.set(half_close_ms=200)
    ending, other = pair[first], pair[1 - first]
    ending.end()
    assert other.read_all() == b""
    workers.wait_for(timeout_half_close=1, downstreams=0, upstreams=0)
    assert was_reset(ending)
    assert is_broken(other)


def test_an_idle_connection_has_a_time_limit(workers: Workers, pair: tuple[Raw, Stream]) -> None:
    client, upstream = pair
    workers.set(idle_ms=200)
    client.send(b"x")
    exact(upstream, b"x")
    workers.wait_for(timeout_idle=1, close_timeout=1, downstreams=0, upstreams=0)
    assert was_reset(client)
    assert was_reset(upstream)


# Connecting


def test_a_refused_connect_is_tried_on_the_next_endpoint(workers: Workers, server: Server) -> None:
    dead = ("127.0.0.1", free_port())
    workers.set(eject_failures=0)
    workers.put(SERVICE, [dead, server.address], protocol="tcp")
    for _ in range(4):
        with workers.connect(1) as client:
            client.send(NOT_HTTP)
            exact(server.accept(), NOT_HTTP)
    assert workers.counters()["upstream_connect_failures"] >= 2


def test_a_connect_that_is_not_answered_is_tried_on_the_next_endpoint(workers: Workers, server: Server) -> None:
    workers.set(connect_ms=200, eject_failures=0)
    with Server(backlog=0) as full, Raw(full.address):
        workers.put(SERVICE, [full.address, server.address], protocol="tcp")
        for _ in range(2):
            with workers.connect(1) as client:
                client.send(NOT_HTTP)
                exact(server.accept(), NOT_HTTP)
    assert workers.counters()["timeout_connect"] >= 1


@pytest.mark.parametrize("endpoints", [[], ["refusing"], ["own"], None], ids=["none", "refusing", "loop", "unknown"])
def test_the_caller_sees_a_reset_when_there_is_no_way(endpoints: list[str] | None, workers: Workers) -> None:
    """As without a sidecar: a health check by a connect must not take a dead service for a living one."""
    own = workers.address(1)
    addresses = {"refusing": ("127.0.0.1", free_port()), "own": own}
    workers.table.apply([{"op": "listeners", "addresses": [list(own)]}])
    if endpoints is None:
        workers.table.apply([{"op": "del", "direction": "outbound", "service": SERVICE}])
    else:
        workers.put(SERVICE, [addresses[each] for each in endpoints], protocol="tcp")
    with pytest.raises(ConnectionResetError), workers.connect(1) as client:
        client.read(1)
    workers.wait_for(downstreams=0, upstreams=0, close_upstream=1)
    expected = {"loops": endpoints == ["own"], "no_endpoints": endpoints == [], "route_misses": endpoints is None}
    assert {name: workers.counters()[name] for name in expected} == expected


def test_a_caller_that_resets_while_the_connect_is_under_way(workers: Workers) -> None:
    workers.set(connect_ms=60_000)
    with Server(backlog=0) as full, Raw(full.address):
        workers.put(SERVICE, [full.address], protocol="tcp")
        client = workers.connect(1)
        workers.settle()
        wait_until(lambda: workers.counters()["upstreams"] == 1)
        client.reset()
        workers.wait_for(downstreams=0, upstreams=0)


def test_ipv6() -> None:
    listeners = [{}, {"protocol": "tcp", "service": SERVICE, "bind": f"[::1]:{free_port()}"}]
    with Server("::1") as server, Workers(listeners=listeners) as workers:
        workers.put(SERVICE, [server.address], protocol="tcp")
        with workers.connect(1) as client:
            client.send(NOT_HTTP)
            exact(server.accept(), NOT_HTTP)


# Bulk


@pytest.mark.parametrize("splice_bytes", [0, 1, 131_072])
def test_large_streams_both_ways_at_once(splice_bytes: int, workers: Workers, pair: tuple[Raw, Stream]) -> None:
    workers.set(splice_bytes=splice_bytes)
    workers.settle()
    got: dict[int, bytes] = {}

    def send(number: int) -> None:
        pair[number].send(NOISE[number:])
        pair[number].end()

    def receive(number: int) -> None:
        parts = []
        while part := pair[number].socket.recv(MIB):
            parts.append(part)
        got[number] = b"".join(parts)

    threads = [threading.Thread(target=act, args=(number,)) for act in (send, receive) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert got == {0: NOISE[1:], 1: NOISE}
    workers.wait_for(downstreams=0, upstreams=0, buffers=0, pipes=0)
    counters = workers.counters()
    if splice_bytes:
        assert counters["bytes_spliced"] > 30 * MIB
    else:
        assert counters["bytes_spliced"] == 0


def test_the_statistics_of_an_opaque_service(workers: Workers, pair: tuple[Raw, Stream]) -> None:
    client, upstream = pair
    client.send(b"abc")
    exact(upstream, b"abc")
    upstream.send(b"defgh")
    exact(client, b"defgh")
    client.close()
    upstream.close()
    workers.wait_for(downstreams=0)
    found = {each["service"]: each for each in _core.service_stats(workers.table)}[SERVICE]
    assert found["responses"] == [0, 0, 1, 0, 0, 0]
    assert (found["bytes_received"], found["bytes_sent"]) == (3, 5)
