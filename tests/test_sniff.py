"""What a connection speaks is told from its first bytes, no later than they do; the name that a TLS client wants."""

from __future__ import annotations

import socket
import ssl
import struct
import subprocess

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import reference_sniff as reference
from fastside import _core
from harness import DEADLINE, require_program

bounded = settings(max_examples=2000, derandomize=True, deadline=None, database=None)


# What peers send


def client_hello(name: str | None = "svc-a.example", alpn: list[str] | None = None, *, old: bool = False) -> bytes:
    """The first flight of OpenSSL; of TLS 1.2 at most if it is old."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if alpn:
        context.set_alpn_protocols(alpn)
    if old:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    sent = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
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
    ("opaque", bytes.fromhex("01020000"), 4),
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


@pytest.mark.parametrize(("protocol", "data", "enough"), BEGINNINGS)
def test_tells_as_soon_as_the_bytes_do(protocol: str, data: bytes, enough: int) -> None:
    told = [_core.sniff_protocol(data[:n]) for n in range(min(len(data), 100) + 1)]
    assert told == ["more"] * enough + [protocol] * (len(told) - enough)


def test_tells_curl_and_httpx() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        curl = require_program("curl")
        for option, protocol in (("--http1.1", "http1"), ("--http1.0", "http1"), ("--http2-prior-knowledge", "http2")):
            with subprocess.Popen([curl, "-s", option, url]) as process:
                assert _core.sniff_protocol(first_bytes(server, 24)) == protocol
                process.wait()
        with httpx.Client() as client, pytest.raises(httpx.ReadTimeout):
            client.post(url, content=b"body", timeout=0.1)
        assert _core.sniff_protocol(first_bytes(server, 24)) == "http1"


def first_bytes(server: socket.socket, count: int) -> bytes:
    connection, _ = server.accept()
    with connection:
        connection.settimeout(DEADLINE)
        return connection.recv(count, socket.MSG_WAITALL)


# The server name


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


@pytest.mark.parametrize(("data", "name"), GOOD)
def test_finds_the_server_name(data: bytes, name: str) -> None:
    assert _core.sniff_protocol(data) == "tls"
    assert _core.server_name(data) == name
    assert _core.server_name(data + b"\x14\3\3\0\1\1") == name
    step = 1 if len(data) < 2000 else 997
    assert {_core.server_name(data[:n]) for n in [*range(0, len(data), step), len(data) - 1]} == {None}


def test_real_hellos_come_in_records_of_their_own_size() -> None:
    hello, _ = HELLOS["in several records"]
    assert len(hello) > 3 * 16384
    assert hello[5 + 16384 :].startswith(b"\x16\3")


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_refuses(data: bytes) -> None:
    with pytest.raises(ValueError, match="ClientHello"):
        _core.server_name(data)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 100, 16384])
@pytest.mark.parametrize("data", [hello for hello, _ in HELLOS.values()])
def test_no_split_into_records_changes_the_name(data: bytes, size: int) -> None:
    whole = reference.read_message(data)
    assert _core.server_name(records(message(whole), size)) == _core.server_name(data)


# Against the reference


def check_protocol(data: bytes) -> None:
    for n in range(min(len(data), 64) + 1):
        assert _core.sniff_protocol(data[:n]) == reference.sniff_protocol(data[:n])


def name_or_refusal(read: object, data: bytes) -> str | None:
    assert callable(read)
    try:
        return read(data)  # type: ignore[no-any-return]
    except ValueError:
        return "refused"


def check_name(data: bytes) -> None:
    assert name_or_refusal(_core.server_name, data) == name_or_refusal(reference.server_name, data)


@st.composite
def mutations(draw: st.DrawFn, corpus: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(corpus)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0:
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case 1:
                data[at:at] = draw(st.binary(max_size=3))
            case 2:
                del data[at : at + draw(st.integers(1, 3))]
            case _:
                del data[at:]
    return bytes(data)


SHORT_BEGINNINGS = [data[:64] for _, data, _ in BEGINNINGS]
SHORT_HELLOS = [data for data in (*(data for data, _ in GOOD), *BAD.values()) if len(data) < 2000]


@bounded
@given(st.binary(max_size=40) | mutations(SHORT_BEGINNINGS))
@example(b"")
def test_protocols_of_generated_beginnings(data: bytes) -> None:
    check_protocol(data)


@bounded
@given(mutations(SHORT_HELLOS))
def test_names_in_mutated_hellos(data: bytes) -> None:
    check_name(data)


@bounded
@given(
    st.lists(
        st.sampled_from([SNI, sni(b"a.b"), sni(b""), KEY_SHARE, extension(23), extension(16, b"\0"), extension(0)]),
        max_size=5,
    ),
    st.integers(1, 300),
    mutations([PLAIN]),
    st.booleans(),
)
def test_names_in_generated_hellos(extensions: list[bytes], size: int, mutated: bytes, plain: bool) -> None:
    check_name(records(message(body(*extensions) if plain else mutated), size))
