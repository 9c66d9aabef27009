"""The takeover API of a running sidecar: publish, subscribe, and what becomes of it when things die."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fastside.admin_client import AdminClient
from fastside.client import ApiError, Client, NotReachable, Subscription
from fastside.control import WITHDRAWAL
from fastside.takeover.ports import FAILURES, Liveness, Owner
from harness import DEADLINE, Origin, Raw, Sidecar, call, free_port, request_bytes, wait_until
from registry_process import RegistryProcess


@pytest.fixture(scope="module")
def shared() -> Iterator[Sidecar]:
    """A sidecar for tests that leave nothing behind."""
    with Sidecar() as running:
        yield running


@pytest.fixture
def registry() -> Iterator[RegistryProcess]:
    with RegistryProcess() as running:
        yield running


def with_registry(registry: RegistryProcess, **more: Any) -> Sidecar:
    return Sidecar({"registry": {"url": registry.url, "lease": "3s", "protection": "60s", "stale": "1h"}, **more})


def post(sidecar: Sidecar, path: str, body: bytes, headers: Any = ()) -> tuple[int, Any]:
    """One POST with a body of the test's own."""
    response = call(("127.0.0.1", sidecar.api_port), "api", path, "POST", headers, body)
    return response.status, response.json()


def published(sidecar: Sidecar, service: str) -> list[dict[str, Any]]:
    return [one for one in sidecar.client.services()["published"] if one["service"] == service]


def subscribed(sidecar: Sidecar, service: str) -> dict[str, Any]:
    (found,) = (one for one in sidecar.client.services()["subscribed"] if one["service"] == service)
    return found


# The whole of it


def test_publish_subscribe_call_and_back(sidecar, origin):
    client = sidecar.client
    registration = client.publish("Svc-A", origin.port)
    assert (registration.service, registration.published) == ("svc-a", f"127.0.0.1:{sidecar.inbound_port}")
    assert (registration.owner, registration.registered) == ("up", True)
    assert client.subscribe("svc-a") == Subscription(
        "svc-a", f"127.0.0.1:{sidecar.outbound_port}", (f"127.0.0.1:{sidecar.inbound_port}",), "fresh"
    )
    # What the answers say is in force: no waiting here.
    assert call(sidecar.outbound, "SVC-a").body == b"origin"
    client.unpublish("svc-a", origin.port)
    assert call(sidecar.inbound, "svc-a").status == 404
    assert call(sidecar.outbound, "svc-a").status == 503
    assert subscribed(sidecar, "svc-a")["state"] == "gone"
    client.unsubscribe("svc-a")
    assert call(sidecar.outbound, "svc-a").status == 404
    assert client.services() == {"published": [], "subscribed": []}


def test_several_ports_share_one_service(sidecar):
    with Origin("one") as one, Origin("two") as two:
        client = sidecar.client
        client.publish("svc-a", one.port)
        client.publish("svc-a", two.port, weight=3)
        client.subscribe("svc-a")
        wait_until(lambda: {call(sidecar.outbound, "svc-a").body for _ in range(8)} == {b"one", b"two"})
        client.unpublish("svc-a", one.port)
        assert {call(sidecar.outbound, "svc-a").body for _ in range(8)} == {b"two"}


def test_an_application_that_is_not_there_yet(sidecar):
    client, origin = sidecar.client, Origin()
    registration = client.publish("svc-a", origin.port)
    assert (registration.owner, registration.registered) == ("waiting", False)
    assert client.subscribe("svc-a").endpoints == ()
    assert call(sidecar.outbound, "svc-a").status == 503
    with origin:
        wait_until(lambda: call(sidecar.outbound, "svc-a").status == 200, what="it is registered once it is there")


