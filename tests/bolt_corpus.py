"""Raw Bolt frames and what the codec has to say about each. Also the seeds of the fuzzer.

Refused frames stand under the reason they are refused for; accepted ones beside the part of the answer that matters.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

V1_REQUEST = struct.Struct(">BBHBIBiHHI")
V1_RESPONSE = struct.Struct(">BBHBIBHHHI")
V2_REQUEST = struct.Struct(">BBBHBIBBiHHI")
V2_RESPONSE = struct.Struct(">BBBHBIBBHHHI")

REQUEST_CLASS = b"com.alipay.sofa.rpc.core.request.SofaRequest"
RESPONSE_CLASS = b"com.alipay.sofa.rpc.core.response.SofaResponse"
SERVICE = "com.example.hello:1.0"


def string(text: str | None) -> bytes:
    if text is None:
        return struct.pack(">i", -1)
    raw = text.encode()
    return struct.pack(">i", len(raw)) + raw


def block(*pairs: tuple[str | None, str | None]) -> bytes:
    """A header block."""
    return b"".join(string(key) + string(value) for key, value in pairs)


ROUTE = block(("service", SERVICE), ("sofa_head_method_name", "hi"))


def with_crc(frame: bytes) -> bytes:
    return frame + struct.pack(">I", zlib.crc32(frame))


def request(
    header: bytes = ROUTE,
    content: bytes = b"abc",
    *,
    version: int = 1,
    ver1: int = 1,
    type: int = 1,
    command: int = 1,
    id: int = 7,
    codec: int = 1,
    switch: int = 0,
    timeout_ms: int = 3000,
    class_name: bytes = REQUEST_CLASS,
) -> bytes:
    """A request, one-way call or heartbeat, with a CRC where it has to have one."""
    lengths = (len(class_name), len(header), len(content))
    body = class_name + header + content
    if version == 1:
        return V1_REQUEST.pack(1, type, command, 1, id, codec, timeout_ms, *lengths) + body
    frame = V2_REQUEST.pack(2, ver1, type, command, 1, id, codec, switch, timeout_ms, *lengths) + body
    return with_crc(frame) if ver1 == 2 and switch & 1 else frame


def response(
    header: bytes = b"",
    content: bytes = b"abc",
    *,
    version: int = 1,
    ver1: int = 1,
    command: int = 2,
    id: int = 7,
    codec: int = 1,
    switch: int = 0,
    status: int = 0,
    class_name: bytes = RESPONSE_CLASS,
) -> bytes:
    """A response, or a heartbeat's answer."""
    lengths = (len(class_name), len(header), len(content))
    body = class_name + header + content
    if version == 1:
        return V1_RESPONSE.pack(1, 0, command, 1, id, codec, status, *lengths) + body
    frame = V2_RESPONSE.pack(2, ver1, 0, command, 1, id, codec, switch, status, *lengths) + body
    return with_crc(frame) if ver1 == 2 and switch & 1 else frame


def heartbeat(**fields: int) -> bytes:
    return request(b"", b"", class_name=b"", command=0, **fields)


def heartbeat_answer(**fields: int) -> bytes:
    return response(b"", b"", class_name=b"", command=0, **fields)


def head(version: int, class_length: int, header_length: int, content_length: int, **fields: int) -> bytes:
    """A request's fixed header alone, with lengths of one's own."""
    raw = request(b"", b"", class_name=b"", version=version, **fields)
    fixed = (V1_REQUEST if version == 1 else V2_REQUEST).size
    return raw[: fixed - 8] + struct.pack(">HHI", class_length, header_length, content_length)


# As sofa-bolt writes them.
GOLDEN_BODY = REQUEST_CLASS + bytes.fromhex(
    "00000007736572766963650000000f636f6d2e782e48656c6c6f3a312e30"
    "00000018736f66615f686561645f7461726765745f736572766963650000000f636f6d2e782e48656c6c6f3a312e30"
    "00000015736f66615f686561645f6d6574686f645f6e616d65000000026869"
    "00000014736f66615f686561645f7461726765745f61707000000000"
    "616263"
)
GOLDEN_V1 = bytes.fromhex("0101000101000000070b00000bb8002c008800000003") + GOLDEN_BODY
GOLDEN_V2 = bytes.fromhex("020201000101000000070b0100000bb8002c008800000003") + GOLDEN_BODY + b"\x44\x27\x5f\xc9"
HEARTBEAT_V1 = bytes.fromhex("01010000010000000101ffffffff0000000000000000")
HEARTBEAT_V1_ANSWER = bytes.fromhex("0100000001000000010100000000000000000000")
HEARTBEAT_V2 = bytes.fromhex("020101000001000000010100ffffffff0000000000000000")
NO_PROCESSOR_V1 = bytes.fromhex("0100000201000000070b00060000000000000000")
NO_PROCESSOR_V2 = bytes.fromhex("020100000201000000070b0000060000000000000000")

GOLDEN = {"kind": "request", "id": 7, "serialization": 11, "timeout_ms": 3000, "service": "com.x.Hello:1.0"}

