"""Generated Dubbo frames: values that are right or nearly right, put together, and mutations of the corpus."""

from __future__ import annotations

import struct

from hypothesis import strategies as st

from bolt_strategies import cut
from dubbo_corpus import (
    BAD_HESSIAN_VALUES,
    BAD_JSON_VALUES,
    EVENT,
    FASTJSON2,
    HEAD,
    HESSIAN2,
    HESSIAN_VALUES,
    INVALID,
    JSON_VALUES,
    VALID,
    attachments,
    call,
    frame,
    json_int,
    json_text,
    text,
)

DEPTH = 2
LONGEST = 300


def short(values: list[bytes]) -> list[bytes]:
    return [raw for raw in values if len(raw) < LONGEST]


PLAIN_HESSIAN = [raw for raw in short(HESSIAN_VALUES) if b"C" not in raw]
PLAIN_JSON = short(JSON_VALUES)
NAMES = ["com.example.Hello", "hi", "", None, "é", "中é", "s" * 40, "1.0", "0.0.0"] * 3 + ["s" * 256, "a\tb"]
DESCRIPTORS = [None] * 20 + ["", "I", "[Ljava/lang/String;J", "[", "Lx", "V"]
IDS = st.integers(0, 2**64 - 1)


def hessian_int(value: int) -> bytes:
    return bytes([0x90 + value]) if value <= 0x2F else b"I" + struct.pack(">i", value)


def hessian_value(draw: st.DrawFn, classes: list[int], depth: int) -> bytes:
    """classes: how many fields each class has that the same body has defined before; grows."""
    kind = draw(st.integers(0, 12)) if depth else 0
    if kind < 4:
        return draw(st.sampled_from(PLAIN_HESSIAN))
    if kind < 7:
        before = b""
        if not classes or draw(st.booleans()):
            fields = draw(st.integers(0, 3))
            before = b"C" + text("a.B") + hessian_int(fields) + text("field") * fields
            classes.append(fields)
        number = draw(st.integers(0, len(classes) - 1))
        lead = bytes([0x60 + number]) if number < 16 and draw(st.booleans()) else b"O" + hessian_int(number)
        return before + lead + b"".join(hessian_value(draw, classes, depth - 1) for _ in range(classes[number]))
    count = draw(st.integers(0, 3))
    inner = b"".join(hessian_value(draw, classes, depth - 1) for _ in range(2 * count if kind > 10 else count))
    typed = draw(st.sampled_from([text("[int"), text("java.util.List"), b"\x90", b"I\0\0\0\1"]))
    starts = (b"W", b"U" + typed, b"X" + hessian_int(count), b"V" + typed + hessian_int(count), b"H", b"M" + typed)
    shorts = (bytes([0x78 + count]), bytes([0x70 + count]) + typed)
    start = (*starts[:4], *shorts, *starts[4:])[draw(st.integers(0, 5)) if kind <= 10 else draw(st.integers(6, 7))]
    return start + inner + (b"Z" if start[:1] in b"WUHM" else b"")


def json_value(draw: st.DrawFn, depth: int) -> bytes:
    kind = draw(st.integers(0, 9)) if depth else 0
    if kind < 4:
        return draw(st.sampled_from(PLAIN_JSON))
    count = draw(st.integers(0, 3))
    if kind < 6:
        start = bytes([0x94 + count]) if kind == 4 else b"\xa4" + json_int(count)
        return start + b"".join(json_value(draw, depth - 1) for _ in range(count))
    name = draw(st.sampled_from([json_int(3), json_text("a.B") + json_int(3), b"\x7f" + json_int(0)]))
    if kind == 6:
        return b"\x92" + name + json_value(draw, depth - 1)
    keys = [json_text("key"), b"\x7f" + json_text("field") + json_int(1), b"\x7f" + json_int(1), json_int(9)]
    pairs = (draw(st.sampled_from(keys)) + json_value(draw, depth - 1) for _ in range(count))
    return b"\xa6" + b"".join(pairs) + b"\xa5"


@st.composite
def calls(draw: st.DrawFn) -> bytes:
    serialization = draw(st.sampled_from([HESSIAN2, HESSIAN2, FASTJSON2]))
    classes: list[int] = []

    def value() -> bytes:
        if draw(st.integers(0, 29)) == 0:
            return draw(st.sampled_from(short(BAD_HESSIAN_VALUES if serialization == HESSIAN2 else BAD_JSON_VALUES)))
        if serialization == HESSIAN2:
            return hessian_value(draw, classes, DEPTH)
        return json_value(draw, DEPTH)

    arguments = [value() for _ in range(draw(st.integers(0, 2)))]
    pairs: dict[str, str | bytes] = {}
    for key in draw(st.lists(st.sampled_from(["group", "timeout", "path", "group2"]), unique=True)):
        pairs[key] = value() if draw(st.integers(0, 3)) == 0 else draw(st.sampled_from(["", "g", "12", "é", "0.0.0"]))
    odd = draw(st.integers(0, 9)) == 0
    return call(
        *arguments,
        service=draw(st.sampled_from(NAMES)),
        version=draw(st.sampled_from(NAMES)),
        method=draw(st.sampled_from(NAMES)),
        descriptor=draw(st.sampled_from(DESCRIPTORS)),
        attached=value() if odd else attachments(serialization, **pairs),
        serialization=serialization,
        flags=draw(st.sampled_from([0xC0, 0xC0, 0x80])),
        id=draw(IDS),
    )


OTHERS = st.builds(
    frame,
    st.binary(max_size=70) | st.sampled_from([b"N", b"\1R", b"\1W", b"\0\0\0\2\x4aR", b"\0\0\0\2\x4aW"]),
    flags=st.sampled_from([0, EVENT, 0x40, 0x80, 0xC0, 0x80 | EVENT, 0xC0 | EVENT]),
    serialization=st.sampled_from([HESSIAN2, HESSIAN2, FASTJSON2, FASTJSON2, *range(32)]),
    status=st.integers(0, 255),
    id=IDS,
)


@st.composite
def mutated(draw: st.DrawFn, frames: st.SearchStrategy[bytes]) -> bytes:
    """A few bytes are replaced by others, or by more or fewer; mostly of a body whose length is made right again."""
    raw = draw(frames)
    start = draw(st.sampled_from([0, *[HEAD.size] * 4])) if len(raw) > HEAD.size else 0
    at = draw(st.integers(start, len(raw)))
    put = draw(st.binary(max_size=4) | st.sampled_from([b"\x7f\xff", b"\x80\0", b"\xff\xff\xff\xff", b"Z", b"\xa5"]))
    taken = draw(st.just(len(put)) | st.integers(0, 4))
    raw = raw[:at] + put + raw[at + taken :]
    if start:
        raw = raw[:12] + struct.pack(">i", len(raw) - HEAD.size) + raw[HEAD.size :]
    return raw


CORPUS = st.sampled_from(
    short([raw for raw, _ in VALID]) * 2 + short([raw for frames in INVALID.values() for raw in frames])
)
FRAMES = calls() | calls() | OTHERS
ALL = FRAMES | cut(FRAMES) | mutated(FRAMES) | mutated(CORPUS) | cut(CORPUS)
