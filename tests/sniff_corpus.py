"""First bytes of connections, and what they tell. Also the seeds of the fuzzer."""

from __future__ import annotations

import contextlib
import ssl
import struct


def client_hello(name: str | None = "svc-a.example", alpn: list[str] | None = None, *, old: bool = False) -> bytes:
    """The first flight of OpenSSL; of TLS 1.2 at most if it is old."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(alpn)
    if old:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    sent = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname=name).do_handshake()
    return sent.read()


LARGE_ALPN = [f"{number:0250}" for number in range(200)]

HELLOS = {
    "TLS 1.3": (client_hello(), "svc-a.example"),
    "TLS 1.2": (client_hello(old=True), "svc-a.example"),
    "without a name": (client_hello(None), ""),
    "with ALPN": (client_hello(alpn=["h2", "http/1.1"]), "svc-a.example"),
    "with a long name": (client_hello(".".join(["a" * 63] * 3 + ["b" * 61])), ".".join(["a" * 63] * 3 + ["b" * 61])),
    "in several records": (client_hello(alpn=LARGE_ALPN), "svc-a.example"),
}

BOLT_REQUEST = bytes.fromhex("0101000101000000070b00000bb8002c008800000003636f6d2e616c69706179")
BOLT2_REQUEST = bytes.fromhex("020201000101000000070b0100000bb8002c008800000003636f6d2e616c69706179")
DUBBO_REQUEST = bytes.fromhex("dabbc20000000000000000010000008905322e302e32")
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# By what they are; the length is that of the shortest beginning that tells it.
BEGINNINGS: list[tuple[str, bytes, int]] = [
    ("http1", b"GET / HTTP/1.1\r\nHost: svc\r\n\r\n", 5),
    ("http1", b"OPTIONS * HTTP/1.1\r\nHost: svc\r\n\r\n", 9),
    ("http1", b"GET http://svc/ HTTP/1.1\r\nHost: svc\r\n\r\n", 11),
    ("http1", b"GET HTTPS://svc/ HTTP/1.1\r\nHost: svc\r\n\r\n", 12),
    ("http1", b"CONNECT svc:443 HTTP/1.1\r\nHost: svc:443\r\n\r\n", 9),
    ("http1", b"CONNECT [::1]:443 HTTP/1.1\r\nHost: [::1]:443\r\n\r\n", 9),
    ("http1", b"VERSION-CONTROL /a HTTP/1.1\r\n", 17),
    ("http1", b"A" * 32 + b" /", 34),
    ("http1", b"PRI * HTTP/1.1\r\n", 12),
    ("http1", b"PRI / HTTP/1.1\r\n", 5),
    ("http2", PREFACE + bytes(9), 24),
    ("bolt", BOLT_REQUEST, 4),
    ("bolt", BOLT2_REQUEST, 5),
    ("bolt", bytes.fromhex("01010000010000000101ffffffff0000000000000000"), 4),
    ("bolt", bytes.fromhex("0100000001000000010100000000000000000000"), 4),
    ("bolt", bytes.fromhex("020101000001000000010100ffffffff0000000000000000"), 5),
    ("bolt", bytes.fromhex("0100000201000000070b00060000000000000000"), 4),
    ("bolt", bytes.fromhex("01020001010000000701"), 4),
    ("dubbo", DUBBO_REQUEST, 2),
    ("dubbo", bytes.fromhex("dabbe2000000000000000001000000014e"), 2),
    *(("tls", hello, 6) for hello, _ in HELLOS.values()),
    ("tls", bytes.fromhex("160300400001"), 6),
    ("opaque", b"SSH-2.0-OpenSSH_9.6p1 Debian-3\r\n", 23),
    ("opaque", b"SSH-2.0-libssh2_1.11.0\r\n", 23),
    ("opaque", b"PROXY TCP4 192.0.2.1 192.0.2.2 56324 443\r\n", 7),
    ("opaque", b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", 1),
    ("opaque", b"EHLO client.example\r\n", 6),
    ("opaque", b"HELO hub.example\r\n", 7),
    ("opaque", b"*1\r\n$4\r\nPING\r\n", 1),
    ("opaque", b"PING\r\n", 5),
    ("opaque", b"SET key value\r\n", 5),
    ("opaque", b"get key\r\n", 1),
    ("opaque", b"INVITE sip:bob@biloxi.example SIP/2.0\r\n", 8),
    ("opaque", b"CONNECT {\"verbose\":false}\r\n", 9),
    ("opaque", b"CONNECT\naccept-version:1.2\n\n\0", 8),
    ("opaque", b"AMQP\0\0\x09\x01", 5),
    ("opaque", bytes.fromhex("0000000804d2162f"), 1),  # PostgreSQL asks for TLS
    ("opaque", bytes.fromhex("5500000185a6ff0900000001ff"), 2),  # MySQL's client answers
    ("opaque", b"\x10\x0e\0\x04MQTT", 1),
    ("opaque", bytes.fromhex("1603010000"), 5),
    ("opaque", bytes.fromhex("1603014001"), 5),
    ("opaque", bytes.fromhex("16030141"), 4),
    ("opaque", bytes.fromhex("160305"), 3),
    ("opaque", bytes.fromhex("1602"), 2),
    ("opaque", bytes.fromhex("16030102000002"), 6),
    ("opaque", bytes.fromhex("1503010002"), 1),
    ("opaque", bytes.fromhex("0103"), 2),
    ("opaque", bytes.fromhex("010101"), 3),
    ("opaque", bytes.fromhex("01010002"), 4),
    ("opaque", bytes.fromhex("01000001"), 4),
    ("opaque", bytes.fromhex("01020002"), 4),
    ("opaque", bytes.fromhex("01010064"), 4),
    ("opaque", bytes.fromhex("0203"), 2),
    ("opaque", bytes.fromhex("020103"), 3),
    ("opaque", bytes.fromhex("0201010003"), 5),
    ("opaque", bytes.fromhex("dabc"), 2),
    ("opaque", b"A" * 33, 33),
    ("opaque", b"GET  /", 5),
    ("opaque", b"GET\t/", 4),
    ("opaque", b"GET httpx://", 9),
    ("opaque", b"GET http:/a", 11),
    ("opaque", b" GET /", 1),
    ("opaque", b"\xff", 1),
]  # fmt: skip


def vector(size: int, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return len(data).to_bytes(size) + data


def extension(kind: int, *parts: bytes) -> bytes:
    return kind.to_bytes(2) + vector(2, *parts)


def sni(name: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, bytes([kind]), vector(2, name)))


def body(*extensions: bytes, version: bytes = b"\3\3", ciphers: bytes = b"\x13\x01") -> bytes:
    head = version + bytes(32) + vector(1, bytes(32)) + vector(2, ciphers) + vector(1, b"\0")
    return head + vector(2, *extensions)


def message(content: bytes, kind: int = 1) -> bytes:
    return bytes([kind]) + vector(3, content)


def records(data: bytes, size: int = 16384) -> bytes:
    return b"".join(b"\x16\3\1" + vector(2, data[at : at + size]) for at in range(0, len(data), size))


SNI = sni(b"svc-a")
KEY_SHARE = extension(51, vector(2, struct.pack(">H", 0x11EC), vector(2, bytes(1216)), b"\0\x1d", vector(2, bytes(32))))
PLAIN = body(SNI)
HOST = PLAIN.index(b"svc-a")

GOOD: list[tuple[bytes, str]] = [
    *HELLOS.values(),
    (records(message(body(KEY_SHARE, SNI))), "svc-a"),  # X25519MLKEM768 and X25519
    (records(message(PLAIN)), "svc-a"),
    (records(message(PLAIN), 1), "svc-a"),
    (records(message(body(extension(21, bytes(60000)), SNI)), 2), "svc-a"),
    (records(message(body())), ""),
    (records(message(PLAIN[: -len(SNI) - 2])), ""),  # no extensions at all, as before TLS 1.2
    (records(message(body(sni(b"a" * 255)))), "a" * 255),
    (records(message(body(sni(b"_A-9.x")))), "_A-9.x"),
    (records(message(body(*(extension(kind) for kind in range(1, 16000))))), ""),
]

BAD: dict[str, bytes] = {
    "another record": b"\x17\3\1" + vector(2, message(PLAIN)),
    "another record in the middle": records(message(PLAIN)[:9]) + b"\x17\3\1" + vector(2, message(PLAIN)[9:]),
    "another version of records": b"\x16\2\1" + vector(2, message(PLAIN)),
    "an empty record": records(message(PLAIN)[:9]) + b"\x16\3\1\0\0" + records(message(PLAIN)[9:]),
    "too long a record": records(message(body(extension(21, bytes(20000)))), 16385),
    "another message": records(message(PLAIN, 2)),
    "too long a message": b"\x16\3\1" + vector(2, bytes.fromhex("01010001")),
    "bytes after the message": records(message(PLAIN) + b"\0"),
    "another message behind it": records(message(PLAIN) + message(b"", 0)),
    "another version": records(message(body(version=b"\2\3"))),
    "an empty message": records(message(b"")),
    "too short a message": records(message(PLAIN[:33])),
    "a session id too long": records(message(PLAIN[:34] + vector(1, bytes(33)) + PLAIN[67:])),
    "no cipher suites": records(message(body(ciphers=b""))),
    "half a cipher suite": records(message(body(ciphers=b"\x13\1\x13"))),
    "no compression method": records(message(PLAIN[:71] + b"\0" + PLAIN[73:])),
    "bytes after the extensions": records(message(PLAIN + b"\0")),
    "two names": records(message(body(SNI, SNI))),
    "two extensions of one type": records(message(body(extension(23), SNI, extension(23)))),
    "half an extension": records(message(body(SNI, b"\0"))),
    "an extension without a length": records(message(body(SNI, b"\0\x17"))),
    "an empty name extension": records(message(body(extension(0)))),
    "an empty list of names": records(message(body(extension(0, vector(2))))),
    "an empty name": records(message(body(sni(b"")))),
    "another type of name": records(message(body(sni(b"svc-a", 1)))),
    "a second name": records(message(body(extension(0, vector(2, *[b"\0" + vector(2, b"a")] * 2))))),
    "bytes after the names": records(message(body(extension(0, vector(2, b"\0" + vector(2, b"a")), b"\0")))),
    "a name too long": records(message(body(sni(b"a" * 256)))),
    **{f"{byte:#x} in a name": records(message(body(sni(b"a%cb" % byte)))) for byte in b"\0 /:@[`{*,\x7f\xe9"},
    **{
        f"a length at {at} that is larger": records(message(PLAIN[:at] + bytes([PLAIN[at] + 1]) + PLAIN[at + 1 :]))
        for at in (HOST - 1, HOST - 4, HOST - 6, HOST - 10)
    },
    **{
        f"a length at {at} that is smaller": records(message(PLAIN[:at] + bytes([PLAIN[at] - 1]) + PLAIN[at + 1 :]))
        for at in (HOST - 1, HOST - 4, HOST - 6, HOST - 10)
    },
}
