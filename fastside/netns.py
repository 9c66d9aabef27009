"""Network namespaces and the virtual cables between them, without tools: two system calls and rtnetlink messages.

A namespace made here has no name in the file system. It lives as long as a descriptor, a process or a socket holds it,
so it goes by itself however its maker ends, and its interfaces with it.

Sources: network_namespaces(7), unshare(2), setns(2), netlink(7), rtnetlink(7), veth(4), linux/if_link.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Interface

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)  # os.setns and os.unshare came with Python 3.12


class Namespace:
    """A new network namespace whose loopback interface is up. Raises OSError where that is not permitted."""

    def __init__(self) -> None:
        with _moved(lambda: _libc.unshare(_CLONE_NEWNET)):
            self.fd = _open_own()
            try:
                with Netlink() as netlink:
                    netlink.set_up("lo")
            except BaseException:
                self.close()
                raise

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread is in the namespace for the block. Sockets made and processes started there stay in it."""
        with _moved(lambda: _libc.setns(self.fd, _CLONE_NEWNET)):
            yield

    def close(self) -> None:
        """Let go of the namespace; it ends when nothing else holds it."""
        os.close(self.fd)


def join(one: Namespace, one_address: IPv4Interface, other: Namespace, other_address: IPv4Interface) -> None:
    """Lay a cable (a veth pair) between two namespaces; each end is called eth0. Raises OSError."""
    with one.entered(), Netlink() as netlink:
        netlink.add_veth("eth0", "eth0", other.fd)
    for namespace, address in ((one, one_address), (other, other_address)):
        with namespace.entered(), Netlink() as netlink:
            netlink.add_address("eth0", address)
            netlink.set_up("eth0")


@contextmanager
def _moved(move: Callable[[], int]) -> Iterator[None]:
    """The calling thread is where `move` took it, and afterwards back in the namespace in which it was."""
    own = _open_own()
    try:
        _checked(move())
        try:
            yield
        finally:
            _checked(_libc.setns(own, _CLONE_NEWNET))
    finally:
        os.close(own)


def _open_own() -> int:
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _checked(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Netlink:
    """Changes the interfaces of the namespace in which it was made. Methods raise OSError if the kernel refuses."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def add_veth(self, name: str, peer: str, peer_namespace: int) -> None:
        """Add a pair of interfaces: `name` here, `peer` in the namespace of that descriptor."""
        other = (
            _ifinfomsg()
            + _attribute(_IFLA_IFNAME, _text(peer))
            + _attribute(_IFLA_NET_NS_FD, struct.pack("=I", peer_namespace))
        )
        kind = _attribute(_IFLA_INFO_KIND, b"veth") + _attribute(_IFLA_INFO_DATA, _attribute(_VETH_INFO_PEER, other))
        attributes = _attribute(_IFLA_IFNAME, _text(name)) + _attribute(_IFLA_LINKINFO, kind)
        self._request(_RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, _ifinfomsg() + attributes)

    def add_address(self, name: str, address: IPv4Interface) -> None:
        """Give the interface an address; its network is reached by it."""
        index = socket.if_nametoindex(name)
        message = struct.pack("=BBBBI", socket.AF_INET, address.network.prefixlen, 0, 0, index)
        message += _attribute(_IFA_LOCAL, address.packed) + _attribute(_IFA_ADDRESS, address.packed)
        self._request(_RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_EXCL, message)

    def set_up(self, name: str) -> None:
        """Switch the interface on."""
        self._request(_RTM_NEWLINK, 0, _ifinfomsg(socket.if_nametoindex(name), flags=_IFF_UP))

    def _request(self, kind: int, flags: int, payload: bytes) -> None:
        length = _HEADER.size + len(payload)
        self._socket.send(_HEADER.pack(length, kind, flags | _NLM_F_REQUEST | _NLM_F_ACK, 1, 0) + payload)
        answer = self._socket.recv(65536)
        (error,) = struct.unpack_from("=i", answer, _HEADER.size)  # an acknowledgement is an error of 0
        if error:
            raise OSError(-error, os.strerror(-error))


_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_RTM_NEWLINK, _RTM_NEWADDR = 16, 20
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 3, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFF_UP = 1


def _ifinfomsg(index: int = 0, flags: int = 0) -> bytes:
    """struct ifinfomsg; the bits in `flags` are set, the others left as they are."""
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _attribute(kind: int, value: bytes) -> bytes:
    """struct rtattr with its value, padded to four bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _text(name: str) -> bytes:
    return name.encode() + b"\0"
