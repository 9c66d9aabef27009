"""A second reader of first bytes: slow, and as close to the specifications as lists of patterns and slices allow.

It answers like fastside._core's sniff_protocol and server_name.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Iterable

Pattern = list[frozenset[int]]  # the bytes allowed at each place


def exactly(text: bytes) -> Pattern:
    return [frozenset({byte}) for byte in text]


def any_case(text: str) -> Pattern:
    return [frozenset({*char.lower().encode(), *char.upper().encode()}) for char in text]


TCHAR = frozenset((string.ascii_letters + string.digits + "!#$%&'*+-.^_`|~").encode())
HOST_START = frozenset((string.ascii_letters + string.digits + "!$&'*+-._~(),;=[").encode())
UPPER = frozenset(string.ascii_uppercase.encode())
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def http1() -> Iterable[Pattern]:
    methods = [[UPPER, *[TCHAR] * n] for n in range(32)]
    targets = [exactly(b"/"), exactly(b"*"), any_case("http://"), any_case("https://")]
    for method, target in itertools.product(methods, targets):
        yield [*method, *exactly(b" "), *target]


def bolt() -> Iterable[Pattern]:
    kinds_and_commands = [(0, 0), (0, 2), (1, 0), (1, 1), (2, 0), (2, 1)]
    for start, (kind, command) in itertools.product((b"\1", b"\2\1", b"\2\2"), kinds_and_commands):
        yield exactly(start + bytes([kind, 0, command]))


def tls() -> Iterable[Pattern]:
    version = [frozenset({22}), frozenset({3}), frozenset(range(5))]
    every = frozenset(range(256))
    for high, low in ((frozenset({0}), every - {0}), (frozenset(range(1, 64)), every), (frozenset({64}), {0})):
        yield [*version, high, frozenset(low), frozenset({1})]


PATTERNS = {
    "http2": [exactly(PREFACE)],
    "http1": [[*exactly(b"CONNECT "), HOST_START], *http1()],
    "bolt": [*bolt()],
    "dubbo": [exactly(b"\xda\xbb")],
    "tls": [*tls()],
}


def agrees(data: bytes, pattern: Pattern) -> bool:
    return all(byte in allowed for byte, allowed in zip(data, pattern, strict=False))


def sniff_protocol(data: bytes) -> str:
    if len(data) < len(PREFACE) and PREFACE.startswith(data):
        return "more"
    more = False
    for name, patterns in PATTERNS.items():
        if name == "http1" and data.startswith(b"CONNECT "):
            patterns = patterns[:1]
        alive = [pattern for pattern in patterns if agrees(data, pattern)]
        if any(len(pattern) <= len(data) for pattern in alive):
            return name
        more = more or bool(alive)
    return "more" if more else "opaque"


class Malformed(Exception):
    """Not a ClientHello."""


class Unfinished(Exception):
    """Bytes are missing."""


def require(condition: object) -> None:
    if not condition:
        raise Malformed


def vector(data: bytes, size: int) -> tuple[bytes, bytes]:
    """A vector whose length is written in size bytes, and what follows it."""
    require(len(data) >= size)
    length = int.from_bytes(data[:size])
    require(len(data) >= size + length)
    return data[size : size + length], data[size + length :]


def read_message(data: bytes) -> bytes:
    """The body of the ClientHello (RFC 8446 4), put together from its records (5.1)."""
    message = b""
    while True:
        if len(data) < 5:
            raise Unfinished
        length = int.from_bytes(data[3:5])
        require(data[0] == 22 and data[1] == 3 and data[2] <= 4 and 1 <= length <= 16384)
        fragment, data = data[5 : 5 + length], data[5 + length :]
        message += fragment
        if len(message) >= 4:
            need = int.from_bytes(message[1:4])
            require(message[0] == 1 and need <= 65536)
            require(len(message) - len(fragment) + length <= 4 + need)
            if len(message) == 4 + need:
                return message[4:]
        if len(fragment) < length:
            raise Unfinished


def read_host(extension: bytes) -> bytes:
    names, rest = vector(extension, 2)
    require(names and not rest)
    require(names[0] == 0)
    host, rest = vector(names[1:], 2)
    require(1 <= len(host) <= 255 and not rest)
    require(set(host) <= set((string.ascii_letters + string.digits + "-._").encode()))
    return host


def read_hello(message: bytes) -> bytes:
    require(len(message) >= 34 and message[0] == 3)
    session, rest = vector(message[34:], 1)
    require(len(session) <= 32)
    ciphers, rest = vector(rest, 2)
    require(ciphers and len(ciphers) % 2 == 0)
    compressions, rest = vector(rest, 1)
    require(compressions)
    if not rest:
        return b""
    extensions, rest = vector(rest, 2)
    require(not rest)
    found: dict[int, bytes] = {}
    while extensions:
        require(len(extensions) >= 2)
        kind = int.from_bytes(extensions[:2])
        require(kind not in found)
        found[kind], extensions = vector(extensions[2:], 2)
    return read_host(found[0]) if 0 in found else b""


def server_name(data: bytes) -> str | None:
    """Raises ValueError like the function that it is compared with."""
    try:
        return read_hello(read_message(data)).decode()
    except Unfinished:
        return None
    except Malformed:
        raise ValueError from None