VALID: list[tuple[bytes, dict[str, Any]]] = [
    (GOLDEN_V1, {**GOLDEN, "protocol_version": 1, "method": "hi", "length": 205, "front": 202, "crc": False}),
    (GOLDEN_V2, {**GOLDEN, "protocol_version": 2, "method": "hi", "length": 211, "front": 204, "crc": True}),
    (HEARTBEAT_V1, {"kind": "heartbeat", "id": 1, "timeout_ms": None, "service": ""}),
    (HEARTBEAT_V1_ANSWER, {"kind": "heartbeat answer", "id": 1, "status": None}),
    (HEARTBEAT_V2, {"kind": "heartbeat", "id": 1, "protocol_version": 2}),
    (heartbeat(type=2), {"kind": "heartbeat"}),
    (heartbeat(version=2, ver1=2, switch=1), {"kind": "heartbeat", "crc": True, "length": 28}),
    (heartbeat_answer(version=2, ver1=2, switch=1), {"kind": "heartbeat answer", "crc": True, "length": 26}),
    (NO_PROCESSOR_V1, {"kind": "response", "id": 7, "status": 6}),
    (NO_PROCESSOR_V2, {"kind": "response", "id": 7, "status": 6}),
    (response(block(("sofa_head_response_error", "true")), status=0), {"kind": "response", "status": 0}),
    (response(status=0x1234, id=2**32 - 1), {"status": 0x1234, "id": 2**32 - 1}),
    (response(version=2, ver1=2, switch=1, status=18), {"status": 18, "crc": True}),
    (response(b"\xff", b""), {"kind": "response", "service": ""}),
    (request(), {"service": SERVICE, "method": "hi"}),
    (request(type=2), {"kind": "one-way", "service": SERVICE}),
    (request(type=2, version=2), {"kind": "one-way", "service": SERVICE}),
    (request(id=0, timeout_ms=0), {"id": 0, "timeout_ms": None}),
    (request(timeout_ms=-(2**31)), {"timeout_ms": None}),
    (request(timeout_ms=2**31 - 1), {"timeout_ms": 2**31 - 1}),
    (request(version=2, ver1=1, switch=1), {"crc": False, "service": SERVICE}),
    (request(version=2, ver1=2, switch=0xFE), {"crc": False, "service": SERVICE}),
    (request(version=2, ver1=2, switch=0xFF), {"crc": True, "service": SERVICE}),
    (request(b"", b"", class_name=b""), {"kind": "request", "service": "", "method": ""}),
    (request(block(("sofa_head_target_service", "t"))), {"service": "t"}),
    (request(block(("service", "s"), ("sofa_head_target_service", "t"))), {"service": "s"}),
    (request(block(("sofa_head_target_service", "t"), ("service", "s"))), {"service": "s"}),
    (request(block(("service", ""), ("sofa_head_target_service", "t"))), {"service": "t"}),
    (request(block(("service", "a"), ("service", "b"))), {"service": "b"}),
    (request(block(("service", "a"), ("service", None))), {"service": "a"}),
    (request(block((None, "x"), (None, None), ("x", None), ("", ""), ("service", "s"))), {"service": "s"}),
    (request(block(("Service", "x"), ("services", "x"), ("service ", "x"))), {"service": ""}),
    (request(block(("service", "s" * 255), ("sofa_head_method_name", "m" * 255))), {"service": "s" * 255}),
    (request(block(("service", "s"), ("app", "\0" * 300))), {"service": "s"}),
    (request(block(("service", "com.例.Hello:1.0"))), {"service": "com.例.Hello:1.0"}),
    (head(1, 0, 0, 2**31 - 1 - 22), {"length": 2**31 - 1}),
    (head(2, 0, 0, 2**31 - 1 - 24 - 4, ver1=2, switch=1), {"length": 2**31 - 1, "crc": True}),
    (request(block(("x", "y" * 32749), ("a", None)), class_name=b"c" * 32747), {"front": 65536}),
]

INVALID: dict[str, list[bytes]] = {
    "not this protocol": [
        b"\0",
        b"\3",
        b"\xff" + HEARTBEAT_V1,
        b"GET / HTTP/1.1\r\n\r\n",
        bytes.fromhex("dabbc200"),
        b"\r",
    ],
    "unknown protocol version": [request(version=2, ver1=0), request(version=2, ver1=3), response(version=2, ver1=255)],
    "unknown kind of frame": [
        request(type=3),
        request(type=255),
        request(type=3, version=2),
        request(command=2),
        request(command=100),
        request(command=256),
        request(type=2, command=2),
        response(command=1),
        response(command=100),
        response(command=0x0200, version=2),
    ],
    "bad length": [
        head(1, 0x8000, 0, 0),
        head(1, 0xFFFF, 0, 1),
        head(1, 0, 0x8000, 0),
        head(2, 0, 0xFFFF, 0),
        head(1, 0, 0, 2**31),
        head(1, 0, 0, 2**32 - 1),
        head(1, 0, 0, 2**31 - 22),
        head(2, 0, 0, 2**31 - 24 - 4, ver1=2, switch=1),
        head(1, 0x7FFF, 0x7FFF, 2**31 - 1),
        head(1, 1, 0, 0, command=0),
        head(1, 0, 1, 0, command=0),
        head(2, 0, 0, 1, command=0),
    ],
    "front of the frame too long": [head(1, 32767, 32748, 0), head(2, 32767, 32767, 0), head(2, 32746, 32767, 1)],
    "bad front of the frame": [
        request(b"\0"),
        request(b"\0\0\0"),
        request(string("service")),
        request(string("service") + b"\0\0\0"),
        request(string("service") + b"\0\0\0\2a"),
        request(b"\0\0\0\1"),
        request(b"\xff\xff\xff\xfe" + string("x")),
        request(string("x") + b"\x80\0\0\0"),
        request(string("x") + b"\x7f\xff\xff\xff"),
        request(ROUTE + b"\0"),
        request(b"\0\0\0\7servic", b"e" + string("x")),
        request(b"\xff", version=2),
    ],
    "bad name": [
        request(block(("service", "s" * 256))),
        request(block(("sofa_head_target_service", "s" * 256))),
        request(block(("service", "s"), ("sofa_head_method_name", "m" * 256))),
        request(block(("service", "a\nb"))),
        request(block(("service", "a\0"))),
        request(block(("service", "\x7f"))),
        request(block(("service", "s"), ("sofa_head_method_name", "\t"))),
    ],
}
