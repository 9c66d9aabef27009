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
    """Name of the listener that it comes to; None = the first one for HTTP in that direction."""
    method: str = "GET"
    host: str = ""
    path: str = "/"
    headers: dict[str, str] = {}
    source: str = "127.0.0.1"
    """The caller's address, which consistent hashing may go by."""
    capture: str | None = None
    """First bytes of a connection in base64, instead of method, host, path and headers."""


def explain(question: Any, config: Config, table: _core.Table) -> dict[str, Any]:
    """Return outcome ("forward" or "refuse"), status and reason of a refusal, listener, service, rule, steps, protocol,
    balance, pick and endpoints. Raises BadQuestion.
    """
    try:
        asked = msgspec.convert(question, Question)
    except msgspec.ValidationError as error:
        raise BadQuestion(f"the question is no good: {error}") from None
    listener = _listener(asked, config)
    answer = _Answer(listener)
    if listener.protocol == "tcp":
        answer.steps.append(f"listener {listener.name} takes TCP connections for {listener.service} alone")
        return answer.route(listener.service, f"listener {listener.name}", table, asked, {})
    data = _request_bytes(asked)
    settings = table.settings()
    parsed = _core.parse_request(
        data, listener.service_header.encode(), max_headers=settings["headers"], max_length=settings["head_bytes"]
    )
    if "need_more" in parsed:
        raise BadQuestion("the capture ends before the request head does; capture more")
    if "reject" in parsed:
        answer.steps.append("the request breaks the rules of HTTP/1.1 and is refused unseen")
        return answer.refuse(parsed["status"], parsed["reject"])
    answer.steps.append(f"{parsed['method']} {parsed['target']} is a sound {parsed['version']} request")
    service, rule = _service(parsed, listener, answer.steps)
    return answer.route(service, rule, table, asked, _headers(data[: parsed["length"]]))


class _Answer:
    def __init__(self, listener: Listener) -> None:
        self.steps: list[str] = []
        self._fields: dict[str, Any] = {
            "listener": {"name": listener.name, "bind": listener.bind, "direction": listener.direction},
            "service": None,
            "rule": None,
            "protocol": None,
            "balance": None,
            "pick": None,
            "endpoints": [],
        }

    def refuse(self, status: int, reason: str) -> dict[str, Any]:
        return {"outcome": "refuse", "status": status, "reason": reason, "steps": self.steps, **self._fields}

    def route(
        self, service: str, rule: str, table: _core.Table, asked: Question, headers: dict[str, str]
    ) -> dict[str, Any]:
        """From the service's name on."""
        direction = self._fields["listener"]["direction"]
        self._fields |= {"service": service, "rule": rule}
        record = table.lookup(direction, service)
        if record is None:
            known = sorted(table.services(direction))
            self.steps.append(f"no {direction} service is called {service}; known: {', '.join(known[:20]) or 'none'}")
            what = "published through this sidecar" if direction == "inbound" else "subscribed to"
            return self.refuse(404, f"{service} is not {what}")
        self._fields |= {"protocol": record["protocol"], "balance": record["balance"]}
        hashed, by = _hash(record, asked, headers)
        endpoints = table.explain_pick(direction, service, hashed)
        self._fields["endpoints"] = endpoints
        self.steps.append(f"{service} has {len(endpoints)} endpoint(s), balanced by {record['balance']}{by}")
        ejected = [one["address"] for one in endpoints if one["ejected_for_ms"]]
        if ejected:
            self.steps.append(f"left out after failed connects: {', '.join(ejected)}")
        pick = next((one for one in endpoints if one["chosen"]), None)
        if pick is None:
            return self.refuse(503, f"{service} has no endpoint")
        self._fields["pick"] = pick["address"]
        if pick["loop"]:
            return self.refuse(508, f"{pick['address']} is one of this sidecar's own listeners")
        self.steps.append(f"{pick['address']} is picked{_because(record['balance'], pick)}")
        return {
            "outcome": "forward",
            "status": None,
            "reason": f"to {pick['address']}",
            "steps": self.steps,
            **self._fields,
        }


def _listener(asked: Question, config: Config) -> Listener:
    for listener in config.listeners:
        if asked.listener is None:
            if listener.direction == asked.direction and listener.protocol in ("http", "auto"):
                return listener
        elif listener.name == asked.listener:
            return listener
    names = ", ".join(f"{listener.name} ({listener.direction} {listener.protocol})" for listener in config.listeners)
    wanted = f"called {asked.listener}" if asked.listener else f"for {asked.direction} HTTP"
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


def _hash(record: dict[str, Any], asked: Question, headers: dict[str, str]) -> tuple[int, str]:
    """What the balancing hashes for this request, and that in words."""
    if record["balance"] == "hash_header":
        name = record["hash_header"]
        value = headers.get(name, "")
        return _core.hash_key(value.encode("latin-1")), f" of the header {name}: {value or '(absent)'}"
    if record["balance"] == "hash_source":
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
