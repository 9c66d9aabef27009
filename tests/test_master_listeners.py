"""Listening sockets, on real ports of the loopback interface."""

from __future__ import annotations

import itertools
import os
import select
import socket
import struct
import subprocess
import sys

import pytest

from fastside import listeners
from fastside.config import Listener as ListenerConfig
from fastside.listeners import ListenError, open_listener


def config_for(bind: str, **changes) -> ListenerConfig:
    return ListenerConfig(**({"name": "inbound", "direction": "inbound", "bind": bind, "protocol": "http"} | changes))


def free_bind(host: str = "127.0.0.1") -> str:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as sock:
        sock.bind((host, 0))
        port = sock.getsockname()[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_of(bind: str) -> tuple[str, int]:
    host, _, port = bind.rpartition(":")
    return host.strip("[]"), int(port)


@pytest.fixture
def opened():
    """Opens listeners and closes them after the test."""
    everything = []
    ids = itertools.count(1)

    def open_them(config, slots=2, **options):
        result = open_listener(ids, config, slots, **options)
        everything.extend(result)
        return result

    yield open_them
    for listener in everything:
        listener.close()


def accept_all(sockets):
    """Accepts what is queued, per socket."""
    counts = []
    for sock in sockets:
        accepted = 0
        while select.select([sock], [], [], 0)[0]:
            sock.accept()[0].close()
            accepted += 1
        counts.append(accepted)
    return counts


def connect_many(address, count):
    """Queues `count` connections and returns them open."""
    return [socket.create_connection(address, timeout=5) for _ in range(count)]


def close_many(clients):
    for client in clients:
        client.close()


def test_every_slot_gets_a_socket_and_a_share(opened):
    bind = free_bind()
    [listener] = opened(config_for(bind))
    clients = connect_many(address_of(bind), 100)
    counts = accept_all(listener.sockets.values())
    close_many(clients)
    assert sum(counts) == 100
    assert min(counts) > 10


def test_accepted_sockets_inherit_nodelay_and_keepalive(opened):
    bind = free_bind()
    [listener] = opened(config_for(bind), slots=1)
    client = socket.create_connection(address_of(bind), timeout=5)
    accepted = listener.sockets[0].accept()[0]
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
    assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    accepted.close()
    client.close()


def test_exclusive_slots_share_one_socket(opened):
    [listener] = opened(config_for(free_bind()), exclusive=True)
    first, second = listener.sockets.values()
    assert first.fileno() != second.fileno()
    assert len(listener.inodes()) == 1


def test_entries_are_what_the_core_takes(opened):
    config = config_for(free_bind(), direction="outbound", service_header="x-service")
    [listener] = opened(config)
    entries = listener.entries()
    assert [entry[:2] + entry[3:] for entry in entries] == [
        (listener.id, slot, 0, 0, b"", b"x-service") for slot in (0, 1)
    ]
    tcp = config_for(free_bind(), protocol="tcp", service="redis")
    assert opened(tcp)[0].entries()[0][3:] == (1, 1, b"redis", b"")


def test_a_v6_wildcard_leaves_v4_alone(opened):
    bind = free_bind("::")
    opened(config_for(bind))
    port = address_of(bind)[1]
    opened(config_for(f"0.0.0.0:{port}"))
    assert {entry.host for entry in listeners.listening() if entry.port == port} == {"0.0.0.0", "::"}


@pytest.mark.parametrize("reuseport", [0, 1])
def test_another_program_on_the_port_is_named(reuseport):
    bind = free_bind()
    code = (
        "import socket, sys; s = socket.socket();"
        f"s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, {reuseport});"
        f"s.bind({address_of(bind)!r}); s.listen(); print('up', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "up\n"
        with pytest.raises(ListenError) as caught:
            open_listener(itertools.count(1), config_for(bind), 2)
        other.communicate()
    message = str(caught.value)
    assert message.startswith(f"listener inbound: cannot listen on {bind}: it is in use by python")
    assert f"(pid {other.pid})" in message


def test_a_wildcard_over_another_program_s_port_is_refused(opened):
    bind = free_bind()
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(address_of(bind))
        other.listen()
        config = config_for(f"0.0.0.0:{address_of(bind)[1]}")
        with pytest.raises(ListenError, match="in use"):
            opened(config)
        opened(config, ours=[os.fstat(other.fileno()).st_ino])


def test_connections_that_are_still_closing_do_not_block_the_port(opened):
    bind = free_bind()
    [listener] = opened(config_for(bind), slots=1)
    client = socket.create_connection(address_of(bind), timeout=5)
    accepted = listener.sockets[0].accept()[0]
    accepted.close()  # this side closes first, so TIME_WAIT stays with the port
    assert client.recv(1) == b""
    client.close()
    listener.close()
    opened(config_for(bind), slots=1)


@pytest.mark.parametrize(
    ("bind", "reason"),
    [("203.0.113.7:20881", "no interface of this machine"), ("[2001:db8::7]:20881", "no interface of this machine")],
)
def test_an_address_of_another_machine(bind, reason):
    with pytest.raises(ListenError, match=reason):
        open_listener(itertools.count(1), config_for(bind), 1)


def test_nothing_stays_open_after_a_failure(opened):
    bind = free_bind()
    [inherited] = opened(config_for(bind), slots=1)
    copy = inherited.sockets[0].dup()
    with pytest.raises(ListenError):
        # The inherited socket does not listen on this address; a second one cannot be had there.
        open_listener(itertools.count(1), config_for("203.0.113.7:20881"), 2, inherited=[copy])
    assert copy.fileno() == -1


def test_inherited_sockets_are_used_before_new_ones(opened):
    bind = free_bind()
    [old] = opened(config_for(bind), slots=3)
    copies = [sock.dup() for sock in old.sockets.values()]
    main, extra = opened(config_for(bind), slots=2, inherited=copies)
    assert main.inodes() + extra.inodes() == old.inodes()
    assert list(extra.sockets) == [0]
    more = [sock.dup() for sock in old.sockets.values()]
    [wider] = opened(config_for(bind), slots=4, inherited=more)
    assert wider.inodes()[:3] == old.inodes()
    assert len(wider.inodes()) == 4


def test_own_addresses_expands_wildcards():
    binds = ("0.0.0.0:20881", "127.0.0.9:20882", "[::]:20883")
    addresses = listeners.own_addresses([config_for(bind) for bind in binds])
    assert ("127.0.0.1", 20881) in addresses
    assert ("127.0.0.9", 20882) in addresses
    assert all(host != "0.0.0.0" and host != "::" for host, _ in addresses)
    v4 = [host for host, port in addresses if port == 20881]
    assert len(v4) == len(set(v4)) == len([line for line in _local_routes() if ":" not in line])


def _local_routes() -> list[str]:
    """Local IPv4 addresses by another way: the kernel's routing trie."""
    found = set()
    with open("/proc/net/fib_trie") as trie:
        previous = ""
        for line in trie:
            if "/32 host LOCAL" in line:
                found.add(previous.split()[-1])
            previous = line
    return sorted(found)


def test_steering_sends_new_connections_to_the_chosen_members(opened):
    bind = free_bind()
    [old] = opened(config_for(bind))
    [new] = opened(config_for(bind), ours=old.inodes())
    listeners.steer(new.sockets[0], first=2, count=2)
    clients = connect_many(address_of(bind), 100)
    assert accept_all(old.sockets.values()) == [0, 0]
    counts = accept_all(new.sockets.values())
    assert sum(counts) == 100
    assert min(counts) > 10
    listeners.unsteer(new.sockets[0])
    clients += connect_many(address_of(bind), 100)
    assert sum(accept_all(old.sockets.values())) > 10
    accept_all(new.sockets.values())
    close_many(clients)


def test_a_queue_survives_the_end_of_the_process_that_accepted_from_it(opened):
    """What a worker's death relies on: the master's copy of the socket keeps the queue."""
    bind = free_bind()
    [listener] = opened(config_for(bind), slots=1)
    sock = listener.sockets[0]
    worker = os.fork()
    if worker == 0:
        os.kill(os.getpid(), 9)
    clients = connect_many(address_of(bind), 50)
    os.waitpid(worker, 0)
    for client in clients:
        client.sendall(b"x")
    served = 0
    for _ in clients:
        accepted = sock.accept()[0]
        accepted.setblocking(True)
        served += accepted.recv(1) == b"x"
        accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        accepted.close()
    close_many(clients)
    assert served == 50
