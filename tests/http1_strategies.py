"""Generated HTTP/1.1 messages: pieces that are right or nearly right, put together, and mutations of the corpus."""

from __future__ import annotations

from hypothesis import strategies as st

from http1_corpus import (
    INVALID_CHUNKS,
    INVALID_REQUESTS,
    INVALID_RESPONSES,
    VALID_CHUNKS,
    VALID_REQUESTS,
    VALID_RESPONSES,
)

ODD_METHODS = [b"POST", b"HEAD", b"PUT", b"OPTIONS", b"DELETE", b"CONNECT", b"get", b"M-SEARCH", b"G/T", b""]
ODD_TARGETS = [
    b"/a?b=c", b"*", b"http://a/", b"http://a", b"HTTPS://a:80?x", b"http://[::1]:8/", b"a:80", b"[::1]:8", b"http:///",
    b"http://u@a/", b"a", b"/\xff", b"/#b", b"//",
]  # fmt: skip
ODD_VERSIONS = [b"HTTP/1.0", b"HTTP/1.0", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0", b"http/1.1", b"HTTP/1.1 ", b"HTTP/11"]
ODD_STATUSES = [
    b"200 ", b"204 No", b"204 No", b"304 N", b"100 C", b"101 S", b"101 S", b"103 E", b"404 a b\t\xff", b"599 x",
    b"600 x", b"099 x", b"200", b"200  x", b"20 x",
]  # fmt: skip
HOSTS = [b"a", b"a:80", b"[::1]:8", b"", b"a b", b"a:x", b"[::1", b"%41", b"1.2.3.4"]
LENGTHS = [b"5", b"0", b"12", b"007", b"", b"+5", b"5,5", b"5 5", b"9223372036854775807", b"9223372036854775808", b"5a"]
OPTIONS = [
    b"close", b"keep-alive", b"Upgrade", b"upgrade, x-a", b"x-a,\tX-B", b"te, close", b"", b", ,", b"x_a", b"Host",
    b"close, cookie", b"a b", b"x-service", b"Fastside-not-sent",
]  # fmt: skip
PROTOCOLS = [b"websocket", b"websocket/1, b", b"h2c", b"a, H2C", b"", b",", b"a/", b"a b"]
FIELDS: dict[bytes, list[bytes]] = {
    b"Host": HOSTS,
    b"Content-Length": LENGTHS,
    b"Transfer-Encoding": [b"chunked", b"chunked", b"Chunked", b"gzip, chunked", b"identity", b"", b"chunked,"],
    b"Connection": OPTIONS,
    b"connection": OPTIONS,
    b"Upgrade": PROTOCOLS,
    b"UPGRADE": PROTOCOLS,
    b"Expect": [b"100-continue", b"100-Continue", b"a"],
    b"TE": [b"trailers", b""],
    b"Keep-Alive": [b"timeout=5"],
    b"Proxy-Connection": [b"close"],
    b"X-Service": [b"b", b"", b"b:1@c"],
    b"X-A": [b"1", b""],
    b"x-b": [b"\xe9\x80", b"a b\tc"],
    b"X_A": [b"1"],
    b"Cookie": [b"a=b"],
    b"Trailer": [b"x"],
    b"Content-Length ": LENGTHS,
    b"": [b"a"],
    b" X-A": [b"a"],
    b"X A": [b"a"],
}
NAMES = list(FIELDS)
VALUES = [value for values in FIELDS.values() for value in values]
BYTES = list(b'\x00\t\n\r !"#%,-/05:;=AZ[]_a\x7f\x80\xff')


def mostly(usual: bytes, odd: list[bytes]) -> st.SearchStrategy[bytes]:
    """The usual in three cases of four."""
    return st.sampled_from([usual] * 3 * len(odd) + odd)


@st.composite
def field_lines(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from(NAMES))
    value = draw(st.sampled_from(FIELDS[name] * 10 + VALUES))
    before = draw(mostly(b" ", [b"", b"  ", b"\t", b" \t"]))
    after = draw(mostly(b"", [b" ", b"\t"]))
    return name + b":" + before + value + after


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    line = b" ".join(
        (draw(mostly(b"GET", ODD_METHODS)), draw(mostly(b"/", ODD_TARGETS)), draw(mostly(b"HTTP/1.1", ODD_VERSIONS)))
    )
    lines = draw(st.lists(field_lines(), max_size=5))
    if draw(st.integers(0, 5)):
        lines.insert(0, b"Host: " + draw(mostly(b"a", HOSTS)))
    return b"\r\n".join((line, *lines, b"", b""))


@st.composite
def responses(draw: st.DrawFn) -> bytes:
    line = b" ".join((draw(mostly(b"HTTP/1.1", ODD_VERSIONS)), draw(mostly(b"200 OK", ODD_STATUSES))))
    return b"\r\n".join((line, *draw(st.lists(field_lines(), max_size=5)), b"", b""))


@st.composite
def chunked(draw: st.DrawFn) -> bytes:
    parts = []
    for _ in range(draw(st.integers(0, 3))):
        data = draw(st.binary(max_size=20).filter(len))
        size = draw(mostly(b"%x", [b"%X", b"0%x", b"%016x", b"%017x", b" %x", b"0x%x"])) % len(data)
        extension = draw(mostly(b"", [b";a", b";a=b", b';a="b;\\""', b" ;a", b";a=", b';"a"', b";a b"]))
        parts.append(size + extension + b"\r\n" + data + b"\r\n")
    trailer = draw(st.lists(field_lines(), max_size=2))
    return b"".join(parts) + b"\r\n".join((b"0", *trailer, b"", b"")) + draw(st.sampled_from([b"", b"GET /"]))


@st.composite
def mutations(draw: st.DrawFn, corpus: list[bytes]) -> bytes:
    """One of the corpus with a few bytes put in, taken out or replaced, or a stretch repeated."""
    raw = bytearray(draw(st.sampled_from(corpus)))
    for _ in range(draw(st.integers(1, 3))):
        # Before the first line end only now and then: most of what counts is after it.
        at = draw(st.integers(draw(st.sampled_from([0, raw.find(b"\n") + 1, raw.find(b"\n") + 1])), len(raw)))
        kind = draw(st.integers(0, 3))
        if kind == 0:
            raw[at:at] = bytes([draw(st.sampled_from(BYTES))])
        elif kind == 1:
            del raw[at : at + draw(st.integers(1, 4))]
        elif kind == 2:
            raw[at : at + 1] = bytes([draw(st.sampled_from(BYTES))])
        else:
            raw[at:at] = raw[at : at + draw(st.integers(1, 30))]
    return bytes(raw)


def short(messages: list[bytes]) -> list[bytes]:
    return [raw for raw in messages if len(raw) < 1000]


def corpus_of(invalid: dict[str, list[bytes]], valid: list[bytes]) -> list[bytes]:
    # Most mutations of a refused message are refused again: keep the accepted ones in the majority.
    return short(valid) * 3 + short([raw for messages in invalid.values() for raw in messages])


REQUESTS = corpus_of(INVALID_REQUESTS, [raw for raw, _ in VALID_REQUESTS])
RESPONSES = corpus_of(INVALID_RESPONSES, [raw for raw, *_ in VALID_RESPONSES])
CHUNKS = corpus_of(INVALID_CHUNKS, VALID_CHUNKS)
