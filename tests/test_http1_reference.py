"""The parser and the slow reference parser agree on generated and mutated messages, on verdicts and details."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

import reference_http1 as reference
from fastside import _core
from http1_corpus import SERVICE_HEADER
from http1_strategies import CHUNKS, REQUESTS, RESPONSES, chunked, mutations, requests, responses

bounded = settings(max_examples=1500, derandomize=True, deadline=None, database=None)


def head_of(data: bytes) -> bytes | None:
    end = data.find(b"\r\n\r\n")
    return None if end < 0 else data[: end + 4]


def check_request(data: bytes) -> None:
    answer = _core.parse_request(data, SERVICE_HEADER)
    message = re.sub(rb"\A(\r\n)+", b"", data)
    head = head_of(message)
    expected = head and reference.parse_request(head, SERVICE_HEADER)
    if expected:
        assert answer == {**expected, "length": expected["length"] + len(data) - len(message)}
    else:
        assert "reject" in answer or (head is None and answer == {"need_more": True})


def check_response(data: bytes, method: str) -> None:
    answer = _core.parse_response(data, method)
    head = head_of(data)
    expected = head and reference.parse_response(head, method)
    if expected:
        assert answer == expected
    else:
        assert "reject" in answer or (head is None and answer == {"need_more": True})


def check_chunks(data: bytes) -> None:
    answer = _core.scan_chunks(data)
    expected = reference.scan_chunks(data)
    if expected is None:
        assert "length" not in answer
    else:
        assert answer == {"length": expected}


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


# @ stands for each of the 256 bytes in turn. The long values are for scans that take several bytes at once.
REQUEST_TEMPLATES = [
    b"@ET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET@/ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET @ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /@ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /@HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET http://a@ HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP@1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/@.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1@1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.@\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1@\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r@Host: a\r\n\r\n",
    b"GET / HTTP/1.1\r\n@Host: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost@ a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost:@a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: @\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a%4@\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a:@\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: [::@]\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r@\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n@\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r@",
    b"GET / HTTP/1.1\r\nHost: a\r\nA@B: c\r\n\r\n",
    *(b"GET / HTTP/1.1\r\nHost: a\r\nA:" + b"x" * n + b"@" + b"y" * 17 + b"\r\n\r\n" for n in range(17)),
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: @\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1@1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length:@1@\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: @chunked\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked@\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: @hunked\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer@Encoding: chunked\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close@a\r\na: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: @\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: a@b\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nX-Service: @\r\n\r\n",
]
RESPONSE_TEMPLATES = [
    b"@TTP/1.1 200 OK\r\n\r\n",
    b"HTTP/1.1@200 OK\r\n\r\n",
    b"HTTP/1.1 @00 OK\r\n\r\n",
    b"HTTP/1.1 2@0 OK\r\n\r\n",
    b"HTTP/1.1 20@ OK\r\n\r\n",
    b"HTTP/1.1 200@OK\r\n\r\n",
    b"HTTP/1.1 200 O@K\r\n\r\n",
    b"HTTP/1.1 200 a long@reason phrase\r\n\r\n",
]
CHUNK_TEMPLATES = [
    b"@\r\nhello\r\n0\r\n\r\n",
    b"5@\r\nhello\r\n0\r\n\r\n",
    b"5\r@hello\r\n0\r\n\r\n",
    b"5;@\r\nhello\r\n0\r\n\r\n",
    b"5;a@b\r\nhello\r\n0\r\n\r\n",
    b"5;a=@\r\nhello\r\n0\r\n\r\n",
    b"5;a=b@c\r\nhello\r\n0\r\n\r\n",
    b'5;a="@"\r\nhello\r\n0\r\n\r\n',
    b'5;a="\\@"\r\nhello\r\n0\r\n\r\n',
    b'5;a="b"@\r\nhello\r\n0\r\n\r\n',
    b"5\r\nhell@\r\n0\r\n\r\n",
    b"5\r\nhello@\n0\r\n\r\n",
    b"5\r\nhello\r@0\r\n\r\n",
    b"0\r\n@\n",
    b"0\r\n@: b\r\n\r\n",
    b"0\r\nA@B: c\r\n\r\n",
    b"0\r\nHos@: c\r\n\r\n",
    b"0\r\nHost@: c\r\n\r\n",
    b"0\r\nA: b@c\r\n\r\n",
    b"0\r\nA: b\r@\r\n",
    b"0\r\nA: b\r\n@B: c\r\n\r\n",
    b"0\r\n\r@",
]


def test_every_byte_everywhere() -> None:
    for byte in range(256):
        for template in REQUEST_TEMPLATES:
            check_request(template.replace(b"@", bytes([byte])))
        for template in RESPONSE_TEMPLATES:
            check_response(template.replace(b"@", bytes([byte])), "GET")
        for template in CHUNK_TEMPLATES:
            check_chunks(template.replace(b"@", bytes([byte])))


def test_whole_corpus() -> None:
    for data in REQUESTS:
        check_request(data)
    for data in RESPONSES:
        check_response(data, "GET")
    for data in CHUNKS:
        check_chunks(data)
