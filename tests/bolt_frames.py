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
    texts = (text.encode() for pair in values.items() for text in pair)
    return b"".join(struct.pack(">I", len(text)) + text for text in texts)


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


def missing(data: bytes) -> int:
    """How many bytes of the frame that begins with data must come at least; 0 = it is whole."""
    if len(data) < 3:
        return 3 - len(data)
    fixed = _fixed_length(data)
    if len(data) < fixed:
        return fixed - len(data)
    names, block, content = struct.unpack_from(">HHI", data, fixed - 8)
    return fixed + names + block + content + (4 if _has_crc(data) else 0) - len(data)


def parse(data: bytes) -> BoltFrame:
    """A whole frame; its CRC, if it has one, is right."""
    if _has_crc(data):
        data, crc = data[:-4], data[-4:]
        assert struct.unpack(">I", crc)[0] == zlib.crc32(data), data[:200]
    version, fixed = data[0], _fixed_length(data)
    command, _, id, _ = struct.unpack_from(">HBIB", data, version + 1)
    names, block, _ = struct.unpack_from(">HHI", data, fixed - 8)
    timeout = status = None
    if data[version] == RESPONSE:
        (status,) = struct.unpack_from(">H", data, fixed - 10)
    else:
        (timeout,) = struct.unpack_from(">i", data, fixed - 12)
    header, content = data[fixed + names : fixed + names + block], data[fixed + names + block :]
    return BoltFrame(data[version], command, id, timeout, status, header, content, data)


def read_frame(stream: Stream) -> BoltFrame:
    """The next frame."""
    data = b""
    while count := missing(data):
        data += stream.read(count)
    return parse(data)


def _fixed_length(data: bytes) -> int:
    version = data[0]
    assert version in (1, 2), data[:3]
    return (20 if data[version] == RESPONSE else 22) + 2 * (version - 1)


def _has_crc(data: bytes) -> bool:
    return data[0] == 2 and data[1] == 2 and bool(data[11] & 1)