def test_an_application_that_dies_is_withdrawn_and_comes_back(sidecar):
    with Origin() as origin:
        client = sidecar.client
        client.publish("svc-a", origin.port)
        client.subscribe("svc-a")
        origin.crash()
        wait_until(lambda: subscribed(sidecar, "svc-a")["endpoints"] == [], what="it is withdrawn")
        (publication,) = published(sidecar, "svc-a")
        assert (publication["owner"], publication["published"]) == ("down", None)
        assert call(sidecar.inbound, "svc-a").status == 502  # it is known here, but nobody is there
        origin.start()
        wait_until(lambda: call(sidecar.outbound, "svc-a").status == 200, what="it is registered again")


LISTEN = """
import socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("ready", flush=True)
while True:
    server.accept()[0].close()
"""


@contextlib.contextmanager
def listening_process() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A process that listens, and its port."""
    port = free_port()
    command = [sys.executable, "-c", LISTEN, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            yield port, process
        finally:
            process.kill()


def test_a_refused_call_has_its_port_looked_at(sidecar):
    """Of two applications that are killed, the one that is called is missed first, though it was killed last."""
    with listening_process() as (quiet, quiet_process), listening_process() as (busy, busy_process):
        sidecar.client.publish("quiet", quiet)
        sidecar.client.publish("busy", busy)
        quiet_process.kill()
        quiet_process.wait()
        busy_process.kill()
        busy_process.wait()
        owners = []

        def someone_is_missed() -> bool:
            assert call(sidecar.inbound, "busy").status == 502
            owners[:] = [one["owner"] for name in ("quiet", "busy") for one in published(sidecar, name)]
            return "down" in owners

        wait_until(someone_is_missed)
        assert owners == ["up", "down"]


def test_many_services_at_one_port_are_one_application(sidecar):
    """Its port is looked at once for all of them."""
    looks = 0
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as server:
        server.setblocking(False)
        for number in range(50):
            sidecar.client.publish(f"svc-{number}", server.getsockname()[1])
        assert {one["owner"] for one in sidecar.client.services()["published"]} == {"up"}

        def looked_at() -> bool:
            nonlocal looks
            with contextlib.suppress(BlockingIOError):
                while True:
                    server.accept()[0].close()
                    looks += 1
            return looks > 1

        wait_until(looked_at)
        assert looks < 50
    wait_until(lambda: {one["owner"] for one in sidecar.client.services()["published"]} == {"down"})


def test_liveness():
    liveness = Liveness()
    assert [liveness.observe(False) for _ in range(10)] == [False] * 10
    assert liveness.owner is Owner.WAITING
    assert liveness.observe(True)
    assert liveness.owner is Owner.UP
    for _ in range(5):
        assert not any(liveness.observe(False) for _ in range(FAILURES - 1))
        assert not liveness.observe(True)
    assert [liveness.observe(False) for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    assert liveness.owner is Owner.DOWN
    assert not liveness.observe(False)
    assert liveness.observe(True)
    assert liveness.owner is Owner.UP
    assert not liveness.observe(True, calls_fail=True)
    assert liveness.observe(False, calls_fail=True)
    assert liveness.owner is Owner.DOWN


def test_a_lease_ends_unless_it_is_renewed(sidecar):
    client, port = sidecar.client, free_port()  # with a lease, nobody looks whether the port answers
    client.publish("kept", port, lease=3)
    assert client.publish("lost", port, lease=3).registered
    client.subscribe("lost")
    began = time.monotonic()

    def lost() -> bool:
        client.renew("kept", port)
        return not published(sidecar, "lost") and time.monotonic() - began > 4

    wait_until(lost, what="the lease has ended")
    assert published(sidecar, "kept")
    assert subscribed(sidecar, "lost")["endpoints"] == []
    with pytest.raises(ApiError, match="not published"):
        client.renew("lost", port)


def test_publishing_again_changes_the_rest(shared):
    with Origin() as origin:
        shared.client.publish("again", origin.port, weight=1)
        shared.client.publish("again", origin.port, weight=5, lease=60)
        assert [(one["weight"], one["lease"]) for one in published(shared, "again")] == [(5, 60)]
        shared.client.publish("again", origin.port)
        assert [(one["weight"], one["lease"]) for one in published(shared, "again")] == [(1, None)]
        shared.client.unpublish("again", origin.port)


# TCP


class Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(1000):
            self.request.sendall(data)


@contextlib.contextmanager
def echo_server() -> Iterator[int]:
    """The port of a server that sends back what it gets."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def test_a_tcp_service_needs_listeners_of_its_own(sidecar):
    with echo_server() as port:
        client = sidecar.client
        with pytest.raises(ApiError) as publish:
            client.publish("redis", port, protocol="tcp")
        with pytest.raises(ApiError) as subscribe:
            client.subscribe("redis", protocol="tcp")
        assert publish.value.status == subscribe.value.status == 409
        assert "direction: inbound, protocol: tcp, service: redis" in publish.value.hint
        assert "direction: outbound, protocol: tcp, service: redis" in subscribe.value.hint
        inside, outside = free_port(), free_port()
        sidecar.configure(
            {
                "listeners": [
                    {"name": "redis-in", "direction": "inbound", "protocol": "tcp", "service": "redis",
                     "bind": f"127.0.0.1:{inside}"},
                    {"name": "redis-out", "direction": "outbound", "protocol": "tcp", "service": "redis",
                     "bind": f"127.0.0.1:{outside}"},
                ]
            }
        )  # fmt: skip
        sidecar.cli("reload")
        assert client.publish("redis", port, protocol="tcp").published == f"127.0.0.1:{inside}"
        # The outbound listener is a subscription already; saying so again is no mistake.
        wait_until(lambda: subscribed(sidecar, "redis")["endpoints"] == [f"127.0.0.1:{inside}"])
        assert client.subscribe("redis", protocol="tcp").address == f"127.0.0.1:{outside}"
        with Raw(("127.0.0.1", outside)) as raw:
            raw.send(b"PING")
            assert raw.read(4) == b"PING"
        with pytest.raises(ApiError, match="by a listener in the configuration"):
            client.unsubscribe("redis")


