"""Why a request goes where it goes: what a worker would do with it, step by step."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from typing import Any

import msgspec

from fastside import _core
from fastside.config import Config, Listener


class BadQuestion(ValueError):
    """A question that cannot be answered; str() says what is wrong with it."""


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request in words, or as captured."""

    direction: str = "outbound"
    listener: str | None = None
    """Name of the listener that it comes to; None = the first one in that direction that takes what it speaks."""
    method: str = "GET"
    host: str = ""
    path: str = "/"
    headers: dict[str, str] = {}
    source: str = "127.0.0.1"
    """The caller's address, which consistent hashing may go by."""
    capture: str | None = None
    """First bytes of a connection in base64, instead of method, host, path and headers."""


LABELS = {"bolt": "Bolt", "dubbo": "Dubbo", "tls": "TLS"}
"""Protocols that first bytes may be told to be of; whatever else they are, HTTP says so in words."""


def explain(question: Any, config: Config, table: _core.Table) -> dict[str, Any]:
    """Return outcome ("forward" or "refuse"), status (of a refusal, in the caller's protocol; None where it has none),
    reason, listener, protocol (the caller's), kind ("request", "one-way" or None), service, version, method, group,
    rule, steps, balance, pick and endpoints. Raises BadQuestion.
    """
    try:
        asked = msgspec.convert(question, Question)
    except msgspec.ValidationError as error:
        raise BadQuestion(f"the question is no good: {error}") from None
    data = _request_bytes(asked)
    found = _core.sniff_protocol(data)
    listener = _listener(asked, LABELS.get(found, "HTTP"), config)
    answer = _Answer(listener, asked, table)
    match _spoken(listener, found, answer.steps):
        case "tcp":
            return answer.opaque()
        case "tls":
            return answer.tls(data)
        case "bolt" | "dubbo" as protocol:
            return answer.call(protocol, data)
        case "http2":
            return answer.refuse(None, "HTTP/2 is not carried")
        case _:
            return answer.http(data)


def _spoken(listener: Listener, found: str, steps: list[str]) -> str:
    """What a worker takes a connection for whose first bytes are found to be so."""
    if listener.protocol != "auto":
        return listener.protocol
    if found == "more":
        raise BadQuestion("the capture does not tell yet what it speaks; capture more")
    if found == "opaque":
        steps.append("the first bytes are of no protocol in which a service is named")
        return "tcp" if listener.service else "http"  # where it goes nowhere, http says so in words
    return found


