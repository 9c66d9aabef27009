"""A second Dubbo codec: slow, recursive, in plain Python, after Dubbo's ExchangeCodec and DubboCodec, the Hessian 2
specification and fastjson2's JSONB.

It answers like fastside._core's parse_dubbo, with the same reason where it has to refuse. It knows no limit of depth.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import Any, ClassVar

MAX_SIZE = 2**31 - 1
MAX_FRONT = 65536
MAX_NAME = 255
MAX_EVENT = 64
MAX_CLASSES = 256
HESSIAN2, FASTJSON2 = 2, 23
READONLY = {HESSIAN2: b"\1R", FASTJSON2: b"\0\0\0\2\x4aR"}
WRITABLE = {HESSIAN2: b"\1W", FASTJSON2: b"\0\0\0\2\x4aW"}
PARAMETER = re.compile(rb"\[*(?:[BCDFIJSZ]|L[^;]*;)")

FRONT = "bad front of the frame"
NAME = "bad name"


class Refused(Exception):
    """str() is the reason."""


class NeedMore(Exception):
    """The bytes end too early."""


def require(condition: object, reason: str = FRONT) -> None:
    if not condition:
        raise Refused(reason)


class Input:
    """Bytes from `at` on, of which those up to `whole` belong to what is read, and those up to `end` are at hand."""

    def __init__(self, data: bytes, at: int, end: int, whole: int) -> None:
        self.data, self.at, self.end, self.whole = data, at, end, whole

    def take(self, n: int) -> bytes:
        require(n <= self.whole - self.at)
        if n > self.end - self.at:
            raise NeedMore
        self.at += n
        return self.data[self.at - n : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def signed(self, size: int) -> int:
        return int.from_bytes(self.take(size), signed=True)

    def peek(self) -> int:
        lead = self.byte()
        self.at -= 1
        return lead


class Hessian:
    TEXT_LEADS = frozenset((*range(0x20), *range(0x30, 0x34), ord("S")))
    INT_LEADS = frozenset((*range(0x80, 0xD8), ord("I")))
    NULL, END = ord("N"), ord("Z")
    FIXED: ClassVar[dict[int, int]] = {
        **dict.fromkeys(b"NTF\x5b\x5c", 0),
        **dict.fromkeys((*range(0x80, 0xC0), *range(0xD8, 0xF0)), 0),
        **dict.fromkeys((0x5D, *range(0xC0, 0xD0), *range(0xF0, 0x100)), 1),
        **dict.fromkeys((0x5E, *range(0xD0, 0xD8), *range(0x38, 0x40)), 2),
        **dict.fromkeys(b"IKY\x5f", 4),
        **dict.fromkeys(b"DJL", 8),
    }

    def __init__(self, source: Input) -> None:
        self.source = source
        self.classes: list[int] = []

    def item_text(self) -> bytes | None:
        return self.text()

    def skip_arguments(self, count: int) -> None:
        self.skip(count)

    def integer(self) -> int:
        lead = self.source.byte()
        require(lead in self.INT_LEADS)
        if lead == ord("I"):
            return self.source.signed(4)
        if lead < 0xC0:
            return lead - 0x90
        if lead < 0xD0:
            return ((lead - 0xC8) << 8) + self.source.byte()
        return ((lead - 0xD4) << 16) + self.source.number(2)

    def chunk(self) -> tuple[bytes, bool]:
        """A string or a chunk of one; whether more chunks follow."""
        lead = self.source.byte()
        require(lead in self.TEXT_LEADS or lead == ord("R"))
        if lead < 0x20:
            units = lead
        elif lead < 0x34:
            units = ((lead & 3) << 8) + self.source.byte()
        else:
            units = self.source.number(2)
        more = lead == ord("R")
        raw = b""
        while units:
            first = self.source.byte()
            size = 1 if first < 0x80 else 2 if first >> 5 == 6 else 3 if first >> 4 == 14 else 4
            require(size < 4 or (first >> 3 == 30 and units >= 2))
            raw += bytes([first]) + self.source.take(size - 1)
            units -= 2 if size == 4 else 1
        return raw, more

    def text(self) -> bytes | None:
        if self.source.peek() == self.NULL:
            self.source.byte()
            return None
        if self.source.peek() == ord("R"):
            self.source.take(3)
            raise Refused(NAME)
        return self.chunk()[0]

    def string(self) -> None:
        while self.chunk()[1]:
            pass

    def binary(self) -> None:
        lead = ord("A")
        while lead == ord("A"):
            lead = self.source.byte()
            if lead in range(0x20, 0x30):
                self.source.take(lead - 0x20)
            elif lead in range(0x34, 0x38):
                self.source.take(((lead - 0x34) << 8) + self.source.byte())
            else:
                require(lead in b"AB")
                self.source.take(self.source.number(2))

    def type(self) -> None:
        if self.source.peek() in self.INT_LEADS:
            self.integer()
        else:
            self.string()

    def skip(self, count: int = 1) -> None:
        require(count >= 0)
        for _ in range(count):
            self.value()

    def until_end(self, values: int) -> None:
        while self.source.peek() != self.END:
            self.skip(values)
        self.source.byte()

    def instance(self, number: int) -> None:
        require(0 <= number < len(self.classes))
        self.skip(self.classes[number])

    def definition(self) -> None:
        self.string()
        count = self.integer()
        require(count >= 0 and len(self.classes) < MAX_CLASSES)
        self.classes.append(count)
        for _ in range(count):
            self.string()

    def value(self) -> None:
        lead = self.source.peek()
        if lead in self.TEXT_LEADS or lead == ord("R"):
            return self.string()
        if lead in range(0x20, 0x30) or lead in range(0x34, 0x38) or lead in b"AB":
            return self.binary()
        self.source.byte()
        if lead in self.FIXED:
            self.source.take(self.FIXED[lead])
        elif lead in b"MUV" or lead in range(0x70, 0x78):
            self.type()
        if lead == ord("C"):
            self.definition()
            self.value()
        elif lead == ord("O"):
            self.instance(self.integer())
        elif lead in range(0x60, 0x70):
            self.instance(lead - 0x60)
        elif lead == ord("Q"):
            self.integer()
        elif lead in b"HM":
            self.until_end(2)
        elif lead in b"WU":
            self.until_end(1)
        elif lead in b"XV":
            self.skip(self.integer())
        elif lead in range(0x70, 0x80):
            self.skip(lead & 7)
        else:
            require(lead in self.FIXED)
        return None

    def into_map(self) -> bool:
        lead = self.source.byte()
        require(lead in b"HMN")
        if lead == ord("M"):
            self.type()
        return lead != self.NULL


class Jsonb:
    TEXT_LEADS = frozenset(range(0x49, 0x7B))
    INT_LEADS = frozenset((*range(0x49), *range(0xF0, 0x100)))
    NULL, END = 0xAF, 0xA5
    # Bytes of a fixed size after the first, and values after those
    FIXED: ClassVar[dict[int, tuple[int, int]]] = {
        **dict.fromkeys((*range(0xAF, 0xB4), *range(0x30), *range(0xF0, 0x100), *range(0xD8, 0xF0)), (0, 0)),
        **dict.fromkeys((*range(0x30, 0x40), *range(0xC8, 0xD8), 0xBD), (1, 0)),
        **dict.fromkeys((*range(0x40, 0x48), *range(0xC0, 0xC8), 0xBC), (2, 0)),
        **dict.fromkeys((0x48, 0xA9, 0xAC, 0xAD, 0xB7, 0xBF), (4, 0)),
        **dict.fromkeys((0xAB, 0xB5, 0xBE), (8, 0)),
        **dict.fromkeys((0x90, 0x93, 0xB4, 0xB6, 0xB8, 0xBA), (0, 1)),
        **dict.fromkeys((0xAE, 0xB9), (0, 2)),
        0xA7: (3, 1),
        0xA8: (7, 1),
        0xAA: (7, 2),
    }

    def __init__(self, source: Input) -> None:
        self.source = source

    def into_item(self) -> None:
        length = self.source.number(4)
        require(length <= self.source.whole - self.source.at)
        self.source.whole = self.source.at + length

    def item_text(self) -> bytes | None:
        whole = self.source.whole
        self.into_item()
        raw = self.text()
        require(self.source.at == self.source.whole)
        self.source.whole = whole
        return raw

    def skip_arguments(self, count: int) -> None:
        for _ in range(count):
            self.source.take(self.source.number(4))
        self.into_item()

    def integer(self) -> int:
        lead = self.source.byte()
        require(lead in self.INT_LEADS)
        if lead == 0x48:
            return self.source.signed(4)
        if lead >= 0xF0:
            return lead - 0x100
        if lead < 0x30:
            return lead
        if lead < 0x40:
            return ((lead - 0x38) << 8) + self.source.byte()
        return ((lead - 0x44) << 16) + self.source.number(2)

    def counted(self) -> bytes:
        length = self.integer()
        require(length >= 0)
        return self.source.take(length)

    def text(self) -> bytes | None:
        lead = self.source.byte()
        require(lead not in range(0x7B, 0x7F), NAME)
        require(lead in self.TEXT_LEADS or lead == self.NULL)
        if lead == self.NULL:
            return None
        return self.source.take(lead - 0x49) if lead < 0x79 else self.counted()

    def skip(self, count: int = 1) -> None:
        for _ in range(count):
            self.value()

    def name(self) -> None:
        self.skip(1 if self.source.peek() in {*self.INT_LEADS, 0x7F} else 2)

    def value(self) -> None:
        lead = self.source.byte()
        if lead in self.FIXED:
            size, values = self.FIXED[lead]
            self.source.take(size)
            self.skip(values)
        elif lead in range(0x49, 0x79):
            self.source.take(lead - 0x49)
        elif lead in range(0x79, 0x7F) or lead in {0x91, 0xBB}:
            self.counted()
        elif lead in range(0x94, 0xA4):
            self.skip(lead - 0x94)
        elif lead == 0xA4:
            count = self.integer()
            require(count >= 0)
            self.skip(count)
        elif lead == 0xA6:
            while self.source.peek() != self.END:
                self.skip(2)
            self.source.byte()
        elif lead == 0x7F:
            self.name()
        else:
            require(lead == 0x92)
            self.name()
            self.value()

    def into_map(self) -> bool:
        lead = self.source.byte()
        if lead == 0x92:
            self.name()
            lead = self.source.byte()
            require(lead in {0xA6, self.NULL})
        require(lead in {0xA6, self.NULL})
        return lead != self.NULL


def as_name(raw: bytes | None) -> str:
    raw = raw or b""
    require(len(raw) <= MAX_NAME and not re.search(rb"[\x00-\x1f\x7f]", raw), NAME)
    return raw.decode("utf-8", "replace")


def read_timeout(body: Hessian | Jsonb) -> int | None:
    lead = body.source.peek()
    if lead in body.INT_LEADS:
        number = body.integer()
    elif lead in body.TEXT_LEADS:
        digits = body.text() or b""
        number = int(digits) if re.fullmatch(rb"[0-9]{1,9}", digits) else 0
    else:
        body.skip()
        number = 0
    return number if number > 0 else None


def read_call(body: Hessian | Jsonb, group: bool) -> dict[str, Any]:
    body.item_text()
    service, version, method = (as_name(body.item_text()) for _ in range(3))
    found: dict[str, Any] = {"service": service, "version": "" if version == "0.0.0" else version, "method": method}
    if not group:
        return found
    descriptor = body.item_text() or b""
    require(re.fullmatch(rb"(?:%b)*" % PARAMETER.pattern, descriptor))
    body.skip_arguments(len(PARAMETER.findall(descriptor)))
    if body.into_map():
        while body.source.peek() != body.END:
            key = None
            if body.source.peek() in body.TEXT_LEADS:
                key = body.text()
            else:
                body.skip()
            if key == b"group":
                found["group"] = as_name(body.text())
            elif key == b"timeout":
                found["timeout_ms"] = read_timeout(body)
            else:
                body.skip()
    return found


def event_kind(flags: int, serialization: int, length: int, body: bytes) -> str:
    if serialization in READONLY and length == len(READONLY[serialization]):
        if len(body) < length:
            raise NeedMore
        if body[:length] == READONLY[serialization]:
            return "read-only"
        if body[:length] == WRITABLE[serialization]:
            return "writable"
    return "heartbeat" if flags & 0x40 and length <= MAX_EVENT else "notice"


def parse(data: bytes, group: bool) -> dict[str, Any]:
    require(b"\xda\xbb".startswith(data[:2]), "not this protocol")
    if len(data) < 16:
        raise NeedMore
    flags, status, id, length = struct.unpack_from(">xxBBQi", data)
    require(0 <= length <= MAX_SIZE - 16, "bad length")
    serialization = flags & 0x1F
    if flags & 0x80 == 0:
        kind = "heartbeat answer" if flags & 0x20 else "response"
    elif flags & 0x20:
        kind = event_kind(flags, serialization, length, data[16:])
    else:
        kind = "request" if flags & 0x40 else "one-way"
    front = min(16 + length, MAX_FRONT)
    answer = {
        "protocol": "dubbo",
        "protocol_version": 0,
        "kind": kind,
        "id": id,
        "length": 16 + length,
        "front": front,
        "serialization": serialization,
        "timeout_ms": None,
        "status": status if kind == "response" else None,
        "crc": False,
        "service": "",
        "version": "",
        "method": "",
        "group": "",
    }
    readers: dict[int, Callable[[Input], Hessian | Jsonb]] = {HESSIAN2: Hessian, FASTJSON2: Jsonb}
    if kind not in {"request", "one-way"} or serialization not in readers:
        return answer
    try:
        return answer | read_call(readers[serialization](Input(data, 16, min(len(data), front), 16 + length)), group)
    except NeedMore:
        require(len(data) < front, "front of the frame too long")
        raise


def parse_dubbo(data: bytes, group: bool = True) -> dict[str, Any]:
    try:
        return parse(data, group)
    except NeedMore:
        return {"need_more": True}
    except Refused as refused:
        return {"reject": str(refused)}
