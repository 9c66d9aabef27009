"""Listening sockets: one SO_REUSEPORT socket per listener and worker slot, made and held by the master.

A socket's accept queue lives as long as some process holds the socket. As the master holds all of them, a connection
that waits in the queue of a dead worker's slot is served by its replacement.

Sources: socket(7), tcp(7), ipv6(7), proc_pid_net(5), the kernel's net/core/filter.c for the steering program.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from fastside.config import Listener as ListenerConfig
from fastside.config import host_port

BACKLOG = 65535
"""Connections that may wait in one slot; the kernel lowers it to net.core.somaxconn."""
KEEPALIVE = {socket.TCP_KEEPIDLE: 60, socket.TCP_KEEPINTVL: 15, socket.TCP_KEEPCNT: 4}
"""Seconds, seconds, probes: a vanished peer is noticed after two minutes."""

DIRECTIONS = ("outbound", "inbound")  # in the order of OUTBOUND, INBOUND in core/shm.pxd
PROTOCOLS = ("http", "tcp", "bolt", "dubbo", "tls", "auto")  # in the order of PROTOCOL_HTTP and so on


class ListenError(Exception):
    """A listener cannot be opened; str() names it, the reason and what to do."""


class Entry(NamedTuple):
    """A listener's socket of one slot, as `_core.run_worker` takes it."""

    id: int
    slot: int
    fd: int
    direction: int
    protocol: int
    service: bytes
    service_header: bytes


@dataclass
class Listener:
    """A configured listener and its open sockets.

    Usually it has a socket for every slot. What a successor took over from a master with more workers is a listener of
    its own, with one socket.
    """

    id: int
    config: ListenerConfig
    sockets: dict[int, socket.socket] = field(default_factory=dict)
    """By slot."""

    def entries(self) -> list[Entry]:
        config = self.config
        return [
            Entry(
                self.id,
                slot,
                sock.fileno(),
                DIRECTIONS.index(config.direction),
                PROTOCOLS.index(config.protocol),
                config.service.encode(),
                config.service_header.encode(),
            )
            for slot, sock in sorted(self.sockets.items())
        ]

    def distinct(self) -> list[socket.socket]:
        """The sockets by slot; one that several slots share comes once."""
        return list({os.fstat(sock.fileno()).st_ino: sock for _, sock in sorted(self.sockets.items())}.values())

    def inodes(self) -> list[int]:
        """What identifies the sockets in other processes' /proc/PID/fd."""
        return [os.fstat(sock.fileno()).st_ino for sock in self.distinct()]

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()


def open_listener(
    ids: Iterator[int],
    config: ListenerConfig,
    slots: int,
    *,
    exclusive: bool = False,
    inherited: Sequence[socket.socket] = (),
    ours: Iterable[int] = (),
) -> list[Listener]:
    """Return a listener for `slots` workers, and one more for each inherited socket that is left over.

    exclusive: one socket, shared by all slots. inherited: open sockets with this bind address, used before new ones are
    made. ours: inodes of listening sockets that may be bound beside. Raises ListenError; then nothing is left open, and
    the inherited sockets are closed too.
    """
    wanted = 1 if exclusive else slots
    sockets = list(inherited)
    try:
        if len(sockets) < wanted:
            _refuse_foreign(config, {*ours, *(os.fstat(sock.fileno()).st_ino for sock in sockets)})
        while len(sockets) < wanted:
            sockets.append(_bind(config))
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    main = Listener(next(ids), config)
    for slot in range(slots):
        main.sockets[slot] = sockets[slot] if not exclusive else sockets[0].dup() if slot else sockets[0]
    rest = [Listener(next(ids), config, {n % slots: sock}) for n, sock in enumerate(sockets[wanted:])]
    return [main, *rest]


def _bind(config: ListenerConfig) -> socket.socket:
    host, port = host_port(config.bind)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise ListenError(_explain(config, error)) from error
    try:
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        # Accepted sockets inherit these, which saves a worker the calls.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE.items():
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        raise ListenError(_explain(config, error)) from error
    return sock


def _explain(config: ListenerConfig, error: OSError) -> str:
    where = f"listener {config.name}: cannot listen on {config.bind}"
    port = host_port(config.bind)[1]
    if error.errno == errno.EADDRINUSE:
        holders = [entry.inode for entry in listening() if entry.port == port]
        return f"{where}: it is in use{_by(holders)}; stop that, or change the listener's bind"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{where}: no interface of this machine has this address; use one of its own, 0.0.0.0 or [::]"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"{where}: permission denied; use a port from 1024 on, or give the process CAP_NET_BIND_SERVICE"
    if error.errno == errno.EAFNOSUPPORT:
        return f"{where}: this machine has no IPv6; use an IPv4 address"
    return f"{where}: {os.strerror(error.errno or 0)}"


