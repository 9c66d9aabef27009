"""HTTP/1.1 through a real worker, byte by byte on both sides: what is forwarded, to whom, and in which framing.

Sources: RFC 9112 (HTTP/1.1), RFC 9110 7.6.1 (Connection), 7.8 (Upgrade), 10.1.1 (Expect), 15.2 (1xx).
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core_worker import SERVICE, Server, Workers, exact, head
from harness import Raw, Stream, chunked, free_port

REQUEST = head("GET / HTTP/1.1", "Host: svc")
OK = head("HTTP/1.1 200 OK", "Content-Length: 2") + b"ok"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def workers(server: Server) -> Iterator[Workers]:
    """One worker that knows one service with one endpoint."""
    with Workers({SERVICE: [server.address]}) as running:
        yield running


@pytest.fixture
def client(workers: Workers) -> Iterator[Raw]:
    with workers.connect() as connected:
        yield connected


def forward(client: Raw, server: Server, request: bytes, seen: bytes | None = None) -> Stream:
    """Send a request; assert what the server sees of it (by default the same bytes) and return the server's side."""
    client.send(request)
    upstream = server.accept()
    exact(upstream, request if seen is None else seen)
    return upstream


# Routing


def test_each_request_of_a_connection_goes_to_its_own_service() -> None:
    with Server() as a, Server() as b, Workers({"a": [a.address], "b": [b.address]}) as workers:
        with workers.connect() as client:
            upstreams: dict[str, Stream] = {}
            for service, server in [("a", a), ("b", b), ("b", b), ("a", a), ("b", b), ("a", a)]:
                request = head(f"GET /{service} HTTP/1.1", f"Host: {service}")
                client.send(request)
                upstream = upstreams.setdefault(service, upstreams.get(service) or server.accept())
                exact(upstream, request)
                answer = head("HTTP/1.1 200 OK", "Content-Length: 1") + service.encode()
                upstream.send(answer)
                exact(client, answer)
            assert workers.silent(client, *upstreams.values())
        workers.wait_for(upstream_connects=2, upstream_reuses=4, downstreams=0)


@pytest.mark.parametrize("host", ["svc", "SVC", "Svc:8080"])
def test_the_service_is_the_host_without_port_in_any_case(host: str, server: Server, client: Raw) -> None:
    forward(client, server, head("GET / HTTP/1.1", f"Host: {host}")).send(OK)
    exact(client, OK)


def test_a_configured_header_names_the_service_before_the_host(server: Server) -> None:
    with (
        Workers({SERVICE: [server.address]}, listeners=[{"service_header": "x-service"}]) as workers,
        workers.connect() as client,
    ):
        request = head("GET / HTTP/1.1", "Host: example.org", "x-SERVICE: Svc")
        upstream = forward(client, server, request)
        upstream.send(OK)
        exact(client, OK)
        client.send(REQUEST)
        exact(upstream, REQUEST)


def test_an_inbound_listener_has_services_of_its_own(server: Server) -> None:
    listeners = [{"direction": "outbound"}, {"direction": "inbound"}]
    with Server() as local, Workers({SERVICE: [server.address]}, listeners=listeners) as workers:
        workers.put(SERVICE, [local.address], direction="inbound")
        for listener, target in enumerate((server, local)):
            with workers.connect(listener) as client:
                forward(client, target, REQUEST).send(OK)
                exact(client, OK)


def test_ipv6_listeners_and_endpoints() -> None:
    with (
        Server("::1") as server,
        Workers({SERVICE: [server.address]}, listeners=[{"bind": f"[::1]:{free_port()}"}]) as workers,
        workers.connect() as client,
    ):
        forward(client, server, REQUEST).send(OK)
        exact(client, OK)
        kinds = {each["kind"]: each["address"] for each in workers.connections()}
        assert kinds["http upstream"] == f"[::1]:{server.address[1]}"
        assert kinds["http downstream"] == f"[::1]:{client.socket.getsockname()[1]}"


# What is forwarded


def test_heads_and_bodies_are_forwarded_byte_for_byte(workers: Workers, server: Server, client: Raw) -> None:
    request = head(
        "BREW /pot?milk=%20&x=/../ HTTP/1.1",
        "hOsT: svc",
        "X-Twice: 1",
        "Accept:text/plain",
        "x-twice: \t 2 \t",
        "X-Empty:",
        "X-Bytes: \xe4\xf6\xfc\x80\xff",
        "Content-Length: 5",
    )
    upstream = forward(client, server, request + b"\0\r\n\r\n")
    answer = head(
        "HTTP/1.1 299 Out of \xa3 coffee", "set-cookie: a", "Set-Cookie: b", "X-Odd:\t\xff", "content-length: 3"
    )
    upstream.send(answer + b"\r\n\0")
    exact(client, answer + b"\r\n\0")
    assert workers.silent(client, upstream)


