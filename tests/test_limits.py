"""Bounds: timeouts, memory while a reader stands still, connections, descriptors; and that every ending frees all."""

from __future__ import annotations

import contextlib
import itertools
import os
import select
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core_worker import SERVICE, Server, Workers, exact, head, was_reset
from harness import Raw, Stream, chunked, wait_until

MIB = 1 << 20
REQUEST = head("GET / HTTP/1.1", "Host: svc")
UNKNOWN = head("GET / HTTP/1.1", "Host: unknown")
OK = head("HTTP/1.1 200 OK", "Content-Length: 2") + b"ok"
LISTENERS = [{}, {"protocol": "tcp", "service": "opaque"}]


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def workers(server: Server) -> Iterator[Workers]:
    """One worker with an http and an opaque listener, and a server for both."""
    with Workers({SERVICE: [server.address]}, listeners=LISTENERS) as running:
        running.put("opaque", [server.address], protocol="tcp")
        yield running


@pytest.fixture
def client(workers: Workers) -> Iterator[Raw]:
    with workers.connect() as connected:
        yield connected


# Timeouts


@pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\n", REQUEST[:-1]])
def test_a_head_that_does_not_end_gets_408(start: bytes, workers: Workers, client: Raw) -> None:
    workers.set(header_ms=200)
    client.send(start)
    response = client.read_response()
    assert (response.status, response.header("connection")) == (408, "close")
    assert "did not arrive in time" in response.body.decode()
    assert client.read_all() == b""
    client.close()
    workers.wait_for(timeout_header=1, downstreams=0, buffers=0)


def test_the_header_timeout_also_holds_for_a_later_request(workers: Workers, server: Server, client: Raw) -> None:
    workers.set(header_ms=300)
    client.send(REQUEST + b"GET ")
    upstream = server.accept()
    upstream.send(OK)
    exact(client, OK)
    assert client.read_response().status == 408


def test_an_idle_connection_is_closed_in_silence(workers: Workers, server: Server) -> None:
    workers.set(keepalive_ms=300)
    with workers.connect() as used, workers.connect() as unused:
        used.send(REQUEST)
        server.accept().send(OK)
        exact(used, OK)
        assert used.read_all() == unused.read_all() == b""
    workers.wait_for(timeout_keepalive=2, close_timeout=2, downstreams=0)


@pytest.mark.parametrize("own", [False, True], ids=["general", "of-the-service"])
def test_a_server_that_does_not_answer_gets_504(own: bool, workers: Workers, server: Server, client: Raw) -> None:
    if own:
        workers.put(SERVICE, [server.address], request_ms=200)
    else:
        workers.set(request_ms=200)
    client.send(REQUEST)
    upstream = server.accept()
    exact(upstream, REQUEST)
    response = client.read_response()
    assert (response.status, response.header("connection")) == (504, None)
    assert SERVICE in response.body.decode()
    assert upstream.read_all() == b""
    assert workers.counters()["timeout_request"] == 1
    client.send(REQUEST)  # not sent again, and the connection goes on
    exact(server.accept(), REQUEST)


def test_a_response_that_began_is_not_bound_by_the_request_timeout(
    workers: Workers, server: Server, client: Raw
) -> None:
    workers.set(request_ms=200)
    client.send(REQUEST)
    upstream = server.accept()
    start = head("HTTP/1.1 200 OK", "Content-Length: 4") + b"ab"
    upstream.send(start)
    exact(client, start)
    with workers.connect() as other:  # whose request times out later than the first one's would
        other.send(REQUEST)
        assert other.read_response().status == 504
    upstream.send(b"cd")
    exact(client, b"cd")


@pytest.mark.parametrize("side", ["request", "response"])
def test_a_body_that_stands_still_ends_in_a_reset(side: str, workers: Workers, server: Server, client: Raw) -> None:
    workers.set(idle_ms=200)
    if side == "request":
        client.send(head("POST / HTTP/1.1", "Host: svc", "Content-Length: 4") + b"ab")
        upstream = server.accept()
    else:
        client.send(REQUEST)
        upstream = server.accept()
        upstream.send(head("HTTP/1.1 200 OK", "Content-Length: 4") + b"ab")
    assert was_reset(client)
    assert was_reset(upstream)
    workers.wait_for(timeout_idle=1, downstreams=0, upstreams=0)


# Backpressure


def kernel_buffers() -> int:
    """Bytes that the kernel may hold for two connections one behind the other."""
    limits = (Path(f"/proc/sys/net/ipv4/tcp_{which}mem").read_text().split()[2] for which in "rw")
    return 2 * sum(map(int, limits))


def fill(workers: Workers, sender: Stream, noise: bytes, at_most: int) -> int:
    """Send as much as is taken while nobody reads at the other end; return the number of bytes."""
    sent = still = 0
    sender.socket.setblocking(False)
    while still < 100:
        try:
            sent += sender.socket.send(noise[sent % MIB : sent % MIB + MIB])
            assert sent <= at_most
            still = 0
        except BlockingIOError:
            workers.settle()
            still += 1
    sender.socket.settimeout(20)
    return sent


