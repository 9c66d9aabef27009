"""What is Dubbo's own: versions, groups and serializations."""

from __future__ import annotations

import pytest

from harness import wait_until
from pairs import Pair, only
from sdks import DUBBO_JAVA, DUBBO_NODE


@only((DUBBO_JAVA, DUBBO_JAVA), (DUBBO_NODE, DUBBO_JAVA))
@pytest.mark.parametrize("version", [None, "2.0.0"])
@pytest.mark.parametrize("group", [None, "named"])
def test_version_and_group(pair: Pair, version: str | None, group: str | None) -> None:
    pair.consumer.call(calls=20, version=version, name=group).assert_ok(20)


@only((DUBBO_JAVA, DUBBO_JAVA))
@pytest.mark.parametrize("serialization", ["hessian2", "fastjson2"])
@pytest.mark.parametrize("size", [16, 100_000])
def test_serialization(pair: Pair, serialization: str, size: int) -> None:
    pair.consumer.call(calls=20, version="2.0.0", name="named", serialization=serialization, size=size).assert_ok(20)


@only((DUBBO_JAVA, DUBBO_JAVA), (DUBBO_NODE, DUBBO_JAVA))
def test_no_such_version(pair: Pair) -> None:
    pair.consumer.call(calls=5, version="3.0.0").assert_failed(pair.errors["no provider"], 5)


@only((DUBBO_JAVA, DUBBO_JAVA))
def test_error_in_the_caller_s_serialization(pair: Pair) -> None:
    result = pair.consumer.call(version="3.0.0", serialization="fastjson2")
    result.assert_failed(pair.errors["no provider"], 1)


@only((DUBBO_JAVA, DUBBO_JAVA), (DUBBO_NODE, DUBBO_JAVA))
def test_dubbod(pair: Pair) -> None:
    """What is published and subscribed by MOSN's API works like the rest."""
    service = "interop.Echo"
    caller, provider = pair.hosts.caller, pair.hosts.provider
    with pair.withdrawn():
        caller.unsubscribe(service)
        assert provider.dubbod("pub", service)["err_no"] == 0
        assert caller.dubbod("sub", service)["err_no"] == 0
        wait_until(lambda: provider.inbound in pair.hosts.endpoints(service), what="it is published")
        calls = pair.consumer.begin()
        calls.wait_ok()
        calls.stop().assert_errors_like(pair.errors["no provider"])
        assert caller.dubbod("unsub", service)["err_no"] == 0
        pair.consumer.call().assert_failed(pair.errors["no provider"], 1)
        assert provider.dubbod("unpub", service)["err_no"] == 0
        wait_until(lambda: provider.inbound not in pair.hosts.endpoints(service), what="it is withdrawn")
        caller.subscribe(service, "dubbo")
