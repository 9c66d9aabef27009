"""A second HTTP/1.1 parser: slow, and as close to the RFCs' ABNF as regular expressions allow.

It judges whole heads and whole chunked bodies, and answers like fastside._core's parse_request, parse_response and
scan_chunks where those accept, or None where they have to refuse. The limits are the same numbers, the way is another.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any

MAX_SIZE = 2**63 - 1
MAX_CUTS = 32
MAX_OPTIONS = 16
MAX_EXTENSION = 256
MAX_TRAILER = 8192

# RFC 9110 5.6.2, 5.5 and 5.6.4
TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
TOKEN = rb"%b+" % TCHAR
FIELD_VCHAR = rb"[\x21-\x7e\x80-\xff]"
FIELD_VALUE = rb"(?:%b(?:[ \t\x21-\x7e\x80-\xff]*%b)?)?" % (FIELD_VCHAR, FIELD_VCHAR)
QUOTED_STRING = rb'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
# RFC 9112 5, with the groups: name, white space, value, white space
FIELD_LINE = rb"(%b):([ \t]*)(%b)([ \t]*)\r\n" % (TOKEN, FIELD_VALUE)
FIELD_LINES = rb"(?:%b:[ \t]*%b[ \t]*\r\n)*" % (TOKEN, FIELD_VALUE)
# RFC 9112 3 and 4
REQUEST = rb"(%b) ([\x21-\x7e]+) HTTP/1\.([01])\r\n(%b)\r\n" % (TOKEN, FIELD_LINES)
RESPONSE = rb"HTTP/1\.([01]) ([1-5][0-9][0-9]) [\t \x21-\x7e\x80-\xff]*\r\n(%b)\r\n" % FIELD_LINES
# RFC 3986 3.2.2 and 3.2.3
REG_NAME = rb"(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})+"
AUTHORITY = rb"(\[([0-9A-Fa-f:.]+)\]|%b)(?::([0-9]{0,5}))?" % REG_NAME
# RFC 9112 7.1, without the white space that nobody may send
EXTENSIONS = rb"(?:;%b(?:=(?:%b|%b))?)*" % (TOKEN, TOKEN, QUOTED_STRING)
CHUNK_LINE = rb"([0-9A-Fa-f]{1,16})(%b)\r\n" % EXTENSIONS

# Of one connection (RFC 9110 7.6.1), or about framing and routing, or for every recipient
HOP_BY_HOP = {b"connection", b"keep-alive", b"proxy-connection", b"te", b"upgrade"}
PROTECTED = {
    b"authorization",
    b"cache-control",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"expect",
    b"forwarded",
    b"host",
    b"set-cookie",
    b"trailer",
    b"transfer-encoding",
    b"via",
}
NOT_IN_TRAILERS = HOP_BY_HOP | {b"content-length", b"host", b"transfer-encoding"}

Field = tuple[bytes, bytes, bytes, bytes, bytes]  # whole line, lower-case name, white space, value, white space


class Refused(Exception):
    """The message has to be refused."""


def require(condition: object) -> None:
    if not condition:
        raise Refused


def read_fields(lines: bytes, max_headers: int) -> list[Field]:
    fields = [(m[0], m[1].lower(), m[2], m[3], m[4]) for m in re.finditer(FIELD_LINE, lines)]
    require(len(fields) <= max_headers)
    return fields


def values(fields: list[Field], name: bytes) -> list[bytes]:
    return [value for _, field_name, _, value, _ in fields if field_name == name]


def elements(fields: list[Field], name: bytes) -> list[bytes]:
    """The elements of a list field (RFC 9110 5.6.1), empty ones left out."""
    parts = [part.strip(b" \t").lower() for value in values(fields, name) for part in value.split(b",")]
    return [part for part in parts if part]


def read_authority(text: bytes) -> tuple[bytes, bytes | None]:
    """uri-host and port of an authority without user information."""
    match = re.fullmatch(AUTHORITY, text)
    require(match)
    assert match
    host, address, port = match.groups()
    if address is not None:
        try:
            ipaddress.IPv6Address(address.decode())
        except ValueError:
            raise Refused from None
    require(int(port or b"0") <= 65535)
    return host, port


def read_framing(fields: list[Field], minor: bytes) -> tuple[int | None, bool]:
    """Content-Length, and whether the body is chunked (RFC 9112 6)."""
    framing = [field for field in fields if field[1] in {b"content-length", b"transfer-encoding"}]
    require(len(framing) <= 1)
    for _, name, before, value, after in framing:
        require(set(before) <= {32})
        require(after == b"")
        if name == b"transfer-encoding":
            require(value.lower() == b"chunked")
            require(minor == b"1")
            return None, True
        require(re.fullmatch(rb"[0-9]{1,19}", value))
        require(int(value) <= MAX_SIZE)
        return int(value), False
    return None, False


def read_connection(fields: list[Field], service_header: bytes, may_upgrade: bool) -> tuple[list[str], list[str]]:
    """Flags, and the lines to cut."""
    options = elements(fields, b"connection")
    require(all(re.fullmatch(TOKEN, option) for option in options))
    require(not PROTECTED & set(options))
    require(service_header not in options)
    well_known = {b"close", b"keep-alive", b"upgrade", b"te"}
    require(sum(option not in well_known for option in options) <= MAX_OPTIONS)
    # RFC 9110 7.8, less what is between two neighbours only
    protocols = elements(fields, b"upgrade")
    upgrade_values = values(fields, b"upgrade")
    upgrade = (
        may_upgrade
        and b"upgrade" in options
        and all(re.fullmatch(rb"%b(/%b)?" % (TOKEN, TOKEN), protocol) for protocol in protocols)
        and all(value.strip(b" \t,") for value in upgrade_values)
        and upgrade_values
        and not any(protocol.split(b"/")[0] == b"h2c" for protocol in protocols)
    )
    cut_names = HOP_BY_HOP | set(options)
    if upgrade:
        cut_names.remove(b"upgrade")
    cuts = [line.decode("latin-1") for line, name, *_ in fields if name in cut_names]
    require(len(cuts) <= MAX_CUTS)
    require(sum(name in HOP_BY_HOP for _, name, *_ in fields) <= MAX_CUTS)
    flags = [flag for flag in ("close", "keep-alive") if flag.encode() in options]
    return flags + (["upgrade"] if upgrade else []), cuts


def parse_request(head: bytes, service_header: bytes = b"", max_headers: int = 200) -> dict[str, Any] | None:
    try:
        return _request(head, service_header.lower(), max_headers)
    except Refused:
        return None


def _request(head: bytes, service_header: bytes, max_headers: int) -> dict[str, Any]:
    match = re.fullmatch(REQUEST, head)
    require(match)
    assert match
    method, target, minor, lines = match.groups()
    fields = read_fields(lines, max_headers)
    length, chunked = read_framing(fields, minor)

    # RFC 9112 3.2
    authority = None
    if method == b"CONNECT":
        authority = target
        require(read_authority(target)[1])
    elif target == b"*":
        require(method == b"OPTIONS")
    elif not target.startswith(b"/"):
        absolute = re.fullmatch(rb"(?i:https?)://([^/?#]*)(?:[/?#].*)?", target)
        require(absolute)
        assert absolute
        authority = absolute[1]
    host = read_authority(authority)[0] if authority is not None else b""
    # RFC 9110 7.2
    hosts = values(fields, b"host")
    require(len(hosts) == 1 or (not hosts and minor == b"0"))
    if hosts and authority is not None:
        require(hosts[0].lower() == authority.lower())
    elif hosts and hosts[0]:
        host = read_authority(hosts[0])[0]

    services = values(fields, service_header) if service_header else []
    require(len(services) <= 1)
    require(all(services))
    flags, cuts = read_connection(fields, service_header, minor == b"1" and not chunked and not length)
    if minor == b"1" and any(value.lower() == b"100-continue" for value in values(fields, b"expect")):
        flags.append("expect-continue")
    if b"fastside-not-sent" in elements(fields, b"connection"):
        flags.append("not-sent")
    return {
        "method": method.decode(),
        "target": target.decode(),
        "host": host.decode(),
        "service": b"".join(services).decode("latin-1"),
        "length": len(head),
        "version": f"HTTP/1.{minor.decode()}",
        "body": "chunked" if chunked else "length" if length else "none",
        "content_length": length or 0,
        "flags": flags,
        "cuts": cuts,
    }


def parse_response(head: bytes, method: str = "GET", max_headers: int = 200) -> dict[str, Any] | None:
    try:
        return _response(head, method, max_headers)
    except Refused:
        return None


def _response(head: bytes, method: str, max_headers: int) -> dict[str, Any]:
    match = re.fullmatch(RESPONSE, head)
    require(match)
    assert match
    minor, status, lines = match[1], int(match[2]), match[3]
    fields = read_fields(lines, max_headers)
    length, chunked = read_framing(fields, minor)
    # RFC 9112 6.3
    if status < 200 or status == 204:
        require(not chunked)
        require(not length)
        body = "none"
    elif method == "HEAD" or status == 304 or length == 0:
        body = "none"
    else:
        body = "chunked" if chunked else "length" if length else "until-close"
    flags, cuts = read_connection(fields, b"", minor == b"1" and status == 101)
    require(status != 101 or "upgrade" in flags)
    if any(value.lower() == b"100-continue" for value in values(fields, b"expect")):
        flags.append("expect-continue")
    if b"fastside-not-sent" in elements(fields, b"connection"):
        flags.append("not-sent")
    return {
        "status": status,
        "length": len(head),
        "version": f"HTTP/1.{minor.decode()}",
        "body": body,
        "content_length": length or 0,
        "flags": flags,
        "cuts": cuts,
    }


def scan_chunks(body: bytes) -> int | None:
    """Length of the chunked message that body starts with; None if there is none, be it unfinished or to be refused."""
    at = 0
    while True:
        line = re.compile(CHUNK_LINE).match(body, at)
        if not line or len(line[2]) > MAX_EXTENSION or int(line[1], 16) > MAX_SIZE:
            return None
        size = int(line[1], 16)
        at = line.end()
        if size == 0:
            break
        if body[at + size : at + size + 2] != b"\r\n":
            return None
        at += size + 2
    trailer = re.compile(rb"(%b)\r\n" % FIELD_LINES).match(body, at)
    if not trailer or len(trailer[0]) > MAX_TRAILER:
        return None
    if NOT_IN_TRAILERS & {m[1].lower() for m in re.finditer(FIELD_LINE, trailer[1])}:
        return None
    return trailer.end()
