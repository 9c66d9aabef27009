"""Which worker gets a connection, and that none is lost on the way: hand-over, orphaned slots, listeners, draining."""

from __future__ import annotations

import itertools
import os
import select
import signal
from collections.abc import Iterator

import pytest

from core_worker import (
    DRAIN,
    LISTENER_ADD,
    LISTENER_REMOVE,
    LISTENERS,
    SERVICE,
    STOP,
    Server,
    Workers,
    exact,
    head,
    was_reset,
)
from fastside.config import Listener as ListenerConfig
from fastside.listeners import Listener, open_listener
from harness import Raw, free_port, wait_until

REQUEST = head("GET / HTTP/1.1", "Host: svc")
OK = head("HTTP/1.1 200 OK", "Content-Length: 2") + b"ok"
OK_CLOSE = head("HTTP/1.1 200 OK", "Connection: close", "Content-Length: 2") + b"ok"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def two(server: Server) -> Iterator[Workers]:
    """Two workers that hand over."""
    with Workers({SERVICE: [server.address]}, count=2) as running:
        yield running


def served(client: Raw, answer: int = 404) -> None:
    """One exchange that needs no server."""
    client.send(head("GET / HTTP/1.1", "Host: unknown"))
    assert client.read_response().status == answer


# Even load


def test_two_long_lived_connections_never_land_on_one_worker(two: Workers) -> None:
    """The common case of a sidecar; the kernel alone puts them on one worker every other time."""
    for _ in range(100):
        with two.connect() as first, two.connect() as second:
            served(first)
            served(second)
            assert two.loads() == [1, 1]
        wait_until(lambda: two.loads() == [0, 0])
    counters = two.counters()
    assert counters["accepted"] == 200
    assert counters["handed_over"] == counters["taken_over"] > 10


@pytest.mark.parametrize("connections", [3, 4, 16, 64, 200])
def test_the_load_stays_even_with_more_connections(connections: int, two: Workers) -> None:
    clients = [two.connect() for _ in range(connections)]
    for client in clients:
        served(client)
    low, high = sorted(two.loads())
    assert low + high == connections
    assert high - low <= 1 + low // 8
    for client in clients:
        client.close()
    two.wait_idle()


def test_connections_that_come_at_once_are_spread(two: Workers) -> None:
    """Both workers accept and hand over at the same time, and still every connection is served."""
    for _ in range(10):
        clients = [two.connect() for _ in range(40)]
        for client in clients:
            client.send(head("GET / HTTP/1.1", "Host: unknown"))
        for client in clients:
            assert client.read_response().status == 404
        assert sum(two.loads()) == 40
        for client in clients:
            client.close()
        wait_until(lambda: two.loads() == [0, 0])
    two.wait_idle()


def test_an_opaque_connection_is_handed_over_too(server: Server) -> None:
    with Workers(count=2, listeners=[{"protocol": "tcp", "service": SERVICE}]) as workers:
        workers.put(SERVICE, [server.address], protocol="tcp", balance="hash_source")
        for _ in range(20):
            with workers.connect() as first, workers.connect() as second:
                for stream in (first, second, server.accept(), server.accept()):
                    stream.send(b"x")
                    stream.end()
                for client in (first, second):
                    assert client.read_all() == b"x"
            wait_until(lambda: workers.loads() == [0, 0])
        assert [workers.counters(slot)["accepted"] for slot in (0, 1)] == [20, 20]
        assert workers.counters()["handed_over"] > 0


def test_what_was_handed_over_is_known_by_its_own_address(two: Workers) -> None:
    clients = [two.connect() for _ in range(8)]
    for client in clients:
        served(client)
    seen = {each["address"] for slot in (0, 1) for each in two.connections(slot)}
    assert seen == {"{}:{}".format(*client.socket.getsockname()) for client in clients}
    for client in clients:
        client.close()


@pytest.mark.parametrize("accept", ["reuseport", "exclusive"])
def test_without_hand_over_each_worker_keeps_what_it_accepts(accept: str) -> None:
    with Workers(count=2, accept=accept) as workers:
        clients = [workers.connect() for _ in range(40)]
        for client in clients:
            served(client)
        assert sum(workers.loads()) == 40
        counters = workers.counters()
        assert (counters["accepted"], counters["handed_over"]) == (40, 0)
        for client in clients:
            client.close()
        workers.wait_idle()


# Workers that die


def test_connections_handed_to_a_worker_that_dies_are_served_by_its_replacement(two: Workers) -> None:
    two.own(1, 0)
    first = two.connect()
    served(first)
    assert two.loads() == [1, 0]
    os.kill(two.pids[1], signal.SIGSTOP)
    clients = []
    for number in range(5):
        clients += [two.connect(), two.connect()]
        wait_until(lambda: sum(two.loads()) == 2 * number + 3, what="worker 0 has accepted")  # noqa: B023
    waiting = two.loads()[1]
    assert waiting >= 4
    for client in clients:
        client.send(head("GET / HTTP/1.1", "Host: unknown"))
    two.kill(1)
    two.start(1)
    for client in clients:
        assert client.read_response().status == 404
    assert two.counters(1)["taken_over"] == waiting
    for client in [first, *clients]:
        client.close()
    two.wait_idle()