class _Answer:
    def __init__(self, listener: Listener, asked: Question, table: _core.Table) -> None:
        self.steps: list[str] = []
        self._listener = listener
        self._asked = asked
        self._table = table
        self._fields: dict[str, Any] = {
            "listener": {"name": listener.name, "bind": listener.bind, "direction": listener.direction},
            "protocol": None,
            "kind": None,
            "service": None,
            "version": None,
            "method": None,
            "group": None,
            "rule": None,
            "balance": None,
            "pick": None,
            "endpoints": [],
        }

    def refuse(self, status: int | None, reason: str) -> dict[str, Any]:
        return {"outcome": "refuse", "status": status, "reason": reason, "steps": self.steps, **self._fields}

    def opaque(self) -> dict[str, Any]:
        name, service = self._listener.name, self._listener.service
        self.steps.append(f"listener {name} passes TCP connections to {service} alone")
        return self._route("tcp", service, f"listener {name}")

    def tls(self, data: bytes) -> dict[str, Any]:
        try:
            name = _core.server_name(data)
        except ValueError as error:
            return self.refuse(None, str(error))
        if name is None:
            raise BadQuestion("the capture ends before the ClientHello does; capture more")
        if not name:
            return self.refuse(None, "the ClientHello names no server")
        self.steps.append(f"the ClientHello asks for {name}")
        return self._route("tls", name.lower(), "server name", accepted=("tls", "tcp"))

    def call(self, protocol: str, data: bytes) -> dict[str, Any]:
        """The first frame of a multiplexed protocol; every other one is routed like it, by itself."""
        parsed = _core.parse_bolt(data) if protocol == "bolt" else _core.parse_dubbo(data, group=False)
        if "need_more" in parsed:
            raise BadQuestion("the capture ends before what routes the call does; capture more")
        if "reject" in parsed:
            self.steps.append(f"the frame breaks the rules of {protocol}, and its connection is closed")
            return self.refuse(None, parsed["reject"])
        if parsed["kind"] not in ("request", "one-way"):
            raise BadQuestion(f"the capture begins with a {parsed['kind']}, which is for no service; capture a call")
        self._fields |= {name: parsed[name] or None for name in ("kind", "version", "method", "group")}
        answered = parsed["kind"] == "request"
        if not parsed["service"]:
            status = _status(protocol, "no service") if answered else None
            return self.refuse(status, "the frame names no service that can be read")
        service = ":".join(filter(None, (parsed["service"], parsed.get("version")))).lower()
        self.steps.append(f"a {parsed['kind']} of {protocol} for {service}, method {parsed['method']}")
        if protocol == "dubbo":
            service = self._grouped(service, data)
        return self._route(protocol, service, "frame", accepted=(protocol,), answered=answered)

    def http(self, data: bytes) -> dict[str, Any]:
        settings, header = self._table.settings(), self._listener.service_header.encode()
        limits = {"max_headers": settings["headers"], "max_length": settings["head_bytes"]}
        parsed = _core.parse_request(data, header, **limits)
        if "need_more" in parsed:
            raise BadQuestion("the capture ends before the request head does; capture more")
        if "reject" in parsed:
            self.steps.append("the request breaks the rules of HTTP/1.1 and is refused unseen")
            return self.refuse(parsed["status"], parsed["reject"])
        self.steps.append(f"{parsed['method']} {parsed['target']} is a sound {parsed['version']} request")
        self._fields |= {"kind": "request", "method": parsed["method"]}
        service, rule = _service(parsed, self._listener, self.steps)
        return self._route("http", service, rule, headers=_headers(data[: parsed["length"]]))

    def _grouped(self, service: str, data: bytes) -> str:
        """The service with the group of a Dubbo call, where workers look for one."""
        record = self._table.lookup(self._listener.direction, service)
        if record is not None and not record["grouped"]:
            return service
        parsed = _core.parse_dubbo(data, group=True)
        if "need_more" in parsed:
            raise BadQuestion("the capture ends before the call's group does; capture more")
        if not parsed.get("group"):
            return service
        self.steps.append(f"its group is {parsed['group']}")
        self._fields["group"] = parsed["group"]
        return f"{parsed['group'].lower()}/{service}"

    def _route(
        self,
        protocol: str,
        service: str,
        rule: str,
        *,
        accepted: tuple[str, ...] = _core.PROTOCOLS,
        headers: dict[str, str] | None = None,
        answered: bool = True,
    ) -> dict[str, Any]:
        """From the service's name on.

        accepted: what the service may speak. headers: what an http call may be hashed by. answered: whether the caller
        hears of a refusal.
        """

        def fail(failure: str, reason: str) -> dict[str, Any]:
            return self.refuse(_status(protocol, failure) if answered else None, reason)

        direction = self._listener.direction
        self._fields |= {"protocol": protocol, "service": service, "rule": rule}
        record = self._table.lookup(direction, service)
        if record is None:
            known = sorted(self._table.services(direction))
            self.steps.append(f"no {direction} service is called {service}; known: {', '.join(known[:20]) or 'none'}")
            what = "published through this sidecar" if direction == "inbound" else "subscribed to"
            return fail("no service", f"{service} is not {what}")
        self._fields["balance"] = record["balance"]
        if record["protocol"] not in accepted:
            return fail("no service", f"{service} speaks {record['protocol']}, not {protocol}")
        if record["single"]:
            self.steps.append("one application has all services of this protocol, and gets the connection as a whole")
        hashed, by = _hash(record, self._asked, headers)
        endpoints = self._table.explain_pick(direction, service, hashed)
        self._fields["endpoints"] = endpoints
        self.steps.append(f"{service} has {len(endpoints)} endpoint(s), balanced by {record['balance']}{by}")
        ejected = [one["address"] for one in endpoints if one["ejected_for_ms"]]
        if ejected:
            self.steps.append(f"left out after failed connects: {', '.join(ejected)}")
        pick = next((one for one in endpoints if one["chosen"]), None)
        if pick is None:
            return fail("no endpoint", f"{service} has no endpoint")
        self._fields["pick"] = pick["address"]
        if pick["loop"]:
            return fail("loop", f"{pick['address']} is one of this sidecar's own listeners")
        self.steps.append(f"{pick['address']} is picked{_because(record['balance'], pick)}")
        return {
            "outcome": "forward",
            "status": None,
            "reason": f"to {pick['address']}",
            "steps": self.steps,
            **self._fields,
        }