def test_a_status_line_without_reason_is_forwarded(server: Server, client: Raw) -> None:
    answer = head("HTTP/1.1 200 ", "Content-Length: 0")
    forward(client, server, REQUEST).send(answer)
    exact(client, answer)


def test_hop_by_hop_fields_of_a_request_stay_here(server: Server, client: Raw) -> None:
    request = head(
        "GET / HTTP/1.1",
        "Keep-Alive: timeout=5",
        "X-Private: 1",
        "Host: svc",
        "Connection: keep-alive, x-private",
        "Proxy-Connection: keep-alive",
        "Connection:X-OTHER,,",
        "Accept: */*",
        "TE: trailers",
        "Upgrade: h2c",
        "x-other: 2",
        "X-private: 3",
        "Trailer: X-Sum",
        "X-Private-Not: 4",
    )
    seen = head("GET / HTTP/1.1", "Host: svc", "Accept: */*", "Trailer: X-Sum", "X-Private-Not: 4")
    forward(client, server, request, seen).send(OK)
    exact(client, OK)


def test_hop_by_hop_fields_of_a_response_stay_here(server: Server, client: Raw) -> None:
    answer = head(
        "HTTP/1.1 200 OK",
        "Connection: X-Private, keep-alive",
        "Server: origin",
        "X-Private: 1",
        "Keep-Alive: timeout=5, max=100",
        "Proxy-Connection: keep-alive",
        "Upgrade: h2c",
        "Content-Length: 2",
    )
    upstream = forward(client, server, REQUEST)
    upstream.send(answer + b"ok")
    exact(client, head("HTTP/1.1 200 OK", "Server: origin", "Content-Length: 2") + b"ok")
    client.send(REQUEST)
    exact(upstream, REQUEST)


def test_the_clients_close_is_answered_and_the_servers_connection_stays(workers: Workers, server: Server) -> None:
    with workers.connect() as client:
        upstream = forward(client, server, head("GET / HTTP/1.1", "Host: svc", "Connection: close"), REQUEST)
        upstream.send(OK)
        exact(client, head("HTTP/1.1 200 OK", "Connection: close", "Content-Length: 2") + b"ok")
        assert client.read_all() == b""
    with workers.connect() as client:
        client.send(REQUEST)
        exact(upstream, REQUEST)
        upstream.send(OK)
        exact(client, OK)


def test_the_servers_close_does_not_end_the_clients_connection(server: Server, client: Raw) -> None:
    for _ in range(3):
        upstream = forward(client, server, REQUEST)
        upstream.send(head("HTTP/1.1 200 OK", "Connection: close", "Content-Length: 2") + b"ok")
        exact(client, OK)
        assert upstream.read_all() == b""


# Pipelining


def test_pipelined_requests_are_answered_in_order(workers: Workers, client: Raw, server: Server) -> None:
    requests = [head(f"GET /{number} HTTP/1.1", "Host: svc") for number in range(200)]
    client.send(b"".join(requests))
    upstream = server.accept()
    for number, request in enumerate(requests):
        exact(upstream, request)
        assert workers.silent(upstream)
        body = b"answer %d" % number
        upstream.send(head("HTTP/1.1 200 OK", f"Content-Length: {len(body)}") + body)
    for number in range(200):
        assert client.read_response().body == b"answer %d" % number
    assert workers.silent(client, upstream)
    workers.wait_for(upstream_connects=1, upstream_reuses=199)


def test_pipelined_requests_split_at_every_byte(workers: Workers, server: Server, client: Raw) -> None:
    first = head("POST /1 HTTP/1.1", "Host: svc", "Content-Length: 7") + b"\r\n\r\nabc"
    second = head("PUT /2 HTTP/1.1", "Host: svc", "Transfer-Encoding: chunked") + chunked(
        [b"de", b"f"], [("X-Sum", "1")]
    )
    both = b"\r\n" + first + second
    upstream = None
    for at in range(1, len(both)):
        workers.send_split(client, both, at)
        upstream = upstream or server.accept()
        for request in (first, second):
            exact(upstream, request)
            upstream.send(OK)
        exact(client, OK + OK)
    assert workers.silent(client)


# Framing


def test_chunked_messages_keep_extensions_and_trailers(server: Server, client: Raw) -> None:
    body = b'003;a=b;c="d\\";"\r\nabc\r\n1\r\n\n\r\n00\r\nX-Sum: 1\r\nx-sum: \t2\r\n\r\n'
    request = head("POST / HTTP/1.1", "Host: svc", "transfer-encoding: Chunked", "Trailer: X-Sum") + body
    answer = head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + body
    for _ in range(2):
        upstream = forward(client, server, request)
        upstream.send(answer)
        exact(client, answer)
        client.send(request)
        exact(upstream, request)
        upstream.send(head("HTTP/1.1 200 OK", "Connection: close", "Content-Length: 2") + b"ok")
        exact(client, OK)


