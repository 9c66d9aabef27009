"""SOFARPC's mesh registry API, by what its clients send."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastside.admin_client import AdminClient
from harness import Origin, Sidecar, call, free_port, wait_until
from registry_process import RegistryProcess

HELLO = "com.x.Hello:1.0"
# As the Java client sends them, with text/plain.
APPLICATION = {"appName": "demo-app"}
PUBLISH = {
    "serviceName": HELLO,
    "protocolType": "bolt",
    "providerMetaInfo": {
        "protocol": "bolt",
        "version": "4.0",
        "serializeType": "hessian2",
        "appName": "demo-app",
        "properties": {"startTime": "1700000000000"},
    },
    "onlyPublishInCloud": False,
    "group": None,
}
SUBSCRIBE = {
    "serviceName": HELLO,
    "protocolType": "bolt",
    "targetAppAddress": None,
    "vipEnforce": False,
    "vipOnly": False,
    "localCloudFirst": False,
    "group": None,
    "properties": {},
}
UNSUBSCRIBE = {"serviceName": HELLO, "targetAppAddress": None, "protocolType": "bolt", "group": None}
UNPUBLISH = {"serviceName": HELLO, "protocolType": "bolt", "group": None}


class Mesh(Sidecar):
    """A sidecar with the API. Its application is looked for at `app_port` unless it says otherwise."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.mesh_port, self.calls_port, self.app_port = free_port(), free_port(), free_port()
        self.configure(
            {
                "mesh": {"api": f"127.0.0.1:{self.mesh_port}", "app_port": self.app_port},
                "listeners": [{"name": "mesh", "bind": f"127.0.0.1:{self.calls_port}"}],
            }
        )

    def post(self, path: str, body: object) -> Any:
        """The answer to a request as the Java client makes it: bytes are sent as they are."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = [("Content-Type", "text/plain; charset=utf-8")]
        response = call(("127.0.0.1", self.mesh_port), "127.0.0.1", path, "POST", headers, data)
        assert response.status == 200
        return response.json()

    def published(self) -> list[dict[str, Any]]:
        published: list[dict[str, Any]] = self.client.services()["published"]
        return published


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh() as running:
        yield running


@pytest.fixture
def app(mesh: Mesh) -> Iterator[Origin]:
    """Something that listens where the application is looked for."""
    with Origin(port=mesh.app_port) as running:
        yield running


def test_the_life_of_an_application(mesh: Mesh, app: Origin) -> None:
    """Every request comes twice, as a client that is not sure may send it; the answers are the same."""
    subscribed = {"success": True, "serviceName": HELLO, "datas": [f"127.0.0.1:{mesh.calls_port}?v=4.0&p=1"]}
    for _ in range(2):
        assert mesh.post("/configs/application", APPLICATION) == {"success": True}
        assert mesh.post("/services/publish", PUBLISH) == {"success": True}
        assert mesh.post("/services/subscribe", SUBSCRIBE) == subscribed
    assert mesh.published() == [
        {
            "service": HELLO.lower(),
            "name": HELLO,
            "protocol": "bolt",
            "address": "127.0.0.1",
            "port": mesh.app_port,
            "weight": 1,
            "lease": None,
            "owner": "up",
            "published": f"127.0.0.1:{mesh.inbound_port}",
        }
    ]
    (subscription,) = mesh.client.services()["subscribed"]
    assert (subscription["name"], subscription["state"]) == (HELLO, "fresh")
    assert subscription["endpoints"] == [f"127.0.0.1:{mesh.inbound_port}"]
    records = AdminClient(str(mesh.admin_socket)).get(f"/services?service={HELLO}")["services"]
    assert {(one["direction"], one["name"], one["protocol"]) for one in records} == {
        ("inbound", HELLO, "bolt"),
        ("outbound", HELLO, "bolt"),
    }
    for _ in range(2):
        assert mesh.post("/services/unsubscribe", UNSUBSCRIBE) == {"success": True}
        assert mesh.post("/services/unpublish", UNPUBLISH) == {"success": True}
    assert mesh.client.services() == {"published": [], "subscribed": []}


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({}, "configured"),
        ({"providerMetaInfo": None}, "configured"),
        ({"port": "{}"}, "said"),
        ({"port": "{}", "providerMetaInfo": {"properties": {"port": "1"}}}, "said"),
        ({"providerMetaInfo": {"properties": {"port": "{}"}}}, "said"),
    ],
)
def test_where_the_application_listens(mesh: Mesh, more: dict[str, Any], where: str) -> None:
    with Origin() as origin:
        more = json.loads(json.dumps(more).replace("{}", str(origin.port)) if more else "{}")
        assert mesh.post("/services/publish", {"serviceName": HELLO, **more}) == {"success": True}
        expected = origin.port if where == "said" else mesh.app_port
        assert [one["port"] for one in mesh.published()] == [expected]
        assert mesh.post("/services/unpublish", UNPUBLISH) == {"success": True}
        assert mesh.published() == []


@pytest.mark.parametrize(
    ("name", "kind", "service", "protocol", "place"),
    [
        (HELLO, None, HELLO, "bolt", "{bolt}?v=4.0&p=1"),
        (HELLO, "DEFAULT", HELLO, "bolt", "{bolt}?v=4.0&p=1"),
        ("com.x.Hello:1.0:blue@DEFAULT", "bolt", "com.x.Hello:1.0:blue", "bolt", "{bolt}?v=4.0&p=1"),
        ("com.x.Demo@dubbo", "dubbo", "com.x.Demo", "dubbo", "dubbo://{outbound}?v=4.0"),
        ("orders@springcloud", "springcloud", "orders", "http", "springcloud://{outbound}?v=4.0"),
    ],
)
def test_protocol_types(mesh: Mesh, name: str, kind: str | None, service: str, protocol: str, place: str) -> None:
    answer = mesh.post("/services/subscribe", {"serviceName": name, "protocolType": kind})
    bolt, outbound = (f"127.0.0.1:{port}" for port in (mesh.calls_port, mesh.outbound_port))
    assert answer["datas"] == [place.format(bolt=bolt, outbound=outbound)]
    (subscription,) = mesh.client.services()["subscribed"]
    assert subscription["name"] == service
    (record,) = AdminClient(str(mesh.admin_socket)).get("/services")["services"]
    assert record["protocol"] == protocol
    assert mesh.post("/services/unsubscribe", {"serviceName": name, "protocolType": kind}) == {"success": True}


@pytest.mark.parametrize(
    "body",
    [
        b'{"serviceName":"com.x.Hello:1.0","properties":{"path":"C:\\xyz"}}',
        b'{"serviceName":"com.x.Hello:1.0","properties":{"text":"two\nlines\tand \x01"}}',
        b'{"serviceName":"com.x.Hello:1.0","properties":{"text":"\xff\xfe"}}',
        b'{"serviceName":"com.x.Hello:1.0","protocolType":"","unheard":{"of":[1,2.5,null]}}',
    ],
)
def test_json_that_is_none(mesh: Mesh, body: bytes) -> None:
    """The Java client escapes neither backslashes nor control characters."""
    assert mesh.post("/services/subscribe", body)["success"] is True
    assert mesh.post("/services/unsubscribe", body) == {"success": True}
    assert mesh.client.services()["subscribed"] == []


@pytest.mark.parametrize(
    ("path", "body", "reason"),
    [
        ("/services/publish", b"", "the body is not JSON"),
        ("/services/publish", b"[]", "the body is no good: Expected `object`"),
        ("/services/publish", b"{}", "the body is no good: Object missing required field `serviceName`"),
        ("/services/subscribe", b'{"serviceName":"a b"}', "`a b` is not a service name"),
        ("/services/subscribe", b'{"serviceName":"a","protocolType":"tr"}', "protocolType tr is not supported"),
        ("/services/publish", b'{"serviceName":"a","port":"much"}', "the body is no good"),
    ],
)
def test_what_cannot_be_done_is_said(mesh: Mesh, path: str, body: bytes, reason: str) -> None:
    answer = mesh.post(path, body)
    assert answer["success"] is False
    assert reason in answer["errorMessage"]
    assert f"{path} is refused: " in mesh.log()
    assert mesh.client.services() == {"published": [], "subscribed": []}


def test_own_ports_and_web_pages_are_refused(mesh: Mesh) -> None:
    loop = mesh.post("/services/publish", {**PUBLISH, "port": mesh.mesh_port})
    assert "is this sidecar's own mesh.api: calls would go round in a loop" in loop["errorMessage"]
    headers = [("Origin", "http://127.0.0.1")]
    page = call(("127.0.0.1", mesh.mesh_port), "a", "/services/publish", "POST", headers, json.dumps(PUBLISH).encode())
    assert page.json() == {"success": False, "errorMessage": "the API does not serve web pages"}
    assert mesh.published() == []


@pytest.mark.parametrize("end", ["stop", "kill_everything"])
def test_what_was_said_once_survives_the_sidecar(end: str, tmp_path: Path) -> None:
    with Mesh(directory=tmp_path) as mesh, Origin(port=mesh.app_port) as app:
        mesh.post("/services/publish", PUBLISH)
        mesh.post("/services/subscribe", {**SUBSCRIBE, "serviceName": "com.x.Other:1.0"})
        before = mesh.client.services()
        assert [one["owner"] for one in before["published"]] == ["up"]
        getattr(mesh, end)()
        mesh.start()
        after = mesh.client.services()
        assert after["published"] == before["published"]
        assert [one["name"] for one in after["subscribed"]] == ["com.x.Other:1.0"]
        # The application's port is still looked after.
        app.crash()
        wait_until(lambda: [one["published"] for one in mesh.published()] == [None], what="it is withdrawn")
        app.start()
        wait_until(lambda: mesh.published() == before["published"], what="it is back")


def test_a_registry_that_is_away_is_waited_for_by_nobody() -> None:
    with RegistryProcess() as registry, Mesh() as mesh, Origin(port=mesh.app_port):
        registry.kill()
        mesh.configure({"registry": {"url": registry.url}})
        mesh.cli("reload")
        assert mesh.post("/services/publish", PUBLISH) == {"success": True}
        assert mesh.post("/services/subscribe", SUBSCRIBE)["success"] is True
        registry.start()
        endpoint = f"127.0.0.1:{mesh.inbound_port}"
        wait_until(lambda: mesh.client.services()["subscribed"][0]["endpoints"] == [endpoint])
        assert registry.addresses(HELLO.lower()) == {endpoint}


ANTHUNDER = """
import os
import sys
from anthunder import AioClient
from anthunder.listener import aio_listener
from anthunder.mesh.mesh_client import MeshClient
from mytracer import SpanContext

