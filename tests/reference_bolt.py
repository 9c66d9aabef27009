"""A second Bolt codec: slow, in plain Python, with the layouts of sofa-bolt's RpcProtocol and RpcProtocolV2.

It answers like fastside._core's parse_bolt where that accepts, or None where it has to refuse.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any

NEED_MORE = {"need_more": True}
MAX_FRONT = 65536
MAX_SIZE = 2**31 - 1
MAX_SHORT = 2**15 - 1
MAX_NAME = 255

REQUEST_FIELDS = ("type", "command", "ver2", "id", "codec", "timeout", "class", "header", "content")
RESPONSE_FIELDS = ("type", "command", "ver2", "id", "codec", "status", "class", "header", "content")
# (protocol, response): the fields after the protocol, and how they are packed
LAYOUTS = {
    (1, False): (REQUEST_FIELDS, ">xBhBIBihhi"),
    (1, True): (RESPONSE_FIELDS, ">xBhBIBHhhi"),
    (2, False): (("ver1", *REQUEST_FIELDS[:5], "switch", *REQUEST_FIELDS[5:]), ">xBBhBIBBihhi"),
    (2, True): (("ver1", *RESPONSE_FIELDS[:5], "switch", *RESPONSE_FIELDS[5:]), ">xBBhBIBBHhhi"),
}
KINDS = {
    (0, 0): "heartbeat answer",
    (0, 2): "response",
    (1, 0): "heartbeat",
    (1, 1): "request",
    (2, 0): "heartbeat",
    (2, 1): "one-way",
}


def parse_bolt(data: bytes) -> dict[str, Any] | None:
    if not data:
        return NEED_MORE
    protocol = data[0]
    if protocol not in {1, 2}:
        return None
    if len(data) < 1 + protocol:
        return NEED_MORE
    if (protocol == 2 and data[1] not in {1, 2}) or data[protocol] not in {0, 1, 2}:
        return None
    names, layout = LAYOUTS[protocol, data[protocol] == 0]
    fixed = struct.calcsize(layout)
    if len(data) < fixed:
        return NEED_MORE
    fields = dict(zip(names, struct.unpack_from(layout, data), strict=True))
    kind = KINDS.get((fields["type"], fields["command"]))
    parts = (fields["class"], fields["header"], fields["content"])
    crc = fields.get("ver1") == 2 and fields["switch"] & 1 == 1
    front = fixed + parts[0] + parts[1]
    length = front + parts[2] + 4 * crc
    if kind is None or min(parts) < 0 or length > MAX_SIZE or front > MAX_FRONT:
        return None
    if "heartbeat" in kind and any(parts):
        return None
    service = method = ""
    if kind in {"request", "one-way"}:
        if len(data) < front:
            return NEED_MORE
        pairs = read_pairs(data[fixed + parts[0] : front])
        if pairs is None:
            return None
        named = dict(pairs)
        service_name = named.get(b"service") or named.get(b"sofa_head_target_service", b"")
        method_name = named.get(b"sofa_head_method_name", b"")
        if not (is_name(service_name) and is_name(method_name)):
            return None
        service, method = service_name.decode(errors="replace"), method_name.decode(errors="replace")
    return {
        "protocol": "bolt",
        "protocol_version": protocol,
        "kind": kind,
        "id": fields["id"],
        "length": length,
        "front": front,
        "serialization": fields["codec"],
        "timeout_ms": fields["timeout"] if fields.get("timeout", 0) > 0 else None,
        "status": fields["status"] if kind == "response" else None,
        "crc": crc,
        "service": service,
        "version": "",
        "method": method,
        "group": "",
    }


def read_pairs(block: bytes) -> list[tuple[bytes, bytes]] | None:
    """Those of a header block without a null; None if it is not well formed."""
    strings: list[bytes | None] = []
    while block:
        if len(block) < 4:
            return None
        length = int.from_bytes(block[:4], "big", signed=True)
        if length < -1 or len(block) < 4 + length:
            return None
        strings.append(None if length < 0 else block[4 : 4 + length])
        block = block[4 + max(length, 0) :]
    if len(strings) % 2:
        return None
    pairs = zip(strings[::2], strings[1::2], strict=True)
    return [(key, value) for key, value in pairs if key is not None and value is not None]


def is_name(text: bytes) -> bool:
    return len(text) <= MAX_NAME and not re.search(rb"[\x00-\x1f\x7f]", text)


def with_id(frame: bytes, id: int) -> bytes:
    """A whole sound frame with another id; a CRC that was right is right again."""
    at = 4 + frame[0]
    frame = frame[:at] + struct.pack(">I", id) + frame[at + 4 :]
    if frame[0] == 2 and frame[1] == 2 and frame[11] & 1:
        frame = frame[:-4] + struct.pack(">I", zlib.crc32(frame[:-4]))
    return frame
