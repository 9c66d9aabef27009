"""Metrics of a running sidecar, read back by Prometheus' own parsers."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from fastside import __version__, _core
from fastside.metrics import CODE_CLASSES, COUNTERS, GAUGES, _buckets
from harness import Origin, Raw, Sidecar, call, wait_until


@pytest.fixture(scope="module")
def origin() -> Iterator[Origin]:
    with Origin() as running:
        yield running


@pytest.fixture(scope="module")
def sidecar(origin: Origin) -> Iterator[Sidecar]:
    with Sidecar({"workers": 1}) as running:
        running.client.publish("svc-a", origin.port)
        running.client.subscribe("svc-a")
        yield running


def exposition(sidecar: Sidecar, accept: str = "") -> tuple[str, str]:
    """Content type and text."""
    headers = [("Accept", accept)] if accept else []
    response = call(("127.0.0.1", sidecar.metrics_port), "metrics", "/metrics", headers=headers)
    assert response.status == 200
    return response.header("content-type") or "", response.body.decode()


def test_calls_are_counted_by_service_and_outcome(sidecar):
    before = sidecar.metrics()
    for target in ("/", "/bytes/1000", "/status/404", "/status/503", "/close"):
        call(sidecar.outbound, "svc-a", target)
    call(sidecar.outbound, "unknown-service")
    call(sidecar.outbound, "svc-a", headers=[("Transfer-Encoding", "chunked"), ("Content-Length", "1")])
    after = sidecar.metrics()

    def grown(name: str) -> float:
        return after[name] - before[name]

    for direction in ("outbound", "inbound"):
        labels = f'direction="{direction}",service="svc-a"'
        classes = {one: grown(f'fastside_requests_total{{code_class="{one}",{labels}}}') for one in CODE_CLASSES}
        # The refused one, and the one for an unknown service, are nobody's.
        assert classes == {"none": 0, "1xx": 0, "2xx": 2, "3xx": 0, "4xx": 1, "5xx": 2}
        assert grown(f"fastside_request_duration_seconds_count{{{labels}}}") == 5
        assert grown(f'fastside_bytes_total{{{labels},way="sent"}}') >= 1000
    other = 'code_class="4xx",direction="any",service="other"'
    assert grown(f"fastside_requests_total{{{other}}}") == 2
    assert grown("fastside_route_misses_total") == 1
    reason = "both content-length and transfer-encoding"
    assert grown(f'fastside_parse_rejects_total{{reason="{reason}"}}') == 1
    assert grown("fastside_connections_total") >= 7 + 1


def test_upstream_connections_are_reused(sidecar):
    before = sidecar.metrics()
    with Raw(sidecar.outbound) as raw:
        for _ in range(50):
            assert raw.call("svc-a").status == 200
    after = sidecar.metrics()
    reuses = after["fastside_upstream_reuses_total"] - before["fastside_upstream_reuses_total"]
    assert reuses >= 98  # of both sides
    assert 0.5 < after["fastside_upstream_reuse_ratio"] <= 1


@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [
        ("", "text/plain", parse_text),
        ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text", parse_openmetrics),
    ],
)
def test_prometheus_reads_it(sidecar, accept, content_type, parse):
    got, text = exposition(sidecar, accept)
    assert got.startswith(content_type)
    families = {family.name: family for family in parse(text)}
    assert all(name.startswith("fastside_") and family.documentation for name, family in families.items())
    assert families["fastside_request_duration_seconds"].type == "histogram"
    samples = [sample for family in families.values() for sample in family.samples]
    assert [one.labels["version"] for one in samples if one.name == "fastside_build_info"] == [__version__]
    keys = [(sample.name, tuple(sorted(sample.labels.items()))) for sample in samples]
    assert len(keys) == len(set(keys))


def test_the_workers_are_not_asked(sidecar):
    """A stopped worker changes nothing about a scrape."""
    (pid,) = sidecar.worker_pids()
    os.kill(pid, signal.SIGSTOP)
    try:
        assert sidecar.metrics()['fastside_worker_up{worker="0"}'] == 1
    finally:
        os.kill(pid, signal.SIGCONT)


def test_counters_survive_a_worker(sidecar):
    before = sidecar.metrics()
    (pid,) = sidecar.worker_pids()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: sidecar.worker_pids() not in ([], [pid]), what="another worker")
    wait_until(lambda: call(sidecar.outbound, "svc-a").status == 200)
    after = sidecar.metrics()
    assert after['fastside_worker_restarts_total{worker="0"}'] == 1
    labels = 'code_class="2xx",direction="outbound",service="svc-a"'
    assert after[f"fastside_requests_total{{{labels}}}"] > before[f"fastside_requests_total{{{labels}}}"]


def test_the_number_of_series_is_bounded(origin):
    with Sidecar({"limits": {"service_series": 3}}) as sidecar:
        for number in range(6):
            sidecar.client.subscribe(f"svc-{number}")
        sidecar.client.publish("svc-5", origin.port)
        assert call(sidecar.outbound, "svc-5").status == 200
        services = {
            sample.labels["service"]
            for family in parse_text(exposition(sidecar)[1])
            for sample in family.samples
            if family.name == "fastside_requests"
        }
        assert services == {"svc-0", "svc-1", "svc-2", "other"}
        assert sidecar.metrics()["fastside_services_without_series"] == 4
        assert sidecar.metrics()['fastside_requests_total{code_class="2xx",direction="any",service="other"}'] == 2


def test_every_counter_of_the_workers_has_a_metric():
    by_prefix = ("close_", "timeout_", "bytes_")
    shown = (
        COUNTERS.keys() | GAUGES.keys() | {"downstreams", "upstreams", "taken_over"}
    )  # taken_over mirrors handed_over
    missing = [name for name in (*_core.COUNTER_NAMES, *_core.GAUGE_NAMES) if name not in shown]
    assert [name for name in missing if not name.startswith(by_prefix)] == []


def test_buckets_hold_what_is_below_them():
    bounds = _core.histogram_bounds()
    counts = [1] * len(bounds)
    buckets = _buckets(bounds, counts)
    edges = [float(edge) for edge, _ in buckets]
    assert edges[0] == 64e-6
    assert math.isinf(edges[-1])
    for edge, count in buckets[:-1]:
        assert count == sum(bound <= round(float(edge) * 1e6) for bound in bounds)
    assert buckets[-1][1] == len(bounds)
