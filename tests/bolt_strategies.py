"""Generated Bolt frames: fields that are right or nearly right, put together, and mutations of the corpus."""

from __future__ import annotations

from hypothesis import strategies as st

from bolt_corpus import INVALID, VALID, request, response, string

KEYS = ["service", "sofa_head_target_service", "sofa_head_method_name", "app", "", None]
NAMES = ["com.example.hello:1.0", "hi", "", None, "é", "s" * 255, "s" * 256, "a\tb"]
IDS = st.integers(0, 2**32 - 1)
COMMON = {
    "version": st.sampled_from([1, 2]),
    "ver1": st.sampled_from([1, 2, 1, 2, 1, 2, 0, 3]),
    "id": IDS,
    "codec": st.integers(0, 255),
    "switch": st.sampled_from([0, 1, 0xFF]),
    "content": st.binary(max_size=64),
    "class_name": st.sampled_from([b"", b"C", b"C" * 44]),
}


@st.composite
def blocks(draw: st.DrawFn) -> bytes:
    strings = draw(st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(NAMES)), max_size=5))
    raw = b"".join(string(text) for pair in strings for text in pair)
    return raw + draw(st.sampled_from([b""] * 8 + [b"\0", b"\0\0\0\1", b"\xff\xff\xff\xff", b"\xff\xff\xff\xfe"]))


REQUESTS = st.builds(
    request,
    blocks(),
    **COMMON,
    type=st.sampled_from([1, 1, 1, 2, 2, 3]),
    command=st.sampled_from([1, 1, 1, 1, 0, 2, 100]),
    timeout_ms=st.one_of(st.sampled_from([-1, 0, 3000]), st.integers(-(2**31), 2**31 - 1)),
)
RESPONSES = st.builds(
    response, blocks(), **COMMON, command=st.sampled_from([2, 2, 2, 0, 1]), status=st.integers(0, 2**16 - 1)
)
HEARTBEATS = st.builds(request, st.just(b""), **{**COMMON, "content": st.just(b""), "class_name": st.just(b"")})


@st.composite
def mutated(draw: st.DrawFn, frames: st.SearchStrategy[bytes]) -> bytes:
    """A few bytes, mostly of the fixed header, are replaced by others, or by more or fewer."""
    raw = draw(frames)
    at = draw(st.integers(0, draw(st.sampled_from([24, 24, len(raw)]))))
    put = draw(st.binary(max_size=4) | st.sampled_from([b"\x7f\xff", b"\x80\0", b"\xff\xff\xff\xff"]))
    taken = draw(st.just(len(put)) | st.integers(0, 4))
    return raw[:at] + put + raw[at + taken :]


@st.composite
def cut(draw: st.DrawFn, frames: st.SearchStrategy[bytes]) -> bytes:
    raw = draw(frames)
    return raw[: draw(st.integers(0, len(raw)))]


CORPUS = st.sampled_from([raw for raw, _ in VALID] * 3 + [raw for frames in INVALID.values() for raw in frames])
FRAMES = REQUESTS | RESPONSES | HEARTBEATS
ALL = FRAMES | cut(FRAMES) | mutated(FRAMES) | mutated(CORPUS)
