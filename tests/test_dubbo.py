"""The codec of Dubbo 2: vectors, truncation, hostile input, own frames, and frames of the Java libraries."""

from __future__ import annotations

from fastside import _core

CALL = bytes.fromhex(
    "dabbc200000000000000000100000089"
    "05322e302e32 13636f6d2e666f6f2e44656d6f53657276696365 05302e302e30 0873617948656c6c6f"
    "124c6a6176612f6c616e672f537472696e673b 05776f726c64"
    "48 0470617468 13636f6d2e666f6f2e44656d6f53657276696365"
    "09696e74657266616365 13636f6d2e666f6f2e44656d6f53657276696365 0776657273696f6e 05302e302e30 5a"
)


def test_call() -> None:
    answer = _core.parse_dubbo(CALL)
    assert answer == {
        **answer,
        "protocol": "dubbo",
        "kind": "request",
        "id": 1,
        "length": 153,
        "serialization": 2,
        "service": "com.foo.DemoService",
        "version": "",
        "method": "sayHello",
        "group": "",
    }


def test_every_prefix_of_a_call_needs_more() -> None:
    for n in range(len(CALL)):
        assert _core.parse_dubbo(CALL[:n]) == {"need_more": True}


def test_error() -> None:
    answer = "dabb023c00000000000000010000000c0b4e6f2070726f7669646572"
    assert _core.dubbo_answer(CALL, "no service", b"No provider").hex() == answer


def test_heartbeat() -> None:
    assert _core.dubbo_heartbeat(1).hex() == "dabbe2000000000000000001000000014e"
    assert _core.parse_dubbo(_core.dubbo_heartbeat(1))["kind"] == "heartbeat"
    assert _core.dubbo_answer(_core.dubbo_heartbeat(1)).hex() == "dabb22140000000000000001000000014e"
    assert _core.parse_dubbo(_core.dubbo_goodbye())["kind"] == "read-only"
