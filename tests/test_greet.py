"""Listeners that carry every protocol: the first bytes of a connection say which it is."""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import pytest

import bolt_frames
import dubbo_frames
from core_worker import SERVICE, Server, Workers, exact, head, was_reset
from harness import Raw, free_port

GET = head("GET / HTTP/1.1", "Host: svc")
OK = head("HTTP/1.1 200 OK", "Content-Length: 2") + b"ok"
OPAQUE = b"\x05\x01\x00 who knows what this is\n"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture
def workers(server: Server) -> Iterator[Workers]:
    listeners = [{"protocol": "auto"}, {"protocol": "auto", "service": "opaque"}, {}]
    with Workers({SERVICE: [server.address]}, listeners=listeners) as workers:
        yield workers


def client_hello(name: str) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


def passes_http(client: Raw, server: Server) -> None:
    client.send(GET)
    upstream = server.accept()
    assert upstream.read_until(b"\r\n\r\n").startswith(b"GET / HTTP/1.1")
    upstream.send(OK)
    exact(client, OK)


@pytest.mark.parametrize("listener", [0, 1])
def test_one_port_carries_every_protocol(workers: Workers, server: Server, listener: int) -> None:
    passes_http(workers.connect(listener), server)
    with Server() as bolt, Server() as dubbo, Server() as tls:
        workers.put("com.x.a:1.0", [bolt.address], protocol="bolt")
        workers.put("com.x.demo", [dubbo.address], protocol="dubbo")
        workers.put("secret.example", [tls.address], protocol="tls")
        upstreams = []
        for split in (1, 3, 10, 1 << 20):
            client = workers.connect(listener)
            data = bolt_frames.request(1, "com.x.a:1.0", b"hello")
            send_in_pieces(workers, client, data, split)
            upstreams = upstreams or [bolt.accept()]
            upstream = upstreams[0]
            upstream.send(bolt_frames.response(bolt_frames.read_frame(upstream)))
            assert bolt_frames.read_frame(client).status == bolt_frames.SUCCESS
        client = workers.connect(listener)
        client.send(dubbo_frames.request(1, "com.x.Demo"))
        upstream = dubbo.accept()
        upstream.send(dubbo_frames.response(dubbo_frames.read_frame(upstream)))
        assert dubbo_frames.read_frame(client).status == dubbo_frames.OK
        for split in (2, 100, 1 << 20):
            client = workers.connect(listener)
            hello = client_hello("Secret.Example")
            send_in_pieces(workers, client, hello, split)
            upstream = tls.accept()
            exact(upstream, hello)
            upstream.send(b"whatever comes back")
            exact(client, b"whatever comes back")


def send_in_pieces(workers: Workers, client: Raw, data: bytes, size: int) -> None:
    for at in range(0, min(len(data), 4 * size), size):
        client.send(data[at : at + size])
        workers.settle()
    client.send(data[4 * size :])


def test_an_unknown_server_name_is_refused(workers: Workers) -> None:
    client = workers.connect()
    client.send(client_hello("nobody.example"))
    assert was_reset(client)
    assert workers.counters()["route_misses"] == 1


def test_what_is_none_of_them_is_told_so(workers: Workers) -> None:
    client = workers.connect()
    client.send(OPAQUE)
    assert client.read_response().status == 400


def test_opaque_bytes_go_to_the_listeners_service(workers: Workers) -> None:
    with Server() as opaque:
        workers.put("opaque", [opaque.address], protocol="tcp")
        client = workers.connect(1)
        upstream = opaque.accept()
        client.send(OPAQUE)
        exact(upstream, OPAQUE)
        upstream.send(OPAQUE[::-1])
        exact(client, OPAQUE[::-1])
        client.end()
        assert upstream.read_all() == b""


def test_a_server_that_speaks_first_is_recognised_by_that(workers: Workers) -> None:
    with Server() as opaque:
        workers.put("opaque", [opaque.address], protocol="tcp")
        client = workers.connect(1)
        upstream = opaque.accept()
        upstream.send(b"220 at your service\r\n")
        exact(client, b"220 at your service\r\n")
        client.send(GET)  # whatever it looks like now
        exact(upstream, GET)


def test_other_protocols_pass_while_the_opaque_service_is_down(workers: Workers, server: Server) -> None:
    workers.put("opaque", [("127.0.0.1", free_port())], protocol="tcp")
    client = workers.connect(1)
    workers.settle()
    passes_http(client, server)
    client = workers.connect(1)
    client.send(OPAQUE)
    assert was_reset(client)


def test_a_first_byte_that_is_not_followed_gets_408(workers: Workers) -> None:
    workers.set(header_ms=100)
    client = workers.connect()
    client.send(b"G")
    assert client.read_response().status == 408


def test_a_service_of_another_protocol_is_not_called_by_http(workers: Workers, server: Server) -> None:
    workers.put("com.x.a", [server.address], protocol="bolt")
    client = workers.connect()
    response = client.call("com.x.a")
    assert response.status == 404
    assert b"service 'com.x.a': it does not speak http" in response.body
    assert not server.pending()
