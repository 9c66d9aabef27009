"""The command line against a running sidecar."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness import Origin, Raw, Sidecar, call, free_port, request_bytes, wait_until


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as running:
        yield running


@pytest.fixture(scope="module")
def sidecar(origin: Origin) -> Iterator[Sidecar]:
    """A sidecar through which svc-a is published and subscribed to."""
    with Sidecar() as running:
        running.cli("publish", "svc-a", "--port", str(origin.port))
        running.cli("subscribe", "svc-a")
        yield running


def as_json(sidecar: Sidecar, *arguments: str) -> Any:
    return json.loads(sidecar.cli(*arguments, "-o", "json").stdout)


def test_the_readme_by_hand(sidecar: Sidecar, origin: Origin) -> None:
    published = sidecar.cli("publish", "By-Hand", "--port", str(origin.port))
    assert published.stdout == f"by-hand is published as 127.0.0.1:{sidecar.inbound_port}\n"
    subscribed = sidecar.cli("subscribe", "by-hand")
    assert subscribed.stdout == f"127.0.0.1:{sidecar.outbound_port}\n"
    assert subscribed.stderr == f"by-hand: 127.0.0.1:{sidecar.inbound_port} (fresh)\n"
    assert call(sidecar.outbound, "by-hand").body == b"origin"
    sidecar.cli("unsubscribe", "by-hand")
    assert call(sidecar.outbound, "by-hand").status == 404
    sidecar.cli("unpublish", "by-hand", "--port", str(origin.port))
    assert call(sidecar.inbound, "by-hand").status == 404


def test_publishing_what_does_not_run_yet_says_so(sidecar: Sidecar) -> None:
    port = free_port()
    result = sidecar.cli("publish", "svc-late", "--port", str(port))
    assert result.stderr == f"port {port} does not answer yet; the registry hears of it when it does\n"
    answer = as_json(sidecar, "publish", "svc-late", "--port", str(port), "--lease", "600")
    assert (answer["lease"], answer["port"]) == (600, port)
    sidecar.cli("unpublish", "svc-late", "--port", str(port))


def test_a_refusal_says_why_and_what_to_do(sidecar: Sidecar) -> None:
    result = sidecar.cli("publish", "svc-b", "--port", str(sidecar.inbound_port), check=False)
    assert result.returncode == 1
    assert "loop" in result.stderr
    result = sidecar.cli("unpublish", "svc-unknown", "--port", "1", check=False)
    assert result.returncode == 1
    assert result.stderr.startswith("fastside: ")
    assert "svc-unknown" in result.stderr


def test_status(sidecar: Sidecar) -> None:
    lines = sidecar.cli("status").stdout.splitlines()
    fields = dict(line.split(None, 1) for line in lines[: lines.index("")])
    assert fields["state"] == "ready"
    assert fields["master"] == f"pid {sidecar.pid}, running"
    assert fields["configuration"] == str(sidecar.config_path)
    workers = lines[lines.index("") + 1 :]
    assert workers[0].split() == ["worker", "pid", "state", "connections", "table", "version", "restarts"]
    assert [int(row.split()[1]) for row in workers[1:]] == sidecar.worker_pids()
    assert as_json(sidecar, "status")["state"] == "ready"


def test_services(sidecar: Sidecar, origin: Origin) -> None:
    rows = [line.split() for line in sidecar.cli("services", "SVC-A").stdout.splitlines()]
    inbound = ["inbound", "svc-a", "http", "least_request", f"127.0.0.1:{origin.port}", "1", "up", "0", "-"]
    outbound = ["outbound", "svc-a", "http", "round_robin", f"127.0.0.1:{sidecar.inbound_port}", "1", "fresh", "0", "-"]
    assert rows[1:] == [inbound, outbound]
    assert sidecar.cli("services", "svc-none").stdout.count("\n") == 1
    sidecar.cli("subscribe", "svc-empty")
    row = sidecar.cli("services", "svc-empty").stdout.splitlines()[1]
    assert row.endswith("no endpoint")
    sidecar.cli("unsubscribe", "svc-empty")


def test_services_are_shown_as_they_are_spelled(sidecar: Sidecar, origin: Origin) -> None:
    name, port = "com.x.Hello:1.0", str(origin.port)
    assert (
        f"{name.lower()} is published as" in sidecar.cli("publish", name, "--port", port, "--protocol", "bolt").stdout
    )
    assert sidecar.cli("subscribe", name, "--protocol", "bolt").stdout == f"127.0.0.1:{sidecar.outbound_port}\n"
    rows = [line.split()[:3] for line in sidecar.cli("services", name.upper()).stdout.splitlines()[1:]]
    assert rows == [["inbound", name, "bolt"], ["outbound", name, "bolt"]]
    sidecar.cli("unpublish", name.lower(), "--port", port)
    sidecar.cli("unsubscribe", name.lower())


def test_conns(sidecar: Sidecar) -> None:
    with Raw(sidecar.outbound) as raw:
        assert raw.call("svc-a").status == 200
        address = "{}:{}".format(*raw.socket.getsockname())
        rows = [line for line in sidecar.cli("conns").stdout.splitlines() if address in line]
        assert len(rows) == 1
        assert rows[0].split()[2:6] == ["outbound", "http", "downstream", "idle"]
        limited = sidecar.cli("conns", "--limit", "1").stdout.splitlines()
        assert len(limited) == 3
        assert limited[2].endswith("more; see --limit")
        assert len(as_json(sidecar, "conns", "--limit", "1")["connections"]) == 1


def test_explain(sidecar: Sidecar) -> None:
    output = sidecar.cli("explain", "--host", "svc-a", "--method", "POST", "--path", "/x", "--header", "a: b").stdout
    lines = output.splitlines()
    assert lines[0] == f"comes to listener outbound (outbound, 127.0.0.1:{sidecar.outbound_port})"
    assert lines[1] == "  POST /x is a sound HTTP/1.1 request"
    assert f"forwarded to 127.0.0.1:{sidecar.inbound_port}" in lines
    assert lines[-1].split() == [f"127.0.0.1:{sidecar.inbound_port}", "1", "0", "yes", "-"]


def test_explain_ends_with_1_for_what_is_refused(sidecar: Sidecar) -> None:
    result = sidecar.cli("explain", "--host", "svc-none", check=False)
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == "refused with status 404: svc-none is not subscribed to"
    result = sidecar.cli("explain", "--host", "svc-a", "--header", "Content-Length: 1x", "-o", "json", check=False)
    assert result.returncode == 1
    assert json.loads(result.stdout)["reason"] == "bad content-length"


def test_explain_of_a_capture(sidecar: Sidecar, origin: Origin, tmp_path: Path) -> None:
    capture = tmp_path / "capture"
    capture.write_bytes(request_bytes("svc-a", "/captured"))
    output = sidecar.cli("explain", "--capture", str(capture), "--direction", "inbound").stdout
    assert "  GET /captured is a sound HTTP/1.1 request" in output.splitlines()
    assert f"forwarded to 127.0.0.1:{origin.port}" in output.splitlines()
    capture.write_bytes(b"GET / HT")
    result = sidecar.cli("explain", "--capture", str(capture), check=False)
    assert result.returncode == 1
    assert result.stderr == "fastside: the capture ends before the request head does; capture more\n"


def test_wrong_header_for_explain(sidecar: Sidecar) -> None:
    result = sidecar.cli("explain", "--header", "nocolon", check=False)
    assert result.returncode == 2
    assert "`nocolon` has no colon" in result.stderr


def test_reload_tells_what_changed(sidecar: Sidecar) -> None:
    assert sidecar.cli("reload").stdout == "nothing has changed\n"
    sidecar.configure({"timeouts": {"connect": "2s"}})
    assert sidecar.cli("reload").stdout == "timeouts.connect: 1 -> 2\n"
    sidecar.configure({"timeouts": {"connect": "2 hours"}})
    result = sidecar.cli("reload", check=False)
    assert result.returncode == 1
    assert "`2 hours` is not a duration" in result.stderr
    sidecar.configure({"timeouts": {"connect": "1s"}})
    assert as_json(sidecar, "reload")["changes"] == ["timeouts.connect: 2 -> 1"]


def test_wait(sidecar: Sidecar) -> None:
    sidecar.cli("wait", "--ready", "--timeout", "5", "-c", str(sidecar.config_path))


def test_drain_stops_the_sidecar() -> None:
    with Sidecar() as sidecar:
        assert sidecar.process
        sidecar.cli("drain")
        wait_until(lambda: sidecar.process and sidecar.process.poll() is not None, what="the sidecar has ended")
        assert sidecar.process.returncode == 0
        result = sidecar.cli("status", check=False)
        assert result.returncode == 3
