"""Prometheus metrics, read from shared memory when they are asked for. The workers take no part in a scrape.

Counters are per worker slot and survive the worker's replacement. Only services with a statistics slot of their own
have series (limits.service_series); the others are summed as service "other".
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client import Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from fastside import __version__, _core
from fastside.registry.view import State

if TYPE_CHECKING:
    from fastside.control import Control

CODE_CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")
"""none: no response could be given."""
SHORTEST_US, LONGEST_US = 64, 1 << 25
"""The buckets' upper bounds are the powers of two between these, in microseconds."""

COUNTERS = {
    "accepted": ("connections", "Downstream connections accepted"),
    "handed_over": ("connections_handed_over", "Downstream connections given to a less loaded worker"),
    "requests": ("requests_received", "Requests of which the head came"),
    "upstream_connects": ("upstream_connects", "Connections opened to endpoints"),
    "upstream_reuses": ("upstream_reuses", "Requests sent on a connection that was open already"),
    "upstream_connect_failures": ("upstream_connect_failures", "Connections to endpoints that failed"),
    "upstream_stale": ("upstream_stale", "Idle connections that the server closed"),
    "retries": ("retries", "Tries on another endpoint"),
    "route_misses": ("route_misses", "Requests and connections for a service that is not known"),
    "no_endpoints": ("no_endpoints", "Requests and connections for a service without endpoints"),
    "loops": ("loops_blocked", "Requests and connections that would have come back to this sidecar"),
    "buffer_waits": ("buffer_waits", "Times that a connection waited for buffer memory"),
    "accept_pauses": ("accept_pauses", "Times that accepting paused for want of connections or descriptors"),
    "heartbeats": ("heartbeats_answered", "Heartbeats that the sidecar answered itself"),
    "overloads": ("overloads", "Calls refused because a connection or the table of calls was full"),
    "late_responses": ("late_responses", "Responses to calls whose caller had gone or got a timeout"),
    "batches": ("batches", "Sends of multiplexed connections, each of all frames that were ready"),
}
GAUGES = {
    "pooled": ("upstream_pooled", "Idle connections to endpoints"),
    "buffers": ("buffers", "Buffers in use"),
    "pipes": ("pipes", "Pipes in use"),
    "calls": ("calls_active", "Calls under way on multiplexed connections"),
}


