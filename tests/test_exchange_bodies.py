"""Bodies of every framing and size arrive complete and unchanged, copied or spliced."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from core_worker import SERVICE, Server, Workers, head
from harness import DEADLINE, Stream, chunked

MIB = 1 << 20
NOISE = os.urandom(64 * MIB)
REQUEST = head("GET / HTTP/1.1", "Host: svc")
EMPTY = head("HTTP/1.1 200 OK", "Content-Length: 0")
SIZES = [1, 1000, 16_383, 16_384, 131_071, 131_073, MIB - 1, 64 * MIB]


@pytest.fixture(params=[0, 1, 131_072], ids=["copied", "spliced", "default"])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    """A worker that never splices, splices as soon as it can, or does the usual."""
    with Workers(settings={"splice_bytes": request.param}) as running:
        yield running


@contextmanager
def sending(stream: Stream, data: bytes, end: bool = False) -> Iterator[None]:
    """Send in the background meanwhile."""

    def send() -> None:
        stream.send(data)
        if end:
            stream.end()

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        thread.join(DEADLINE)
        assert not thread.is_alive()


def read_same(stream: Stream, data: bytes) -> None:
    """Read as many bytes as `data` has, and assert that they are these; fit for many of them."""
    start = stream.read(min(len(stream._buffer), len(data)))
    got = memoryview(bytearray(len(data) - len(start)))
    at = 0
    while at < len(got):
        count = stream.socket.recv_into(got[at:])
        assert count, f"the stream ended after {at} of {len(got)} bytes"
        at += count
    assert start + got == data


def framed(framing: str, body: bytes, seed: int) -> tuple[str, bytes]:
    """The field that announces a body, and the body as it is sent."""
    if framing == "length":
        return f"Content-Length: {len(body)}", body
    if framing == "until-close":
        return "X-Length: none", body
    parts, at, numbers = [], 0, random.Random(seed)
    while at < len(body):
        size = int(2 ** numbers.uniform(0, 20))
        parts.append(body[at : at + size])
        at += size
    return "Transfer-Encoding: chunked", chunked(parts)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_request_bodies(framing: str, size: int, workers: Workers) -> None:
    field, body = framed(framing, NOISE[:size], size)
    request = head("POST / HTTP/1.1", "Host: svc", field) + body
    with Server() as server:
        workers.put(SERVICE, [server.address])
        with workers.connect() as client, sending(client, request):
            upstream = server.accept()
            read_same(upstream, request)
            upstream.send(EMPTY)
            assert client.read_response().head == EMPTY
        workers.wait_idle()
    counters = workers.counters()
    assert counters["bytes_copied"] + counters["bytes_spliced"] == len(request + EMPTY)
    assert_spliced(workers, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("framing", ["length", "chunked", "until-close"])
def test_response_bodies(framing: str, size: int, workers: Workers) -> None:
    field, body = framed(framing, NOISE[:size], size)
    with Server() as server:
        workers.put(SERVICE, [server.address])
        with workers.connect() as client:
            client.send(REQUEST)
            upstream = server.accept()
            answer = head("HTTP/1.1 200 OK", field)
            with sending(upstream, answer + body, end=framing == "until-close"):
                seen = client.read_until(b"\r\n\r\n")
                read_same(client, body)
            if framing == "until-close":
                assert seen == answer.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n")
                assert client.read_all() == b""
            else:
                assert seen == answer
        workers.wait_idle()
    assert_spliced(workers, size)


def assert_spliced(workers: Workers, size: int) -> None:
    """A large body was spliced if that is switched on, and its message's start was copied."""
    counters = workers.counters()
    assert counters["bytes_copied"] > 0
    if workers.settings["splice_bytes"] == 0:
        assert counters["bytes_spliced"] == 0
    elif size >= MIB - 1:
        assert counters["bytes_spliced"] > size // 4


def test_bodies_of_mixed_sizes_and_framings_on_one_connection(workers: Workers) -> None:
    numbers = random.Random(5)
    with Server() as server:
        workers.put(SERVICE, [server.address])
        with workers.connect() as client:
            upstream = None
            for seed in range(60):
                messages = []
                for first, framing in (("POST / HTTP/1.1", "request"), ("HTTP/1.1 200 OK", "response")):
                    start, size = numbers.randrange(32 * MIB), int(2 ** numbers.uniform(0, 21))
                    way = numbers.choice(["length", "chunked"])
                    field, body = framed(way, NOISE[start : start + size], seed)
                    host = ["Host: svc"] if framing == "request" else []
                    messages.append(head(first, *host, field) + body)
                with sending(client, messages[0]):
                    upstream = upstream or server.accept()
                    read_same(upstream, messages[0])
                with sending(upstream, messages[1]):
                    read_same(client, messages[1])
        workers.wait_idle()
        assert workers.counters()["upstream_connects"] == 1


def test_both_bodies_at_once(workers: Workers) -> None:
    """The server answers while it reads, as a filter does."""
    with Server() as server:
        workers.put(SERVICE, [server.address])
        body = NOISE[: 8 * MIB]
        with workers.connect() as client:
            start = head("POST / HTTP/1.1", "Host: svc", f"Content-Length: {len(body)}")
            with sending(client, start + body):
                upstream = server.accept()
                assert upstream.read(len(start)) == start
                answer = head("HTTP/1.1 200 OK", f"Content-Length: {len(body)}")
                upstream.send(answer)
                client.read_until(b"\r\n\r\n")
                for at in range(0, len(body), MIB):
                    piece = body[at : at + MIB]
                    read_same(upstream, piece)
                    with sending(upstream, piece):
                        read_same(client, piece)
        workers.wait_idle()


@pytest.mark.parametrize("buffers", [9, 16])
def test_more_streams_than_buffers(buffers: int, workers: Workers) -> None:
    """Those that get no buffer wait, in whatever state they are, and all of them finish."""
    workers.set(buffers=buffers)
    size, streams = MIB, 24
    with Server() as server:
        workers.put(SERVICE, [server.address])
        failures: list[BaseException] = []

        def serve(upstream: Stream) -> None:
            try:
                while upstream.read_until(b"\r\n\r\n"):
                    body = upstream.read(size)
                    upstream.send(head("HTTP/1.1 200 OK", f"Content-Length: {size}") + body)
            except EOFError:
                pass
            except BaseException as failure:
                failures.append(failure)

        def accept() -> None:
            while True:
                try:
                    upstream = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(upstream,)).start()

        def call(number: int) -> None:
            body = NOISE[number * MIB : number * MIB + size]
            try:
                with workers.connect() as client:
                    for _ in range(3):
                        client.send(head("POST / HTTP/1.1", "Host: svc", f"Content-Length: {size}") + body)
                        assert client.read_response().body == body
            except BaseException as failure:
                failures.append(failure)

        threading.Thread(target=accept, daemon=True).start()
        callers = [threading.Thread(target=call, args=(number,)) for number in range(streams)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(DEADLINE)
        assert not failures
        assert not any(caller.is_alive() for caller in callers)
        workers.wait_idle()