# The listener for a protocol


@pytest.mark.parametrize("protocol", ["http", "bolt", "dubbo", "tls"])
def test_the_default_listeners_carry_every_protocol_that_names_its_services(shared, protocol):
    name = f"com.x.{protocol}$Inner:1.0"
    with Origin() as origin:
        shared.client.publish(name, origin.port, protocol=protocol)
        address = shared.client.subscribe(name, protocol=protocol).address
        assert address == f"127.0.0.1:{shared.outbound_port}"
        assert [one["protocol"] for one in published(shared, name.lower())] == [protocol]
        records = AdminClient(str(shared.admin_socket)).get(f"/services?service={name}")["services"]
        assert {one["direction"]: one["protocol"] for one in records} == {"inbound": protocol, "outbound": protocol}
        shared.client.unpublish(name, origin.port)
        shared.client.unsubscribe(name)


def test_a_listener_for_one_protocol_is_preferred_and_opaque_bytes_need_a_service(sidecar):
    outbound, bolt = (f"127.0.0.1:{port}" for port in (sidecar.outbound_port, free_port()))
    sidecar.configure(
        {
            "listeners": [
                {"name": "outbound", "direction": "outbound", "bind": outbound, "service": "db"},
                {"name": "bolt", "direction": "outbound", "bind": bolt, "protocol": "bolt"},
            ],
            "services": {"fixed": {"protocol": "dubbo", "endpoints": ["127.0.0.1:1"]}},
        }
    )
    sidecar.cli("reload")
    client = sidecar.client
    assert client.subscribe("com.x.A:1.0", protocol="bolt").address == bolt
    assert client.subscribe("com.x.B", protocol="dubbo").address == outbound
    assert client.subscribe("db", protocol="tcp").address == outbound
    assert client.subscribe("fixed", protocol="dubbo").address == outbound
    with pytest.raises(ApiError, match="fixed is configured with protocol dubbo"):
        client.subscribe("fixed", protocol="bolt")
    with pytest.raises(ApiError, match="no outbound tcp listener for other"):
        client.subscribe("other", protocol="tcp")