class Hello:
    def __init__(self, context):
        pass

    def hello(self, content):
        return b"hello " + content

mesh, calls, port = (int(argument) for argument in sys.argv[1:])
MeshClient._server = f"http://127.0.0.1:{mesh}/{{}}".format
AioClient.mesh_service_address = ("127.0.0.1", calls)

listener = aio_listener.AioListener(("127.0.0.1", port), "app")
listener.handler.register_interface("com.x.Hello:1.0", Hello)
listener.run_threading()
listener.publish()
client = AioClient("app")
client.subscribe("com.x.Hello:1.0")
for line in sys.stdin:
    if line == "call\\n":
        answer = client.invoke_sync("com.x.Hello:1.0", "hello", b"you", spanctx=SpanContext(), timeout_ms=30000)
        print(answer, flush=True)
    else:
        listener.unpublish()
        print("left", flush=True)
os._exit(0)
"""


def test_an_unmodified_python_client(mesh: Mesh) -> None:
    """anthunder publishes, subscribes and calls. Only its addresses are other ones than 13330 and 12220."""
    port = free_port()
    command = [sys.executable, "-c", ANTHUNDER, *map(str, (mesh.mesh_port, mesh.calls_port, port))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as application:
        assert application.stdin is not None
        assert application.stdout is not None
        try:
            wait_until(lambda: [(one["port"], one["owner"]) for one in mesh.published()] == [(port, "up")])
            wait_until(lambda: [one["name"] for one in mesh.client.services()["subscribed"]] == [HELLO])
            for _ in range(3):
                print("call", file=application.stdin, flush=True)
                assert application.stdout.readline() == "b'hello you'\n"
            print("leave", file=application.stdin, flush=True)
            assert application.stdout.readline() == "left\n"
            assert mesh.published() == []
        finally:
            application.kill()
    mesh.post("/services/unsubscribe", UNSUBSCRIBE)
