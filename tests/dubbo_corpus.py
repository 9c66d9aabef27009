"""Raw Dubbo frames and what the codec has to say about each. Also the seeds of the fuzzer.

Refused frames stand under the reason they are refused for; accepted ones beside the part of the answer that matters.
"""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

HEAD = struct.Struct(">HBBQi")
TWO_WAY, ONE_WAY, RESPONSE = 0xC0, 0x80, 0x00
EVENT = 0x20
HESSIAN2, FASTJSON2 = 2, 23
SERVICE = "com.example.Hello"


def frame(body: bytes, *, flags: int = TWO_WAY, serialization: int = HESSIAN2, status: int = 0, id: int = 7) -> bytes:
    return HEAD.pack(0xDABB, flags | serialization, status, id, len(body)) + body


def text(value: str | None) -> bytes:
    """A Hessian string of less than 1024 UTF-16 units, in the bytes that Java writes."""
    if value is None:
        return b"N"
    units = value.encode("utf-16-be", "surrogatepass")
    raw = b"".join(chr(unit).encode("utf-8", "surrogatepass") for (unit,) in struct.iter_unpack(">H", units))
    length = len(units) // 2
    return (bytes([length]) if length < 32 else struct.pack(">H", 0x3000 + length)) + raw


def json_int(value: int) -> bytes:
    if -16 <= value <= 47:
        return struct.pack(">b", value)
    if -0x800 <= value <= 0x7FF:
        return struct.pack(">H", 0x3800 + value)
    if -0x40000 <= value <= 0x3FFFF:
        return (0x440000 + value).to_bytes(3)
    return b"\x48" + struct.pack(">i", value)


def json_text(value: str | None) -> bytes:
    """A JSONB string."""
    if value is None:
        return b"\xaf"
    raw = value.encode()
    if not value.isascii():
        return b"\x7a" + json_int(len(raw)) + raw
    return (bytes([0x49 + len(raw)]) if len(raw) <= 47 else b"\x79" + json_int(len(raw))) + raw


def item(value: bytes) -> bytes:
    """One of the values of a fastjson2 body."""
    return struct.pack(">I", len(value)) + value


def attachments(serialization: int = HESSIAN2, **pairs: str | bytes) -> bytes:
    """A map of strings, or of values that are serialized already."""
    one = text if serialization == HESSIAN2 else json_text
    both = b"".join(one(key) + (one(value) if isinstance(value, str) else value) for key, value in pairs.items())
    return b"H" + both + b"Z" if serialization == HESSIAN2 else b"\xa6" + both + b"\xa5"


def call(
    *arguments: bytes,
    service: str | None = SERVICE,
    version: str | None = "1.0",
    method: str | None = "hi",
    descriptor: str | None = None,
    attached: bytes | None = None,
    serialization: int = HESSIAN2,
    flags: int = TWO_WAY,
    id: int = 7,
) -> bytes:
    """A call; each argument is one value, serialized already, for a parameter of the class Object."""
    if descriptor is None:
        descriptor = "Ljava/lang/Object;" * len(arguments)
    names = ("2.0.2", service, version, method, descriptor)
    if attached is None:
        attached = attachments(serialization, path="p", group="g", version="0")
    if serialization == HESSIAN2:
        body = b"".join((*map(text, names), *arguments, attached))
    else:
        body = b"".join(map(item, (*map(json_text, names), *arguments, attached)))
    return frame(body, flags=flags, serialization=serialization, id=id)


def raw_call(*values: bytes) -> bytes:
    """A call in Hessian 2 of values that are serialized already, protocol version and service before them."""
    return frame(text("2.0.2") + text(SERVICE) + b"".join(values))


def raw_json_call(*values: bytes) -> bytes:
    return frame(item(json_text("2.0.2")) + item(json_text(SERVICE)) + b"".join(values), serialization=FASTJSON2)


