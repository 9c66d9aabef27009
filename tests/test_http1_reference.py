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


def test_whole_corpus() -> None:
    for data in REQUESTS:
        check_request(data)
    for data in RESPONSES:
        check_response(data, "GET")
    for data in CHUNKS:
        check_chunks(data)