class Metrics:
    """The metrics of a control process: the shared memory's, and what control knows."""

    def __init__(self, control: Control) -> None:
        self.push_to_apply = Histogram(
            "fastside_registry_push_to_apply_seconds",
            "From the word of a registry or an application to its effect on calls",
            registry=None,
            buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self._control = control

    async def serve(self, request: web.Request) -> web.Response:
        """The exposition format that the client prefers."""
        said = await self._control.master_status()
        restarts = {one["slot"]: one["restarts"] for one in said["workers"]} if said else {}
        families = Families([*self.push_to_apply.collect(), *self.collect(restarts)])
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # Thousands of series take a while to write down; the loop has other things to do meanwhile.
        body = await asyncio.to_thread(encode, families)
        return web.Response(body=body, headers={"Content-Type": content_type})

    def collect(self, restarts: dict[int, int]) -> Iterator[Metric]:
        """All families at the moment. restarts: by worker slot, as the master says."""
        info = InfoMetricFamily("fastside_build", "What runs here")
        info.add_metric((), {"version": __version__, "python": platform.python_version()})
        yield info
        yield from self._services()
        yield from self._connections()
        yield from self._workers(restarts)
        yield from self._table()
        yield from self._registry_state()

    def _services(self) -> Iterator[Metric]:
        labels = ("direction", "service")
        requests = CounterMetricFamily("fastside_requests", "Requests ended", labels=(*labels, "code_class"))
        duration = HistogramMetricFamily(
            "fastside_request_duration_seconds", "From a request's head to the end of its response", labels=labels
        )
        moved = CounterMetricFamily("fastside_bytes", "Bytes of bodies and streams", labels=(*labels, "way"))
        statuses = CounterMetricFamily(
            "fastside_call_statuses",
            "Calls ended on multiplexed connections, by the protocol's status",
            labels=(*labels, "protocol", "status"),
        )
        bounds = _core.histogram_bounds()
        all_stats = _core.service_stats(self._control.table)
        for stats in all_stats:
            key = (stats["direction"] or "any", stats["service"])
            for code_class, count in zip(CODE_CLASSES, stats["responses"], strict=True):
                requests.add_metric((*key, code_class), count)
            for status, count in stats["statuses"].items():
                statuses.add_metric((*key, stats["protocol"], status), count)
            duration.add_metric(key, _buckets(bounds, stats["histogram"]), stats["duration_us"] / 1e6)
            moved.add_metric((*key, "received"), stats["bytes_received"])
            moved.add_metric((*key, "sent"), stats["bytes_sent"])
        yield from (requests, statuses, duration, moved)
        yield GaugeMetricFamily(
            "fastside_services_without_series",
            "Services that are counted as other; see limits.service_series",
            value=self._control.table.memory()["services"] - (len(all_stats) - 1),
        )

    def _connections(self) -> Iterator[Metric]:
        counters = _core.counters(self._control.table)
        for name, (metric, text) in COUNTERS.items():
            yield CounterMetricFamily(f"fastside_{metric}", text, value=counters[name])
        for name, (metric, text) in GAUGES.items():
            yield GaugeMetricFamily(f"fastside_{metric}", text, value=counters[name])
        active = GaugeMetricFamily("fastside_connections_active", "Open connections", labels=("side",))
        active.add_metric(("downstream",), counters["downstreams"])
        active.add_metric(("upstream",), counters["upstreams"])
        yield active
        yield _by_label(
            "fastside_connection_closes", "Downstream connections by what ended them", "cause", "close_", counters
        )
        yield _by_label("fastside_timeouts", "Timeouts that came", "timeout", "timeout_", counters)
        yield _by_label("fastside_relayed_bytes", "Bytes moved, by the way they took", "way", "bytes_", counters)
        rejects = CounterMetricFamily(
            "fastside_parse_rejects", "Messages refused by the HTTP parser", labels=("reason",)
        )
        for reason, count in counters["rejects"].items():
            rejects.add_metric((reason,), count)
        yield rejects
        refused = CounterMetricFamily(
            "fastside_frames_refused", "Frames of Bolt and Dubbo that could not be read", labels=("reason",)
        )
        for reason, count in counters["frame_rejects"].items():
            refused.add_metric((reason,), count)
        yield refused
        tries = counters["upstream_reuses"] + counters["upstream_connects"]
        yield GaugeMetricFamily(
            "fastside_upstream_reuse_ratio",
            "Part of the upstream connections taken that were open already",
            value=counters["upstream_reuses"] / tries if tries else 0.0,
        )

    def _workers(self, restarts: dict[int, int]) -> Iterator[Metric]:
        table = self._control.table
        up = GaugeMetricFamily("fastside_worker_up", "1 = serving", labels=("worker",))
        applied = GaugeMetricFamily("fastside_worker_applied_version", "Table version in use", labels=("worker",))
        open_now = GaugeMetricFamily("fastside_worker_connections", "Downstream connections", labels=("worker",))
        replaced = CounterMetricFamily("fastside_worker_restarts", "Workers that were replaced", labels=("worker",))
        for slot in range(table.workers):
            worker = table.worker(slot)
            up.add_metric((str(slot),), worker["state"] == "ready")
            applied.add_metric((str(slot),), worker["applied_version"])
            open_now.add_metric((str(slot),), worker["connections"])
            if slot in restarts:
                replaced.add_metric((str(slot),), restarts[slot])
        yield from (up, applied, open_now, replaced)
        connected = self._control.link.connected
        yield GaugeMetricFamily("fastside_master_up", "0 = the master process is gone", value=connected)

    def _table(self) -> Iterator[Metric]:
        table, desired = self._control.table, self._control.desired
        memory = table.memory()
        yield GaugeMetricFamily("fastside_table_version", "Of the routing table", value=table.version)
        yield GaugeMetricFamily(
            "fastside_table_applied_timestamp_seconds", "Of the last change", value=table.applied_ns / 1e9
        )
        yield GaugeMetricFamily("fastside_table_services", "In the routing table", value=memory["services"])
        yield GaugeMetricFamily("fastside_table_endpoints", "In the routing table", value=memory["endpoints"])
        yield GaugeMetricFamily("fastside_table_bytes", "Resident memory", value=memory["table_resident"])
        yield GaugeMetricFamily("fastside_table_refused", "Records that do not fit", value=len(desired.refused))
        alarms = GaugeMetricFamily("fastside_alarm", "1 = on", labels=("alarm",))
        for name in self._control.alarms.on:
            alarms.add_metric((name,), 1)
        yield alarms
        yield CounterMetricFamily("fastside_alarms_raised", "Alarms so far", value=self._control.alarms.raised)

    def _registry_state(self) -> Iterator[Metric]:
        status = self._control.registry.status
        yield GaugeMetricFamily("fastside_registry_connected", "1 = reached", value=status.connected)
        yield GaugeMetricFamily(
            "fastside_registry_state_age_seconds", "Since it was reached or lost", value=status.age()
        )
        yield CounterMetricFamily("fastside_registry_reconnects", "Times lost", value=status.reconnects)
        yield CounterMetricFamily(
            "fastside_registry_rejected_records", "Records left out as unusable", value=status.rejected_records
        )
        endpoints = GaugeMetricFamily("fastside_registry_endpoints", "Endpoints in use by state", labels=("state",))
        counts = dict.fromkeys((State.FRESH, State.STALE, State.PROTECTED), 0)
        for subscription in self._control.subscriptions:
            for known in subscription.view.endpoints:
                counts[known.state] += 1
        for state, count in counts.items():
            endpoints.add_metric((state,), count)
        yield endpoints


class Families(Collector):
    """Families that were collected already."""

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _by_label(name: str, text: str, label: str, prefix: str, counters: dict[str, Any]) -> CounterMetricFamily:
    """One family of the counters whose names begin alike."""
    family = CounterMetricFamily(name, text, labels=(label,))
    for counter, value in counters.items():
        if counter.startswith(prefix):
            family.add_metric((counter.removeprefix(prefix),), value)
    return family


def _buckets(bounds: list[int], counts: list[int]) -> list[tuple[str, float]]:
    """Cumulative counts at each power of two, from the finer ones of shared memory."""
    buckets: list[tuple[str, float]] = []
    total, edge = 0, SHORTEST_US
    for bound, count in zip(bounds, counts, strict=True):
        total += count
        if bound == edge and edge <= LONGEST_US:
            buckets.append((str(edge / 1e6), total))
            edge *= 2
    return [*buckets, ("+Inf", sum(counts))]