# As Dubbo writes them.
GOLDEN = bytes.fromhex(
    "dabbc200000000000000000100000089"
    "05322e302e32 13636f6d2e666f6f2e44656d6f53657276696365 05302e302e30 0873617948656c6c6f"
    "124c6a6176612f6c616e672f537472696e673b 05776f726c64"
    "48 0470617468 13636f6d2e666f6f2e44656d6f53657276696365"
    "09696e74657266616365 13636f6d2e666f6f2e44656d6f53657276696365 0776657273696f6e 05302e302e30 5a"
)
HEARTBEAT = bytes.fromhex("dabbe2000000000000000001000000014e")
HEARTBEAT_ANSWER = bytes.fromhex("dabb22140000000000000001000000014e")
JSON_HEARTBEAT = bytes.fromhex("dabbf700000000000000000100000005 00000001af")
JSON_HEARTBEAT_ANSWER = bytes.fromhex("dabb3714000000000000000100000005 00000001af")
READONLY = bytes.fromhex("dabba2000000000000000000000000020152")
NO_PROVIDER = bytes.fromhex("dabb023c00000000000000010000000c0b4e6f2070726f7669646572")
JSON_NO_PROVIDER = bytes.fromhex("dabb173c000000000000000100000010 0000000c544e6f2070726f7669646572")

STRINGS = [
    text(""),
    text("a" * 31),
    text("a" * 32),
    text("é" * 1023),
    text("中😀e"),
    b"S\0\3abc",
    b"S\4\0" + b"a" * 1024,
    b"S\x80\0" + b"a" * 0x8000,
    b"R\0\1aR\0\2\xc3\xa9bS\0\0",
    b"R\0\1a\1b",
    b"R\0\1a\x30\2bc",
    b"R\0\0\0",
    b"\2\xf0\x9f\x98\x80",  # a surrogate pair as four bytes
]
CLASS = b"C" + text("example.Point") + b"\x92" + text("x") + text("y")
NO_FIELDS = b"C\1E\x90"
HESSIAN_VALUES = [
    *STRINGS,
    b"N",
    b"T",
    b"F",
    *(bytes([lead]) for lead in (0x80, 0x90, 0xBF, 0xD8, 0xE0, 0xEF, 0x5B, 0x5C, 0x20)),
    *(bytes([lead, 1]) for lead in (0xC0, 0xC8, 0xCF, 0xF0, 0xF8, 0xFF, 0x5D)),
    *(bytes([lead, 1, 2]) for lead in (0xD0, 0xD4, 0xD7, 0x38, 0x3C, 0x3F, 0x5E)),
    *(bytes([lead]) + b"ZZZZ" for lead in b"IYK\x5f"),
    *(bytes([lead]) + b"ZZZZZZZZ" for lead in b"DLJ"),
    b"\x2f" + b"Z" * 15,
    b"\x37\xff" + b"Z" * 1023,
    b"B\1\0" + b"Z" * 256,
    b"A\0\2ZZA\0\0B\0\1Z",
    b"A\0\2ZZ\x21Z",
    b"A\0\2ZZ\x34\2ZZ",
    b"Q\x90",
    b"HZ",
    b"H" + text("group") + text("not this") + b"\x91HZZ",
    b"M" + text("java.util.TreeMap") + text("k") + b"WZZ",
    b"WM\1tZM\x90ZZ",
    b"M" + b"I\0\0\0\0" + b"Z",
    b"WZ",
    b"W\x91WW\x92ZZHZZ",
    b"U\x02[l\x91\x92Z",
    b"U\x90Z",
    b"V\4[int\x92\x91\x92",
    b"V\x90\x90",
    b"V\x90\xc8\x40" + b"\x91" * 64,
    b"X\x93\x91\x92\x93",
    b"XI\0\0\0\1N",
    b"\x70\2[l",
    b"\x77\2[lTFTFTFT",
    b"\x72\x90TF",
    b"\x78",
    b"\x7fTFTFTFT",
    b"\x79" * 100 + b"N",
    b"W" * 100 + b"Z" * 100,
    CLASS + b"\x60\x91\x92",
    CLASS + b"O\x90\x91\x92",
    b"W" + CLASS + b"\x60\x91\x92\x60Q\x90NZ",
    NO_FIELDS + b"\x60",
    b"\x7a" + NO_FIELDS + b"\x60" + CLASS + b"\x61NN",
    b"\x79" + NO_FIELDS * 20 + CLASS + b"O\xa4\x91\x92",
    CLASS + b"\x60" + NO_FIELDS + b"\x61\x60\x91\x92",
    CLASS + b"\x60\x91" * 5000 + b"N",  # a list linked by its last field
]
BAD_HESSIAN_VALUES = [
    *(bytes([lead]) for lead in (0x40, 0x45, 0x47, 0x50, 0x5A)),
    b"\x60",
    b"O\x90",
    b"O\x8f",
    b"ON",
    CLASS + b"\x61\x91\x92",
    b"C\1E\x8f\x60",
    b"C\1EN\x60",
    b"CN\x90\x60",
    b"C\1E\x91N\x60",
    b"X\x8f",
    b"XN",
    b"XI\xff\xff\xff\xff",
    b"VN\x90",
    b"V\1tN",
    b"U\x40Z",
    b"MNZ",
    b"QN",
    b"H\x91Z",
    b"A\0\1ZN",
    b"R\0\1aN",
    b"R\0\1aR",
    b"\1\x80",
    b"\1\xff",
    b"\1\xf0\x9f\x98\x80",
    b"S\xff\xff",
    b"B\xff\xff",
    b"X\x92" * 4097,
    b"W" * 4097,
    b"H\x90" * 4097,
    (NO_FIELDS * 257) + b"\x60",
]