# Refusals


@pytest.mark.parametrize(
    ("path", "body", "status", "error", "hint"),
    [
        ("/v1/publish", b"{", 400, "the body is no good", "service, port, address, protocol, weight, lease"),
        ("/v1/publish", b'{"service": "a"}', 400, "required field `port`", "port"),
        ("/v1/publish", b'{"service": "a", "port": 0}', 400, "`int` >= 1 - at `$.port`", "port"),
        ("/v1/publish", b'{"service": "a", "prot": 1, "port": 1}', 400, "unknown field `prot`", "port"),
        ("/v1/publish", b'{"service": "a b", "port": 1}', 400, "not a service name", "svc-a"),
        ("/v1/publish", b'{"service": "a", "port": 1, "protocol": "udp"}', 400, "'udp'", "protocol"),
        ("/v1/publish", b'{"service": "a", "port": 1, "lease": 0.1}', 400, "lease", "lease"),
        (
            "/v1/publish",
            b'{"service": "a", "port": 1, "address": "0.0.0.0"}',
            400,
            "not an address that can be connected to",
            "127.0.0.1",
        ),
        ("/v1/publish", b'{"service": "a", "port": 1, "address": "localhost"}', 400, "not looked up", "IP address"),
        ("/v1/publish", b'{"service": "a", "port": 1, "address": "192.0.2.1"}', 400, "not an address of this", "here"),
        ("/v1/unpublish", b'{"service": "a", "port": 1}', 404, "a is not published with port 1", "publish it first"),
        ("/v1/renew", b'{"service": "a", "port": 1}', 404, "a is not published with port 1", "publish it first"),
        ("/v1/unsubscribe", b'{"service": "a"}', 404, "a is not subscribed to", "subscribe"),
        ("/v1/subscribe", b"[]", 400, "Expected `object`", "service, protocol"),
        ("/v1/subscribe", b'{"service": "' + b"a" * 256 + b'"}', 400, "not a service name", "svc-a"),
        ("/v1/subscribe", b" " * 70000, 413, "Too Large", "/openapi.yaml"),
        ("/v2/subscribe", b"{}", 404, "POST /v2/subscribe: Not Found", "/openapi.yaml"),
    ],
)
def test_refusals_say_what_is_wrong_and_what_to_do(shared, path, body, status, error, hint):
    got, answer = post(shared, path, body)
    assert (got, set(answer)) == (status, {"error", "hint"})
    assert error in answer["error"]
    assert hint in answer["hint"]
    assert shared.client.services() == {"published": [], "subscribed": []}


def test_an_own_port_is_a_loop(shared):
    for port in (shared.inbound_port, shared.outbound_port, shared.api_port, shared.metrics_port):
        with pytest.raises(ApiError, match="loop") as refusal:
            shared.client.publish("svc-a", port)
        assert refusal.value.status == 409
    assert shared.client.services()["published"] == []


def test_a_web_page_may_change_nothing(shared):
    body = b'{"service": "svc-a", "port": 22}'
    status, answer = post(shared, "/v1/publish", body, [("Origin", "http://127.0.0.1:20883")])
    assert (status, answer["error"]) == (403, "the API does not serve web pages")
    assert shared.client.services()["published"] == []


def test_one_name_has_one_protocol(sidecar):
    sidecar.configure(
        {
            "listeners": [
                {"name": f"db-{direction}", "direction": direction, "protocol": "tcp", "service": "db",
                 "bind": f"127.0.0.1:{free_port()}"}
                for direction in ("inbound", "outbound")
            ]
        }
    )  # fmt: skip
    sidecar.cli("reload")
    with pytest.raises(ApiError, match="db is subscribed to with protocol tcp"):
        sidecar.client.subscribe("db", protocol="http")
    sidecar.client.publish("db", free_port(), protocol="tcp")
    with pytest.raises(ApiError, match="db is published with protocol tcp"):
        sidecar.client.publish("db", free_port(), protocol="http")


