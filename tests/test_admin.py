"""The admin API of a running sidecar, and `explain`."""

from __future__ import annotations

import base64
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import bolt_frames
import dubbo_corpus
import dubbo_frames
import sniff_corpus
from fastside.admin_client import AdminClient, AdminError
from harness import Origin, Raw, Sidecar, call, free_port, request_bytes, require_root, wait_until
from registry_process import RegistryProcess


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as running:
        yield running


@pytest.fixture(scope="module")
def sidecar(origin: Origin) -> Iterator[Sidecar]:
    """With services of every kind."""
    endpoints = [f"127.0.0.1:{origin.port}", {"address": "10.0.0.2:80", "weight": 3}]
    config = {
        "listeners": [
            {"name": "named", "direction": "outbound", "bind": f"127.0.0.1:{free_port()}", "service_header": "x-svc"},
            {"name": "db", "direction": "outbound", "protocol": "tcp", "service": "db",
             "bind": f"127.0.0.1:{free_port()}"},
        ],
        "services": {
            "fixed": {"endpoints": endpoints},
            "least": {"endpoints": endpoints, "balance": "least_request"},
            "by-source": {"endpoints": endpoints, "balance": "consistent_hash"},
            "by-user": {"endpoints": endpoints, "balance": "consistent_hash", "hash_by": "header:x-user"},
            "db": {"endpoints": endpoints[:1]},
        },
    }  # fmt: skip
    with Sidecar(config) as running:
        running.client.publish("svc-a", origin.port, weight=2)
        running.client.subscribe("svc-a")
        running.client.subscribe("empty")
        yield running


@pytest.fixture
def admin(sidecar: Sidecar) -> AdminClient:
    return AdminClient(str(sidecar.admin_socket))


def test_only_the_own_user_and_root_may(sidecar):
    assert stat.S_IMODE(os.stat(sidecar.admin_socket).st_mode) == 0o600
    require_root()
    path = sidecar.admin_socket
    script = f"""
import os
from fastside.admin_client import AdminClient, AdminError
os.setuid(65534)
try:
    AdminClient({str(path)!r}).get("/status")
except AdminError as error:
    print(error)
"""
    # Even where the permissions let somebody through, the peer's user is looked at.
    for directory in (path, path.parent, path.parent.parent):
        directory.chmod(directory.stat().st_mode | 0o077)
    said = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert said == "user 65534 may not use the admin socket; the sidecar's own user (0) and root may\n"
    assert AdminClient(str(path)).get("/status")["state"] == "ready"


def test_status(sidecar, admin):
    status = admin.get("/status")
    assert status["pid"] == sidecar.processes()["fastside: control"]
    assert (status["state"], status["not_ready"], status["alarms"]) == ("ready", [], [])
    assert status["master"]["connected"] is True
    assert status["master"]["pid"] == sidecar.pid
    assert status["master"]["config_path"] == str(sidecar.config_path)
    assert [worker["pid"] for worker in status["workers"]] == sidecar.worker_pids()
    assert all(worker["state"] == "ready" and worker["restarts"] == 0 for worker in status["workers"])
    table = status["table"]
    assert (table["services"], table["refused"], table["source"]) == (8, [], "registry own")
    assert table["age_s"] >= 0
    wait_until(
        lambda: {worker["applied_version"] for worker in admin.get("/status")["workers"]} == {table["version"]},
        what="every worker has the newest version",
    )
    assert status["registry"]["connected"] is True
    assert status["snapshot"]["path"] == str(sidecar.directory / "state/snapshot.json")