def _refuse_foreign(config: ListenerConfig, ours: set[int]) -> None:
    """Raise ListenError if another program listens there already.

    SO_REUSEPORT would let a second program of the same user share the port, and the kernel would give it a part of the
    connections.
    """
    host, port = host_port(config.bind)
    foreign = [entry.inode for entry in listening() if entry.overlaps(host, port) and entry.inode not in ours]
    if foreign:
        raise ListenError(_explain(config, OSError(errno.EADDRINUSE, "")))


class Listening(NamedTuple):
    """A TCP socket of this network namespace that listens."""

    host: str
    port: int
    inode: int

    def overlaps(self, host: str, port: int) -> bool:
        """Whether a socket bound to (host, port) would get a part of the same connections."""
        return (
            self.port == port
            and (":" in self.host) == (":" in host)
            and (self.host == host or {self.host, host} & {"0.0.0.0", "::"} != set())
        )


def listening() -> Iterator[Listening]:
    """The listening TCP sockets that the kernel shows; none where /proc/net cannot be read."""
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        with contextlib.suppress(OSError), open(f"/proc/net/{name}") as table:
            next(table)
            for line in table:
                fields = line.split()
                if fields[3] != "0A":
                    break  # the listening ones come first
                address, _, port = fields[1].partition(":")
                words = (int(address[at : at + 8], 16) for at in range(0, len(address), 8))
                packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
                yield Listening(socket.inet_ntop(family, packed), int(port, 16), int(fields[9]))


def _by(inodes: Iterable[int]) -> str:
    """Return " by NAME (pid N)" for the process that holds one of the sockets, "" if it cannot be seen."""
    names = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link) in names for link in (process / "fd").iterdir()):
                return f" by {(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue  # it has ended, or belongs to someone else
    return ""


def own_addresses(configs: Iterable[ListenerConfig]) -> list[tuple[str, int]]:
    """Every (ip, port) that leads to one of the listeners; a wildcard stands for all addresses of this machine."""
    addresses: dict[tuple[str, int], None] = {}
    for config in configs:
        host, port = host_port(config.bind)
        hosts = _ipv4_addresses() if host == "0.0.0.0" else _ipv6_addresses() if host == "::" else [host]
        addresses.update(((each, port), None) for each in hosts)
    return list(addresses)


_SIOCGIFCONF = 0x8912
_IFREQ = struct.Struct("16sLLHBBB3x")  # the name, then a union as large as struct ifmap (netdevice(7))


def _ipv4_addresses() -> list[str]:
    size = 64 * _IFREQ.size
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        while True:
            buffer = array.array("B", bytes(size))
            answer = fcntl.ioctl(sock, _SIOCGIFCONF, struct.pack("iP", size, buffer.buffer_info()[0]))
            used = struct.unpack("iP", answer)[0]
            if used < size:
                break
            size *= 2  # the kernel fills what it is given; full means there may be more
    found = (bytes(buffer[at + 20 : at + 24]) for at in range(0, used, _IFREQ.size))
    return [socket.inet_ntop(socket.AF_INET, address) for address in found]


def _ipv6_addresses() -> list[str]:
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return []
    return [socket.inet_ntop(socket.AF_INET6, bytes.fromhex(line.split()[0])) for line in lines]


_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_DETACH_REUSEPORT_BPF = 68


def steer(sock: socket.socket, first: int, count: int) -> None:
    """Give new connections of sock's SO_REUSEPORT group to `count` members from index `first`, in listening order."""
    program = (
        (0x20, 0, 0, 0xFFFFF000 + 56),  # A = random (SKF_AD_OFF + SKF_AD_RANDOM)
        (0x94, 0, 0, count),  # A %= count
        (0x04, 0, 0, first),  # A += first
        (0x16, 0, 0, 0),  # return A
    )
    code = array.array("B", b"".join(struct.pack("HBBI", *instruction) for instruction in program))
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_REUSEPORT_CBPF, struct.pack("HP", len(program), code.buffer_info()[0])
    )


def unsteer(sock: socket.socket) -> None:
    """Undo `steer`."""
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_REUSEPORT_BPF, 0)
