"""Bolt frames as tests write and read them, by struct; see tests/reference_bolt.py for what else a frame may be."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from harness import Stream

REQUEST, ONEWAY, RESPONSE = 1, 2, 0
HEARTBEAT = struct.pack(">BBHBIBiHHI", 1, 1, 0, 1, 77, 1, -1, 0, 0, 0)
SUCCESS, BUSY, NO_PROCESSOR, TIMEOUT, CLOSED = 0, 4, 6, 7, 16


@dataclass
class BoltFrame:
    """What a test looks at. timeout is None in responses, status None in requests."""

    kind: int
    command: int
    id: int
    timeout: int | None
    status: int | None
    header: bytes
    content: bytes
    raw: bytes


def pairs(**values: str) -> bytes:
    """A header block."""
    return b"".join(struct.pack(">I", len(text)) + text.encode() for pair in values.items() for text in pair)


def request(
    id: int,
    service: str,
    content: bytes = b"",
    *,
    timeout: int = 10_000,
    kind: int = REQUEST,
    version: int = 1,
    crc: bool = False,
) -> bytes:
    """A request frame."""
    block = pairs(service=service, sofa_head_method_name="hi")
    name = b"com.alipay.sofa.rpc.core.request.SofaRequest"
    middle = bytes((2, kind) if version == 2 else (kind,)) + struct.pack(">HBIB", 1, 1, id, 1)
    middle += bytes((crc,)) if version == 2 else b""
    frame = bytes((version,)) + middle + struct.pack(">iHHI", timeout, len(name), len(block), len(content))
    frame += name + block + content
    return frame + struct.pack(">I", zlib.crc32(frame)) if crc else frame


def response(to: BoltFrame, content: bytes = b"", status: int = SUCCESS) -> bytes:
    """The response to a request that was read."""
    version = to.raw[0]
    crc = version == 2 and to.raw[11] & 1
    name = b"com.alipay.sofa.rpc.core.response.SofaResponse"
    frame = bytes((2, 2, 0) if version == 2 else (1, 0)) + struct.pack(">HBIB", 2, 1, to.id, 1)
    frame += bytes((crc,)) if version == 2 else b""
    frame += struct.pack(">HHHI", status, len(name), 0, len(content)) + name + content
    return frame + struct.pack(">I", zlib.crc32(frame)) if crc else frame


def read_frame(stream: Stream) -> BoltFrame:
    """The next frame; its CRC, if it has one, is right."""
    start = stream.read(3)
    version = start[0]
    assert version in (1, 2), start
    kind = start[version]
    rest = (20 if kind == RESPONSE else 22) + 2 * (version - 1) - 3
    fixed = start + stream.read(rest)
    base = version
    command, _, id, _ = struct.unpack_from(">HBIB", fixed, base + 1)
    crc = version == 2 and fixed[1] == 2 and fixed[11] & 1
    timeout = status = None
    if kind == RESPONSE:
        status, names, block, content = struct.unpack_from(">HHHI", fixed, len(fixed) - 10)
    else:
        timeout, names, block, content = struct.unpack_from(">iHHI", fixed, len(fixed) - 12)
    body = stream.read(names + block + content)
    if crc:
        assert struct.unpack(">I", stream.read(4))[0] == zlib.crc32(fixed + body)
    header, content = body[names : names + block], body[names + block :]
    return BoltFrame(kind, command, id, timeout, status, header, content, fixed + body)