def test_services(sidecar, admin, origin):
    services = {(one["direction"], one["service"]): one for one in admin.get("/services")["services"]}
    assert len(services) == 8
    inbound, outbound = services["inbound", "svc-a"], services["outbound", "svc-a"]
    quiet = {"inflight": 0, "ejected_for_ms": 0, "loop": False}
    assert inbound["endpoints"] == [{"address": f"127.0.0.1:{origin.port}", "weight": 2, "state": "up", **quiet}]
    assert (outbound["state"], outbound["source"], outbound["balance"]) == ("fresh", "registry", "round_robin")
    address = f"127.0.0.1:{sidecar.inbound_port}"
    assert outbound["endpoints"] == [{"address": address, "weight": 2, "state": "fresh", **quiet}]
    assert services["outbound", "empty"]["state"] == "gone"
    assert services["outbound", "fixed"]["source"] == "configuration"
    assert services["outbound", "db"]["protocol"] == "tcp"
    assert services["outbound", "by-user"]["balance"] == "hash_header"
    assert [one["service"] for one in admin.get("/services?service=DB")["services"]] == ["db"]


def test_a_request_under_way_is_seen(sidecar, admin, origin):
    with Raw(sidecar.outbound) as raw:
        raw.send(request_bytes("svc-a", "/gate"))
        origin.wait_for_requests(1)
        (outbound,) = [
            one for one in admin.get("/services?service=svc-a")["services"] if one["direction"] == "outbound"
        ]
        assert outbound["endpoints"][0]["inflight"] == 1
        connections = admin.get("/conns")
        assert connections["total"] == len(connections["connections"]) >= 4
        ours = [one for one in connections["connections"] if one["address"].endswith(f":{raw.socket.getsockname()[1]}")]
        assert [(one["kind"], one["state"]) for one in ours] == [("http downstream", "exchange")]
        assert len(admin.get("/conns?limit=1")["connections"]) == 1
        origin.gate.set()
        assert raw.read_response().status == 200
    with pytest.raises(AdminError, match="limit is not a number"):
        admin.get("/conns?limit=x")


# explain


def explain(admin: AdminClient, **question: Any) -> dict[str, Any]:
    return admin.post("/explain", question)


def test_explain_by_host(sidecar, admin):
    answer = explain(admin, host="SVC-A:80", headers={"x-svc": "fixed"})
    assert (answer["outcome"], answer["service"], answer["rule"]) == ("forward", "svc-a", "Host")
    assert answer["listener"]["name"] == "outbound"
    assert answer["pick"] == f"127.0.0.1:{sidecar.inbound_port}"
    assert [one["chosen"] for one in answer["endpoints"]] == [True]


def test_explain_by_header(admin):
    answer = explain(admin, listener="named", host="svc-a", headers={"X-Svc": "fixed"})
    assert (answer["service"], answer["rule"]) == ("fixed", "header x-svc")
    assert {one["address"]: one["weight"] for one in answer["endpoints"]}["10.0.0.2:80"] == 3
    answer = explain(admin, listener="named", host="svc-a")
    assert (answer["service"], answer["rule"]) == ("svc-a", "Host")
    assert "the header x-svc is absent, so Host counts: svc-a" in answer["steps"]


@pytest.mark.parametrize(
    ("service", "question", "other"),
    [
        ("by-user", {"headers": {"x-user": "{}"}}, "x-user"),
        ("by-source", {"source": "10.1.2.{}"}, "10.1.2."),
    ],
)
def test_explain_hashes_like_the_workers(admin, service, question, other):
    def pick(number: int) -> str:
        (key,) = question
        value = question[key]
        filled = value.format(number) if isinstance(value, str) else {k: v.format(number) for k, v in value.items()}
        answer = explain(admin, host=service, **{key: filled})
        assert any(other in step for step in answer["steps"])
        return answer["pick"]

    picks = [pick(number) for number in range(40)]
    assert [pick(number) for number in range(40)] == picks
    assert len(set(picks)) == 2


def test_explained_hashing_is_what_happens(sidecar, admin, origin):
    """The caller is where explain says: at the origin, or at the address that nobody answers at."""
    sources = {}
    for number in range(1, 40):
        source = f"127.0.0.{number}"
        sources.setdefault(explain(admin, host="by-source", source=source)["pick"], source)
    source = sources[f"127.0.0.1:{origin.port}"]
    for _ in range(5):
        with Raw(sidecar.outbound, source=source) as raw:
            assert raw.call("by-source").body == b"origin"


