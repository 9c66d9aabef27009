"""Which endpoint a request goes to, seen from the servers."""

from __future__ import annotations

import select
from collections import Counter
from collections.abc import Iterator

import pytest

from core_worker import SERVICE, Server, Workers, exact, head
from harness import DEADLINE, Raw, Stream

OK_CLOSE = head("HTTP/1.1 200 OK", "Connection: close", "Content-Length: 2") + b"ok"


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    running = [Server() for _ in range(3)]
    yield running
    for server in running:
        server.close()


class Calls:
    """Requests to servers of which any may get them."""

    def __init__(self, servers: list[Server]) -> None:
        self.servers = servers

    def begin(self, client: Raw, *fields: str) -> tuple[int, Stream]:
        """Send a request; return which server got it, and its side of the connection."""
        request = head("GET / HTTP/1.1", f"Host: {SERVICE}", *fields)
        client.send(request)
        ready = select.select([server.socket for server in self.servers], [], [], DEADLINE)[0]
        assert len(ready) == 1
        number = [server.socket for server in self.servers].index(ready[0])
        upstream = self.servers[number].accept()
        exact(upstream, request)
        return number, upstream

    def call(self, client: Raw, *fields: str) -> int:
        """One whole exchange; return which server had it."""
        number, upstream = self.begin(client, *fields)
        upstream.send(OK_CLOSE)
        exact(client, OK_CLOSE.replace(b"Connection: close\r\n", b""))
        upstream.close()
        return number


def test_round_robin_follows_the_weights(servers: list[Server]) -> None:
    calls = Calls(servers)
    with Workers() as workers, workers.connect() as client:
        workers.put(SERVICE, [(*server.address, weight) for server, weight in zip(servers, (1, 2, 5), strict=True)])
        assert Counter(calls.call(client) for _ in range(80)) == {0: 10, 1: 20, 2: 50}
        workers.put(SERVICE, [server.address for server in servers])
        assert Counter(calls.call(client) for _ in range(30)) == {0: 10, 1: 10, 2: 10}


def test_least_request_avoids_the_busy_one(servers: list[Server]) -> None:
    """Both candidates are looked at when there are two endpoints, so the one with fewer requests under way gets it."""
    calls = Calls(servers[:2])
    with Workers() as workers:
        workers.put(SERVICE, [server.address for server in servers[:2]], balance="least_request")
        open_calls = [calls.begin(workers.connect()) for _ in range(10)]
        assert Counter(number for number, _ in open_calls) == {0: 5, 1: 5}
        for number, upstream in open_calls:
            if number == 1:
                upstream.send(OK_CLOSE)
                upstream.close()
        workers.wait_for(upstreams=5)
        assert [calls.begin(workers.connect())[0] for _ in range(4)] == [1, 1, 1, 1]


def test_least_request_counts_what_all_workers_have_under_way(servers: list[Server]) -> None:
    calls = Calls(servers[:2])
    with Workers(count=2) as workers:
        workers.put(SERVICE, [server.address for server in servers[:2]], balance="least_request")
        open_calls = [calls.begin(workers.connect())[0] for _ in range(12)]
        assert [workers.counters(slot)["upstreams"] for slot in (0, 1)] == [6, 6]
        assert Counter(open_calls) == {0: 6, 1: 6}


def test_a_header_decides_by_consistent_hashing(servers: list[Server]) -> None:
    calls = Calls(servers)
    with Workers(count=2) as workers, workers.connect() as one, workers.connect() as two:
        workers.put(SERVICE, [server.address for server in servers], balance="hash_header", hash_header="x-user")
        users = [f"X-USER: user-{number}" for number in range(30)]
        chosen = [calls.call(one, user) for user in users]
        assert set(chosen) == {0, 1, 2}
        assert [calls.call(two, user) for user in users] == chosen
        assert [calls.call(one, "Accept: x", user.replace(": ", ":")) for user in users] == chosen
        without = {calls.call(client) for client in (one, two) for _ in range(5)}
        assert len(without) == 1

        # Without one endpoint only its own users move.
        workers.put(SERVICE, [server.address for server in servers[:2]], balance="hash_header", hash_header="x-user")
        moved = [(old, new) for old, user in zip(chosen, users, strict=True) if (new := calls.call(one, user)) != old]
        assert len([old for old, _ in moved if old != 2]) <= 2
        assert len(moved) >= chosen.count(2)


def test_the_source_address_decides_by_consistent_hashing(servers: list[Server]) -> None:
    calls = Calls(servers)
    with Workers(count=2) as workers:
        workers.put(SERVICE, [server.address for server in servers], balance="hash_source")
        chosen = []
        for number in range(20):
            found = set()
            for _ in range(2):
                with workers.connect(source=f"127.0.0.{2 + number}") as client:
                    found |= {calls.call(client), calls.call(client)}
            assert len(found) == 1
            chosen += found
        assert set(chosen) == {0, 1, 2}


def test_a_removed_endpoint_gets_no_more_requests(servers: list[Server]) -> None:
    """Not on a pooled connection either, and its address may come back."""
    old, new, _ = servers
    request = head("GET / HTTP/1.1", f"Host: {SERVICE}")
    ok = head("HTTP/1.1 200 OK", "Content-Length: 0")
    with Workers({SERVICE: [old.address]}) as workers, workers.connect() as client:
        client.send(request)
        kept = old.accept()
        exact(kept, request)
        kept.send(ok)
        exact(client, ok)
        workers.put(SERVICE, [new.address])
        client.send(request)
        other = new.accept()
        exact(other, request)
        other.send(ok)
        exact(client, ok)
        workers.put(SERVICE, [old.address])
        client.send(request)
        while select.select([old.socket, kept.socket], [], [], DEADLINE)[0] == [kept.socket] and kept.at_end():
            kept = old.accept()
        upstream = old.accept() if old.pending() else kept
        exact(upstream, request)
        upstream.send(ok)
        exact(client, ok)


def test_a_request_under_way_outlives_its_endpoint_and_its_service(servers: list[Server]) -> None:
    request = head("GET / HTTP/1.1", f"Host: {SERVICE}")
    ok = head("HTTP/1.1 200 OK", "Content-Length: 0")
    with Workers({SERVICE: [servers[0].address]}) as workers, workers.connect() as client:
        client.send(request)
        upstream = servers[0].accept()
        exact(upstream, request)
        workers.table.apply([{"op": "del", "direction": "outbound", "service": SERVICE}])
        workers.settle()
        workers.table.reclaim()
        upstream.send(ok)
        exact(client, ok)
        assert client.call(SERVICE).status == 404
