"""The Bolt codec: verdicts, reasons and details, on its corpus and against the slow reference codec."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_bolt as reference
from bolt_corpus import (
    GOLDEN_V1,
    GOLDEN_V2,
    HEARTBEAT_V1,
    HEARTBEAT_V1_ANSWER,
    HEARTBEAT_V2,
    INVALID,
    NO_PROCESSOR_V1,
    NO_PROCESSOR_V2,
    VALID,
    heartbeat,
    request,
    response,
)
from bolt_strategies import ALL, IDS
from fastside import _core

NEED_MORE = {"need_more": True}
REFUSED = [(reason, raw) for reason, frames in INVALID.items() for raw in frames]
STATUSES = {
    "no service": "NO_PROCESSOR",
    "no endpoint": "NO_PROCESSOR",
    "loop": "NO_PROCESSOR",
    "connect": "CONNECTION_CLOSED",
    "closed": "CONNECTION_CLOSED",
    "timeout": "TIMEOUT",
    "overload": "SERVER_THREADPOOL_BUSY",
}


def status_name(status: int) -> str:
    known = {**dict(enumerate(_core.BOLT_STATUSES[:10])), **dict(enumerate(_core.BOLT_STATUSES[10:13], 16))}
    return known[status]


@pytest.mark.parametrize(("raw", "expected"), VALID)
def test_accepts(raw: bytes, expected: dict[str, object]) -> None:
    answer = _core.parse_bolt(raw)
    assert answer == {**answer, **expected}
    assert "reject" not in answer


@pytest.mark.parametrize(("reason", "raw"), REFUSED)
def test_refuses(reason: str, raw: bytes) -> None:
    assert _core.parse_bolt(raw) == {"reject": reason}


def test_every_reason_is_in_the_corpus() -> None:
    assert set(INVALID) == set(_core.FRAME_REASONS)


@pytest.mark.parametrize("raw", [raw for raw, _ in VALID])
def test_needs_more_until_what_it_reads_is_there(raw: bytes) -> None:
    whole = _core.parse_bolt(raw)
    answers = [_core.parse_bolt(raw[:n]) for n in range(len(raw) + 1)]
    read = answers.index(whole)
    assert read == whole["front"] if whole["kind"] in {"request", "one-way"} else read in {20, 22, 24}
    assert all(answer == NEED_MORE for answer in answers[:read])
    assert all(answer == whole for answer in answers[read:])
    assert _core.parse_bolt(raw + b"\x01rest") == whole


@pytest.mark.parametrize(("reason", "raw"), REFUSED)
def test_no_prefix_of_a_refused_frame_is_refused_otherwise(reason: str, raw: bytes) -> None:
    for n in range(len(raw)):
        assert _core.parse_bolt(raw[:n]) in (NEED_MORE, {"reject": reason})


@settings(max_examples=3000, derandomize=True, deadline=None, database=None)
@given(ALL)
def test_agrees_with_the_reference(data: bytes) -> None:
    answer = _core.parse_bolt(data)
    expected = reference.parse_bolt(data)
    if expected is None:
        assert "reject" in answer
    else:
        assert answer == expected


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("make", [request, response, heartbeat])
def test_replaces_the_id_alone(make: Callable[..., bytes], version: int) -> None:
    frame = make(version=version, id=0x01020304)
    assert _core.bolt_with_id(frame, 0xFFEEDDCC) == make(version=version, id=0xFFEEDDCC)


@settings(max_examples=500, derandomize=True, deadline=None, database=None)
@given(st.integers(0, 70000), IDS, IDS, st.sampled_from([request, response]), st.randoms(use_true_random=False))
def test_crc_is_right_for_the_new_id(
    length: int, old: int, new: int, make: Callable[..., bytes], source: random.Random
) -> None:
    frame = make(content=source.randbytes(length), version=2, ver1=2, switch=1, id=old)
    changed = _core.bolt_with_id(frame, new)
    assert changed == reference.with_id(frame, new)
    assert int.from_bytes(changed[-4:]) == zlib.crc32(changed[:-4])


@pytest.mark.parametrize("length", [*range(40), *(2**n + d for n in range(6, 25) for d in (-1, 0, 1))])
def test_crc_is_right_for_every_length(length: int) -> None:
    frame = request(content=b"\xa5" * length, version=2, ver1=2, switch=1, id=1)
    assert _core.bolt_with_id(frame, 0x80000001) == reference.with_id(frame, 0x80000001)


def test_a_wrong_crc_stays_wrong() -> None:
    wrong = GOLDEN_V2[:-1] + bytes([GOLDEN_V2[-1] ^ 1])
    changed = _core.bolt_with_id(wrong, 12345)
    assert int.from_bytes(changed[-4:]) == zlib.crc32(changed[:-4]) ^ 1


@pytest.mark.parametrize("failure", _core.FRAME_FAILURES)
@pytest.mark.parametrize(("version", "ver1", "switch"), [(1, 1, 0), (2, 1, 0), (2, 1, 1), (2, 2, 0), (2, 2, 1)])
def test_answers_with_an_error(failure: str, version: int, ver1: int, switch: int) -> None:
    asked = request(version=version, ver1=ver1, switch=switch, id=0xFEDCBA98, codec=12)
    answer = _core.bolt_answer(asked, failure)
    crc = version == ver1 == 2 and switch == 1
    read = _core.parse_bolt(answer)
    assert status_name(read["status"]) == STATUSES[failure]
    expected = response(
        b"",
        b"",
        class_name=b"",
        version=version,
        ver1=ver1,
        switch=int(crc),
        id=0xFEDCBA98,
        codec=12,
        status=read["status"],
    )
    assert answer == expected


def test_golden_answers() -> None:
    assert _core.bolt_answer(GOLDEN_V1, "no service") == NO_PROCESSOR_V1
    asked = request(version=2, codec=11)
    assert _core.bolt_answer(asked, "no service") == NO_PROCESSOR_V2
    assert _core.bolt_answer(HEARTBEAT_V1) == HEARTBEAT_V1_ANSWER
    assert _core.bolt_heartbeat(1, 1) == HEARTBEAT_V1
    assert _core.bolt_heartbeat(2, 1) == HEARTBEAT_V2


def test_answers_a_heartbeat_with_a_crc() -> None:
    answer = _core.bolt_answer(heartbeat(version=2, ver1=2, switch=1, id=99))
    assert int.from_bytes(answer[-4:]) == zlib.crc32(answer[:-4])
    assert _core.parse_bolt(answer)["kind"] == "heartbeat answer"
    assert _core.parse_bolt(answer)["id"] == 99


@pytest.mark.parametrize("data", [b"", GOLDEN_V1[:-1], GOLDEN_V1 + b"\1", b"GET / HTTP/1.1\r\n\r\n"])
def test_changes_and_answers_whole_frames_only(data: bytes) -> None:
    with pytest.raises(ValueError, match="not one whole frame"):
        _core.bolt_with_id(data, 1)
    with pytest.raises(ValueError, match="not one whole frame"):
        _core.bolt_answer(data, "timeout")
