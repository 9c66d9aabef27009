"""The Dubbo codec: verdicts, reasons and details, on its corpus, on frames that Java wrote, and against the slow
reference codec."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference_dubbo as reference
from dubbo_corpus import (
    CAPTURED_CALLS,
    EVENT,
    FASTJSON2,
    GOLDEN,
    HEARTBEAT,
    HEARTBEAT_ANSWER,
    HESSIAN2,
    INVALID,
    JSON_HEARTBEAT,
    JSON_HEARTBEAT_ANSWER,
    JSON_NO_PROVIDER,
    NO_PROVIDER,
    READONLY,
    TWO_WAY,
    VALID,
    call,
    capture,
    frame,
    item,
    json_text,
    text,
)
from dubbo_strategies import ALL, IDS
from fastside import _core

NEED_MORE = {"need_more": True}
CALLS = {"request", "one-way"}
REFUSED = [(reason, raw) for reason, frames in INVALID.items() for raw in frames]
UNUSED_REASONS = {"unknown protocol version", "unknown kind of frame"}
STATUSES = {
    "no service": (60, "SERVICE_NOT_FOUND"),
    "loop": (60, "SERVICE_NOT_FOUND"),
    "no endpoint": (80, "SERVER_ERROR"),
    "connect": (80, "SERVER_ERROR"),
    "closed": (35, "CHANNEL_INACTIVE"),
    "timeout": (31, "SERVER_TIMEOUT"),
    "overload": (100, "SERVER_THREADPOOL_EXHAUSTED"),
}


def cuts(raw: bytes) -> list[int]:
    """Where to cut it: everywhere, but seldom in the midst of a long frame."""
    return [n for n in range(len(raw)) if n < 500 or n % 997 == 0 or n > len(raw) - 50]


@pytest.mark.parametrize(("raw", "expected"), VALID)
def test_accepts(raw: bytes, expected: dict[str, object]) -> None:
    answer = _core.parse_dubbo(raw)
    assert answer == {**answer, **expected}
    assert "reject" not in answer
    assert _core.parse_dubbo(raw + b"\xda\xbb") == answer


@pytest.mark.parametrize(("reason", "raw"), REFUSED)
def test_refuses(reason: str, raw: bytes) -> None:
    assert _core.parse_dubbo(raw) == {"reject": reason}
    assert _core.parse_dubbo(raw + b"\xda\xbb") == {"reject": reason}


def test_every_reason_is_in_the_corpus() -> None:
    assert set(INVALID) == set(_core.FRAME_REASONS) - UNUSED_REASONS


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("raw", [raw for raw, _ in VALID])
def test_needs_more_until_what_it_reads_is_there(raw: bytes, group: bool) -> None:
    whole = _core.parse_dubbo(raw, group)
    answers = [_core.parse_dubbo(raw[:n], group) for n in [*cuts(raw), len(raw)]]
    read = answers.index(whole)
    assert all(answer == NEED_MORE for answer in answers[:read])
    assert all(answer == whole for answer in answers[read:])


@pytest.mark.parametrize("serialization", [HESSIAN2, FASTJSON2])
def test_names_need_no_more_than_themselves(serialization: int) -> None:
    raw = call(b"\xff" * 50, serialization=serialization)
    end = raw.index(b"hi") + 2
    names = {"service": "com.example.Hello", "version": "1.0", "method": "hi", "group": ""}
    assert _core.parse_dubbo(raw[: end - 1], group=False) == NEED_MORE
    answer = _core.parse_dubbo(raw[:end], group=False)
    assert answer == {**answer, **names}
    assert _core.parse_dubbo(raw[:end]) == NEED_MORE


@pytest.mark.parametrize(("reason", "raw"), REFUSED)
def test_no_prefix_of_a_refused_frame_is_refused_otherwise(reason: str, raw: bytes) -> None:
    for n in cuts(raw):
        assert _core.parse_dubbo(raw[:n]) in (NEED_MORE, {"reject": reason})


@settings(max_examples=2000, derandomize=True, deadline=None, database=None)
@given(ALL, st.booleans())
def test_agrees_with_the_reference(data: bytes, group: bool) -> None:
    assert _core.parse_dubbo(data, group) == reference.parse_dubbo(data, group)


# -- frames that Java wrote ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("side", "serialization", "timeout_ms"),
    [
        ("3.3.5-hessian2.to-provider", HESSIAN2, 3000),
        ("3.3.5-fastjson2.to-provider", FASTJSON2, 3000),
        ("2.7.23-hessian2.to-provider", HESSIAN2, None),
    ],
)
def test_reads_what_java_consumers_send(side: str, serialization: int, timeout_ms: int | None) -> None:
    frames = capture(side)
    calls = [_core.parse_dubbo(raw) for raw in frames[: len(CAPTURED_CALLS)]]
    assert [f"{read['method']} {read['group']}".strip() for read in calls] == CAPTURED_CALLS
    for read in calls:
        assert read["kind"] == ("one-way" if read["method"] == "forget" else "request")
        assert read["service"] == "example.Orders"
        assert read["version"] == ("1.0.0" if read["group"] else "")
        assert (read["serialization"], read["timeout_ms"]) == (serialization, timeout_ms)
    heartbeats = frames[len(CAPTURED_CALLS) :]
    assert heartbeats
    assert {_core.parse_dubbo(raw)["kind"] for raw in heartbeats} == {"heartbeat"}


@pytest.mark.parametrize("name", ["3.3.5-hessian2", "3.3.5-fastjson2"])
def test_reads_what_java_providers_send(name: str) -> None:
    calls = [_core.parse_dubbo(raw, group=False) for raw in capture(f"{name}.to-provider")]
    frames = [_core.parse_dubbo(raw) for raw in capture(f"{name}.to-consumer")]
    responses = [read for read in frames if read["kind"] == "response"]
    assert [read["id"] for read in responses] == [read["id"] for read in calls if read["kind"] == "request"]
    assert {read["status"] for read in responses} <= {20, 40}
    others = [read["kind"] for read in frames if read["kind"] != "response"]
    assert others[-1] == "read-only"
    assert set(others[:-1]) == {"heartbeat answer"}


@pytest.mark.parametrize("name", ["3.3.5-hessian2", "3.3.5-fastjson2"])
def test_answers_java_heartbeats_as_java_does(name: str) -> None:
    heartbeats = [raw for raw in capture(f"{name}.to-provider") if _core.parse_dubbo(raw)["kind"] == "heartbeat"]
    answers = [raw for raw in capture(f"{name}.to-consumer") if _core.parse_dubbo(raw)["kind"] == "heartbeat answer"]
    assert answers
    assert answers == [_core.dubbo_answer(raw) for raw in heartbeats[: len(answers)]]


@pytest.mark.parametrize(
    "name", ["3.3.5-hessian2.to-provider", "3.3.5-fastjson2.to-provider", "2.7.23-hessian2.to-provider"]
)
def test_needs_more_of_a_captured_call_until_it_is_there(name: str) -> None:
    for raw in capture(name)[: len(CAPTURED_CALLS)]:
        whole = _core.parse_dubbo(raw)
        assert all(_core.parse_dubbo(raw[:n]) == NEED_MORE for n in cuts(raw)), whole["method"]


# -- own frames ------------------------------------------------------------------------------------------------------


@given(IDS)
@settings(max_examples=50, derandomize=True, deadline=None, database=None)
def test_replaces_the_id_alone(id: int) -> None:
    assert _core.dubbo_with_id(call(), id) == call(id=id)


def test_golden_answers() -> None:
    assert _core.dubbo_answer(GOLDEN, "no service", b"No provider") == NO_PROVIDER
    asked = call(serialization=FASTJSON2, id=1)
    assert _core.dubbo_answer(asked, "no service", b"No provider") == JSON_NO_PROVIDER
    assert _core.dubbo_heartbeat(1) == HEARTBEAT
    assert _core.dubbo_answer(HEARTBEAT) == HEARTBEAT_ANSWER
    assert _core.dubbo_answer(JSON_HEARTBEAT) == JSON_HEARTBEAT_ANSWER
    assert _core.dubbo_goodbye() == READONLY


def test_answers_a_heartbeat_with_its_own_body() -> None:
    body = bytes(range(64))
    asked = frame(body, flags=TWO_WAY | EVENT, serialization=8, id=2**63)
    assert _core.dubbo_answer(asked) == frame(body, flags=EVENT, serialization=8, status=20, id=2**63)


@pytest.mark.parametrize("failure", _core.FRAME_FAILURES)
@pytest.mark.parametrize("length", [0, 1, 31, 32, 47, 48, 255, 256, 599, 600])
def test_answers_with_an_error(failure: str, length: int) -> None:
    message = "x" * length
    status, _ = STATUSES[failure]
    hessian = frame(text(message), flags=0, status=status, id=9)
    json = frame(item(json_text(message)), flags=0, serialization=FASTJSON2, status=status, id=9)
    assert _core.dubbo_answer(call(id=9), failure, message.encode()) == hessian
    assert _core.dubbo_answer(call(id=9, serialization=FASTJSON2), failure, message.encode()) == json
    assert _core.dubbo_answer(frame(b"?", serialization=8, id=9), failure, message.encode()) == hessian


@pytest.mark.parametrize("serialization", [HESSIAN2, FASTJSON2])
def test_an_error_is_short_and_in_ascii(serialization: int) -> None:
    asked = call(serialization=serialization)
    assert _core.dubbo_answer(asked, "closed", b"a\0\n\x7f\xff~ z").endswith(b"a????~ z")
    assert _core.dubbo_answer(asked, "closed", b"x" * 5000) == _core.dubbo_answer(asked, "closed", b"x" * 600)


def test_statuses_have_names() -> None:
    known = {**dict(STATUSES.values()), 20: "OK", 40: "BAD_REQUEST"}
    assert len(_core.DUBBO_STATUSES) == len(set(_core.DUBBO_STATUSES)) == 13
    assert _core.DUBBO_STATUSES[-1] == "OTHER"
    for status in range(256):
        name = _core.dubbo_status_name(status)
        assert name in _core.DUBBO_STATUSES
        assert name == known.get(status, name)
    assert _core.dubbo_status_name(0) == _core.dubbo_status_name(21) == "OTHER"


@pytest.mark.parametrize("data", [b"", GOLDEN[:-1], GOLDEN + b"\1", b"GET / HTTP/1.1\r\n\r\n"])
def test_changes_and_answers_whole_frames_only(data: bytes) -> None:
    with pytest.raises(ValueError, match="not one whole frame"):
        _core.dubbo_with_id(data, 1)
    with pytest.raises(ValueError, match="not one whole frame"):
        _core.dubbo_answer(data, "timeout")


def test_answers_nothing_but_calls_and_heartbeats() -> None:
    with pytest.raises(ValueError, match="not a heartbeat"):
        _core.dubbo_answer(GOLDEN)