def test_a_chunked_response_split_at_every_byte(workers: Workers, server: Server, client: Raw) -> None:
    answer = head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + chunked([b"abc", b"\r\n0"], [("X-Sum", "1")])
    upstream = None
    for at in range(1, len(answer)):
        client.send(REQUEST)
        upstream = upstream or server.accept()
        exact(upstream, REQUEST)
        workers.send_split(upstream, answer, at)
        exact(client, answer)
    assert workers.silent(client)


def test_body_bytes_are_forwarded_as_they_come(server: Server, client: Raw) -> None:
    """Streaming: neither side waits for the end of a message."""
    request = head("POST / HTTP/1.1", "Host: svc", "Transfer-Encoding: chunked")
    upstream = forward(client, server, request)
    for part in (b"1", b"\r", b"\na\r\n5\r\nxy", b"z"):
        client.send(part)
        exact(upstream, part)
    answer = head("HTTP/1.1 200 OK", "Content-Length: 3")
    client.send(b"..\r\n0\r\n\r\n")
    exact(upstream, b"..\r\n0\r\n\r\n")
    for part in (answer, b"a", b"b", b"c"):
        upstream.send(part)
        exact(client, part)


def test_the_answer_to_head_has_no_body(server: Server, client: Raw) -> None:
    request = head("HEAD / HTTP/1.1", "Host: svc")
    upstream = forward(client, server, request)
    for field in ("Content-Length: 1000", "Transfer-Encoding: chunked", "X-Nothing: 1"):
        answer = head("HTTP/1.1 200 OK", field)
        upstream.send(answer)
        exact(client, answer)
        client.send(request)
        exact(upstream, request)


@pytest.mark.parametrize(
    "answer",
    [
        head("HTTP/1.1 204 No Content"),
        head("HTTP/1.1 304 Not Modified", "ETag: x"),
        head("HTTP/1.1 304 Not Modified", "Content-Length: 1000"),
    ],
)
def test_responses_without_content(answer: bytes, server: Server, client: Raw) -> None:
    upstream = forward(client, server, REQUEST)
    upstream.send(answer)
    exact(client, answer)
    client.send(REQUEST)
    exact(upstream, REQUEST)


def test_a_response_until_close_ends_the_clients_connection(workers: Workers, server: Server, client: Raw) -> None:
    upstream = forward(client, server, REQUEST)
    upstream.send(head("HTTP/1.1 200 OK", "Server: origin"))
    exact(client, head("HTTP/1.1 200 OK", "Connection: close", "Server: origin"))
    for part in (b"a", b"bc"):
        upstream.send(part)
        exact(client, part)
    assert workers.silent(client)
    upstream.close()
    assert client.read_all() == b""
    client.close()
    workers.wait_for(downstreams=0, upstreams=0)


# 1xx


def test_expect_100_continue(workers: Workers, server: Server, client: Raw) -> None:
    request = head("POST / HTTP/1.1", "Host: svc", "Expect: 100-continue", "Content-Length: 4")
    upstream = forward(client, server, request)
    assert workers.silent(client)
    interim = head("HTTP/1.1 100 Continue")
    upstream.send(interim)
    exact(client, interim)
    client.send(b"body")
    exact(upstream, b"body")
    upstream.send(OK)
    exact(client, OK)
    client.send(REQUEST)
    exact(upstream, REQUEST)


def test_a_final_response_before_the_expected_body_ends_both_connections(server: Server, client: Raw) -> None:
    """RFC 9110 10.1.1: it is unclear whether the body will come, so the connection has no further use."""
    upstream = forward(
        client, server, head("POST / HTTP/1.1", "Host: svc", "Expect: 100-continue", "Content-Length: 4")
    )
    upstream.send(head("HTTP/1.1 417 Expectation Failed", "Content-Length: 2") + b"no")
    exact(client, head("HTTP/1.1 417 Expectation Failed", "Connection: close", "Content-Length: 2") + b"no")
    assert client.read_all() == b""
    assert upstream.read_all() == b""


def test_interim_responses_are_forwarded(server: Server, client: Raw) -> None:
    upstream = forward(client, server, REQUEST)
    hints = head("HTTP/1.1 103 Early Hints", "Link: </a.css>; rel=preload", "Connection: X-Private", "X-Private: 1")
    seen = head("HTTP/1.1 103 Early Hints", "Link: </a.css>; rel=preload")
    upstream.send(hints)
    exact(client, seen)
    upstream.send(hints + hints + OK)
    exact(client, seen + seen + OK)
    client.send(REQUEST)
    exact(upstream, REQUEST)


