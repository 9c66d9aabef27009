"""MOSN's dubbod API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from fastside.takeover.dubbod import Service
from harness import Origin, Sidecar, call, free_port

REGISTRY = {"type": "zookeeper", "addr": "127.0.0.1:2181", "username": "", "password": ""}


class Dubbod(Sidecar):
    def __init__(self) -> None:
        super().__init__()
        self.dubbod_port, self.app_port = free_port(), free_port()
        self.configure({"dubbod": {"api": f"127.0.0.1:{self.dubbod_port}", "app_port": self.app_port}})

    def post(self, path: str, **service: Any) -> Any:
        body = json.dumps({"registry": REGISTRY, "service": {"methods": ["hello"], "group": "", **service}})
        headers = [("Content-Type", "application/json")]
        response = call(("127.0.0.1", self.dubbod_port), "127.0.0.1", path, "POST", headers, body.encode())
        assert response.status == 200
        return response.json()


@pytest.fixture(scope="module")
def dubbod() -> Iterator[Dubbod]:
    with Dubbod() as running:
        yield running


def test_the_life_of_an_application(dubbod: Dubbod) -> None:
    """Every request comes twice; the answers are the same."""
    demo = {"interface": "com.x.Demo", "version": "1.0"}
    with Origin(port=dubbod.app_port):
        for _ in range(2):
            assert dubbod.post("/pub", **demo) == {"err_no": 0, "err_msg": "publish success"}
            assert dubbod.post("/sub", **demo) == {"err_no": 0, "err_msg": "subscribe success"}
        services = dubbod.client.services()
        (publication,), (subscription,) = services["published"], services["subscribed"]
        assert (publication["name"], publication["protocol"]) == ("com.x.Demo:1.0", "dubbo")
        assert (publication["port"], publication["owner"]) == (dubbod.app_port, "up")
        assert publication["published"] == f"127.0.0.1:{dubbod.inbound_port}"
        assert subscription == {
            "service": "com.x.demo:1.0",
            "name": "com.x.Demo:1.0",
            "address": f"127.0.0.1:{dubbod.outbound_port}",
            "endpoints": [f"127.0.0.1:{dubbod.inbound_port}"],
            "state": "fresh",
        }
        for _ in range(2):
            assert dubbod.post("/unsub", **demo) == {"err_no": 0, "err_msg": "unsubscribe success"}
            assert dubbod.post("/unpub", **demo) == {"err_no": 0, "err_msg": "unpub success"}
    assert dubbod.client.services() == {"published": [], "subscribed": []}


@pytest.mark.parametrize(
    ("version", "group", "name"),
    [
        (None, None, "com.x.Demo"),
        ("", "", "com.x.Demo"),
        ("0.0.0", None, "com.x.Demo"),
        ("1.0.0", None, "com.x.Demo:1.0.0"),
        ("", "blue", "blue/com.x.Demo"),
        ("2.0", "blue", "blue/com.x.Demo:2.0"),
    ],
)
def test_names(version: str | None, group: str | None, name: str) -> None:
    assert Service(interface="com.x.Demo", version=version, group=group).name == name


def test_what_cannot_be_done_is_said(dubbod: Dubbod) -> None:
    assert dubbod.post("/pub", interface="a b") == {
        "err_no": 1,
        "err_msg": "service: `a b` is not a service name; use 1 to 255 of a-z 0-9 . _ : @ / $ -",
    }
    answer = dubbod.post("/sub", interface=None)
    assert (answer["err_no"], "`$.service.interface`" in answer["err_msg"]) == (1, True)
    assert dubbod.client.services() == {"published": [], "subscribed": []}