def test_an_update_that_does_not_fit_is_refused_and_the_rest_stays(registry, origin):
    with with_registry(registry, limits={"addresses": 4}) as sidecar:
        client, admin = sidecar.client, AdminClient(str(sidecar.admin_socket))
        client.publish("svc-a", origin.port)
        client.subscribe("svc-a")
        for number in range(9):
            registry.call("PUT", f"/v1/instances/big/10.0.0.{number + 1}:80", {"lease": 60})
        with pytest.raises(ApiError, match="4") as refusal:
            client.subscribe("big")
        assert refusal.value.status == 507
        assert "raise the limit" in refusal.value.hint
        assert call(sidecar.outbound, "svc-a").status == 200
        # A service that grows too large keeps the endpoints that it had, and an alarm says so.
        registry.call("PUT", "/v1/instances/grows/10.0.0.1:80", {"lease": 60})
        client.subscribe("grows")
        for number in range(1, 9):
            registry.call("PUT", f"/v1/instances/grows/10.0.0.{number + 1}:80", {"lease": 60})
        wait_until(lambda: [one["name"] for one in admin.get("/status")["alarms"]] == ["table"], what="the alarm")
        refused = admin.get("/status")["table"]["refused"]
        assert [(one["direction"], one["service"]) for one in refused] == [("outbound", "grows")]
        assert sidecar.metrics()["fastside_table_refused"] == 1
        assert sidecar.metrics()['fastside_alarm{alarm="table"}'] == 1
        assert call(sidecar.outbound, "svc-a").status == 200
        for number in range(1, 9):
            registry.call("DELETE", f"/v1/instances/grows/10.0.0.{number + 1}:80")
        wait_until(lambda: not admin.get("/status")["alarms"], what="the alarm is over")


# Watching


def events(raw: Raw) -> Iterator[dict[str, Any]]:
    """The data of the events of a watch; the rest of what comes in chunks is skipped."""
    while True:
        raw.read_until(b"data: ")
        yield json.loads(raw.read_until(b"\n"))


def test_a_watch_pushes_changes(sidecar, origin):
    client = sidecar.client
    client.subscribe("svc-a")
    with Raw(("127.0.0.1", sidecar.api_port)) as raw:
        raw.send(request_bytes("api", "/v1/watch?service=Svc-A"))
        watch = events(raw)
        assert next(watch)["endpoints"] == []
        client.publish("svc-a", origin.port)
        assert next(watch) == {
            "service": "svc-a",
            "name": "svc-a",
            "address": f"127.0.0.1:{sidecar.outbound_port}",
            "endpoints": [f"127.0.0.1:{sidecar.inbound_port}"],
            "state": "fresh",
        }
        client.unpublish("svc-a", origin.port)
        assert next(watch)["state"] == "gone"
        client.unsubscribe("svc-a")
        raw.read_until(b"event: end\n")
        gone = {"name": "svc-a", "address": None, "endpoints": [], "state": "gone"}
        assert next(watch) == {"service": "svc-a", **gone}
        assert raw.read_until(b"0\r\n\r\n")


def test_a_watch_of_what_is_not_subscribed_to(shared):
    response = call(("127.0.0.1", shared.api_port), "api", "/v1/watch?service=nobody")
    assert (response.status, response.json()["error"]) == (404, "nobody is not subscribed to")
    assert call(("127.0.0.1", shared.api_port), "api", "/v1/watch").status == 400


# The configuration