def test_a_client_of_http_1_0_gets_no_interim_response(server: Server, client: Raw) -> None:
    upstream = forward(client, server, head("GET / HTTP/1.0", "Host: svc"))
    upstream.send(head("HTTP/1.1 103 Early Hints") + OK)
    exact(client, head("HTTP/1.1 200 OK", "Connection: close", "Content-Length: 2") + b"ok")
    assert client.read_all() == b""


# HTTP/1.0


def test_http_1_0_closes_after_the_response(server: Server, client: Raw) -> None:
    forward(client, server, head("GET / HTTP/1.0", "Host: svc")).send(OK)
    exact(client, head("HTTP/1.1 200 OK", "Connection: close", "Content-Length: 2") + b"ok")
    assert client.read_all() == b""


def test_http_1_0_with_keep_alive(workers: Workers, server: Server, client: Raw) -> None:
    for _ in range(2):
        request = head("GET / HTTP/1.0", "Host: svc", "Connection: Keep-Alive")
        forward(client, server, request, head("GET / HTTP/1.0", "Host: svc")).send(OK)
        exact(client, head("HTTP/1.1 200 OK", "Connection: keep-alive", "Content-Length: 2") + b"ok")
    assert workers.silent(client)


def test_a_server_of_http_1_0(server: Server, client: Raw) -> None:
    """The version of a forwarded message is the forwarder's own (RFC 9110 2.5); only keep-alive makes it reusable."""
    upstream = forward(client, server, REQUEST)
    answer = head("HTTP/1.0 200 OK", "Connection: keep-alive", "Content-Length: 2") + b"ok"
    upstream.send(answer)
    exact(client, OK)
    client.send(REQUEST)
    exact(upstream, REQUEST)
    upstream.send(head("HTTP/1.0 200 OK", "Content-Length: 2") + b"ok")
    exact(client, OK)
    assert upstream.read_all() == b""
    forward(client, server, REQUEST)


# Upgrade

UPGRADE = head("GET /chat HTTP/1.1", "Host: svc", "Upgrade: websocket", "Connection: keep-alive, Upgrade", "X-Key: 1")
UPGRADE_SEEN = head("GET /chat HTTP/1.1", "Connection: Upgrade", "Host: svc", "Upgrade: websocket", "X-Key: 1")
SWITCH = head("HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: upgrade", "X-Accept: 2")
SWITCH_SEEN = head("HTTP/1.1 101 Switching Protocols", "Connection: Upgrade", "Upgrade: websocket", "X-Accept: 2")


@pytest.mark.parametrize("first_to_end", ["client", "server"])
def test_an_upgraded_connection_is_opaque(first_to_end: str, workers: Workers, server: Server, client: Raw) -> None:
    """Bytes behind both heads belong to the new protocol; each side's end is passed on by itself."""
    client.send(UPGRADE + b"\x81early")
    upstream = server.accept()
    exact(upstream, UPGRADE_SEEN)
    assert workers.silent(upstream)
    upstream.send(SWITCH + b"\x82first")
    exact(client, SWITCH_SEEN + b"\x82first")
    exact(upstream, b"\x81early")
    noise = b"GET / HTTP/1.1\r\nContent-Length: 3\nTransfer-Encoding: x\r\n\r\n\0"
    for sender, receiver in ((client, upstream), (upstream, client)):
        sender.send(noise)
        exact(receiver, noise)
    first, second = (client, upstream) if first_to_end == "client" else (upstream, client)
    first.end()
    assert second.read_all() == b""
    second.send(noise)
    exact(first, noise)
    second.end()
    assert first.read_all() == b""
    workers.wait_for(downstreams=0, upstreams=0, buffers=0)


def test_an_upgrade_that_the_server_does_not_want_is_a_plain_exchange(server: Server, client: Raw) -> None:
    upstream = forward(client, server, UPGRADE, UPGRADE_SEEN)
    upstream.send(OK)
    exact(client, OK)
    client.send(REQUEST)
    exact(upstream, REQUEST)


def test_an_upgrade_of_a_pooled_connection(server: Server, client: Raw) -> None:
    upstream = forward(client, server, REQUEST)
    upstream.send(OK)
    exact(client, OK)
    client.send(UPGRADE)
    exact(upstream, UPGRADE_SEEN)
    upstream.send(SWITCH)
    exact(client, SWITCH_SEEN)
    client.send(b"x")
    exact(upstream, b"x")
    upstream.reset()
    with pytest.raises(ConnectionResetError):
        client.read_all()
