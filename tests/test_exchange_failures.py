"""What callers and servers see when something goes wrong: refusals, failed connects, retries, early ends."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from core_worker import SERVICE, Server, Workers, exact, head, was_reset
from fastside import _core
from harness import DEADLINE, Raw, Response, Stream, chunked

REQUEST = head("GET / HTTP/1.1", "Host: svc")
POST = head("POST / HTTP/1.1", "Host: svc", "Content-Length: 4") + b"body"
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


@pytest.fixture
def closed() -> Iterator[list[tuple[str, int]]]:
    """Three addresses that refuse connections: bound, so that nobody else gets them, but not listening."""
    sockets = [socket.socket() for _ in range(3)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    yield [each.getsockname() for each in sockets]
    for each in sockets:
        each.close()


def accept_either(*servers: Server) -> tuple[Server, Stream]:
    """Accept the one connection that one of the servers gets."""
    ready = select.select([server.socket for server in servers], [], [], DEADLINE)[0]
    assert len(ready) == 1
    server = next(each for each in servers if each.socket is ready[0])
    return server, server.accept()


def exchange(client: Raw, upstream: Stream, request: bytes = REQUEST) -> None:
    """One exchange that succeeds, on an upstream connection that exists already."""
    client.send(request)
    exact(upstream, request)
    upstream.send(OK)
    exact(client, OK)


# Refused messages


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (head("POST / HTTP/1.1", "Host: svc", "Content-Length: 1", "Transfer-Encoding: chunked"), 400, "both"),
        (head("POST / HTTP/1.1", "Host: svc", "Content-Length: 1", "Content-Length: 2"), 400, "content-length"),
        (head("POST / HTTP/1.1", "Host: svc", "Content-Length: +1"), 400, "content-length"),
        (head("POST / HTTP/1.1", "Host: svc", "Content-Length: 99999999999999999999"), 413, "content-length"),
        (head("GET / HTTP/1.1", "Host: svc", " folded"), 400, "folded"),
        (head("GET / HTTP/1.1", "Host : svc"), 400, "colon"),
        (head("GET / HTTP/1.1", "Accept: x"), 400, "host"),
        (head("GET / HTTP/2.0", "Host: svc"), 505, "version"),
        (head("POST / HTTP/1.1", "Host: svc", "Transfer-Encoding: gzip"), 501, "transfer-encoding"),
        (b"GET / HTTP/1.1\nHost: svc\n\n", 400, "line feed"),
        (b"GET / HTTP/1.1\r\nHost: svc\r\nX: \r \r\n\r\n", 400, "carriage return"),
        (head("POST / HTTP/1.1", "Host: svc", "Transfer-Encoding: chunked") + b"0x3\r\n", 400, "chunk size"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "method"),
    ],
)
def test_a_refused_request_is_told_why_and_reaches_nobody(
    request_: bytes, status: int, reason: str, workers: Workers, server: Server, client: Raw
) -> None:
    client.send(request_ + REQUEST)  # what follows cannot be told from the refused one's body
    response = client.read_response()
    assert response.status == status
    assert response.header("connection") == "close"
    assert reason in response.body.decode()
    assert client.read_all() == b""
    assert not server.pending()
    assert sum(workers.counters()["rejects"].values()) == 1


def test_the_refusal_reaches_a_client_that_goes_on_sending(client: Raw) -> None:
    """A reset would overtake the response (RFC 9112 9.6)."""
    client.send(head("POST / HTTP/1.1", "Host: svc", "Content-Length: x") + bytes(500_000))
    assert client.read_response().status == 400
    client.send(bytes(100_000))
    assert client.read_all() == b""


def test_the_refusal_after_a_head_request_has_its_body(server: Server, client: Raw) -> None:
    client.send(head("HEAD / HTTP/1.1", "Host: svc"))
    upstream = server.accept()
    upstream.send(OK[:-2])
    exact(client, OK[:-2])
    client.send(b"nonsense\r\n\r\n")
    assert "method" in client.read_response().body.decode()


def test_a_bad_chunk_after_a_good_one(server: Server, client: Raw) -> None:
    request = head("POST / HTTP/1.1", "Host: svc", "Transfer-Encoding: chunked") + b"1\r\na\r\n"
    client.send(request)
    upstream = server.accept()
    exact(upstream, request)
    client.send(b"zz\r\n")
    response = client.read_response()
    assert (response.status, response.header("connection")) == (400, "close")
    assert "chunk size" in response.body.decode()
    assert client.read_all() == b""
    assert upstream.read_all() in (b"", b"\r\n")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (head("HTTP/1.1 200 OK", "Content-Length: 1", "Transfer-Encoding: chunked"), "both"),
        (head("HTTP/1.1 200 OK", "Content-Length: 1", "Content-Length: 2"), "content-length"),
        (head("HTTP/1.1 200 OK", "X: 1", "\tfolded"), "folded"),
        (head("HTTP/2 200 OK"), "version"),
        (head("HTTP/1.1 20 OK"), "status"),
        (head("HTTP/1.1 204 No Content", "Content-Length: 1"), "no content"),
        (head("HTTP/1.1 101 Switching Protocols", "Connection: upgrade", "Upgrade: x"), "switching"),
        (head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + b"g\r\n", "chunk size"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "version"),
        (head("HTTP/1.1 200 OK", "X: " + "x" * 70_000), "head too long"),
        (head("HTTP/1.1 200 OK", *("X: 1" for _ in range(201))), "too many fields"),
    ],
)
def test_a_refused_response_is_a_502_that_tells_why(
    answer: bytes, reason: str, workers: Workers, server: Server, client: Raw
) -> None:
    client.send(REQUEST)
    upstream = server.accept()
    upstream.send(answer)
    response = client.read_response()
    assert response.status == 502
    assert reason in response.body.decode()
    assert SERVICE in response.body.decode()
    client.send(REQUEST)  # the client did nothing wrong
    upstream = server.accept()
    exact(upstream, REQUEST)
    upstream.send(OK)
    exact(client, OK)
    assert sum(workers.counters()["rejects"].values()) == 1


def test_a_chunked_response_for_a_client_of_http_1_0(server: Server, client: Raw) -> None:
    client.send(head("GET / HTTP/1.0", "Host: svc"))
    server.accept().send(head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + chunked([b"x"]))
    assert client.read_response().status == 502


@pytest.mark.parametrize(
    "answer",
    [
        head("HTTP/1.1 200 OK", "Content-Length: 10") + b"half",
        head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + b"8\r\nhalf",
        head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + b"4\r\nhalf\r\n",
    ],
)
def test_a_response_that_ends_too_early_never_looks_complete(answer: bytes, server: Server, client: Raw) -> None:
    client.send(REQUEST)
    upstream = server.accept()
    upstream.send(answer)
    exact(client, answer)
    upstream.close()
    assert was_reset(client)


def test_a_response_until_close_that_is_reset_never_looks_complete(server: Server, client: Raw) -> None:
    client.send(REQUEST)
    upstream = server.accept()
    exact(upstream, REQUEST)
    upstream.send(head("HTTP/1.1 200 OK") + b"half")
    exact(client, head("HTTP/1.1 200 OK", "Connection: close") + b"half")
    upstream.reset()
    assert was_reset(client)


def test_a_bad_chunk_in_a_response_under_way_is_a_reset(server: Server, client: Raw) -> None:
    answer = head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked") + b"1\r\na\r\n"
    client.send(REQUEST)
    upstream = server.accept()
    upstream.send(answer)
    exact(client, answer)
    upstream.send(b"-1\r\n")
    assert was_reset(client)


# Heads at and above the limit


def long_head(first: str, length: int) -> bytes:
    """A head of exactly `length` bytes."""
    start = head(first, "Host: svc", "X: ")
    return start[:-4] + b"x" * (length - len(start)) + start[-4:]


@pytest.mark.parametrize("length", [16_000, 16_319, 16_320, 16_321, 16_384, 40_000, 65_536])
def test_heads_up_to_the_limit_pass(length: int, server: Server, client: Raw) -> None:
    request, answer = long_head("GET / HTTP/1.1", length), long_head("HTTP/1.1 204 No Content", length)
    for _ in range(2):
        client.send(request + request)
        upstream = server.accept()
        for _ in range(2):
            exact(upstream, request)
            upstream.send(answer)
            exact(client, answer)
        upstream.close()


def test_a_longer_head_gets_431_with_the_reason(workers: Workers, client: Raw) -> None:
    client.send(long_head("GET / HTTP/1.1", 65_537))
    response = client.read_response()
    assert (response.status, response.reason) == (431, "Request Header Fields Too Large")
    assert "head too long" in response.body.decode()
    assert client.read_all() == b""
    client.close()
    workers.wait_idle()


def test_a_head_without_end_gets_431_at_the_limit(client: Raw) -> None:
    client.send(b"GET / HTTP/1.1\r\nX: " + b"x" * 65_536)
    assert client.read_response().status == 431


def test_too_many_fields_get_431(client: Raw) -> None:
    client.send(head("GET / HTTP/1.1", "Host: svc", *("X: 1" for _ in range(200))))
    response = client.read_response()
    assert response.status == 431
    assert "too many fields" in response.body.decode()


# No way to the service


def test_an_unknown_service_is_named_and_the_known_ones_too(workers: Workers, client: Raw) -> None:
    workers.put("other", [])
    workers.put("local", [], direction="inbound")
    for method in ("GET", "HEAD"):
        response = client.call("Unknown:80", method=method)
        assert response.status == 404
    assert response.body == b""
    text = client.call("Unknown:80", method="POST", body=b"body").body.decode()
    assert "'unknown'" in text
    assert SERVICE in text
    assert "other" in text
    assert "local" not in text
    workers.settle()
    assert workers.counters()["close_refused"] == 0


def test_nothing_known_yet() -> None:
    with Workers() as workers, workers.connect() as client:
        assert "nothing yet" in client.call(SERVICE).body.decode()


def test_an_unknown_service_with_its_body_still_to_come_ends_the_connection(client: Raw) -> None:
    client.send(head("POST / HTTP/1.1", "Host: unknown", "Expect: 100-continue", "Content-Length: 4"))
    response = client.read_response()
    assert (response.status, response.header("connection")) == (404, "close")
    assert client.read_all() == b""


def test_a_service_without_endpoints_is_a_503(workers: Workers, client: Raw) -> None:
    workers.put(SERVICE, [])
    response = client.call(SERVICE)
    assert response.status == 503
    assert "no endpoint" in response.body.decode()
    assert workers.counters()["no_endpoints"] == 1


def test_a_502_when_every_endpoint_refuses(workers: Workers, client: Raw, closed: list[tuple[str, int]]) -> None:
    workers.put(SERVICE, closed)
    for method in ("GET", "POST"):
        response = client.call(SERVICE, method=method, body=b"body" if method == "POST" else b"")
        assert response.status == 502
        assert SERVICE in response.body.decode()
    assert workers.counters()["upstream_connect_failures"] == 6


def test_a_508_for_an_endpoint_that_is_a_listener_of_our_own(workers: Workers, client: Raw) -> None:
    own = workers.address()
    workers.table.apply([{"op": "listeners", "addresses": [list(own)]}])
    workers.put("loop", [own])
    response = client.call("loop")
    assert (response.status, response.reason) == (508, "Loop Detected")
    assert "loop" in response.body.decode()
    assert workers.counters()["loops"] == 1
    assert workers.counters()["upstream_connects"] == 0


# Retries


@pytest.mark.parametrize(
    "request_", [REQUEST, POST, head("POST / HTTP/1.1", "Host: svc", "Content-Length: 9") + b"half"]
)
def test_a_failed_connect_is_tried_on_another_endpoint(
    request_: bytes, workers: Workers, server: Server, closed: list[tuple[str, int]]
) -> None:
    workers.set(eject_failures=0)
    workers.put(SERVICE, [*closed[:2], server.address])
    for _ in range(6):
        with workers.connect() as client:
            client.send(request_)
            upstream = server.accept()
            exact(upstream, request_)
            upstream.send(head("HTTP/1.1 200 OK", "Connection: close", "Content-Length: 0"))
            assert client.read_response().status == 200
            upstream.close()
    assert workers.counters()["upstream_connect_failures"] >= 4


def test_an_endpoint_that_keeps_failing_is_left_out_for_a_while(
    workers: Workers, server: Server, client: Raw, closed: list[tuple[str, int]]
) -> None:
    workers.set(eject_failures=3, eject_ms=60_000)
    workers.put(SERVICE, [closed[0], server.address])
    client.send(REQUEST)
    upstream = server.accept()
    exact(upstream, REQUEST)
    upstream.send(OK)
    exact(client, OK)
    for _ in range(20):
        exchange(client, upstream)
    assert workers.counters()["upstream_connect_failures"] == 3
    explained = {each["address"]: each for each in workers.table.explain_pick("outbound", SERVICE)}
    assert explained[f"127.0.0.1:{closed[0][1]}"]["ejected_for_ms"] > 0


def test_a_connect_that_is_not_answered_times_out_and_is_tried_elsewhere(workers: Workers, server: Server) -> None:
    """A full accept queue drops the handshake, like a host that is gone."""
    workers.set(connect_ms=200)
    with Server(backlog=0) as full, socket.create_connection(full.address):
        workers.put(SERVICE, [full.address])
        with workers.connect() as client:
            response = client.call(SERVICE)
            assert response.status == 502
        workers.put(SERVICE, [full.address, server.address])
        for _ in range(2):
            with workers.connect() as client:
                client.send(REQUEST)
                upstream = server.accept()
                exact(upstream, REQUEST)
                upstream.send(head("HTTP/1.1 204 No Content", "Connection: close"))
                assert client.read_response().status == 204
    assert workers.counters()["timeout_connect"] >= 2


@pytest.mark.parametrize("retry", [False, True])
@pytest.mark.parametrize("ending", ["close", "reset"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_request_that_reached_a_server_is_sent_again_only_if_wanted_and_idempotent(
    method: str, ending: str, retry: bool, workers: Workers, client: Raw
) -> None:
    with Server() as one, Server() as two:
        workers.put(SERVICE, [one.address, two.address], retry=retry)
        request = REQUEST if method == "GET" else POST
        client.send(request)
        first, upstream = accept_either(one, two)
        exact(upstream, request)
        other = two if first is one else one
        if ending == "close":
            upstream.close()
        else:
            upstream.reset()
        if retry and method == "GET":
            second = other.accept()
            exact(second, request)
            second.send(OK)
            exact(client, OK)
        else:
            response = client.read_response()
            assert response.status == 502
            assert "not sent again" in response.body.decode()
        workers.settle()
        assert not one.pending()
        assert not two.pending()


def test_a_resent_request_takes_nothing_from_the_next_one(workers: Workers, client: Raw) -> None:
    """The request is kept until its response comes; what was pipelined behind it stays apart."""
    with Server() as one, Server() as two:
        workers.put(SERVICE, [one.address, two.address], retry=True)
        requests = [
            head(f"PUT /{n} HTTP/1.1", "Host: svc", "Connection: x", "Content-Length: 3") + b"abc" for n in (1, 2)
        ]
        seen = [head(f"PUT /{n} HTTP/1.1", "Host: svc", "Content-Length: 3") + b"abc" for n in (1, 2)]
        client.send(b"".join(requests))
        first, upstream = accept_either(one, two)
        exact(upstream, seen[0])
        upstream.close()
        upstream = (two if first is one else one).accept()
        exact(upstream, seen[0])
        assert workers.silent(upstream)
        upstream.send(head("HTTP/1.1 200 OK", "Connection: close", "Content-Length: 2") + b"ok")
        exact(client, OK)
        _, upstream = accept_either(one, two)
        exact(upstream, seen[1])


def test_a_response_that_began_is_never_asked_for_again(workers: Workers, server: Server, client: Raw) -> None:
    workers.put(SERVICE, [server.address], retry=True)
    client.send(REQUEST)
    upstream = server.accept()
    answer = head("HTTP/1.1 200 OK", "Content-Length: 4") + b"a"
    upstream.send(answer)
    exact(client, answer)
    upstream.close()
    assert was_reset(client)
    workers.settle()
    assert not server.pending()


# Requests of which nothing was sent to a server: inbound listeners say so, outbound ones try another endpoint


NOT_SENT = head("HTTP/1.1 502 Bad Gateway", "Connection: Fastside-Not-Sent", "Content-Length: 4") + b"none"


@pytest.fixture
def inbound(server: Server) -> Iterator[Raw]:
    """A connection to an inbound listener that knows the service with the same endpoint."""
    with Workers(listeners=[{"direction": "inbound"}]) as provider:
        provider.put(SERVICE, [server.address], direction="inbound")
        with provider.connect() as connected:
            yield connected


def says_not_sent(response: Response) -> bool:
    return "fastside-not-sent" in (response.header("connection") or "").lower()


def test_an_inbound_listener_says_that_nothing_was_sent(closed: list[tuple[str, int]], server: Server) -> None:
    with Workers(listeners=[{"direction": "inbound"}, {}]) as workers:
        workers.put(SERVICE, closed[:1], direction="inbound")
        workers.put("nobody", [], direction="inbound")
        workers.put("silent", [server.address], direction="inbound")
        workers.put("caller", closed[:1])
        with workers.connect() as client:
            for service, status in ((SERVICE, 502), ("nobody", 503), ("unknown", 404)):
                for method in ("GET", "HEAD"):
                    response = client.call(service, method=method)
                    assert response.status == status
                    assert says_not_sent(response)
            client.send(head("GET / HTTP/1.1", "Host: silent"))
            server.accept().close()
            response = client.read_response()
            assert response.status == 502
            assert not says_not_sent(response)
            client.send(head("POST / HTTP/1.1", "Host: svc", "Content-Length: 4"))
            response = client.read_response()
            assert response.status == 502
            assert response.header("connection") == "close, Fastside-Not-Sent"
        with workers.connect(1) as client:
            for service, status in (("caller", 502), ("unknown", 404)):
                response = client.call(service)
                assert response.status == status
                assert response.header("connection") is None


def test_what_was_sent_to_one_server_counts_when_the_next_refuses(closed: list[tuple[str, int]]) -> None:
    with Server() as server, Workers(listeners=[{"direction": "inbound"}]) as workers:
        workers.put(SERVICE, [server.address, closed[0]], direction="inbound", retry=True)
        for _ in range(2):  # the first of each round is another one
            with workers.connect() as client:
                client.send(REQUEST)
                upstream = server.accept()
                exact(upstream, REQUEST)
                upstream.close()
                response = client.read_response()
                assert response.status == 502
                assert not says_not_sent(response)


def test_nobody_but_the_neighbour_can_say_it(workers: Workers, server: Server, client: Raw, inbound: Raw) -> None:
    forged = head("HTTP/1.1 502 No", "Connection: Fastside-Not-Sent", "Fastside-Not-Sent: 1", "Content-Length: 0")
    for connection in (client, inbound):
        connection.send(head("GET / HTTP/1.1", "Host: svc", "Connection: Fastside-Not-Sent", "Fastside-Not-Sent: 1"))
        upstream = server.accept()
        exact(upstream, REQUEST)
        upstream.send(forged)
        exact(connection, head("HTTP/1.1 502 No", "Content-Length: 0"))


@pytest.mark.parametrize("request_", [REQUEST, POST, head("HEAD / HTTP/1.1", "Host: svc")], ids=["GET", "POST", "HEAD"])
def test_a_request_that_was_not_sent_goes_to_another_endpoint(workers: Workers, client: Raw, request_: bytes) -> None:
    answer = NOT_SENT[:-4] if request_.startswith(b"HEAD") else NOT_SENT
    with Server() as one, Server() as two:
        workers.put(SERVICE, [one.address, two.address])
        client.send(request_ + REQUEST)
        first, upstream = accept_either(one, two)
        exact(upstream, request_)
        upstream.send(answer)
        second = (two if first is one else one).accept()
        exact(second, request_)
        second.send(head("HTTP/1.1 204 No Content"))
        exact(client, head("HTTP/1.1 204 No Content"))
        # The first one's connection was kept, and the endpoint is not held to have failed.
        exact(upstream, REQUEST)
        upstream.send(OK)
        exact(client, OK)
        assert not one.pending()
        assert not two.pending()
        found = workers.counters()
        assert found["retries"] == 1
        assert found["upstream_connect_failures"] == 0
        workers.wait_for(downstreams=1, buffers=0)


@pytest.mark.parametrize("body", [b"Content-Length: 11\r\n\r\nhello world", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_a_body_that_comes_in_pieces_goes_to_another_endpoint_too(workers: Workers, client: Raw, body: bytes) -> None:
    request = b"POST / HTTP/1.1\r\nHost: svc\r\n" + body
    if b"chunked" in body:
        request += chunked([b"hello", b" world"])
    with Server() as one, Server() as two:
        workers.put(SERVICE, [one.address, two.address])
        for cut in (len(request) - 11, len(request) - 3):
            for received in (cut, len(request)):
                # The first answers when it has the first piece, or all of it.
                client.send(request[:cut])
                first, upstream = accept_either(one, two)
                exact(upstream, request[:cut])
                if received == len(request):
                    client.send(request[cut:])
                    exact(upstream, request[cut:])
                upstream.send(head("HTTP/1.1 502 No", "Connection: close, Fastside-Not-Sent", "Content-Length: 0"))
                second = (two if first is one else one).accept()
                exact(second, request[:received])
                if received < len(request):
                    client.send(request[cut:])
                    exact(second, request[cut:])
                second.send(head("HTTP/1.1 200 OK", "Connection: close", "Content-Length: 2") + b"ok")
                exact(client, OK)
                assert upstream.read_all() == second.read_all() == b""
        client.close()
        workers.wait_idle()


def test_the_last_endpoint_s_answer_is_the_caller_s(workers: Workers, client: Raw) -> None:
    with Server() as one, Server() as two:
        workers.put(SERVICE, [one.address, two.address])
        client.send(REQUEST)
        first, upstream = accept_either(one, two)
        upstream.send(NOT_SENT)
        upstream = (two if first is one else one).accept()
        exact(upstream, REQUEST)
        upstream.send(NOT_SENT)
        exact(client, head("HTTP/1.1 502 Bad Gateway", "Content-Length: 4") + b"none")
        workers.settle()
        assert not one.pending()
        assert not two.pending()


def test_no_more_than_three_endpoints_are_asked(workers: Workers, client: Raw) -> None:
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server()) for _ in range(4)]
        workers.put(SERVICE, [server.address for server in servers])
        client.send(REQUEST)
        for _ in range(3):
            _, upstream = accept_either(*servers)
            exact(upstream, REQUEST)
            upstream.send(NOT_SENT)
        assert client.read_response().status == 502
        workers.settle()
        assert not any(server.pending() for server in servers)


@pytest.mark.parametrize(
    ("request_", "answers"),
    [
        (REQUEST, [head("HTTP/1.1 502 No", "Fastside-Not-Sent: 1", "Content-Length: 0")]),
        (REQUEST, [head("HTTP/1.1 103 Early Hints"), NOT_SENT]),
        (head("POST / HTTP/1.1", "Host: svc", "Content-Length: 20000") + bytes(20000), [NOT_SENT]),
        (head("POST / HTTP/1.1", "Host: svc", "Transfer-Encoding: chunked") + chunked([bytes(20000)]), [NOT_SENT]),
    ],
    ids=["no option", "an interim response was forwarded", "a long body", "a long chunked body"],
)
def test_a_request_that_is_not_kept_or_may_have_been_sent_is_not_repeated(
    workers: Workers, client: Raw, request_: bytes, answers: list[bytes]
) -> None:
    with Server() as one, Server() as two:
        workers.put(SERVICE, [one.address, two.address])
        client.send(request_)
        _, upstream = accept_either(one, two)
        exact(upstream, request_)
        for answer in answers:
            upstream.send(answer)
            status = client.read_response().status
        assert status == 502
        workers.settle()
        assert not one.pending()
        assert not two.pending()


def test_a_request_that_is_kept_no_longer_goes_on(workers: Workers, client: Raw) -> None:
    """Its body comes when an interim response has been forwarded."""
    request = head("POST / HTTP/1.1", "Host: svc", "Expect: 100-continue", "Content-Length: 4")
    with Server() as one, Server() as two:
        workers.put(SERVICE, [one.address, two.address])
        client.send(request)
        _, upstream = accept_either(one, two)
        exact(upstream, request)
        upstream.send(head("HTTP/1.1 100 Continue"))
        exact(client, head("HTTP/1.1 100 Continue"))
        workers.wait_for(downstreams=1, buffers=0)
        client.send(b"body")
        exact(upstream, b"body")
        upstream.send(OK)
        exact(client, OK)


def test_requests_are_kept_only_while_buffers_are_plenty(workers: Workers) -> None:
    """A kept request holds a buffer while it waits for the response."""
    with Server() as one, Server() as two, contextlib.ExitStack() as clients:
        workers.put(SERVICE, [one.address, two.address])
        workers.set(buffers=8)
        for _ in range(20):
            connected = clients.enter_context(workers.connect())
            connected.send(REQUEST)
            _, upstream = accept_either(one, two)
            exact(upstream, REQUEST)
        workers.settle()
        assert workers.counters()["buffers"] == 4


# Pooled connections


def test_a_server_that_closes_unannounced_after_each_response(workers: Workers, server: Server, client: Raw) -> None:
    for request in itertools.islice(itertools.cycle([REQUEST, POST]), 300):
        client.send(request)
        upstream = server.accept()
        exact(upstream, request)
        upstream.send(OK)
        upstream.close()
        exact(client, OK)
    assert workers.counters()["upstream_connects"] == 300


def test_a_pooled_connection_that_the_server_closes_leaves_the_pool(workers: Workers, server: Server) -> None:
    with workers.connect() as client:
        client.send(REQUEST)
        upstream = server.accept()
        upstream.send(OK)
        exact(client, OK)
        workers.wait_for(pooled=1)
        upstream.close()
        workers.wait_for(pooled=0, upstreams=0, upstream_stale=1)


@pytest.mark.parametrize("filled", [False, True], ids=["small", "fills-the-buffer"])
@pytest.mark.parametrize("together", [False, True], ids=["later", "together"])
def test_bytes_that_nobody_asked_for_are_nobodys_response(
    together: bool, filled: bool, workers: Workers, server: Server, client: Raw
) -> None:
    """A response that comes before its request would be given to whoever asks next."""
    unasked = head("HTTP/1.1 200 OK", "Content-Length: 5") + b"FALSE"
    answer = OK
    if filled:
        size = 16384 - 64  # a worker's buffer less the room before a message
        body = size - len(head("HTTP/1.1 200 OK", "Content-Length: 00000"))
        answer = head("HTTP/1.1 200 OK", f"Content-Length: {body}") + bytes(body)
    client.send(REQUEST)
    upstream = server.accept()
    exact(upstream, REQUEST)
    upstream.send(answer + unasked if together else answer)
    exact(client, answer)
    if not together:
        upstream.send(unasked)
    client.send(REQUEST)
    second = server.accept()
    exact(second, REQUEST)
    second.send(OK)
    exact(client, OK)


def test_the_pool_is_bounded_in_size_and_time(workers: Workers, server: Server) -> None:
    workers.set(pool_size=2, pool_idle_ms=300)
    clients = [workers.connect() for _ in range(5)]
    upstreams = []
    for client in clients:
        client.send(REQUEST)
        upstreams.append(server.accept())
    for client, upstream in zip(clients, upstreams, strict=True):
        upstream.send(OK)
        exact(client, OK)
    workers.settle()
    assert workers.counters()["pooled"] <= 2
    workers.wait_for(pooled=0, upstreams=0, downstreams=5)
    for client in clients:
        client.close()


# Early responses and early ends


@pytest.mark.parametrize("ending", ["close", "reset", "stay"])
def test_an_early_response_reaches_a_client_that_is_still_sending(
    ending: str, workers: Workers, server: Server, client: Raw
) -> None:
    request = head("POST / HTTP/1.1", "Host: svc", "Content-Length: 900000")
    client.send(request + bytes(1000))
    upstream = server.accept()
    exact(upstream, request + bytes(1000))
    upstream.send(head("HTTP/1.1 413 Content Too Large", "Content-Length: 5") + b"large")
    exact(client, head("HTTP/1.1 413 Content Too Large", "Connection: close", "Content-Length: 5") + b"large")
    if ending == "close":
        upstream.close()
    elif ending == "reset":
        upstream.reset()
    client.send(bytes(800_000))
    assert client.read_all() == b""
    client.close()
    workers.wait_for(downstreams=0, upstreams=0)


def test_a_response_that_is_still_coming_while_the_body_is(workers: Workers, server: Server, client: Raw) -> None:
    request = head("POST / HTTP/1.1", "Host: svc", "Transfer-Encoding: chunked")
    client.send(request)
    upstream = server.accept()
    exact(upstream, request)
    upstream.send(head("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"))
    exact(client, head("HTTP/1.1 200 OK", "Connection: close", "Transfer-Encoding: chunked"))
    for _ in range(3):
        client.send(b"1\r\na\r\n")
        exact(upstream, b"1\r\na\r\n")
        upstream.send(b"1\r\nb\r\n")
        exact(client, b"1\r\nb\r\n")
    client.send(b"0\r\n\r\n")
    exact(upstream, b"0\r\n\r\n")
    upstream.send(b"0\r\n\r\n")
    exact(client, b"0\r\n\r\n")
    assert client.read_all() == b""
    client.close()
    workers.wait_idle()


def test_the_response_of_a_server_that_stops_reading_reaches_the_client(
    workers: Workers, server: Server, client: Raw
) -> None:
    """It answers and closes without having read all: its reset breaks the request, not the response."""
    client.send(head("POST / HTTP/1.1", "Host: svc", "Content-Length: 900000") + bytes(300_000))
    upstream = server.accept()
    upstream.read_until(b"\r\n\r\n")
    upstream.send(head("HTTP/1.1 413 Content Too Large", "Content-Length: 5") + b"large")
    upstream.close()
    assert client.read_response().body == b"large"
    client.close()
    workers.wait_for(downstreams=0, upstreams=0, buffers=0, pipes=0)


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_a_client_that_goes_in_the_middle_of_its_request(
    ending: str, workers: Workers, server: Server, client: Raw
) -> None:
    request = head("POST / HTTP/1.1", "Host: svc", "Content-Length: 10") + b"half"
    client.send(request)
    upstream = server.accept()
    exact(upstream, request)
    if ending == "close":
        client.close()
    else:
        client.reset()
    assert was_reset(upstream)
    workers.wait_for(downstreams=0, upstreams=0, buffers=0)


def test_a_client_that_resets_while_it_waits(workers: Workers, server: Server, client: Raw) -> None:
    client.send(REQUEST)
    upstream = server.accept()
    exact(upstream, REQUEST)
    client.reset()
    assert was_reset(upstream)
    workers.wait_for(downstreams=0, upstreams=0, close_downstream_reset=1)


@pytest.mark.parametrize("ending", ["close", "reset"])
def test_a_client_that_goes_in_the_middle_of_the_response(
    ending: str, workers: Workers, server: Server, client: Raw
) -> None:
    client.send(REQUEST)
    upstream = server.accept()
    upstream.send(head("HTTP/1.1 200 OK", "Content-Length: 100000000") + bytes(1000))
    client.read(1000)
    if ending == "close":
        client.close()
    else:
        client.reset()
    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        upstream.send(bytes(50_000_000))
    workers.wait_for(downstreams=0, upstreams=0, buffers=0, pipes=0)


def test_a_client_that_ended_its_side_gets_the_response(workers: Workers, server: Server, client: Raw) -> None:
    client.send(REQUEST + POST)
    client.end()
    upstream = server.accept()
    for request in (REQUEST, POST):
        exact(upstream, request)
        upstream.send(OK)
    assert client.read_all() == OK + OK
    client.close()
    workers.wait_for(downstreams=0)


def test_an_idle_client_that_goes(workers: Workers, client: Raw) -> None:
    with workers.connect() as other, workers.connect() as half:
        half.send(b"GET / HTTP/1.1\r\n")
        workers.settle()
        workers.wait_for(downstreams=3)
        client.close()
        other.reset()
        half.close()
        workers.wait_for(downstreams=0, buffers=0, close_downstream_eof=3)


def test_what_a_dead_server_left_unread_is_not_sent_to_the_next(workers: Workers, server: Server, client: Raw) -> None:
    """A body that was taken from the client but not yet by the server belongs to no other request."""
    workers.set(splice_bytes=1)
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    spliced = 0
    for size in range(128 << 10, 8 << 20, 128 << 10):
        client.send(head("POST / HTTP/1.1", "Host: svc", f"Content-Length: {size}"))
        upstream = server.accept()
        try:
            client.socket.settimeout(0.2)
            client.send(bytes(size))
        except TimeoutError:
            break  # more than all buffers on the way take
        finally:
            client.socket.settimeout(DEADLINE)
        workers.settle()
        spliced += any(each["pipe"] and each["kind"] == "http downstream" for each in workers.connections())
        upstream.reset()
        response = client.read_response()
        assert response.status == 502
        if response.header("connection") == "close":
            client.close()
            client = workers.connect()
        client.send(REQUEST)
        upstream = server.accept()
        exact(upstream, REQUEST)
        upstream.send(OK)
        exact(client, OK)
        upstream.close()
    client.close()
    assert spliced


# Statistics


def test_the_statistics_of_a_service(workers: Workers, server: Server, client: Raw) -> None:
    client.send(POST)
    upstream = server.accept()
    exact(upstream, POST)
    upstream.send(OK)
    exact(client, OK)
    exchange(client, upstream, REQUEST)
    client.send(REQUEST)
    exact(upstream, REQUEST)
    upstream.send(head("HTTP/1.1 404 Not Found", "Content-Length: 0"))
    assert client.read_response().status == 404
    client.send(b"nonsense\r\n\r\n")
    client.read_response()
    found: dict[str, Any] = {each["service"]: each for each in _core.service_stats(workers.table)}
    mine, other = found[SERVICE], found["other"]
    assert mine["responses"] == [0, 0, 2, 0, 1, 0]
    assert other["responses"] == [0, 0, 0, 0, 1, 0]
    assert sum(mine["histogram"]) == 3
    assert mine["bytes_received"] == len(POST + REQUEST + REQUEST)
    assert mine["bytes_sent"] == len(OK + OK + head("HTTP/1.1 404 Not Found", "Content-Length: 0"))
    assert other["bytes_received"] == other["bytes_sent"] == 0
