"""The applications alone, without a sidecar: what the other tests take for granted about each SDK."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import free_port
from pairs import PAIRS, pair_id
from sdks import App, consumer, provider


@pytest.fixture(params=PAIRS, ids=pair_id)
def direct(logs: Path, request: pytest.FixtureRequest) -> Iterator[tuple[App, App]]:
    """A consumer and a provider that call each other without anything between them."""
    consumer_sdk, provider_sdk = request.param
    port = free_port()
    with (
        provider(provider_sdk, None, logs, port=port) as providing,
        consumer(consumer_sdk, None, logs, address=f"127.0.0.1:{port}") as consuming,
    ):
        yield consuming, providing


def test_direct_calls(direct: tuple[App, App]) -> None:
    consuming, providing = direct
    errors = consuming.sdk.errors
    consuming.call(calls=500, callers=5).assert_ok(500)
    consuming.call(name="named").assert_ok(1)
    consuming.call("fail").assert_failed(errors["exception"])
    consuming.call("hold", timeout=0.3).assert_failed(errors["timeout"])
    held = consuming.begin("hold", calls=1000, callers=1000)
    held.wait_in_flight(1000)
    providing.open_gate()
    held.wait().assert_ok(1000)
    consuming.call(size=consuming.sdk.payload).assert_ok(1)
