"""Frames for an application that serves everything alone pass through with their callers' ids, until that ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import bolt_frames
import dubbo_frames
from core_worker import Server, Workers
from harness import Raw, Stream, free_port

A, B = "com.x.a", "com.x.b"
LONG = 300_000


class Bolt:
    NAME = "bolt"
    OK, CLOSED = bolt_frames.SUCCESS, bolt_frames.CLOSED
    HEADER = 22

    @staticmethod
    def request(id: int, service: str, size: int = 10) -> bytes:
        return bolt_frames.request(id, service, bytes(size), version=2, crc=True)

    read = staticmethod(bolt_frames.read_frame)
    response = staticmethod(bolt_frames.response)


class Dubbo:
    NAME = "dubbo"
    OK, CLOSED = dubbo_frames.OK, 70
    HEADER = 16

    @staticmethod
    def request(id: int, service: str, size: int = 10) -> bytes:
        return dubbo_frames.request(id, service, content="x" * min(size, 1000))

    read = staticmethod(dubbo_frames.read_frame)

    @staticmethod
    def response(to: dubbo_frames.DubboFrame, content: bytes = b"") -> bytes:
        return dubbo_frames.response(to, content.decode())


Protocol = type[Bolt] | type[Dubbo]


@pytest.fixture(params=[Bolt, Dubbo])
def protocol(request: pytest.FixtureRequest) -> Protocol:
    return request.param


@pytest.fixture
def application() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def workers(protocol: Protocol, application: Server) -> Iterator[Workers]:
    with Workers(listeners=[{"direction": "inbound", "protocol": "auto"}, {}]) as workers:
        put(workers, protocol, A, application, single=True)
        yield workers


def put(workers: Workers, protocol: Protocol, service: str, server: Server, *, single: bool) -> None:
    workers.put(service, [server.address], protocol=protocol.NAME, direction="inbound", single=single)


def passes(protocol: Protocol, client: Raw, application: Stream, id: int, size: int = 10) -> None:
    client.send(protocol.request(id, A, size))
    frame = protocol.read(application)
    assert frame.id == id
    application.send(protocol.response(frame))
    answer = protocol.read(client)
    assert (answer.id, answer.status) == (id, protocol.OK)


def test_ids_and_bytes_stay_as_they_are(workers: Workers, protocol: Protocol, application: Server) -> None:
    client = workers.connect()
    client.send(protocol.request(1, A))
    upstream = application.accept()
    upstream.send(protocol.response(protocol.read(upstream)))
    assert protocol.read(client).id == 1
    for id, size in ((2, 10), (3, LONG), (4, 20_000), (5, 3 * LONG)):
        passes(protocol, client, upstream, id, size)
    whole = protocol.request(6, A, 100)
    for at in range(1, len(whole), 7):
        workers.send_split(client, whole, at)
        frame = protocol.read(upstream)
        workers.send_split(upstream, protocol.response(frame, b"x" * 50), at % 60 + 1)
        assert protocol.read(client).id == 6
    assert workers.counters()["upstream_connects"] == 1


def test_it_ends_between_frames_when_a_second_application_comes(
    workers: Workers, protocol: Protocol, application: Server
) -> None:
    client = workers.connect()
    client.send(protocol.request(1, A) + protocol.request(2, A, LONG)[: protocol.HEADER])
    upstream = application.accept()
    first = protocol.read(upstream)
    with Server() as second:
        put(workers, protocol, A, application, single=False)
        put(workers, protocol, B, second, single=False)
        client.send(protocol.request(2, A, LONG)[protocol.HEADER :])
        frame = protocol.read(upstream)
        assert frame.id == 2
        client.send(protocol.request(3, B) + protocol.request(4, A))
        workers.settle()
        assert not second.pending()  # the first two are not answered yet
        upstream.send(protocol.response(frame) + protocol.response(first))
        assert [protocol.read(client).id for _ in range(2)] == [2, 1]
        other = second.accept()
        other.send(protocol.response(protocol.read(other)))
        assert protocol.read(client).id == 3
        again = application.accept()
        again.send(protocol.response(protocol.read(again)))
        assert protocol.read(client).id == 4
        assert upstream.read_all() == b""


def test_a_draining_worker_ends_it_without_losing_a_call(
    workers: Workers, protocol: Protocol, application: Server
) -> None:
    client = workers.connect()
    client.send(protocol.request(1, A))
    upstream = application.accept()
    frame = protocol.read(upstream)
    workers.drain()
    client.send(protocol.request(2, A))
    upstream.send(protocol.response(frame))
    assert protocol.read(client).id == 1
    if protocol is Dubbo:
        assert protocol.read(client).body == dubbo_frames.READONLY
    again = application.accept()
    again.send(protocol.response(protocol.read(again)))
    assert protocol.read(client).id == 2
    assert client.read_all() == b""
    assert workers.wait_exit(0) == 0


def test_an_application_that_is_down_is_told_in_a_frame(workers: Workers, protocol: Protocol) -> None:
    workers.put(A, [("127.0.0.1", free_port())], protocol=protocol.NAME, direction="inbound", single=True)
    client = workers.connect()
    for id in (1, 2):
        client.send(protocol.request(id, A))
        answer = protocol.read(client)
        assert answer.id == id
        assert answer.status != protocol.OK


def test_a_malformed_frame_ends_its_connection(workers: Workers, protocol: Protocol, application: Server) -> None:
    client = workers.connect()
    client.send(protocol.request(1, A) + b"\x99 nonsense, and enough of it to be a whole header")
    assert protocol.read(application.accept()).id == 1
    with pytest.raises(ConnectionResetError):
        client.read_all()
    workers.wait_idle()
