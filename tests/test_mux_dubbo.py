"""Dubbo through real workers: what differs from Bolt, which test_mux.py has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core_worker import DRAIN, Server, Workers
from dubbo_frames import (
    OK,
    ONE_WAY,
    READONLY,
    SERVER_TIMEOUT,
    SERVICE_NOT_FOUND,
    WRITABLE,
    event,
    read_frame,
    request,
    response,
    text,
)


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(listeners=[{"protocol": "dubbo"}, {}]) as workers:
        yield workers


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


def put(workers: Workers, service: str, *servers: Server, **policy: object) -> None:
    workers.put(service, [server.address for server in servers], protocol="dubbo", **policy)


def test_service_version_and_group_say_where_a_call_goes(workers: Workers) -> None:
    keys = ["com.x.demo", "com.x.demo:2.0", "red/com.x.demo", "red/com.x.demo:2.0"]
    calls = [("com.x.Demo", "0.0.0", ""), ("com.x.Demo", "2.0", ""), ("com.x.Demo", "", "red")]
    calls.append(("com.x.Demo", "2.0", "red"))
    servers = [Server() for _ in keys]
    for key, server in zip(keys, servers, strict=True):
        put(workers, key, server, grouped="/" not in key)
    client = workers.connect()
    for id, (service, version, group) in enumerate(calls):
        client.send(request(-id, service, version, group, content=keys[id]))
    for id, server in enumerate(servers):
        upstream = server.accept()
        frame = read_frame(upstream)
        assert text(keys[id]) in frame.body
        upstream.send(response(frame, "done"))
        answer = read_frame(client)
        assert (answer.id, answer.status, answer.body) == (-id, OK, b"\x91" + text("done"))
        server.close()


def test_without_grouped_services_the_group_is_not_looked_at(workers: Workers, server: Server) -> None:
    put(workers, "com.x.demo", server)
    client = workers.connect()
    client.send(request(1, "com.x.Demo", group="blue"))
    upstream = server.accept()
    upstream.send(response(read_frame(upstream)))
    assert read_frame(client).status == OK


def test_a_timeout_is_the_callers_own(workers: Workers, server: Server) -> None:
    put(workers, "com.x.demo", server)
    client = workers.connect()
    client.send(request(1, "com.x.Demo", content="x" * 1000, timeout=150))
    read_frame(server.accept())
    answer = read_frame(client)
    assert (answer.id, answer.status) == (1, SERVER_TIMEOUT)
    assert workers.counters()["timeout_request"] == 1


def test_an_unknown_service_is_named_in_the_error(workers: Workers) -> None:
    client = workers.connect()
    client.send(request(9, "com.x.Nobody", "1.5", "g", flags=ONE_WAY))
    client.send(request(10, "com.x.Nobody", "1.5", "g"))
    answer = read_frame(client)
    assert (answer.id, answer.status) == (10, SERVICE_NOT_FOUND)
    assert b"service 'g/com.x.nobody:1.5'" in answer.body


def test_heartbeats_are_answered_on_both_sides(workers: Workers, server: Server) -> None:
    put(workers, "com.x.demo", server)
    client = workers.connect()
    client.send(event(id=5, wants_answer=True))
    answer = read_frame(client)
    assert (answer.flags, answer.status, answer.id, answer.body) == (0x22, OK, 5, b"N")
    client.send(request(1, "com.x.Demo"))
    upstream = server.accept()
    frame = read_frame(upstream)
    upstream.send(event(id=6, wants_answer=True))
    assert read_frame(upstream).id == 6
    upstream.send(response(frame))
    assert read_frame(client).status == OK


def test_a_server_that_shuts_down_gets_no_new_calls_and_answers_the_old(workers: Workers) -> None:
    with Server() as leaving, Server() as staying:
        put(workers, "com.x.demo", leaving)
        client = workers.connect()
        client.send(request(1, "com.x.Demo"))
        upstream = leaving.accept()
        under_way = read_frame(upstream)
        put(workers, "com.x.demo", leaving, staying)
        upstream.send(event(READONLY))
        workers.settle()
        for id in range(2, 8):
            client.send(request(id, "com.x.Demo"))
        other = staying.accept()
        for id in range(2, 8):
            other.send(response(read_frame(other)))
            assert read_frame(client).id == id
        upstream.send(response(under_way, "at last"))
        assert read_frame(client).id == 1
        assert upstream.read_all() == b""  # nothing is under way on it any more
        assert not leaving.pending()


def test_a_server_that_changes_its_mind_gets_calls_again(workers: Workers, server: Server) -> None:
    put(workers, "com.x.demo", server)
    client = workers.connect()
    client.send(request(1, "com.x.Demo"))
    upstream = server.accept()
    frame = read_frame(upstream)
    upstream.send(event(READONLY) + event(WRITABLE) + response(frame))
    assert read_frame(client).id == 1
    client.send(request(2, "com.x.Demo"))
    upstream.send(response(read_frame(upstream)))
    assert read_frame(client).id == 2


def test_a_draining_worker_says_so_to_other_sidecars_and_finishes_what_is_under_way(server: Server) -> None:
    with Workers(listeners=[{"protocol": "dubbo", "direction": "inbound"}]) as workers:
        put(workers, "com.x.demo", server, direction="inbound")
        drain(workers, server, says_so=True)


def test_a_draining_worker_does_not_tell_the_application(workers: Workers, server: Server) -> None:
    put(workers, "com.x.demo", server)
    drain(workers, server, says_so=False)


def drain(workers: Workers, server: Server, *, says_so: bool) -> None:
    client = workers.connect()
    client.send(request(1, "com.x.Demo"))
    upstream = server.accept()
    first = read_frame(upstream)
    workers.send(0, DRAIN)
    if says_so:
        goodbye = read_frame(client)
        assert (goodbye.flags, goodbye.body) == (0xA2, READONLY)
    client.send(request(2, "com.x.Demo"))  # on its way when the goodbye came
    upstream.send(response(read_frame(upstream)) + response(first))
    assert [read_frame(client).id for _ in range(2)] == [2, 1]
    assert client.read_all() == b""
    assert workers.wait_exit(0) == 0
