"""openapi.yaml says what the API does: every route is described, and every answer and request is of its description."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import yaml
from aiohttp import web

from fastside.takeover import api
from harness import Origin, Raw, Sidecar, call, free_port, request_bytes


@pytest.fixture(scope="module")
def sidecar() -> Iterator[Sidecar]:
    with Sidecar() as running:
        yield running


@pytest.fixture(scope="module")
def description(sidecar: Sidecar) -> dict[str, Any]:
    response = call(("127.0.0.1", sidecar.api_port), "api", "/openapi.yaml")
    assert response.header("content-type") == "application/yaml; charset=utf-8"
    return yaml.safe_load(response.body)


def problems(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "$") -> Iterator[str]:
    """What keeps a value from being of a schema, for the part of JSON Schema that the description uses."""
    known = {"$ref", "type", "enum", "anyOf", "pattern", "minimum", "maximum", "required", "properties", "items",
             "additionalProperties", "description", "default"}  # fmt: skip
    if unknown := schema.keys() - known:
        yield f"{at}: this test does not know {unknown}"
    if "$ref" in schema:
        part = functools.reduce(dict.__getitem__, schema["$ref"].removeprefix("#/").split("/"), root)
        yield from problems(value, part, root, at)
    if "anyOf" in schema and all(list(problems(value, one, root, at)) for one in schema["anyOf"]):
        yield f"{at}: {value!r} is none of {schema['anyOf']}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is not one of {schema['enum']}"
    types = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool,
             "null": type(None)}  # fmt: skip
    if "type" in schema:
        number = isinstance(value, bool) and schema["type"] in ("integer", "number")
        if number or not isinstance(value, types[schema["type"]]):
            yield f"{at}: {value!r} is not of type {schema['type']}"
            return
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{at}: {value!r} does not match {schema['pattern']}"
    if ("minimum" in schema and value < schema["minimum"]) or ("maximum" in schema and value > schema["maximum"]):
        yield f"{at}: {value!r} is out of range"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for name in schema.get("required", ()):
            if name not in value:
                yield f"{at}: {name} is missing"
        for name, one in value.items():
            if name in properties:
                yield from problems(one, properties[name], root, f"{at}.{name}")
            elif schema.get("additionalProperties") is False:
                yield f"{at}: {name} is not described"
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from problems(one, schema["items"], root, f"{at}[{number}]")


class Checked:
    """Calls the API and checks requests and answers."""

    def __init__(self, sidecar: Sidecar, description: dict[str, Any]) -> None:
        self.sidecar = sidecar
        self.description = description
        self.seen: set[tuple[str, str, str]] = set()

    def call(self, method: str, path: str, body: Any = None, *, valid: bool = True) -> Any:
        encoded = b"" if body is None else json.dumps(body).encode()
        response = call(("127.0.0.1", self.sidecar.api_port), "api", path, method, (), encoded)
        route = path.partition("?")[0]
        operation = self.description["paths"][route][method.lower()]
        if body is not None:
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            assert (list(problems(body, schema, self.description)) == []) == valid, body
        described = operation["responses"][str(response.status)]
        if "$ref" in described:
            described = self.description["components"]["responses"]["Error"]
        schema = described["content"]["application/json"]["schema"]
        answer = response.json()
        assert list(problems(answer, schema, self.description)) == []
        self.seen.add((method, route, str(response.status)))
        return answer


def test_every_route_is_described_and_every_described_one_is_there(description):
    routes = set()
    for route in api.application(None).router.routes():  # no handler is called
        if route.method != "HEAD":
            assert isinstance(route.resource, web.Resource)
            routes.add((route.method, route.resource.canonical))
    described = {(method.upper(), path) for path, item in description["paths"].items() for method in item}
    assert routes == described


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/v1/publish", api.Publish),
        ("/v1/unpublish", api.PublicationOf),
        ("/v1/renew", api.PublicationOf),
        ("/v1/subscribe", api.Subscribe),
        ("/v1/unsubscribe", api.Request),
    ],
)
def test_the_fields_of_requests_are_those_that_are_read(description, path, kind):
    schema = description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    if "$ref" in schema:
        schema = description["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    assert schema["properties"].keys() == fields.keys()
    assert set(schema["required"]) == {name for name, field in fields.items() if field.required}
    for name, part in schema["properties"].items():
        if "default" in part:
            assert part["default"] == fields[name].default


def test_answers_are_of_their_description(sidecar, description):
    checked = Checked(sidecar, description)
    with Origin() as origin:
        port = origin.port
        checked.call("POST", "/v1/publish", {"service": "Svc-A", "port": port, "lease": 30, "weight": 7})
        checked.call("POST", "/v1/publish", {"service": "svc-b", "port": free_port(), "address": "127.0.0.1"})
        checked.call("POST", "/v1/renew", {"service": "svc-a", "port": port})
        checked.call("POST", "/v1/subscribe", {"service": "svc-a"})
        checked.call("POST", "/v1/subscribe", {"service": "svc-c", "protocol": "http"})
        listed = checked.call("GET", "/v1/services")
        assert len(listed["published"]) == len(listed["subscribed"]) == 2
        with Raw(("127.0.0.1", sidecar.api_port)) as raw:
            raw.send(request_bytes("api", "/v1/watch?service=svc-a"))
            assert raw.read_until(b"\r\n").startswith(b"HTTP/1.1 200")
            raw.read_until(b"data: ")
            event = json.loads(raw.read_until(b"\n"))
            schema = description["components"]["schemas"]["Subscription"]
            assert list(problems(event, schema, description)) == []
        checked.call("GET", "/v1/watch?service=nobody")
        checked.call("GET", "/v1/watch?service=")
        checked.call("POST", "/v1/unpublish", {"service": "svc-a", "port": port})
        checked.call("POST", "/v1/unsubscribe", {"service": "svc-a"})
        checked.call("POST", "/v1/unsubscribe", {"service": "svc-a"})
        checked.call("POST", "/v1/unpublish", {"service": "svc-a", "port": port})
        checked.call("POST", "/v1/renew", {"service": "svc-a", "port": port})
        checked.call("POST", "/v1/publish", {"service": "db", "port": port, "protocol": "tcp"})
        checked.call("POST", "/v1/subscribe", {"service": "db", "protocol": "tcp"})
        # What the description does not allow is refused.
        for path, body in (
            ("/v1/publish", {"service": "svc-a"}),
            ("/v1/publish", {"service": "svc-a", "port": 70000}),
            ("/v1/publish", {"service": "svc-a", "port": port, "lease": 0.5}),
            ("/v1/publish", {"service": "svc-a", "port": port, "weight": 0}),
            ("/v1/unpublish", {"service": "svc a", "port": port}),
            ("/v1/renew", {"service": "svc-a", "port": "80"}),
            ("/v1/subscribe", {"service": "svc-a", "protocol": "udp"}),
            ("/v1/unsubscribe", {"service": "svc-a", "port": 1}),
        ):
            checked.call("POST", path, body, valid=False)
    statuses = {status for _, _, status in checked.seen}
    assert statuses == {"200", "400", "404", "409"}
