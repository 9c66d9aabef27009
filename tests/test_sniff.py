"""What a connection speaks is told from its first bytes, no later than they do; the name that a TLS client wants."""

from __future__ import annotations

import socket
import subprocess

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import bolt_corpus
import reference_sniff as reference
from fastside import _core
from harness import DEADLINE, require_program
from sniff_corpus import BAD, BEGINNINGS, GOOD, HELLOS, KEY_SHARE, PLAIN, SNI, body, extension, message, records, sni

bounded = settings(max_examples=600, derandomize=True, deadline=None, database=None)


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


@pytest.mark.parametrize("frame", [raw for raw, *_ in bolt_corpus.VALID])
def test_every_bolt_frame_is_told(frame: bytes) -> None:
    assert _core.sniff_protocol(frame) == "bolt"