JSON_STRINGS = [
    json_text(""),
    json_text("a" * 47),
    json_text("a" * 48),
    json_text("a" * 5000),
    json_text("é😀"),
    *(bytes([lead]) + b"\4abcd" for lead in range(0x79, 0x7F)),
    b"\x79\x48\0\0\1\0" + b"a" * 256,
]
JSON_VALUES = [
    *JSON_STRINGS,
    *(bytes([lead]) for lead in (0xAF, 0xB0, 0xB1, 0xB2, 0xB3, 0x00, 0x2F, 0xF0, 0xFF, 0xD8, 0xEF)),
    *(bytes([lead, 1]) for lead in (0x30, 0x3F, 0xBD, 0xC8, 0xD7)),
    *(bytes([lead, 1, 2]) for lead in (0x40, 0x47, 0xBC, 0xC0, 0xC7)),
    *(bytes([lead]) + b"\xa5" * 4 for lead in (0x48, 0xA9, 0xAC, 0xAD, 0xB7, 0xBF)),
    *(bytes([lead]) + b"\xa5" * 8 for lead in (0xAB, 0xB5, 0xBE)),
    *(bytes([lead]) + b"\x01" for lead in (0xB4, 0xB6, 0xB8, 0xBA, 0x90)),
    b"\xb9\2\xbb\3\xa5\xa5\xa5",
    b"\xba\xbe" + b"\xa5" * 8,
    b"\xbb\x02\xa5\xa5",
    b"\x93" + json_text("$.a"),
    b"\xa7\xa5\xa5\xa5\0",
    b"\xa8" + b"\xa5" * 7 + json_int(100000),
    b"\xaa" + b"\xa5" * 7 + b"\0" + json_text("Europe/Berlin"),
    b"\xae\xbf\0\0\0\1\5",
    b"\x91\4\xa5\xa5\xa5\xa5",
    b"\x94",
    b"\xa3" + b"\x01" * 15,
    b"\xa4\x10" + b"\x94" * 16,
    b"\xa4\x00",
    b"\xa6\xa5",
    b"\xa6" + json_text("group") + json_text("not this") + b"\1\xa6\xa5" + b"\xa5",
    b"\xa6\x7f" + json_text("x") + b"\1\x90\5\x7f\1\xaf\xa5",
    b"\x92" + json_text("a.B") + b"\0\xa6\xa5",
    b"\x95\x92\0\xa6\xa5",
    b"\x95\x92\x7f\0\xa6\xa5",
    b"\x95" * 100 + b"\xaf",
    b"\xa6\1" * 100 + b"\xaf" + b"\xa5" * 100,
    b"\x95" * 20000 + b"\xaf",
]
BAD_JSON_VALUES = [
    b"\xa5",
    b"\x79\xff",
    b"\x79\xaf",
    b"\x91\x48\x80\0\0\0",
    b"\xa4\xf0",
    b"\xa4\x49",
    b"\xa6\1\xa5",
    b"\xbb\xff",
    b"\x79\x48\x7f\xff\xff\xff",
    b"\x96\x95" * 2049,
    b"\xa6\1" * 4097,
]