def test_a_sibling_serves_an_orphaned_slot(two: Workers) -> None:
    """Connections wait in the dead worker's listener, which the master holds; whoever owns the slot accepts them."""
    two.kill(1)
    two.table.reset_worker(1)
    clients = [two.connect() for _ in range(30)]
    for client in clients:
        client.send(head("GET / HTTP/1.1", "Host: unknown"))
    wait_until(lambda: two.counters(0)["accepted"] > 0)
    assert two.counters(0)["accepted"] < 30
    two.own(1, 0)
    for client in clients:
        assert client.read_response().status == 404
    assert two.loads() == [30, 0]

    two.start(1)
    two.own(1, 1)
    more = [two.connect() for _ in range(30)]
    for client in more:
        served(client)
    assert sum(two.loads()) == 60
    assert two.loads()[1] > 25
    for client in clients + more:
        client.close()
    two.wait_idle()


def test_a_worker_that_dies_takes_only_its_own_connections_along(two: Workers, server: Server) -> None:
    clients = [two.connect() for _ in range(6)]
    for client in clients:
        served(client)
    assert two.loads() == [3, 3]
    two.kill(1)
    wait_until(lambda: sum(map(Raw.at_end, clients)) == 3)
    for client in clients:
        if not client.at_end():
            served(client)
        client.close()


def test_workers_serve_on_without_a_master(two: Workers) -> None:
    """The pipe whose other end only the master holds comes to its end."""
    os.close(two._alive_end)
    two._alive_end = os.dup(two.wake)
    with two.connect() as first, two.connect() as second:
        for client in (first, second):
            served(client)


# Listeners


def test_a_listener_comes_and_goes(two: Workers, server: Server) -> None:
    bind = f"127.0.0.1:{free_port()}"
    config = ListenerConfig(name="later", direction="inbound", bind=bind, protocol="http", service_header="x-service")
    [listener] = open_listener(itertools.count(77), config, 2)
    two.put("local", [server.address], direction="inbound")
    payload = bytes([1, 0, 0, len(b"x-service")]) + b"x-service"
    for worker, (slot, sock) in itertools.product((0, 1), listener.sockets.items()):
        two.send(worker, LISTENER_ADD, listener.id, slot, payload, sock.fileno())
    for worker in (0, 1):
        two.send(worker, LISTENERS, 5)
    wait_until(lambda: all(two.table.worker(slot)["listeners_version"] == 5 for slot in (0, 1)))

    address = listener.sockets[0].getsockname()
    clients = [Raw(address) for _ in range(8)]
    request = head("GET / HTTP/1.1", "Host: example.org", "X-Service: local")
    for client in clients:
        client.send(request)
        upstream = server.accept()
        exact(upstream, request)
        upstream.send(OK.replace(b"Content", b"Connection: close\r\nContent"))
        exact(client, OK)

    for worker in (0, 1):
        two.send(worker, LISTENER_REMOVE, listener.id)
        two.send(worker, LISTENERS, 6)
    wait_until(lambda: all(two.table.worker(slot)["listeners_version"] == 6 for slot in (0, 1)))
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        Raw(address)
    for client in clients:  # what was accepted goes on, by the listener's own rules
        client.send(request)
        exact(server.accept(), request)
        client.close()


def test_what_waits_at_a_listener_that_goes_is_served() -> None:
    with Workers() as workers:
        os.kill(workers.pids[0], signal.SIGSTOP)
        clients = [workers.connect() for _ in range(5)]
        workers.send(0, LISTENER_REMOVE, workers.listeners[0].id)
        os.kill(workers.pids[0], signal.SIGCONT)
        for client in clients:
            served(client)
            client.close()


def test_listeners_that_come_and_go_leave_nothing(server: Server) -> None:
    """More of them than a worker can have at once."""
    with Workers() as workers:
        before = workers.descriptors()
        for number in range(100):
            config = ListenerConfig(name="x", direction="outbound", bind=f"127.0.0.1:{free_port()}")
            listener: Listener
            [listener] = open_listener(itertools.count(100 + number), config, 1)
            workers.send(0, LISTENER_ADD, listener.id, 0, bytes(4), listener.sockets[0].fileno())
            workers.send(0, LISTENERS, number + 1)
            with Raw(listener.sockets[0].getsockname()) as client:
                served(client)
                workers.send(0, LISTENER_REMOVE, listener.id)
                workers.settle()
                served(client)
            listener.close()
        workers.wait_for(downstreams=0)
        assert workers.descriptors() == before


# Draining


@pytest.fixture
def one(server: Server) -> Iterator[Workers]:
    """One worker, which the test drains."""
    with Workers({SERVICE: [server.address]}) as running:
        yield running


