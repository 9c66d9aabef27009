"""Calls through both sidecars that fail: what the caller gets to see is the exception of its SDK."""

from __future__ import annotations

from harness import DEADLINE, wait_until
from pairs import Pair, only
from sdks import DUBBO_JAVA, SOFARPC_JAVA, SOFARPC_PYTHON

TIMEOUTS = 'fastside_timeouts_total{timeout="request"}'


def test_no_such_service(pair: Pair) -> None:
    pair.consumer.call(calls=5, name="nobody").assert_failed(pair.errors["no provider"], 5)
    pair.consumer.call(calls=5).assert_ok(5)


def test_no_endpoint(pair: Pair) -> None:
    pair.consumer.call().assert_ok(1)
    with pair.withdrawn():
        pair.consumer.call(calls=5).assert_failed(pair.errors["no provider"], 5)
    after = pair.consumer.begin()
    after.wait_ok()
    after.stop().assert_errors_like(pair.errors["no provider"])


def test_exception_of_the_provider(pair: Pair) -> None:
    pair.consumer.call("fail", calls=5).assert_failed(pair.errors["exception"], 5)
    pair.consumer.call(calls=5).assert_ok(5)


def test_timeout(pair: Pair) -> None:
    """The caller's own timeout counts, in the sidecar too, and what comes too late goes to nobody."""
    sidecar = pair.hosts.caller.sidecar
    before = sidecar.metrics().get(TIMEOUTS, 0)
    pair.consumer.call("hold", calls=10, callers=10, timeout=0.5).assert_failed(pair.errors["timeout"], 10)
    if pair.provider.sdk is not SOFARPC_PYTHON:  # its provider answers at the same moment
        wait_until(lambda: sidecar.metrics().get(TIMEOUTS, 0) == before + 10, what="the sidecar has ended the calls")
    others = pair.consumer.begin(callers=4, timeout=0.5)
    others.wait_ok()
    pair.provider.open_gate()
    pair.provider.wait_held(0)
    others.wait_ok(100)
    others.stop().assert_ok()


def test_provider_killed_in_mid_call(pair: Pair) -> None:
    run = pair.consumer.begin("hold", calls=10, callers=10, timeout=3 * DEADLINE)
    pair.provider.wait_held(10)
    pair.provider.kill()
    run.wait().assert_failed(pair.errors["lost"], 10)
    pair.provider.start()
    after = pair.consumer.begin()
    after.wait_ok()
    after.stop().assert_errors_like(pair.errors["lost"])


@only((SOFARPC_JAVA, SOFARPC_JAVA), (DUBBO_JAVA, DUBBO_JAVA))
def test_overload_of_the_provider(pair: Pair) -> None:
    """It executes one call and refuses the others at once; the caller hears it from the provider itself."""
    with pair.provider.restarted_with(threads=1, queue=0):
        held = pair.consumer.begin("hold", calls=10, callers=10)
        held.wait_in_flight(1)
        pair.provider.wait_held(1)
        pair.provider.open_gate()
        result = held.wait()
    assert result.ok == 1
    result.assert_errors_like(pair.errors["overload"])