def test_explain_least_request_and_tcp(admin, origin):
    assert "fewer requests under way" in explain(admin, host="least")["steps"][-1]
    answer = explain(admin, listener="db")
    assert (answer["outcome"], answer["service"], answer["rule"]) == ("forward", "db", "listener db")
    assert answer["pick"] == f"127.0.0.1:{origin.port}"


def test_explain_inbound(admin, origin):
    answer = explain(admin, direction="inbound", host="svc-a")
    assert (answer["listener"]["name"], answer["pick"]) == ("inbound", f"127.0.0.1:{origin.port}")


@pytest.mark.parametrize(
    ("question", "status", "reason"),
    [
        ({"host": "nobody"}, 404, "nobody is not subscribed to"),
        ({"host": "nobody", "direction": "inbound"}, 404, "nobody is not published through this sidecar"),
        ({"host": "empty"}, 503, "empty has no endpoint"),
        ({}, 400, "no host"),
        ({"host": "svc-a", "headers": {"Content-Length": "1", "Transfer-Encoding": "chunked"}}, 400, "both content-"),
        ({"host": "svc-a", "headers": {"a b": "c"}}, 400, "bad character in a field name"),
        ({"host": "svc-a", "headers": {f"h{n}": "v" for n in range(300)}}, 431, "too many fields"),
        ({"host": "svc-a", "path": "/" + "a" * 70000}, 414, "too long"),
    ],
)
def test_explain_refusals_are_those_of_the_data_path(sidecar, admin, question, status, reason):
    answer = explain(admin, **question)
    assert (answer["outcome"], answer["status"]) == ("refuse", status)
    assert reason in answer["reason"]
    assert answer["pick"] is None
    # The same request, really sent.
    address = sidecar.inbound if question.get("direction") == "inbound" else sidecar.outbound
    lines = [f"GET {question.get('path', '/')} HTTP/1.1"]
    lines += [f"Host: {question['host']}"] if "host" in question else []
    lines += [f"{name}: {value}" for name, value in question.get("headers", {}).items()]
    with Raw(address) as raw:
        raw.send("".join(f"{line}\r\n" for line in [*lines, ""]).encode())
        assert raw.read_response().status == status


def test_explain_a_loop():
    with RegistryProcess() as registry, Sidecar({"registry": {"url": registry.url}}) as sidecar:
        admin, own = AdminClient(str(sidecar.admin_socket)), f"127.0.0.1:{sidecar.outbound_port}"
        registry.call("PUT", f"/v1/instances/round/{own}", {"lease": 60})
        sidecar.client.subscribe("round")
        answer = explain(admin, host="round")
        assert (answer["outcome"], answer["status"]) == ("refuse", 508)
        assert answer["reason"] == f"{own} is one of this sidecar's own listeners"
        (service,) = admin.get("/services")["services"]
        assert service["endpoints"][0]["loop"] is True
        assert call(sidecar.outbound, "round").status == 508
        assert sidecar.metrics()["fastside_loops_blocked_total"] == 1


def test_explain_a_capture(admin):
    capture = base64.b64encode(b"\r\nPOST /x HTTP/1.1\r\nHost: svc-a\r\nContent-Length: 3\r\n\r\nabc").decode()
    answer = explain(admin, capture=capture)
    assert answer["service"] == "svc-a"
    assert "POST /x is a sound HTTP/1.1 request" in answer["steps"]
    banner = base64.b64encode(b"SSH-2.0-client\r\n\r\n").decode()
    assert explain(admin, capture=banner)["outcome"] == "refuse"


HELLO, DEMO = "com.x.Hello:1.0", "com.x.Demo"
CALLS = {
    "bolt": (bolt_frames.request(7, HELLO), HELLO.lower()),
    "bolt v2": (bolt_frames.request(7, HELLO, version=2, crc=True), HELLO.lower()),
    "bolt without its content": (bolt_frames.request(7, HELLO, b"x" * 999)[:-999], HELLO.lower()),
    "dubbo": (dubbo_frames.request(7, DEMO, "1.0"), "com.x.demo:1.0"),
    "dubbo with a group that counts": (dubbo_frames.request(7, DEMO, "1.0", "blue"), "blue/com.x.demo:1.0"),
    "dubbo without a version": (dubbo_frames.request(7, DEMO, group="red"), "com.x.demo"),
    "tls": (sniff_corpus.client_hello("Svc-A.example"), "svc-a.example"),
    "opaque": (b"SSH-2.0-client\r\n", "db"),
}
"""First bytes of connections, and the services that they are for."""