def test_a_worker_without_connections_drains_at_once(one: Workers) -> None:
    one.send(0, DRAIN)
    assert one.wait_exit(0) == 0
    assert one.table.worker(0)["state"] == "done"
    assert select.select([one.wake], [], [], 0)[0]


def test_stop_ends_a_worker_at_once(one: Workers) -> None:
    with one.connect() as client:
        served(client)
        one.send(0, STOP)
        assert one.wait_exit(0) == 0
        assert client.at_end() or was_reset(client)


def test_a_drained_worker_finishes_what_it_began(one: Workers, server: Server) -> None:
    with one.connect() as waiting, one.connect() as streaming, one.connect() as sending:
        waiting.send(REQUEST)
        upstream_waiting = server.accept()
        streaming.send(REQUEST)
        upstream_streaming = server.accept()
        upstream_streaming.send(head("HTTP/1.1 200 OK", "Content-Length: 4") + b"ab")
        streaming.read_until(b"ab")
        sending.send(head("POST / HTTP/1.1", "Host: svc", "Content-Length: 4") + b"ab")
        upstream_sending = server.accept()
        upstream_sending.read_until(b"ab")
        one.send(0, DRAIN)
        wait_until(lambda: one.table.worker(0)["state"] == "draining")

        upstream_waiting.send(OK)
        exact(waiting, OK_CLOSE)
        assert waiting.read_all() == b""
        upstream_streaming.send(b"cd")
        assert streaming.read_all() == b"cd"
        sending.send(b"cd")
        exact(upstream_sending, b"cd")
        upstream_sending.send(OK)
        exact(sending, OK_CLOSE)
        assert sending.read_all() == b""
        assert one.wait_exit(0) == 0


def test_an_idle_connection_may_ask_once_more_while_the_worker_drains(one: Workers, server: Server) -> None:
    with one.connect() as client:
        served(client)
        one.send(0, DRAIN)
        wait_until(lambda: one.table.worker(0)["state"] == "draining")
        client.send(REQUEST)
        server.accept().send(OK)
        exact(client, OK_CLOSE)
        assert client.read_all() == b""
        assert one.wait_exit(0) == 0


def test_an_idle_connection_that_asks_nothing_is_closed(one: Workers) -> None:
    with one.connect() as client:
        served(client)
        one.send(0, DRAIN)
        assert client.read_all() == b""
        assert one.wait_exit(0) == 0
    assert one.counters()["close_drain"] == 1


def test_an_opaque_connection_goes_on_until_its_end(server: Server) -> None:
    with Workers(listeners=[{"protocol": "tcp", "service": SERVICE}]) as workers:
        workers.put(SERVICE, [server.address], protocol="tcp")
        with workers.connect() as client:
            upstream = server.accept()
            workers.send(0, DRAIN)
            wait_until(lambda: workers.table.worker(0)["state"] == "draining")
            client.send(b"more")
            exact(upstream, b"more")
            upstream.end()
            client.end()
            assert workers.wait_exit(0) == 0


def test_what_waits_in_the_queue_of_a_drained_worker_is_served(one: Workers, server: Server) -> None:
    os.kill(one.pids[0], signal.SIGSTOP)
    clients = [one.connect() for _ in range(5)]
    for client in clients:
        client.send(REQUEST)
    one.send(0, DRAIN)
    os.kill(one.pids[0], signal.SIGCONT)
    for client in clients:
        server.accept().send(OK)
        exact(client, OK_CLOSE)
        assert client.read_all() == b""
        client.close()
    assert one.wait_exit(0) == 0


def test_what_was_handed_to_a_worker_that_drains_is_served(two: Workers) -> None:
    """The hand-over is under way when the drain begins; its count keeps the worker."""
    two.own(1, 0)
    with two.connect() as first:
        served(first)
        os.kill(two.pids[1], signal.SIGSTOP)
        two.send(1, DRAIN)
        with two.connect() as second:
            wait_until(lambda: two.loads() == [1, 1])
            second.send(head("GET / HTTP/1.1", "Host: unknown"))
            os.kill(two.pids[1], signal.SIGCONT)
            response = second.read_response()
            assert (response.status, response.header("connection")) == (404, "close")
        assert two.wait_exit(1) == 0
        with two.connect() as third:  # no more is handed to it
            served(third)
            assert two.loads() == [2, 0]


def test_a_drained_worker_accepts_no_more(one: Workers) -> None:
    with one.connect() as client:
        client.send(b"GET / HTTP/1.1\r\n")
        one.settle()
        one._end_probe()
        one.send(0, DRAIN)
        wait_until(lambda: one.table.worker(0)["state"] == "draining")
        with one.connect() as late:
            client.send(b"Host: unknown\r\n\r\n")
            assert client.read_response().header("connection") == "close"
            client.close()
            assert one.wait_exit(0) == 0
            one.start(0)  # the queue is the next one's
            served(late)