def test_services_from_the_configuration(origin):
    policies = {"fixed": {"endpoints": [f"127.0.0.1:{origin.port}"]}}
    with Sidecar({"services": policies}) as sidecar:
        assert call(sidecar.outbound, "fixed").status == 200
        assert sidecar.client.subscribe("fixed").state == "static"
        with Raw(("127.0.0.1", sidecar.api_port)) as raw:
            raw.send(request_bytes("api", "/v1/watch?service=fixed"))
            watch = events(raw)
            assert next(watch)["endpoints"] == [f"127.0.0.1:{origin.port}"]
            sidecar.config["services"] = {}
            sidecar.configure({"services": {"fixed": {"endpoints": ["127.0.0.1:9"]}}})
            sidecar.cli("reload")
            assert next(watch)["endpoints"] == ["127.0.0.1:9"]
            sidecar.config["services"] = {}
            sidecar.configure({})
            sidecar.cli("reload")
            assert next(watch)["state"] == "gone"
        assert call(sidecar.outbound, "fixed").status == 404


def test_a_reload_moves_to_another_registry(registry, origin):
    with Sidecar() as sidecar, RegistryProcess() as other:
        sidecar.client.publish("svc-a", origin.port)
        sidecar.client.subscribe("svc-a")
        for now, before in ((registry, None), (other, registry)):
            sidecar.configure({"registry": {"url": now.url}})
            sidecar.cli("reload")
            wait_until(lambda now=now: now.addresses("svc-a") == {f"127.0.0.1:{sidecar.inbound_port}"})
            wait_until(lambda before=before: before is None or before.addresses("svc-a") == set())
            wait_until(lambda: subscribed(sidecar, "svc-a")["state"] == "fresh")
            assert call(sidecar.outbound, "svc-a").status == 200


def test_a_registry_that_is_left_has_no_say_any_more(registry, origin):
    """It is dead, which may be why it is left; that must not make what the other one says stale."""
    with RegistryProcess() as dead, with_registry(dead) as sidecar:
        client = sidecar.client
        client.publish("svc-a", origin.port)
        client.subscribe("svc-a")
        dead.kill()
        wait_until(lambda: subscribed(sidecar, "svc-a")["state"] == "stale")
        sidecar.configure({"registry": {"url": registry.url}})
        sidecar.cli("reload")
        wait_until(lambda: subscribed(sidecar, "svc-a")["state"] == "fresh")
        until = time.monotonic() + WITHDRAWAL + 1
        wait_until(lambda: subscribed(sidecar, "svc-a")["state"] != "fresh" or time.monotonic() > until)
        assert subscribed(sidecar, "svc-a")["state"] == "fresh"


@pytest.mark.parametrize(("key", "what"), [("api", "the API"), ("metrics", "metrics and health")])
def test_a_port_that_cannot_be_had_is_named(tmp_path, key, what):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        sidecar = Sidecar({key: bind}, directory=tmp_path, wait_ready=False)
        sidecar.start()
        assert sidecar.process
        assert sidecar.process.wait(DEADLINE) == 1
        assert f"fastside: {bind} cannot be had for {what}: Address already in use" in sidecar.log()


# Deaths


def test_calls_go_on_whatever_the_registry_does(registry):
    """Away, back without its memory, and an explicit withdrawal in between: no call fails but those to who left."""
    with Origin("provider") as origin, with_registry(registry) as provider, with_registry(registry) as caller:
        provider.client.publish("svc-a", origin.port)
        endpoint = f"127.0.0.1:{provider.inbound_port}"
        assert caller.client.subscribe("svc-a").endpoints == (endpoint,)
        assert call(caller.outbound, "svc-a").body == b"provider"
        registry.kill()
        wait_until(lambda: subscribed(caller, "svc-a")["state"] == "stale", what="the endpoints are stale")
        assert call(caller.outbound, "svc-a").body == b"provider"
        status = AdminClient(str(caller.admin_socket)).get("/status")
        assert (status["registry"]["connected"], status["state"]) == (False, "ready")
        assert "last known" in status["table"]["source"]
        # A new sidecar finds nothing in the registry, but its predecessor's snapshot.
        caller.stop()
        caller.start()
        assert call(caller.outbound, "svc-a").body == b"provider"
        assert subscribed(caller, "svc-a")["state"] == "stale"
        registry.start()
        wait_until(lambda: subscribed(caller, "svc-a")["state"] == "fresh", what="the provider registered again")
        assert registry.addresses("svc-a") == {endpoint}
        assert call(caller.outbound, "svc-a").body == b"provider"
        provider.client.unpublish("svc-a", origin.port)
        wait_until(lambda: subscribed(caller, "svc-a")["state"] == "gone", what="a withdrawal counts at once")