@pytest.fixture(scope="module")
def speaking(origin: Origin) -> Iterator[Sidecar]:
    """With services of other protocols than HTTP, on one listener."""
    endpoints = [f"127.0.0.1:{origin.port}"]
    protocols = {HELLO: "bolt", "svc-a.example": "tls"}
    protocols |= {f"{group}{DEMO}{version}": "dubbo" for group, version in (("", ":1.0"), ("blue/", ":1.0"), ("", ""))}
    services = {name: {"protocol": protocol, "endpoints": endpoints} for name, protocol in protocols.items()}
    by_header = {"balance": "consistent_hash", "hash_by": "header:x"}
    services |= {"db": {"endpoints": endpoints}, "com.x.Empty:1.0": {"protocol": "bolt", "endpoints": ["127.0.0.1:1"]}}
    services[HELLO] |= by_header
    config = {"listeners": [{"name": "outbound", "service": "db"}], "services": services}
    with Sidecar(config) as running:
        running.client.publish(HELLO, origin.port, protocol="bolt")
        running.client.subscribe("com.x.None:1.0", protocol="bolt")
        running.client.subscribe("com.x.None", protocol="dubbo")
        yield running


def explain_bytes(sidecar: Sidecar, data: bytes, **question: Any) -> dict[str, Any]:
    admin = AdminClient(str(sidecar.admin_socket))
    return explain(admin, capture=base64.b64encode(data).decode(), **question)


@pytest.mark.parametrize(("data", "service"), CALLS.values(), ids=CALLS)
def test_explain_tells_protocols_apart(speaking: Sidecar, origin: Origin, data: bytes, service: str) -> None:
    answer = explain_bytes(speaking, data)
    assert (answer["outcome"], answer["service"]) == ("forward", service)
    assert answer["pick"] == f"127.0.0.1:{origin.port}"


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (bolt_frames.request(7, HELLO), ("bolt", "request", HELLO.lower(), None, "hi", None)),
        (CALLS["dubbo"][0], ("dubbo", "request", "com.x.demo:1.0", "1.0", "hi", None)),
        (CALLS["dubbo with a group that counts"][0], ("dubbo", "request", "blue/com.x.demo:1.0", "1.0", "hi", "blue")),
        (
            dubbo_corpus.call(service=DEMO, flags=dubbo_corpus.ONE_WAY, serialization=dubbo_corpus.FASTJSON2),
            ("dubbo", "one-way", "g/com.x.demo:1.0", "1.0", "hi", "g"),
        ),
        (CALLS["tls"][0], ("tls", None, "svc-a.example", None, None, None)),
        (CALLS["opaque"][0], ("tcp", None, "db", None, None, None)),
        (request_bytes(DEMO, "/"), ("http", "request", DEMO.lower(), None, "GET", None)),
    ],
)
def test_explain_has_one_shape_for_every_protocol(
    speaking: Sidecar, data: bytes, expected: tuple[str | None, ...]
) -> None:
    answer = explain_bytes(speaking, data)
    assert tuple(answer[name] for name in ("protocol", "kind", "service", "version", "method", "group")) == expected
    assert explain_bytes(speaking, data + b"more") == answer


def test_explain_finds_the_listener_by_the_first_bytes() -> None:
    frames = {"name": "frames", "direction": "outbound", "protocol": "bolt", "bind": f"127.0.0.1:{free_port()}"}
    with Sidecar({"listeners": [{"name": "outbound", "protocol": "http"}, frames]}) as sidecar:
        assert explain_bytes(sidecar, CALLS["bolt"][0])["listener"]["name"] == "frames"
        assert explain_bytes(sidecar, request_bytes("a", "/"))["listener"]["name"] == "outbound"
        with pytest.raises(AdminError, match="there is no listener for outbound Dubbo"):
            explain_bytes(sidecar, CALLS["dubbo"][0])


