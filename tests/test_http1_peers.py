"""What fastside accepts, h11 and httptools (llhttp) accept too, and they find the same body and the same end.

Compared are the head as received and the head as forwarded, without the cut lines: the second is what the server sees.
Where a peer knowingly differs, KNOWN_DIFFERENCES says so with the sentence of the RFC.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastside import _core
from http1_corpus import VALID_CHUNKS, get, ok, target
from http1_strategies import CHUNKS, REQUESTS, RESPONSES, chunked, mutations, requests, responses

bounded = settings(max_examples=1000, derandomize=True, deadline=None, database=None)

NEXT = b"GET /next HTTP/1.1\r\nHost: n\r\n\r\n"
LLHTTP_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "CONNECT", "M-SEARCH"}


@dataclass(frozen=True)
class Case:
    """A head that fastside accepts."""

    head: bytes
    answer: dict[str, Any]
    method: str = "GET"  # of the request
    received: bool = True  # else it is the head as forwarded


@dataclass(frozen=True)
class Difference:
    """A peer that does it otherwise than fastside and the RFC."""

    rfc: str
    applies: Callable[[Case], bool]
    example: Case


class Disagreement(AssertionError):
    """A peer refuses or reads differently what fastside accepts."""


def accepted_request(head: bytes) -> Case:
    return Case(head, _core.parse_request(head))


def accepted_response(head: bytes, method: str) -> Case:
    return Case(head, _core.parse_response(head, method), method)


KNOWN_DIFFERENCES: dict[str, list[Difference]] = {
    "h11": [],
    "httptools": [
        Difference(
            "RFC 9110 9.1: Additional methods, outside the scope of this specification, have been specified for use in "
            "HTTP. (llhttp has a closed list.)",
            lambda case: case.answer.get("method", "GET") not in LLHTTP_METHODS,
            accepted_request(target(b"/", b"BREW")),
        ),
        Difference(
            "RFC 9110 7.8: A server MAY ignore a received Upgrade header field if it wishes to continue using the "
            "current protocol on that connection. (llhttp switches; fastside does not forward such a field.)",
            lambda case: case.received and any(line.lower().startswith("upgrade:") for line in case.answer["cuts"]),
            accepted_request(get(b"Connection: Upgrade", b"Upgrade: h2c")),
        ),
        Difference(
            "RFC 9112 6.3: Any response to a HEAD request [...] is always terminated by the first empty line after the "
            "header fields. (httptools has no way to say what the request was.)",
            lambda case: "status" in case.answer and case.method == "HEAD",
            accepted_response(ok(b"Content-Length: 5"), "HEAD"),
        ),
    ],
}


def expect(what: str, got: object, wanted: object) -> None:
    if got != wanted:
        raise Disagreement(f"{what}: {got!r} instead of {wanted!r}")


def sample_body(answer: dict[str, Any]) -> tuple[bytes, bytes, bool]:
    """Bytes to send after the head, the data in them, and whether the message ends with them."""
    if answer["body"] == "chunked":
        return b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n", b"abcde", True
    if answer["body"] == "length":
        data = b"z" * min(answer["content_length"], 64)
        return data, data, len(data) == answer["content_length"]
    if answer["body"] == "until-close":
        return b"zzz", b"zzz", False
    return b"", b"", True


def forwarded(case: Case) -> Case:
    text = case.head.decode("latin-1")
    for line in case.answer["cuts"]:
        text = text.replace("\r\n" + line, "\r\n", 1)
    if "upgrade" in case.answer["flags"]:
        text = text[:-2] + "Connection: Upgrade\r\n\r\n"
    return Case(text.encode("latin-1"), case.answer, case.method, received=False)


def ask_h11(case: Case) -> None:
    wire, data, ends = sample_body(case.answer)
    if "method" in case.answer:
        peer = h11.Connection(h11.SERVER)
    else:
        peer = h11.Connection(h11.CLIENT)
        headers = [("Host", "a"), ("Connection", "upgrade"), ("Upgrade", "a")]
        peer.send(h11.Request(method=case.method, target="/", headers=headers))
        peer.send(h11.EndOfMessage())
    got = b""
    ended = False
    try:
        peer.receive_data(case.head + wire)
        while True:
            event = peer.next_event()
            if isinstance(event, h11.InformationalResponse):
                return  # it has no body, and the response is still to come
            if isinstance(event, h11.Data):
                got += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                ended = True
            elif not isinstance(event, h11.Request | h11.Response):
                break
    except h11.RemoteProtocolError as error:
        raise Disagreement(f"h11 refuses {case.head!r}: {error}") from None
    expect("data", got, data)
    expect("end", ended, ends)


class Events:
    def __init__(self) -> None:
        self.data = b""
        self.ends = 0

    def on_body(self, data: bytes) -> None:
        self.data += data

    def on_message_complete(self) -> None:
        self.ends += 1


def ask_httptools(case: Case) -> None:
    wire, data, ends = sample_body(case.answer)
    events = Events()
    peer = httptools.HttpRequestParser(events) if "method" in case.answer else httptools.HttpResponseParser(events)
    try:
        peer.feed_data(case.head + wire)
    except httptools.HttpParserUpgrade as switch:
        expect("upgrade", "upgrade" in case.answer["flags"] or case.answer.get("method") == "CONNECT", True)
        expect("start of the other protocol", switch.args[0], len(case.head))
        return
    except httptools.HttpParserError as error:
        raise Disagreement(f"httptools refuses {case.head!r}: {error}") from None
    expect("data", events.data, data)
    expect("end", events.ends > 0, ends)


PEERS = {"h11": ask_h11, "httptools": ask_httptools}


def check(case: Case) -> None:
    for each in (case, forwarded(case)):
        for peer, ask in PEERS.items():
            if not any(difference.applies(each) for difference in KNOWN_DIFFERENCES[peer]):
                ask(each)


def check_request(data: bytes) -> None:
    answer = _core.parse_request(data)
    if "length" in answer:
        check(accepted_request(re.sub(rb"\A(\r\n)+", b"", data[: answer["length"]])))


def check_response(data: bytes, method: str) -> None:
    answer = _core.parse_response(data, method)
    if "length" in answer:
        check(accepted_response(data[: answer["length"]], method))


def check_chunks(data: bytes) -> None:
    answer = _core.scan_chunks(data)
    if "length" not in answer:
        return
    events = Events()
    peer = httptools.HttpRequestParser(events)
    head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    peer.feed_data(head + data[: answer["length"] - 1])
    expect("end", events.ends, 0)
    peer.feed_data(data[answer["length"] - 1 : answer["length"]])
    expect("end", events.ends, 1)
    server = h11.Connection(h11.SERVER)
    server.receive_data(head + data)
    got = b""
    event = server.next_event()
    while not isinstance(event, h11.EndOfMessage):
        if isinstance(event, h11.Data):
            got += bytes(event.data)
        event = server.next_event()
    expect("data", got, events.data)
    expect("rest", server.trailing_data[0], data[answer["length"] :])


@bounded
@given(requests())
def test_generated_requests(data: bytes) -> None:
    check_request(data)


@bounded
@given(mutations(REQUESTS))
def test_mutated_requests(data: bytes) -> None:
    check_request(data)


@bounded
@given(responses(), st.sampled_from(["GET", "HEAD"]))
def test_generated_responses(data: bytes, method: str) -> None:
    check_response(data, method)


@bounded
@given(mutations(RESPONSES), st.sampled_from(["GET", "HEAD"]))
def test_mutated_responses(data: bytes, method: str) -> None:
    check_response(data, method)


@bounded
@given(chunked())
def test_generated_chunks(data: bytes) -> None:
    check_chunks(data)


@bounded
@given(mutations(CHUNKS))
def test_mutated_chunks(data: bytes) -> None:
    check_chunks(data)


@pytest.mark.parametrize("data", dict.fromkeys(REQUESTS))
def test_corpus_requests(data: bytes) -> None:
    check_request(data)


@pytest.mark.parametrize("data", dict.fromkeys(RESPONSES))
def test_corpus_responses(data: bytes) -> None:
    check_response(data, "GET")


@pytest.mark.parametrize("data", VALID_CHUNKS)
def test_corpus_chunks(data: bytes) -> None:
    check_chunks(data + NEXT)


@pytest.mark.parametrize(
    ("peer", "difference"), [(peer, each) for peer, differences in KNOWN_DIFFERENCES.items() for each in differences]
)
def test_known_differences_are_still_there(peer: str, difference: Difference) -> None:
    assert difference.applies(difference.example)
    with pytest.raises(Disagreement):
        PEERS[peer](difference.example)