@pytest.mark.parametrize("splice_bytes", [0, 1], ids=["copied", "spliced"])
@pytest.mark.parametrize("way", ["request", "response", "opaque", "opaque back"])
def test_a_sender_waits_for_a_reader_that_stands_still(
    way: str, splice_bytes: int, workers: Workers, server: Server
) -> None:
    workers.set(splice_bytes=splice_bytes)
    noise = os.urandom(MIB) * 2
    if way.startswith("opaque"):
        client = workers.connect(1)
        upstream = server.accept()
        sender, reader = (client, upstream) if way == "opaque" else (upstream, client)
    else:
        client = workers.connect()
        client.send(
            REQUEST if way == "response" else head("POST / HTTP/1.1", "Host: svc", f"Content-Length: {1 << 40}")
        )
        upstream = server.accept()
        upstream.read_until(b"\r\n\r\n")
        if way == "response":
            upstream.send(head("HTTP/1.1 200 OK"))
            client.read_until(b"\r\n\r\n")
        sender, reader = (client, upstream) if way == "request" else (upstream, client)
    workers.settle()
    before = workers.memory(kind="Rss")
    sent = fill(workers, sender, noise, kernel_buffers() + 2 * MIB)
    assert workers.memory(kind="Rss") - before < MIB
    for at in range(0, sent, MIB):
        exact(reader, noise[: min(MIB, sent - at)])
    sender.send(b"more")
    exact(reader, b"more")
    sender.reset()
    assert was_reset(reader)
    workers.wait_idle()


def test_readers_that_stand_still_take_bounded_memory_and_others_are_served(workers: Workers, server: Server) -> None:
    workers.set(buffers=16, splice_bytes=0)
    length = kernel_buffers() + 2 * MIB
    answer = head("HTTP/1.1 200 OK", f"Content-Length: {length}") + bytes(length)
    clients = [workers.connect() for _ in range(20)]
    upstreams = []
    for client in clients:
        client.socket.setsockopt(6, 10, 4096)  # TCP_WINDOW_CLAMP: little fits on the way
        client.send(REQUEST)
        upstreams.append(server.accept())
    before = workers.memory(kind="Rss")
    left = {upstream: memoryview(answer) for upstream in upstreams}
    for upstream in upstreams:
        upstream.socket.setblocking(False)
    for _ in range(50):
        workers.settle()
        for upstream, rest in left.items():
            with contextlib.suppress(BlockingIOError):
                left[upstream] = rest[upstream.socket.send(rest) :]
    assert all(left.values())
    assert workers.counters()["buffers"] <= 12  # streams leave a quarter
    assert workers.counters()["buffer_waits"] > 0
    assert workers.memory(kind="Rss") - before < MIB
    other = workers.connect()
    other.send(REQUEST)
    upstream = server.accept()
    upstream.read_until(b"\r\n\r\n")
    upstream.send(OK)
    exact(other, OK)
    for client, upstream in zip(clients, upstreams, strict=True):
        client.reset()
        upstream.close()
    other.close()
    workers.wait_idle()


# Numbers of connections and descriptors


def test_more_connections_than_allowed_wait_their_turn() -> None:
    with Workers(max_connections=40) as workers:
        clients = [workers.connect() for _ in range(100)]
        for client in clients:
            client.send(UNKNOWN)
        for client in clients:  # in the order of their coming
            assert client.read_response().status == 404
            assert workers.counters()["downstreams"] <= 30
            client.close()
        workers.wait_idle()
        assert workers.counters()["accept_pauses"] > 0
        assert workers.counters()["accepted"] == 100


def test_idle_connections_leave_room_to_serve_the_others(server: Server) -> None:
    with Workers({SERVICE: [server.address]}, max_connections=40) as workers:
        clients = [workers.connect() for _ in range(60)]
        clients[0].send(UNKNOWN)
        assert clients[0].read_response().status == 404
        for client in clients[:10]:
            client.send(REQUEST)
            upstream = server.accept()
            upstream.send(head("HTTP/1.1 200 OK", "Connection: close", "Content-Length: 2") + b"ok")
            exact(client, OK)


def test_a_request_for_which_there_is_no_connection_left_gets_503(server: Server) -> None:
    with Workers({SERVICE: [server.address]}, max_connections=8) as workers:
        clients = [workers.connect() for _ in range(6)]
        for client in clients:
            client.send(REQUEST)
        upstreams = [server.accept() for _ in range(2)]
        wait_until(lambda: len(select.select([client.socket for client in clients], [], [], 0)[0]) == 4)
        for client in clients:
            if select.select([client.socket], [], [], 0)[0]:
                response = client.read_response()
                assert response.status == 503
                assert "connections" in response.body.decode()
        assert workers.counters()["upstream_connect_failures"] == 0
        for upstream in upstreams:
            upstream.send(OK)