def _status(protocol: str, failure: str) -> int | None:
    """The status that a caller gets for one of _core.FRAME_FAILURES."""
    match protocol:
        case "http":
            return {"no service": 404, "no endpoint": 503, "loop": 508}[failure]
        case "bolt":
            status = _core.parse_bolt(_core.bolt_answer(_core.bolt_heartbeat(1, 0), failure))["status"]
        case "dubbo":
            status = _core.parse_dubbo(_core.dubbo_answer(_core.dubbo_heartbeat(0), failure))["status"]
        case _:
            return None
    assert isinstance(status, int)
    return status


def _listener(asked: Question, label: str, config: Config) -> Listener:
    for listener in config.listeners:
        if asked.listener is None:
            if listener.direction == asked.direction and listener.protocol in ("auto", label.lower()):
                return listener
        elif listener.name == asked.listener:
            return listener
    names = ", ".join(f"{listener.name} ({listener.direction} {listener.protocol})" for listener in config.listeners)
    wanted = f"called {asked.listener}" if asked.listener else f"for {asked.direction} {label}"
    raise BadQuestion(f"there is no listener {wanted}; the listeners are {names}")


def _request_bytes(asked: Question) -> bytes:
    if asked.capture is not None:
        try:
            return base64.b64decode(asked.capture, validate=True)
        except binascii.Error:
            raise BadQuestion("the capture is not base64") from None
    lines = [f"{asked.method} {asked.path} HTTP/1.1"]
    if asked.host:
        lines.append(f"Host: {asked.host}")
    lines += [f"{name}: {value}" for name, value in asked.headers.items()]
    # What cannot be in a head, such as a line end, goes through as it is: the parser is to say so.
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode()


def _service(parsed: dict[str, Any], listener: Listener, steps: list[str]) -> tuple[str, str]:
    """The service's name and the rule that gave it."""
    header, named, host = listener.service_header, parsed["service"], parsed["host"]
    if header and named:
        steps.append(f"the header {header} names the service: {named}")
        return named.lower(), f"header {header}"
    steps.append(
        f"the header {header} is absent, so Host counts: {host}" if header else f"Host names the service: {host}"
    )
    return host.lower(), "Host"


def _headers(head: bytes) -> dict[str, str]:
    """Of a head that the parser has accepted; the first of several counts."""
    found: dict[str, str] = {}
    for line in head.decode("latin-1").split("\r\n")[1:]:
        name, _, value = line.partition(":")
        found.setdefault(name.lower(), value.strip(" \t"))
    return found


def _hash(record: dict[str, Any], asked: Question, headers: dict[str, str] | None) -> tuple[int, str]:
    """What the balancing hashes for this request, and that in words. What has no headers goes by its source."""
    if record["balance"] == "hash_header" and headers is not None:
        name = record["hash_header"]
        value = headers.get(name, "")
        return _core.hash_key(value.encode("latin-1")), f" of the header {name}: {value or '(absent)'}"
    if record["balance"] in ("hash_source", "hash_header"):
        try:
            source = ipaddress.ip_address(asked.source)
        except ValueError:
            raise BadQuestion(f"source {asked.source!r} is not an IP address") from None
        return _core.hash_key(source.packed.ljust(16, b"\0")), f" {source}"
    return 0, ""


def _because(balance: str, pick: dict[str, Any]) -> str:
    if balance == "least_request":
        return f": it had fewer requests under way ({pick['inflight']}) than the other of two taken at random"
    if balance == "round_robin":
        return ": it is this process's next in turn; each worker has a turn of its own"
    return ": the hash leads to it, in every worker"
