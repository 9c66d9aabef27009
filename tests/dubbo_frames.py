"""Dubbo frames as tests write and read them, with short Hessian 2 strings only."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from harness import Stream

OK, SERVER_TIMEOUT, SERVICE_NOT_FOUND = 20, 31, 60
TWO_WAY, ONE_WAY = 0xC2, 0x82
READONLY, WRITABLE = b"\x01R", b"\x01W"


@dataclass
class DubboFrame:
    """What a test looks at."""

    flags: int
    status: int
    id: int
    body: bytes


def frame(flags: int, id: int, body: bytes, status: int = 0) -> bytes:
    return struct.pack(">HBBqi", 0xDABB, flags, status, id, len(body)) + body


def text(value: str) -> bytes:
    assert len(value) < 1024
    return struct.pack(">H", 0x3000 | len(value)) + value.encode()


def request(
    id: int,
    service: str,
    version: str = "0.0.0",
    group: str = "",
    content: str = "",
    flags: int = TWO_WAY,
    timeout: int | None = None,
) -> bytes:
    """A call of `hi(String)`."""
    body = b"".join(map(text, ("2.0.2", service, version, "hi", "Ljava/lang/String;", content)))
    given = {"path": service, "group": group, "timeout": str(timeout or "")}
    attachments = {key: value for key, value in given.items() if value}
    body += b"H" + b"".join(text(part) for pair in attachments.items() for part in pair) + b"Z"
    return frame(flags, id, body)


def response(to: DubboFrame, content: str = "") -> bytes:
    return frame(2, to.id, b"\x91" + text(content), OK)


def event(body: bytes = b"N", id: int = 0, *, wants_answer: bool = False) -> bytes:
    return frame(0xE2 if wants_answer else 0xA2, id, body)


def read_frame(stream: Stream) -> DubboFrame:
    magic, flags, status, id, length = struct.unpack(">HBBqi", stream.read(16))
    assert magic == 0xDABB
    return DubboFrame(flags, status, id, stream.read(length))
