"""Multiplexed connections under pressure: slow readers, full queues, silent servers, draining, idle connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from bolt_frames import BUSY, CLOSED, HEARTBEAT, SUCCESS, TIMEOUT, read_frame, request, response
from core_worker import DRAIN, Server, Workers, was_reset
from harness import Stream

A = "com.x.a:1.0"
MIB = 1 << 20


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def workers(server: Server) -> Iterator[Workers]:
    with Workers(listeners=[{"protocol": "bolt"}, {}], settings={"eject_failures": 0}) as workers:
        workers.put(A, [server.address], protocol="bolt")
        yield workers


def call(client: Stream, id: int, content: bytes = b"", **fields: int) -> None:
    client.send(request(id, A, content, **fields))


def narrow(stream: Stream) -> None:
    """Little fits on the way to this end."""
    stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, 4096)


def send_what_fits(stream: Stream, data: bytes) -> bytes:
    """Send without waiting; return what is left."""
    stream.socket.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while data:
            data = data[stream.socket.send(data) :]
    stream.socket.settimeout(20)
    return data


def test_a_caller_that_does_not_read_takes_bounded_memory_and_is_left_at_last(workers: Workers, server: Server) -> None:
    workers.set(header_ms=2000)
    slow, other = workers.connect(), workers.connect()
    narrow(slow)
    call(other, 1)
    upstream = server.accept()
    first = read_frame(upstream)
    for id in range(400):
        call(slow, id, timeout=60_000)
    frames = [read_frame(upstream) for _ in range(400)]
    before = workers.memory(kind="Rss")
    answers = b"".join(response(frame, bytes(60_000)) for frame in frames) + response(first, b"for the other")
    left = send_what_fits(upstream, answers)
    workers.settle()
    assert left, "the answers fitted on the way"
    assert workers.memory(kind="Rss") - before < 4 * MIB
    # They stand between the other caller and his answer, until the worker loses patience.
    upstream.send(left)
    assert read_frame(other).content == b"for the other"
    assert was_reset(slow)
    workers.wait_for(timeout_idle=1, downstreams=1, calls=0)


def test_a_long_response_that_is_not_read_leaves_new_calls_free(workers: Workers, server: Server) -> None:
    slow, other = workers.connect(), workers.connect()
    narrow(slow)
    call(slow, 1)
    upstream = server.accept()
    answer = response(read_frame(upstream), bytes(64 * MIB))
    left = send_what_fits(upstream, answer)
    workers.settle()
    assert left
    call(other, 2)
    upstream = server.accept()  # a second connection: the first is busy
    upstream.send(response(read_frame(upstream), b"quick"))
    assert read_frame(other).content == b"quick"


def test_a_long_request_that_is_not_taken_leaves_other_callers_free(workers: Workers, server: Server) -> None:
    slow, other = workers.connect(), workers.connect()
    left = send_what_fits(slow, request(1, A, bytes(64 * MIB)))
    upstream = server.accept()
    workers.settle()
    assert left
    call(other, 2)
    second = server.accept()
    second.send(response(read_frame(second), b"quick"))
    assert read_frame(other).content == b"quick"
    upstream.close()
    assert read_frame(slow).status == CLOSED
    slow.send(left)  # thrown away
    call(slow, 3)
    second.send(response(read_frame(second), b"again"))
    assert read_frame(slow).content == b"again"


def test_a_server_that_does_not_read_is_called_overloaded(workers: Workers, server: Server) -> None:
    client = workers.connect()
    call(client, 0)
    narrow(server.accept())
    left = send_what_fits(client, b"".join(request(id, A, bytes(50_000), timeout=60_000) for id in range(1, 500)))
    assert left
    assert read_frame(client).status == BUSY
    client.send(left)
    assert read_frame(client).status == BUSY


def test_a_burst_is_not_an_overload(workers: Workers, server: Server) -> None:
    count = 10_000
    client = workers.connect()
    burst = b"".join(request(id, A, bytes(500), timeout=60_000) for id in range(count))
    sender = threading.Thread(target=client.send, args=(burst,))
    sender.start()
    upstream = server.accept()
    reader = threading.Thread(
        target=lambda: [upstream.send(response(read_frame(upstream), b"done")) for _ in range(count)]
    )
    reader.start()
    frames = [read_frame(client) for _ in range(count)]
    assert {frame.status for frame in frames} == {SUCCESS}
    assert {frame.id for frame in frames} == set(range(count))
    sender.join()
    reader.join()


def test_a_silent_server_is_asked_for_a_sign_of_life_and_then_left(workers: Workers, server: Server) -> None:
    client = workers.connect()
    call(client, 1, timeout=100)
    call(client, 2, timeout=60_000)
    upstream = server.accept()
    for _ in range(2):
        read_frame(upstream)
    assert read_frame(client).status == TIMEOUT
    ping = read_frame(upstream)
    assert ping.command == 0
    answer = read_frame(client)  # nothing came, so the other call is given up as well
    assert (answer.id, answer.status) == (2, CLOSED)
    assert upstream.read_all() == b""


def test_a_silent_server_that_answers_the_question_stays(workers: Workers, server: Server) -> None:
    client = workers.connect()
    call(client, 1, timeout=100)
    upstream = server.accept()
    read_frame(upstream)
    assert read_frame(client).status == TIMEOUT
    ping = read_frame(upstream)
    upstream.send(HEARTBEAT[:1] + b"\x00\x00\x00\x01" + ping.id.to_bytes(4, "big") + b"\x01" + bytes(10))
    call(client, 2)
    upstream.send(response(read_frame(upstream), b"here"))
    assert read_frame(client).content == b"here"


def test_a_draining_worker_finishes_calls_and_closes_at_a_frame_boundary(workers: Workers, server: Server) -> None:
    busy, idle, partial = workers.connect(), workers.connect(), workers.connect()
    call(busy, 1)
    upstream = server.accept()
    first = read_frame(upstream)
    idle.send(HEARTBEAT)
    read_frame(idle)
    late = request(9, A, b"in two pieces")
    partial.send(late[:20])
    workers.settle()
    workers.send(0, DRAIN)
    assert idle.read_all() == b""
    partial.send(late[20:])
    second = read_frame(upstream)
    call(busy, 2)
    third = read_frame(upstream)
    for frame in (third, second, first):
        upstream.send(response(frame))
    assert [read_frame(busy).id for _ in range(2)] == [2, 1]
    assert read_frame(partial).id == 9
    assert busy.read_all() == partial.read_all() == b""
    assert workers.wait_exit(0) == 0


def test_a_caller_that_ends_its_side_still_gets_its_answers(workers: Workers, server: Server) -> None:
    client = workers.connect()
    call(client, 1)
    client.end()
    upstream = server.accept()
    frame = read_frame(upstream)
    workers.settle()
    upstream.send(response(frame, b"here"))
    assert read_frame(client).content == b"here"
    assert client.read_all() == b""
    workers.wait_for(downstreams=0)


def test_idle_connections_hold_no_buffer(workers: Workers, server: Server) -> None:
    clients = [workers.connect() for _ in range(50)]
    upstream: Stream | None = None
    for client in clients:
        call(client, 1, bytes(10_000))
    for _ in clients:
        upstream = upstream or server.accept()
        upstream.send(response(read_frame(upstream), bytes(10_000)))
    assert {read_frame(client).status for client in clients} == {SUCCESS}
    workers.wait_for(buffers=0, pipes=0, calls=0, upstreams=1)


@pytest.mark.parametrize("cut", [1, 22, 60, 69_999])
def test_a_frame_that_does_not_end_ends_its_connection(workers: Workers, server: Server, cut: int) -> None:
    workers.set(header_ms=200)
    client = workers.connect()
    client.send(request(1, A, bytes(100_000))[:cut])
    with contextlib.suppress(ConnectionResetError):
        assert client.read_all() == b""
    workers.wait_for(timeout_header=1, downstreams=0, buffers=0, calls=0)