CAPTURES = Path(__file__).parent / "data" / "dubbo"
CAPTURE_NAMES = sorted(path.stem for path in CAPTURES.glob("*.gz"))


def capture(name: str) -> list[bytes]:
    """The frames of one side of a connection between a Java consumer and a Java provider.

    Recorded between two processes with Dubbo 3.3.5 (serialization hessian2, then fastjson2) and Dubbo 2.7.23. The
    consumer made CAPTURED_CALLS on two services of one interface, group "blue" with version "1.0.0" and one with
    neither, was idle for some heartbeats of one second, and then the provider was stopped.
    """
    stream = gzip.decompress((CAPTURES / f"{name}.gz").read_bytes())
    frames = []
    while stream:
        length = HEAD.size + HEAD.unpack_from(stream)[-1]
        frames.append(stream[:length])
        stream = stream[length:]
    return frames


CAPTURED_CALLS = [
    "ping",
    "ping blue",
    "text blue",
    "text blue",  # null
    "text blue",  # "é中😀e"
    "text blue",  # 1023 characters
    "text blue",  # 1024 times "é"
    "text blue",  # 32,809 UTF-16 units, a surrogate pair where the first chunk would end
    "numbers blue",
    "numbers",
    "ints blue",  # int[], long[], double[]
    "times blue",  # Date, LocalDateTime, LocalDate, LocalTime, Instant, ZonedDateTime
    "exact blue",  # BigDecimal, BigInteger, UUID
    "order blue",  # a class with lists, maps, arrays, an enum and references to itself
    "orders blue",  # a list of such, an Object[] with eighteen other classes
    "maps blue",  # HashMap, TreeMap, LinkedHashMap with classes in them, EnumMap
    "bytes blue",  # 15
    "bytes blue",  # 900
    "bytes blue",  # 20,000
    "chain blue",  # 600 objects, each in the first field of the one before
    "forget blue",  # one-way
    "fail blue",  # an exception is thrown
    "text blue",  # with numbers, times, maps and such an object as attachments
]

CALL = {"protocol": "dubbo", "kind": "request", "id": 7, "service": SERVICE, "version": "1.0", "method": "hi"}
WITH_GROUP = {**CALL, "group": "g"}
NAMELESS = {"service": "", "version": "", "method": "", "group": ""}


def timeout(value: str | bytes, serialization: int = HESSIAN2) -> bytes:
    return call(attached=attachments(serialization, timeout=value, group="g"), serialization=serialization)