def test_an_empty_list_is_not_believed_at_once(registry):
    """The provider's sidecar is killed as a whole: its lease ends, and that list is empty."""
    with with_registry(registry) as caller, Origin() as origin:
        registry.call("PUT", f"/v1/instances/svc-a/127.0.0.1:{origin.port}", {"lease": 3})
        caller.client.subscribe("svc-a")
        wait_until(lambda: subscribed(caller, "svc-a")["state"] == "protected", what="its lease has ended")
        assert call(caller.outbound, "svc-a").body == b"origin"
        assert caller.metrics()['fastside_registry_endpoints{state="protected"}'] == 1
        caller.configure({"registry": {"protection": "0s"}})
        caller.cli("reload")
        assert subscribed(caller, "svc-a")["state"] == "gone"
        assert call(caller.outbound, "svc-a").status == 503


def kill_control(sidecar: Sidecar) -> None:
    before = sidecar.processes()["fastside: control"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: sidecar.processes().get("fastside: control", before) != before, what="a new control")
    sidecar.wait_ready()


def test_publications_and_subscriptions_survive_control(registry, origin):
    with with_registry(registry) as sidecar:
        client = sidecar.client
        client.publish("svc-a", origin.port, weight=2)
        client.publish("leased", origin.port, lease=30)
        client.subscribe("svc-a")
        before = client.services()
        for _ in range(2):
            kill_control(sidecar)
            assert call(sidecar.outbound, "svc-a").body == b"origin"
            wait_until(lambda: client.services() == before, what="all is as before")
            assert registry.addresses("svc-a") == {f"127.0.0.1:{sidecar.inbound_port}"}
        origin.crash()
        wait_until(lambda: registry.addresses("svc-a") == set(), what="the owner is looked after again")
        wait_until(lambda: b'"up":false' in (sidecar.directory / "state/snapshot.json").read_bytes(), what="saved")
        kill_control(sidecar)
        (publication,) = published(sidecar, "svc-a")
        assert publication["owner"] == "waiting"  # not taken for alive because it is published
        assert registry.addresses("svc-a") == set()
        origin.start()
        wait_until(lambda: registry.addresses("svc-a") != set(), what="the owner is back")


def test_without_a_writable_disk_the_routing_table_remembers(tmp_path, origin):
    (tmp_path / "file").write_text("")
    with Sidecar({"state_dir": str(tmp_path / "file/state")}) as sidecar:
        client, admin = sidecar.client, AdminClient(str(sidecar.admin_socket))
        client.publish("svc-a", origin.port)
        client.subscribe("svc-a")
        assert [one["name"] for one in admin.get("/status")["alarms"]] == ["snapshot"]
        before = client.services()
        kill_control(sidecar)
        assert call(sidecar.outbound, "svc-a").body == b"origin"
        wait_until(lambda: client.services() == before, what="all is as before")


