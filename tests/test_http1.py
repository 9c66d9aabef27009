"""The HTTP/1.1 parser on its own corpus: verdicts, reasons, and that no split of the input changes one."""

from __future__ import annotations

import pytest

from fastside import _core
from http1_corpus import (
    INVALID_CHUNKS,
    INVALID_REQUESTS,
    INVALID_RESPONSES,
    SERVICE_HEADER,
    TOO_LONG,
    VALID_CHUNKS,
    VALID_REQUESTS,
    VALID_RESPONSES,
    get,
)


def refused(corpus: dict[str, list[bytes]]) -> list[tuple[str, bytes]]:
    return [(reason, raw) for reason, messages in corpus.items() for raw in messages]


@pytest.mark.parametrize(("reason", "raw"), refused(INVALID_REQUESTS))
def test_refuses_request(reason: str, raw: bytes) -> None:
    answer = _core.parse_request(raw, SERVICE_HEADER)
    assert answer["reject"] == reason
    assert answer["status"] in {400, 413, 414, 431, 501, 505}


@pytest.mark.parametrize(("reason", "raw"), refused(INVALID_RESPONSES))
def test_refuses_response(reason: str, raw: bytes) -> None:
    assert _core.parse_response(raw)["reject"] == reason


@pytest.mark.parametrize(("reason", "raw"), refused(INVALID_CHUNKS))
def test_refuses_chunks(reason: str, raw: bytes) -> None:
    assert _core.scan_chunks(raw)["reject"] == reason


@pytest.mark.parametrize(("raw", "expected"), VALID_REQUESTS)
def test_accepts_request(raw: bytes, expected: dict[str, object]) -> None:
    answer = _core.parse_request(raw, SERVICE_HEADER)
    assert answer == {**answer, **expected}
    assert "reject" not in answer


@pytest.mark.parametrize(("raw", "method", "expected"), VALID_RESPONSES)
def test_accepts_response(raw: bytes, method: str, expected: dict[str, object]) -> None:
    answer = _core.parse_response(raw, method)
    assert answer == {**answer, **expected}
    assert "reject" not in answer


@pytest.mark.parametrize("raw", VALID_CHUNKS)
@pytest.mark.parametrize("rest", [b"", b"\r\n", b"0\r\n\r\n", b"GET / HTTP/1.1\r\n"])
def test_accepts_chunks(raw: bytes, rest: bytes) -> None:
    assert _core.scan_chunks(raw + rest) == {"length": len(raw)}


@pytest.mark.parametrize(
    ("reason", "raw", "limit"), [(reason, raw, limit) for reason, cases in TOO_LONG.items() for raw, limit in cases]
)
def test_refuses_what_is_too_long(reason: str, raw: bytes, limit: int) -> None:
    assert _core.parse_request(raw, max_length=limit)["reject"] == reason


def test_limits_are_inclusive() -> None:
    assert _core.parse_request(get(), max_length=len(get()))["length"] == len(get())
    assert _core.parse_request(get()[:-1], max_length=len(get())) == {"need_more": True}
    assert _core.parse_request(get(b"A: b"), max_headers=2)["method"] == "GET"
    assert _core.parse_request(get(b"A: b"), max_headers=1)["reject"] == "too many fields"


def test_every_reason_is_in_the_corpus() -> None:
    corpus = {*INVALID_REQUESTS, *INVALID_RESPONSES, *INVALID_CHUNKS, *TOO_LONG}
    assert corpus == set(_core.REJECT_REASONS)
    assert len(set(_core.REJECT_REASONS)) == len(_core.REJECT_REASONS)


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/3.0\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /" + b"a" * 70000, 414),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 70000, 431),
        (get(*[b"A: b"] * 300), 431),
    ],
)
def test_status_of_a_refusal(raw: bytes, status: int) -> None:
    assert _core.parse_request(raw)["status"] == status


@pytest.mark.parametrize("raw", [raw for raw, _ in VALID_REQUESTS])
def test_every_prefix_of_a_request_needs_more(raw: bytes) -> None:
    length = _core.parse_request(raw, SERVICE_HEADER)["length"]
    for n in range(length):
        assert _core.parse_request(raw[:n], SERVICE_HEADER) == {"need_more": True}


@pytest.mark.parametrize(("raw", "method"), [(raw, method) for raw, method, _ in VALID_RESPONSES])
def test_every_prefix_of_a_response_needs_more(raw: bytes, method: str) -> None:
    length = _core.parse_response(raw, method)["length"]
    for n in range(length):
        assert _core.parse_response(raw[:n], method) == {"need_more": True}


@pytest.mark.parametrize("raw", VALID_CHUNKS)
def test_every_prefix_of_a_chunked_body_needs_more(raw: bytes) -> None:
    for n in range(len(raw)):
        assert _core.scan_chunks(raw[:n])["need_more"]


@pytest.mark.parametrize(
    "raw",
    [raw for _, raw in refused(INVALID_REQUESTS) + refused(INVALID_RESPONSES)] + [raw for raw, _ in VALID_REQUESTS],
)
def test_no_split_changes_where_a_head_ends(raw: bytes) -> None:
    whole = _core.find_end(raw)
    for n in range(len(raw)):
        assert _core.find_end(raw, splits=(n,)) == whole
    assert _core.find_end(raw, splits=tuple(range(len(raw)))) == whole
    limited = _core.find_end(raw, max_length=20)
    assert _core.find_end(raw, max_length=20, splits=tuple(range(len(raw)))) == limited


@pytest.mark.parametrize("raw", [raw for _, raw in refused(INVALID_CHUNKS)] + VALID_CHUNKS)
def test_no_split_changes_a_chunked_body(raw: bytes) -> None:
    whole = _core.scan_chunks(raw)
    for n in range(len(raw)):
        assert _core.scan_chunks(raw[:n], raw[n:]) == whole
    assert _core.scan_chunks(*(raw[n : n + 1] for n in range(len(raw)))) == whole


def test_tells_how_much_plain_data_comes_next() -> None:
    assert _core.scan_chunks(b"1f") == {"need_more": True, "remaining": 0}
    assert _core.scan_chunks(b"1f\r\n") == {"need_more": True, "remaining": 31}
    assert _core.scan_chunks(b"1f\r\n", b"x" * 30) == {"need_more": True, "remaining": 1}
    assert _core.scan_chunks(b"1f\r\n", b"x" * 31) == {"need_more": True, "remaining": 0}
    assert _core.scan_chunks(b"7fffffffffffffff\r\n") == {"need_more": True, "remaining": 2**63 - 1}


@pytest.mark.parametrize("raw", [raw for raw, _ in VALID_REQUESTS])
def test_what_is_forwarded_reads_the_same(raw: bytes) -> None:
    """The head without the cut lines says the same about the message, and has nothing left to cut."""
    before = _core.parse_request(raw, SERVICE_HEADER)
    head = raw[: before["length"]].decode("latin-1")
    for line in before["cuts"]:
        head = head.replace("\r\n" + line, "\r\n", 1)
    after = _core.parse_request(head.encode("latin-1"), SERVICE_HEADER)
    same = ("method", "target", "host", "service", "version", "body", "content_length")
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    if "upgrade" not in before["flags"]:
        assert after["cuts"] == []
