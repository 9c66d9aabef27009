"""Sidecars that stop and start again under load, with applications that know nothing of it."""

from __future__ import annotations

import pytest

from pairs import Pair

TIMEOUT = 5
"""Of every call, in seconds: some SDKs do not notice that a connection has ended, and wait so long for each answer."""


@pytest.mark.parametrize("side", ["caller", "provider"])
def test_calls_under_way_are_answered_before_a_sidecar_ends(pair: Pair, side: str) -> None:
    """It drains: no call that it has taken is lost. Afterwards publications and subscriptions are in force again."""
    sidecar = getattr(pair.hosts, side).sidecar
    held = pair.consumer.begin("hold", calls=10, callers=10, timeout=TIMEOUT)
    pair.provider.wait_held(10)
    with sidecar.stopping():
        pair.provider.open_gate()
        held.wait().assert_ok(10)
    sidecar.start()
    after = pair.consumer.begin(callers=4, timeout=TIMEOUT)
    after.wait_ok()
    after.stop().assert_errors_like(pair.errors["away"])


def test_restart_of_the_caller_s_sidecar_under_load(pair: Pair) -> None:
    """No caller loses more than the call that was on its way when the connection ended, where that can be told."""
    load = pair.consumer.begin(callers=8, timeout=TIMEOUT)
    load.wait_ok()
    pair.hosts.caller.sidecar.restart()
    load.wait_ok()
    result = load.stop()
    result.assert_errors_like(pair.errors["away"])
    if "cut" in pair.errors:
        assert result.failures_like(pair.errors["cut"]) <= 8, result


def test_restart_of_the_provider_s_sidecar_under_load(pair: Pair) -> None:
    """The caller's sidecar answers each call, as it knows no other provider meanwhile."""
    load = pair.consumer.begin(callers=8, timeout=TIMEOUT)
    load.wait_ok()
    pair.hosts.provider.sidecar.restart()
    load.wait_ok()
    load.stop().assert_errors_like(pair.errors["no provider"])


def test_drain_of_one_of_two_providers_loses_no_call(pair: Pair) -> None:
    with pair.provider_on(pair.hosts.caller):
        load = pair.consumer.begin(callers=8, timeout=TIMEOUT)
        load.wait_ok()
        pair.hosts.provider.sidecar.stop()
        load.wait_ok()
        pair.hosts.provider.sidecar.start()
        load.wait_ok()
        load.stop().assert_ok()


def test_killed_sidecars_come_back(pair: Pair) -> None:
    """Also after SIGKILL it is all there: clients say only once what they publish and subscribe to."""
    pair.consumer.call(timeout=TIMEOUT).assert_ok(1)
    sidecars = pair.hosts.caller.sidecar, pair.hosts.provider.sidecar
    for sidecar in sidecars:
        sidecar.kill_everything()
    for sidecar in sidecars:
        sidecar.start()
    after = pair.consumer.begin(callers=4, timeout=TIMEOUT)
    after.wait_ok()
    after.stop().assert_errors_like(pair.errors["away"])