def test_a_damaged_snapshot_is_put_aside(tmp_path, origin):
    with Sidecar(directory=tmp_path) as sidecar:
        sidecar.client.publish("svc-a", origin.port)
        sidecar.stop()
        snapshot = tmp_path / "state/snapshot.json"
        text = snapshot.read_text()
        snapshot.write_text(text[: len(text) // 2])
        sidecar.start()
        assert sidecar.client.services()["published"] == []
        assert snapshot.with_suffix(".bad").read_text() == text[: len(text) // 2]
        assert "cannot be used" in sidecar.log()


def test_what_does_not_fit_the_configuration_any_more_is_left_out(tmp_path, origin):
    snapshot = {
        "saved": time.time(),
        "publications": [
            {"service": "svc-a", "protocol": "http", "address": f"127.0.0.1:{origin.port}", "weight": 1},
            {"service": "db", "protocol": "tcp", "address": f"127.0.0.1:{origin.port}", "weight": 1},
            {"service": "far", "protocol": "http", "address": "192.0.2.1:80", "weight": 1},
        ],
        "subscriptions": [
            {"service": "svc-a", "protocol": "http"},
            {"service": "db", "protocol": "tcp"},
            {"service": "odd", "protocol": "http", "endpoints": [{"address": "nowhere", "weight": 1}]},
        ],
    }
    (tmp_path / "state").mkdir()
    (tmp_path / "state/snapshot.json").write_text(json.dumps(snapshot))
    with Sidecar(directory=tmp_path) as sidecar:
        assert [one["service"] for one in sidecar.client.services()["published"]] == ["svc-a"]
        assert [one["service"] for one in sidecar.client.services()["subscribed"]] == ["svc-a"]
        wait_until(lambda: call(sidecar.outbound, "svc-a").status == 200)
        assert all(name in sidecar.log() for name in ("db", "far", "odd"))


def test_without_a_master_reads_go_on(sidecar, origin):
    client, admin = sidecar.client, AdminClient(str(sidecar.admin_socket))
    client.publish("svc-a", origin.port)
    client.subscribe("svc-a")
    os.kill(sidecar.pid, signal.SIGKILL)
    wait_until(lambda: not admin.get("/status")["master"]["connected"], what="its end is noticed")
    assert [one["name"] for one in admin.get("/status")["alarms"]] == ["master"]
    assert call(sidecar.outbound, "svc-a").body == b"origin"
    assert subscribed(sidecar, "svc-a")["state"] == "fresh"
    with pytest.raises(ApiError, match="the master process is gone") as refusal:
        client.subscribe("svc-b")
    assert refusal.value.status == 503
    sidecar.kill_everything()


def test_an_orphan_ends_when_its_place_is_taken(sidecar):
    os.kill(sidecar.pid, signal.SIGKILL)
    sidecar.admin_socket.unlink()
    assert "fastside: control" in sidecar.processes()
    sidecar.admin_socket.write_text("")  # of another file: that is how a successor looks from here
    wait_until(lambda: "fastside: control" not in sidecar.processes(), what="the orphan ends")
    sidecar.kill_everything()


def test_stopping_withdraws_first(registry, origin):
    with with_registry(registry, drain={"delay": "30s", "deadline": "60s"}) as sidecar:
        sidecar.client.publish("svc-a", origin.port)
        sidecar.client.subscribe("svc-a")
        assert sidecar.process
        sidecar.process.send_signal(signal.SIGTERM)
        wait_until(lambda: registry.addresses("svc-a") == set(), what="withdrawn")
        wait_until(lambda: "withdrawn from the registry" in sidecar.log(), what="the master knows")
        assert sidecar.health("readyz") == 503
        assert sidecar.health("livez") == 200
        # Until the delay is over, callers that have not noticed yet are served.
        assert call(sidecar.inbound, "svc-a").body == b"origin"
        with pytest.raises(ApiError, match="draining"):
            sidecar.client.publish("svc-b", origin.port)
        sidecar.process.send_signal(signal.SIGTERM)
        assert sidecar.process.wait(DEADLINE) != 0  # a second signal ends it at once
        with pytest.raises(NotReachable):
            Client(sidecar.api, timeout=2).services()