VALID: list[tuple[bytes, dict[str, Any]]] = [
    (
        GOLDEN,
        {
            "kind": "request",
            "id": 1,
            "length": 153,
            "front": 153,
            "serialization": 2,
            "timeout_ms": None,
            "status": None,
            "service": "com.foo.DemoService",
            "version": "",
            "method": "sayHello",
            "group": "",
        },
    ),
    (HEARTBEAT, {"kind": "heartbeat", "id": 1, "length": 17, "status": None, **NAMELESS}),
    (HEARTBEAT_ANSWER, {"kind": "heartbeat answer", "id": 1, "status": None, **NAMELESS}),
    (JSON_HEARTBEAT, {"kind": "heartbeat", "serialization": 23}),
    (JSON_HEARTBEAT_ANSWER, {"kind": "heartbeat answer", "serialization": 23}),
    (frame(b"N", flags=ONE_WAY | EVENT), {"kind": "notice"}),
    (frame(b"", flags=TWO_WAY | EVENT), {"kind": "heartbeat"}),
    (frame(b"N" * 64, flags=TWO_WAY | EVENT), {"kind": "heartbeat"}),
    (frame(b"N" * 65, flags=TWO_WAY | EVENT), {"kind": "notice"}),
    (READONLY, {"kind": "read-only", "id": 0}),
    (frame(b"\1R", flags=TWO_WAY | EVENT), {"kind": "read-only"}),
    (frame(b"\1W", flags=ONE_WAY | EVENT), {"kind": "writable"}),
    (frame(b"\1X", flags=ONE_WAY | EVENT), {"kind": "notice"}),
    (frame(b"\1X", flags=TWO_WAY | EVENT), {"kind": "heartbeat"}),
    (frame(b"NR", flags=ONE_WAY | EVENT), {"kind": "notice"}),
    (frame(b"\1R", flags=RESPONSE | EVENT, status=20), {"kind": "heartbeat answer"}),
    (frame(item(b"\x4aR"), flags=ONE_WAY | EVENT, serialization=FASTJSON2), {"kind": "read-only"}),
    (frame(item(b"\x4aW"), flags=ONE_WAY | EVENT, serialization=FASTJSON2), {"kind": "writable"}),
    (frame(item(b"\x4bW"), flags=ONE_WAY | EVENT, serialization=FASTJSON2), {"kind": "notice"}),
    (frame(b"\1R", flags=ONE_WAY | EVENT, serialization=FASTJSON2), {"kind": "notice"}),
    (frame(b"\1R", flags=ONE_WAY | EVENT, serialization=3), {"kind": "notice"}),
    (frame(b"\x94\x05\x22\xff", flags=RESPONSE, status=20), {"kind": "response", "status": 20, **NAMELESS}),
    (NO_PROVIDER, {"kind": "response", "status": 60, "id": 1}),
    (JSON_NO_PROVIDER, {"kind": "response", "status": 60, "serialization": 23}),
    (frame(b"", flags=RESPONSE, status=0), {"kind": "response", "status": 0, "length": 16}),
    (frame(b"", flags=RESPONSE, status=255, id=2**64 - 1), {"status": 255, "id": 2**64 - 1}),
    (HEAD.pack(0xDABB, 2, 20, 7, 2**31 - 17), {"kind": "response", "length": 2**31 - 1, "front": 65536}),
    *((frame(b"\xff" * 9, serialization=other), {**NAMELESS, "kind": "request"}) for other in (0, 3, 8, 22, 31)),
    (frame(b"", serialization=21, flags=ONE_WAY), {**NAMELESS, "kind": "one-way"}),
    # Names
    *((call(serialization=one), WITH_GROUP) for one in (HESSIAN2, FASTJSON2)),
    *((call(serialization=one, flags=ONE_WAY), {**WITH_GROUP, "kind": "one-way"}) for one in (HESSIAN2, FASTJSON2)),
    *((call(serialization=one, version=None), {**WITH_GROUP, "version": ""}) for one in (HESSIAN2, FASTJSON2)),
    *((call(serialization=one, version=""), {**WITH_GROUP, "version": ""}) for one in (HESSIAN2, FASTJSON2)),
    *((call(serialization=one, version="0.0.0"), {**WITH_GROUP, "version": ""}) for one in (HESSIAN2, FASTJSON2)),
    (call(version="0.0.01"), {"version": "0.0.01"}),
    (call(version="0.0"), {"version": "0.0"}),
    *((call(serialization=one, service=None, method=None), {"service": ""}) for one in (HESSIAN2, FASTJSON2)),
    (call(service=""), {"service": "", "method": "hi"}),
    (call(service="s" * 255, method="m" * 255), {"service": "s" * 255, "method": "m" * 255}),
    (call(service="s" * 255, serialization=FASTJSON2), {"service": "s" * 255}),
    (call(service="com.例.Hello"), {"service": "com.例.Hello"}),
    (call(service="com.例.Hello", serialization=FASTJSON2), {"service": "com.例.Hello"}),
    (call(id=2**64 - 1), {"id": 2**64 - 1}),
    (raw_call(b"S\0\0031.0", b"\x30\2hi", text(""), attachments(group="g")), WITH_GROUP),
    (raw_json_call(item(b"\x79\0031.0"), item(b"\x7a\2hi"), item(b"\xaf"), item(b"\xaf")), CALL),
    # Arguments
    *((call(value), WITH_GROUP) for value in HESSIAN_VALUES),
    *((call(value, serialization=FASTJSON2), WITH_GROUP) for value in JSON_VALUES),
    (call(b"", b"\xff\xff", serialization=FASTJSON2), WITH_GROUP),  # nobody looks into them
    (call(*HESSIAN_VALUES[:40]), WITH_GROUP),
    (call(CLASS + b"\x60NN", b"\x60NN", NO_FIELDS + b"\x61", attached=attachments(x=b"\x60\x61\x61", group="g")), CALL),
    (call(b"\x91", b"N", b"N", b"T", descriptor="I[B[[Ljava/lang/String;Z"), WITH_GROUP),
    (call(*[b"N"] * 10, descriptor="BCDFIJSZLa;[La/b;"), WITH_GROUP),
    (call(b"N", b"N", descriptor="I"), {**CALL, "group": ""}),
    # Attachments
    *((call(attached=attachments(x=value, group="g", y=b"N")), WITH_GROUP) for value in HESSIAN_VALUES),
    *(
        (call(attached=attachments(FASTJSON2, x=value, group="g"), serialization=FASTJSON2), WITH_GROUP)
        for value in JSON_VALUES
    ),
    (call(attached=b"N"), {**CALL, "group": ""}),
    (call(attached=b"\xaf", serialization=FASTJSON2), {**CALL, "group": ""}),
    (call(attached=b"M\7HashMap" + attachments(group="g")[1:]), WITH_GROUP),
    (
        call(attached=b"\x92" + json_text("Map") + b"\0" + attachments(FASTJSON2, group="g"), serialization=23),
        WITH_GROUP,
    ),
    (call(attached=b"\x92\0" + attachments(FASTJSON2, group="g"), serialization=FASTJSON2), WITH_GROUP),
    (call(attached=b"H\x91\x92" + attachments(group="g")[1:]), WITH_GROUP),
    (call(attached=b"\xa6\1\2" + attachments(FASTJSON2, group="g")[1:], serialization=FASTJSON2), WITH_GROUP),
    (call(attached=attachments(group=b"N")), {**CALL, "group": ""}),
    (call(attached=attachments(FASTJSON2, group=b"\xaf"), serialization=FASTJSON2), {**CALL, "group": ""}),
    (call(attached=attachments(group="a")[:-1] + attachments(group="b")[1:]), {**CALL, "group": "b"}),
    (call(attached=attachments(Group="a", groups="b", grou="c")), {**CALL, "group": ""}),
    (call(attached=attachments() + b"rest"), {**CALL, "group": ""}),
    (timeout("3000"), {**WITH_GROUP, "timeout_ms": 3000}),
    (timeout("3000", FASTJSON2), {**WITH_GROUP, "timeout_ms": 3000}),
    (timeout("999999999"), {"timeout_ms": 999999999}),
    *((timeout(value), {**WITH_GROUP, "timeout_ms": None}) for value in ("", "0", "-1", "1s", "1000000000", "😀")),
    *((timeout(value), {**WITH_GROUP, "timeout_ms": 1}) for value in (b"\x91", b"\xc8\1", b"\xd4\0\1", b"I\0\0\0\1")),
    *((timeout(value), {**WITH_GROUP, "timeout_ms": None}) for value in (b"N", b"\x90", b"\x8f", b"\x5c", b"\xe1")),
    *((timeout(value), {**WITH_GROUP, "timeout_ms": None}) for value in (b"WZ", b"R\0\0011\0012")),
    *(
        (timeout(value, FASTJSON2), {**WITH_GROUP, "timeout_ms": 1})
        for value in (b"\1", b"\x38\1", b"\x44\0\1", b"\x48\0\0\0\1")
    ),
    *(
        (timeout(value, FASTJSON2), {**WITH_GROUP, "timeout_ms": None})
        for value in (b"\xaf", b"\0", b"\xff", b"\xa6\xa5", b"\x7b\0021\0", json_text("é"))
    ),
]

