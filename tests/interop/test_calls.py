"""Calls through both sidecars that succeed: many, large ones, on one connection."""

from __future__ import annotations

from pairs import Pair


def test_calls(pair: Pair) -> None:
    pair.consumer.call(calls=1000, callers=8).assert_ok(1000)
    pair.consumer.call(calls=10, size=100_000).assert_ok(10)


def test_several_services_on_one_connection(pair: Pair) -> None:
    runs = [pair.consumer.begin(calls=200, callers=2, name=name) for name in (None, "named")]
    for run in runs:
        run.wait().assert_ok(200)


def test_ten_thousand_calls_at_once_on_one_connection(pair: Pair) -> None:
    pair.consumer.call().assert_ok(1)
    connections = pair.consumer_connections()
    run = pair.consumer.begin("hold", calls=10_000, callers=10_000)
    run.wait_in_flight(10_000)
    pair.provider.open_gate()
    run.wait().assert_ok(10_000)
    assert pair.consumer_connections() == connections


def test_large_calls_and_others_on_the_same_connection(pair: Pair) -> None:
    others = pair.consumer.begin(callers=4)
    large = pair.consumer.begin(calls=4, callers=2, size=pair.payload)
    while not large.look().done:
        others.wait_finished(1)
    large.wait().assert_ok(4)
    others.wait_ok(1)
    others.stop().assert_ok()