def test_explain_an_application_of_its_own(speaking: Sidecar) -> None:
    answer = explain_bytes(speaking, CALLS["bolt"][0], direction="inbound")
    assert "one application has all services of this protocol, and gets the connection as a whole" in answer["steps"]


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (bolt_frames.request(7, "com.x.Nobody:1.0"), bolt_frames.NO_PROCESSOR, "com.x.nobody:1.0 is not subscribed to"),
        (bolt_frames.request(7, "com.x.None:1.0"), bolt_frames.NO_PROCESSOR, "com.x.none:1.0 has no endpoint"),
        (bolt_frames.request(7, DEMO), bolt_frames.NO_PROCESSOR, "com.x.demo speaks dubbo, not bolt"),
        (dubbo_frames.request(7, HELLO), dubbo_frames.SERVICE_NOT_FOUND, "com.x.hello:1.0 speaks bolt, not dubbo"),
        (bolt_frames.request(7, ""), bolt_frames.NO_PROCESSOR, "the frame names no service that can be read"),
        (
            dubbo_corpus.frame(b"?", serialization=8),
            dubbo_frames.SERVICE_NOT_FOUND,
            "the frame names no service that can be read",
        ),
    ],
)
def test_explained_refusals_have_the_status_of_the_protocol(
    speaking: Sidecar, data: bytes, status: int, reason: str
) -> None:
    answer = explain_bytes(speaking, data)
    assert (answer["outcome"], answer["status"], answer["reason"]) == ("refuse", status, reason)
    with Raw(speaking.outbound) as raw:  # really sent
        raw.send(data)
        read = bolt_frames.read_frame if data[0] == 1 else dubbo_frames.read_frame
        assert read(raw).status == status


def test_explained_refusals_without_a_status(speaking: Sidecar) -> None:
    for data, reason in (
        (bolt_frames.request(7, "com.x.Nobody:1.0", kind=bolt_frames.ONEWAY), "is not subscribed to"),
        (sniff_corpus.client_hello("nobody"), "nobody is not subscribed to"),
        (sniff_corpus.client_hello(None), "names no server"),
        (sniff_corpus.records(sniff_corpus.message(b"\xff" * 100)), "not a well-formed ClientHello"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/2 is not carried"),
    ):
        answer = explain_bytes(speaking, data)
        assert (answer["outcome"], answer["status"]) == ("refuse", None)
        assert reason in answer["reason"]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "what it speaks; capture more"),
        (CALLS["bolt"][0][:40], "what routes the call does; capture more"),
        (CALLS["dubbo with a group that counts"][0][:-1], "the call's group does; capture more"),
        (CALLS["tls"][0][:40], "the ClientHello does; capture more"),
        (bolt_frames.HEARTBEAT, "a heartbeat, which is for no service; capture a call"),
    ],
)
def test_captures_that_say_too_little(speaking: Sidecar, data: bytes, error: str) -> None:
    with pytest.raises(AdminError, match=error):
        explain_bytes(speaking, data)


@pytest.mark.parametrize(
    ("question", "error"),
    [
        ({"capture": "?"}, "not base64"),
        ({"capture": base64.b64encode(b"GET / HTTP/1.1\r\nHo").decode()}, "capture more"),
        ({"listener": "none"}, "there is no listener called none; the listeners are inbound"),
        ({"direction": "sideways"}, "there is no listener for sideways HTTP"),
        ({"hots": "svc-a"}, "unknown field `hots`"),
        ({"host": "by-source", "source": "x"}, "not an IP address"),
    ],
)
def test_questions_that_cannot_be_answered(admin, question, error):
    with pytest.raises(AdminError, match=error):
        explain(admin, **question)


# Changing things