def test_out_of_descriptors(server: Server) -> None:
    """The worker leaves the queue alone for a moment, and thinks no worse of the endpoint."""
    with Workers({SERVICE: [server.address]}, files=50) as workers:
        clients = [workers.connect() for _ in range(80)]
        for client in clients:
            client.send(UNKNOWN)
        workers_full = workers.counters
        for client in clients[:20]:
            assert client.read_response().status == 404
        with clients[0] as first:
            first.send(REQUEST)
            response = first.read_response()
            assert response.status == 503
            assert "descriptors" in response.body.decode()
        assert workers_full()["accept_pauses"] > 0
        assert workers_full()["upstream_connect_failures"] == 0
        for client in clients[1:20]:
            client.close()
        for client in clients[20:]:
            assert client.read_response().status == 404
            client.close()
        workers.wait_idle()
        with workers.connect() as client:
            client.send(REQUEST)
            server.accept().send(OK)
            exact(client, OK)


# Every ending


def endings() -> Iterator[tuple[str, Callable[[Workers, Server], None]]]:
    """Ways in which a connection can come to its end."""

    def exchange(request: bytes, answer: bytes, then: str = "close") -> Callable[[Workers, Server], None]:
        def run(workers: Workers, server: Server) -> None:
            client = workers.connect()
            client.send(request)
            upstream = server.accept()
            upstream.send(answer)
            if then == "server closes":
                upstream.close()
            elif then == "server resets":
                upstream.reset()
            elif then == "client resets":
                client.reset()
                upstream.close()
                return
            client.socket.settimeout(20)
            if was_reset(client):
                assert then in ("server closes", "server resets")
            client.close()
            upstream.close()

        return run

    def alone(data: bytes, reset: bool) -> Callable[[Workers, Server], None]:
        def run(workers: Workers, server: Server) -> None:
            client = workers.connect()
            client.send(data)
            if reset:
                client.reset()
            else:
                client.end()
                client.read_all()
                client.close()

        return run

    def opaque(*steps: str) -> Callable[[Workers, Server], None]:
        def run(workers: Workers, server: Server) -> None:
            client = workers.connect(1)
            upstream = server.accept()
            for step in steps:
                side, act = step.split()
                stream = client if side == "client" else upstream
                if act == "sends":
                    stream.send(bytes(300_000))
                elif act == "closes":
                    stream.close()
                else:
                    stream.reset()
            client.close()
            upstream.close()

        return run

    close = head("GET / HTTP/1.1", "Host: svc", "Connection: close")
    post = head("POST / HTTP/1.1", "Host: svc", "Content-Length: 400000") + bytes(200_000)
    upgrade = head("GET / HTTP/1.1", "Host: svc", "Upgrade: x", "Connection: upgrade") + b"\0"
    switch = head("HTTP/1.1 101 Switching Protocols", "Upgrade: x", "Connection: upgrade") + b"\0"
    large = head("HTTP/1.1 200 OK", "Content-Length: 400000") + bytes(200_000)
    yield "nothing", alone(b"", False)
    yield "nothing, reset", alone(b"", True)
    yield "half a head", alone(REQUEST[:-2], False)
    yield "half a head, reset", alone(REQUEST[:-2], True)
    yield "nonsense", alone(b"\0\r\n\r\n", False)
    yield "unknown", alone(UNKNOWN * 3, False)
    yield "unknown, reset", alone(UNKNOWN * 3, True)
    yield "done", exchange(close, OK)
    yield "done until close", exchange(close, head("HTTP/1.1 200 OK") + b"x", "server closes")
    yield "broken chunk", exchange(close, head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + b"x", "server closes")
    yield "chunks", exchange(close, head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + chunked([b"x"]))
    yield "no answer", exchange(close, b"", "server closes")
    yield "no answer, reset", exchange(close, b"", "server resets")
    yield "half an answer", exchange(close, large, "server closes")
    yield "half an answer, reset", exchange(close, large, "server resets")
    yield "client leaves half an answer", exchange(close, large, "client resets")
    yield "half a body", exchange(post, b"", "client resets")
    yield "half a body refused", exchange(post, OK, "server closes")
    yield "half a body, reset", exchange(post, b"", "server resets")
    yield "upgraded", exchange(upgrade, switch, "server closes")
    yield "upgraded, reset", exchange(upgrade, switch, "client resets")
    yield "opaque", opaque("client sends", "server sends", "client closes")
    for first, then in itertools.product(("client", "server"), ("closes", "resets")):
        yield f"opaque, {first} {then}", opaque("client sends", "server sends", f"{first} {then}")


def test_every_ending_frees_everything(workers: Workers, server: Server) -> None:
    workers.set(splice_bytes=65_536, pool_size=0, half_close_ms=1000)
    at_rest = workers.descriptors()

    def rounds(count: int) -> int:
        for _ in range(count):
            for _, end in endings():
                end(workers, server)
        workers.wait_idle()
        assert workers.connections() == []
        assert workers.table.explain_pick("outbound", SERVICE)[0]["inflight"] == 0
        assert workers.table.explain_pick("outbound", "opaque")[0]["inflight"] == 0
        return workers.descriptors()

    pipes = rounds(10) - at_rest  # free ones are kept
    assert rounds(30) - at_rest <= max(pipes, 2 * 32)
