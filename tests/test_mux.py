"""Multiplexed protocols through real workers: Bolt frames whose every byte is the test's own."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from bolt_frames import (
    CLOSED,
    HEARTBEAT,
    NO_PROCESSOR,
    ONEWAY,
    SUCCESS,
    TIMEOUT,
    BoltFrame,
    read_frame,
    request,
    response,
)
from core_worker import Server, Workers
from harness import Stream, free_port

A, B = "com.x.a:1.0", "com.x.b:1.0"
MIB = 1 << 20


@pytest.fixture
def servers() -> Iterator[tuple[Server, Server]]:
    with Server() as a, Server() as b:
        yield a, b


@pytest.fixture
def workers(servers: tuple[Server, Server]) -> Iterator[Workers]:
    with Workers(listeners=[{"protocol": "bolt"}, {}]) as workers:
        put(workers, A, servers[0])
        put(workers, B, servers[1])
        yield workers


def put(workers: Workers, service: str, *servers: Server, **policy: object) -> None:
    workers.put(service, [server.address for server in servers], **{"protocol": "bolt"} | policy)


def ask(stream: Stream, id: int, service: str, content: bytes = b"hello", **fields: object) -> None:
    stream.send(request(id, service, content, **fields))


def answered(stream: Stream, id: int, content: bytes | None = None, status: int = SUCCESS) -> BoltFrame:
    frame = read_frame(stream)
    assert (frame.id, frame.status) == (id, status)
    if content is not None:
        assert frame.content == content
    return frame


def test_each_request_of_a_connection_is_routed_by_itself(workers: Workers, servers: tuple[Server, Server]) -> None:
    client = workers.connect()
    client.send(request(1, A, b"to a") + request(2, B, b"to b") + request(3, A, b"to a again"))
    a, b = (server.accept() for server in servers)
    first, second = read_frame(a), read_frame(a)
    other = read_frame(b)
    assert [frame.content for frame in (first, second, other)] == [b"to a", b"to a again", b"to b"]
    a.send(response(second, b"3"))
    answered(client, 3, b"3")
    b.send(response(other, b"2"))
    answered(client, 2, b"2")
    a.send(response(first, b"1"))
    answered(client, 1, b"1")


def test_the_service_is_named_in_any_case(workers: Workers, servers: tuple[Server, Server]) -> None:
    name = "".join(map(chr, range(33, 127)))
    client = workers.connect()
    for shift in range(8):
        rotated = name[shift:] + name[:shift]
        put(workers, rotated.lower(), servers[0])
        ask(client, shift, rotated)
    upstream = servers[0].accept()
    assert [read_frame(upstream).content for _ in range(8)] == [b"hello"] * 8


def test_callers_share_a_connection_and_get_their_own_ids_back(
    workers: Workers, servers: tuple[Server, Server]
) -> None:
    clients = [workers.connect() for _ in range(5)]
    for client in clients:
        ask(client, 7, A)
    upstream = servers[0].accept()
    frames = [read_frame(upstream) for _ in clients]
    assert len({frame.id for frame in frames}) == len(clients)
    for frame in reversed(frames):
        upstream.send(response(frame, frame.content))
    for client in clients:
        answered(client, 7, b"hello")
    assert workers.counters()["upstreams"] == 1
    assert workers.counters()["calls"] == 0


def test_heartbeats_are_answered_by_the_sidecar(workers: Workers) -> None:
    client = workers.connect()
    client.send(HEARTBEAT)
    frame = read_frame(client)
    assert (frame.kind, frame.command, frame.id, frame.status) == (0, 0, 77, SUCCESS)
    assert workers.counters()["upstreams"] == 0


def test_one_way_calls_are_forwarded_and_never_answered(workers: Workers, servers: tuple[Server, Server]) -> None:
    client = workers.connect()
    ask(client, 1, A, b"note", kind=ONEWAY)
    ask(client, 2, "com.x.unknown:1.0", kind=ONEWAY)
    ask(client, 3, "com.x.unknown:1.0")
    answered(client, 3, status=NO_PROCESSOR)
    frame = read_frame(servers[0].accept())
    assert (frame.kind, frame.content) == (ONEWAY, b"note")
    assert workers.counters()["calls"] == 0


@pytest.mark.parametrize(("version", "crc"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("size", [0, 300, 60_000, 70_000, 3 * MIB + 17])
def test_frames_of_any_size_pass(
    workers: Workers, servers: tuple[Server, Server], version: int, crc: bool, size: int
) -> None:
    content = random.Random(size).randbytes(size)
    client = workers.connect()
    ask(client, 5, A, content, version=version, crc=crc)
    upstream = servers[0].accept()
    frame = read_frame(upstream)
    assert frame.content == content
    upstream.send(response(frame, content[::-1]))
    answered(client, 5, content[::-1])
    ask(client, 6, A, b"small", version=version, crc=crc)
    frame = read_frame(upstream)
    upstream.send(response(frame, b"done"))
    answered(client, 6, b"done")
    assert workers.counters()["upstreams"] == 1


def test_a_timeout_is_the_callers_own_and_the_late_response_is_dropped(
    workers: Workers, servers: tuple[Server, Server]
) -> None:
    client = workers.connect()
    ask(client, 1, A, timeout=150)
    upstream = servers[0].accept()
    late = read_frame(upstream)
    answered(client, 1, status=TIMEOUT)
    frame = read_frame(upstream)  # is it alive?
    assert frame.command == 0
    ask(client, 2, A)
    upstream.send(response(late, b"late"))
    frame = read_frame(upstream)
    upstream.send(response(frame, b"in time"))
    answered(client, 2, b"in time")
    assert workers.counters()["late_responses"] == 1


def test_what_was_sent_on_a_connection_that_ends_is_answered_and_never_sent_twice(
    workers: Workers, servers: tuple[Server, Server]
) -> None:
    put(workers, A, *servers)
    client = workers.connect()
    ask(client, 1, A)
    ask(client, 2, A, b"x" * 100_000)
    upstreams = [server.accept() for server in servers]
    frames = [read_frame(upstream) for upstream in upstreams]
    for upstream in upstreams:
        upstream.close()
    assert {read_frame(client).status for _ in frames} == {CLOSED}
    assert not any(server.pending() for server in servers)


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_refused_connect_is_tried_elsewhere(workers: Workers, servers: tuple[Server, Server], size: int) -> None:
    workers.put(A, [("127.0.0.1", free_port()), servers[0].address], protocol="bolt")
    client = workers.connect()
    for id in range(4):
        ask(client, id, A, b"x" * size)
        if size > 10 or id == 0:
            upstream = servers[0].accept()
        frame = read_frame(upstream)
        assert frame.content == b"x" * size
        if size == 10:
            upstream.send(response(frame))
            answered(client, id)
    assert workers.counters()["retries"] > 0


def test_requests_that_waited_for_a_connect_in_vain_go_elsewhere(
    workers: Workers, servers: tuple[Server, Server]
) -> None:
    with socket.socket() as full:  # a connect to it neither succeeds nor fails
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        with socket.create_connection(full.getsockname()):
            workers.set(connect_ms=300)
            workers.put(A, [full.getsockname(), servers[0].address], protocol="bolt", balance="hash_source")
            clients = [workers.connect(source=f"127.0.0.{number}") for number in range(1, 21)]
            for client in clients:
                ask(client, 1, A)
            upstream = servers[0].accept()
            for _ in clients:
                upstream.send(response(read_frame(upstream)))
            for client in clients:
                answered(client, 1)
    assert workers.counters()["timeout_connect"] == 1
    assert workers.counters()["retries"] > 1


def test_without_an_endpoint_a_call_fails_at_once(workers: Workers) -> None:
    workers.put(A, [], protocol="bolt")
    workers.put(B, [("127.0.0.1", free_port())], protocol="bolt")
    client = workers.connect()
    ask(client, 1, A)
    answered(client, 1, status=NO_PROCESSOR)
    ask(client, 2, B)
    answered(client, 2, status=CLOSED)
    ask(client, 3, B, b"x" * 100_000)
    answered(client, 3, status=CLOSED)
    ask(client, 4, A, b"x" * 100_000)
    answered(client, 4, status=NO_PROCESSOR)


def test_a_malformed_frame_ends_its_own_connection_only(workers: Workers, servers: tuple[Server, Server]) -> None:
    good, bad = workers.connect(), workers.connect()
    ask(good, 1, A)
    upstream = servers[0].accept()
    frame = read_frame(upstream)
    bad.send(b"\x01\x07 not bolt at all, is it?")
    assert bad.read_all() == b""
    assert sum(workers.counters()["frame_rejects"].values()) == 1
    upstream.send(response(frame))
    answered(good, 1)


def test_a_caller_that_leaves_does_not_disturb_the_others(workers: Workers, servers: tuple[Server, Server]) -> None:
    stays, leaves = workers.connect(), workers.connect()
    ask(leaves, 1, A, b"leaves")
    upstream = servers[0].accept()
    first = read_frame(upstream)
    ask(stays, 1, A, b"stays")
    second = read_frame(upstream)
    leaves.reset()
    workers.wait_for(downstreams=1)
    upstream.send(response(first, b"nobody") + response(second, b"stays"))
    answered(stays, 1, b"stays")
    assert workers.counters()["late_responses"] == 1