INVALID: dict[str, list[bytes]] = {
    "not this protocol": [b"\0", b"\xbb", b"\xda\xda", b"\xda\0" + GOLDEN, b"GET / HTTP/1.1\r\n\r\n", b"\1\1"],
    "bad length": [
        *(HEAD.pack(0xDABB, flags, 0, 7, -1) for flags in (0xC2, 0x82, 2, 0xE2, 0xA2, 0x22)),
        HEAD.pack(0xDABB, 0xC2, 0, 7, -(2**31)),
        HEAD.pack(0xDABB, 0xC2, 0, 7, 2**31 - 1),
        HEAD.pack(0xDABB, 0xC2, 0, 7, 2**31 - 16),
    ],
    "front of the frame too long": [
        call(b"A\xff\xff" + bytes(65535) + b"\x20"),
        call(bytes(70000), serialization=FASTJSON2),
        frame(b"S\xff\xff" + b"a" * 65535),
        raw_json_call(item(json_text("a" * 70000))),
    ],
    "bad front of the frame": [
        frame(b""),
        frame(b"", serialization=FASTJSON2),
        call(attached=b""),
        call(attached=b"", serialization=FASTJSON2),
        frame(b"\x91" + GOLDEN[22:]),
        frame(b"\x50"),
        frame(b"\6abcde"),
        raw_call(b"\x90"),
        raw_call(text("1"), b"\x40"),
        raw_call(text("1"), text("hi"), b"\x8f"),
        raw_json_call(item(b"\1")),
        raw_json_call(item(b"")),
        raw_json_call(item(json_text("1") + b"\0")),
        raw_json_call(b"\xff\xff\xff\xff"),
        raw_json_call(b"\0\0\0\5" + json_text("1")),
        raw_json_call(item(b"\x79\xff")),
        *(call(descriptor=wrong) for wrong in ("V", "X", "L", "Ljava/lang/Object", "[", "I[", "I;", "(I)V", "é")),
        *(call(value) for value in BAD_HESSIAN_VALUES),
        call(b"N", descriptor="II"),
        call(b"N", b"N", descriptor="I", serialization=FASTJSON2),
        *(call(attached=wrong) for wrong in (b"WZ", b"\x91", b"Z", b"HN", b"H\1aZ", b"H", text("group"))),
        *(call(attached=attachments(x=value)) for value in BAD_HESSIAN_VALUES),
        *(call(attached=attachments(group=value)) for value in (b"\x91", b"WZ", b"T")),
        *(call(attached=wrong, serialization=FASTJSON2) for wrong in (b"\x94", b"\1", b"\xa5", b"\xa6", b"\xa6\1\xa5")),
        *(call(attached=attachments(FASTJSON2, x=value), serialization=FASTJSON2) for value in BAD_JSON_VALUES),
        *(
            call(attached=attachments(FASTJSON2, group=value), serialization=FASTJSON2)
            for value in (b"\1", b"\xa6\xa5")
        ),
    ],
    "bad name": [
        call(service="s" * 256),
        call(service="s" * 256, serialization=FASTJSON2),
        call(service="é" * 128),
        call(version="v" * 256),
        call(method="m" * 256),
        call(service="a\nb"),
        call(service="a\0"),
        call(method="\x7f", serialization=FASTJSON2),
        call(attached=attachments(group="g" * 256)),
        call(attached=attachments(group="g\r")),
        call(attached=attachments(FASTJSON2, group="g" * 256), serialization=FASTJSON2),
        call(attached=attachments(FASTJSON2, group=b"\x7c\2g\0"), serialization=FASTJSON2),
        raw_call(b"R\0\0011\0020"),
        raw_call(text("1"), text("hi"), b"R\0\0I\0"),
        *(raw_json_call(item(bytes([lead]) + b"\4a\0b\0")) for lead in range(0x7B, 0x7F)),
    ],
}