def test_a_reload_answers_when_it_is_in_force_and_passes_errors_on(sidecar, admin):
    sidecar.configure({"services": {"fixed": {"endpoints": ["127.0.0.1:9"]}}})
    answer = admin.post("/reload")
    assert any("services.fixed" in change for change in answer["changes"])
    assert call(sidecar.outbound, "fixed").status == 502
    good = sidecar.config_path.read_text()
    sidecar.config_path.write_text("{listeners: 5}")
    with pytest.raises(AdminError, match=r"fastside.yaml:1:\d+: listeners"):
        admin.post("/reload")
    sidecar.config_path.write_text(good)
    assert admin.get("/status")["state"] == "ready"


def test_drain_stops_the_sidecar():
    with Sidecar() as sidecar:
        assert AdminClient(str(sidecar.admin_socket)).post("/drain") == {"state": "draining"}
        assert sidecar.process
        assert sidecar.process.wait(20) == 0


def test_health_says_what_is_missing(tmp_path):
    def probe(name: str) -> tuple[int, str]:
        response = call(("127.0.0.1", sidecar.metrics_port), "health", f"/{name}")
        return response.status, response.body.decode()

    url = f"http://127.0.0.1:{free_port()}"  # of a registry that is not there
    sidecar = Sidecar({"registry": {"url": url}}, directory=tmp_path, wait_ready=False)
    (tmp_path / "state").mkdir()
    snapshot = '{"saved": 0, "subscriptions": [{"service": "svc-a", "protocol": "http"}]}'
    listener = {"name": "db", "direction": "outbound", "protocol": "tcp", "service": "db"}
    sidecar.configure({"listeners": [{**listener, "bind": f"127.0.0.1:{free_port()}"}]})
    (tmp_path / "state/snapshot.json").write_text(snapshot)
    with sidecar:
        wait_until(lambda: sidecar.health("livez") == 200)
        missing = f"registry {url} has not been heard about db, and no snapshot knows better\n"
        wait_until(lambda: probe("readyz") == (503, missing), what="only that is missing")
        assert probe("startupz") == (503, missing)
        assert probe("healthz") == (200, "ok\n")
        assert AdminClient(str(sidecar.admin_socket)).get("/status")["state"] == "starting"
        sidecar.config["registry"] = {}
        sidecar.configure({})
        sidecar.cli("reload")
        wait_until(lambda: probe("readyz") == (200, "ok\n"), what="the own registry knows")
        assert probe("startupz") == (200, "ok\n")
        for pid in sidecar.worker_pids():
            os.kill(pid, signal.SIGSTOP)  # asleep: it has nothing to do, and so is not hung
        assert probe("livez") == (200, "ok\n")
        for pid in sidecar.worker_pids():
            os.kill(pid, signal.SIGCONT)


def test_a_hung_worker_fails_the_liveness_probe(origin):
    """Stopped in the midst of its work, which looks like an endless loop from outside."""
    with Sidecar({"workers": 1, "services": {"svc-a": {"endpoints": [f"127.0.0.1:{origin.port}"]}}}) as sidecar:
        admin = AdminClient(str(sidecar.admin_socket))
        (pid,) = sidecar.worker_pids()

        def caught_awake() -> bool:
            os.kill(pid, signal.SIGSTOP)
            if not admin.get("/status")["workers"][0]["asleep"]:
                return True
            os.kill(pid, signal.SIGCONT)
            return False

        with Raw(sidecar.outbound) as raw:
            pipelined = request_bytes("nobody") * 50
            stopped = threading.Event()

            def work() -> None:
                while not stopped.is_set():
                    raw.send(pipelined)
                    for _ in range(50):
                        raw.read_response()

            thread = threading.Thread(target=work)
            thread.start()
            try:
                wait_until(caught_awake, what="the worker is stopped while it works")
                wait_until(lambda: sidecar.health("livez") == 503, what="that is noticed")
                response = call(("127.0.0.1", sidecar.metrics_port), "health", "/livez")
                assert response.body.startswith(b"worker 0 (pid %d) has made no progress for 1" % pid)
            finally:
                stopped.set()
                os.kill(pid, signal.SIGCONT)
                thread.join()
        wait_until(lambda: sidecar.health("livez") == 200)
