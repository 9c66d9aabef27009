"""The cells: kinds of load, each run against several peers in turn.

In every round the peers of a cell run one after the other (A B C, A B C, ...), so that what else happens on the machine
meets all of them alike; figures are medians over the rounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from bench import measure
from bench.peers import BOLT_SERVICES, SERVICES, Origin, Peer
from bench.place import LOAD_CPU, Place
from bench.tools import tool

QUIET = 0.10
"""A sample is quiet if something else used less than this share of one CPU meanwhile."""
PATIENCE = 4
"""Rounds that are run for each that was asked for, while other things disturb them."""


@dataclass(frozen=True)
class Cell:
    """One kind of load."""

    name: str
    what: str
    arguments: str
    """Of the load generator."""
    port: Callable[[Peer], int]
    by_volume: bool = False
    """Cost counts per GB, not per operation."""
    generator: str = "load"
    """The load generator: bench/NAME.c."""
    services: Sequence[str] = SERVICES
    """What the load asks for in turn."""


def _http(peer: Peer) -> int:
    return peer.ports.http[0]


def _echo(peer: Peer) -> int:
    return peer.ports.echo


def _source(peer: Peer) -> int:
    return peer.ports.source


def _bolt(peer: Peer) -> int:
    return peer.ports.bolt


def bolt_cell(name: str, what: str, arguments: str) -> Cell:
    """Return a cell of Bolt calls of about 300 bytes, answered with 120."""
    return Cell(name, what, arguments, _bolt, generator="bolt_load", services=BOLT_SERVICES)


CELLS = {
    cell.name: cell
    for cell in (
        Cell("http-get", "small GET, 64 keep-alive connections", "-m keepalive -c 64", _http),
        Cell("http-post1k", "POST of 1 KiB, 64 keep-alive connections", "-m keepalive -c 64 -b 1024", _http),
        Cell("http-1m", "response of 1 MiB, 16 connections", "-m keepalive -c 16 -p /1m", _http, by_volume=True),
        Cell("http-close", "a connection per request, 32 at a time", "-m close -c 32", _http),
        Cell("http-rate", "open loop, 5,000 requests/s, 64 connections", "-m keepalive -c 64 -r 5000", _http),
        Cell("tcp-pp", "ping-pong of 128 bytes, 64 connections", "-m pingpong -c 64 -b 128", _echo),
        Cell("tcp-bulk1", "one stream as fast as it goes", "-m bulk -c 1", _source, by_volume=True),
        Cell("tcp-bulk8", "8 streams as fast as they go", "-m bulk -c 8", _source, by_volume=True),
        bolt_cell("bolt-64", "64 Bolt callers on one connection", "-k 64"),
        bolt_cell("bolt-1000", "1,000 Bolt callers on one connection", "-k 1000"),
        bolt_cell("bolt-rate", "open loop, 20,000 Bolt calls/s on one connection", "-k 1000 -r 20000"),
    )
}


@dataclass(frozen=True)
class Sample:
    """What one run of a cell against one peer gave."""

    seconds: float
    operations: int
    gigabytes: float
    p50_us: float
    p99_us: float
    cpu_us: float
    """CPU time of the forwarder's processes."""
    total_us: float
    """The same with the load generator's and the backend's."""
    noise: float
    """CPUs that something else used meanwhile."""

    def cost(self, cell: Cell) -> float:
        """Return the forwarder's CPU time: us per operation, or s per GB."""
        return self.cpu_us / 1e6 / self.gigabytes if cell.by_volume else self.cpu_us / self.operations

    def total_cost(self) -> float:
        """Return the CPU time of forwarder, load generator and backend together in us per operation."""
        return self.total_us / self.operations

    def throughput(self, cell: Cell) -> float:
        """Return operations per second, or GB/s."""
        return (self.gigabytes if cell.by_volume else self.operations) / self.seconds


class Load:
    """A run of the load generator that has made its connections and waits."""

    def __init__(
        self, place: Place, arguments: Sequence[str], port: int, cpu: int | None, generator: str = "load"
    ) -> None:
        self._process = place.spawn([tool(generator), *arguments, str(port)], cpu)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            self._process.communicate()
            raise RuntimeError("the load generator failed; its message is above")

    def run(self) -> dict[str, Any]:
        """Let it run and return its figures."""
        output = self._process.communicate("go\n")[0]
        if not output:
            raise RuntimeError("the load generator failed; its message is above")
        figures: dict[str, Any] = json.loads(output)
        return figures

    def end(self) -> None:
        """Close its connections without running it."""
        self._process.communicate("\n")


def run(place: Place, cell: Cell, peer: Peer, origin: Origin, *bound: str, cpu: int | None = LOAD_CPU) -> Sample:
    """Run a cell once, for ("-t", seconds) or ("-n", operations).

    Raises RuntimeError on any failed or misrouted request: such a figure would mean nothing.
    """
    # Without a forwarder nothing routes: one service gets everything.
    services = cell.services if peer.pid else cell.services[:1]
    arguments = [*cell.arguments.split(), *bound, "-s", ",".join(services)]
    load = Load(place, arguments, cell.port(peer), cpu, cell.generator)
    own = [peer.pid, origin.pid] if peer.pid else [origin.pid]
    before = [measure.cpu_ns(pid) for pid in own]
    load_before, busy_before = measure.cpu_ns(load.pid), measure.machine_busy_ns()
    figures = load.run()
    busy = measure.machine_busy_ns() - busy_before
    used = [measure.cpu_ns(pid) - ns for pid, ns in zip(own, before, strict=True)]
    misrouted = figures.get("misrouted", 0)  # an answer to no Bolt call ends the generator
    if figures["errors"] or misrouted:
        raise RuntimeError(
            f"{cell.name} through {peer.name}: {figures['errors']} errors ({figures['first_error']}), "
            f"{misrouted} misrouted"
        )
    ours = sum(used) + figures["cpu_ns"] - load_before
    return Sample(
        seconds=figures["seconds"],
        operations=figures["operations"],
        gigabytes=figures["bytes"] / 1e9,
        p50_us=figures["p50_us"],
        p99_us=figures["p99_us"],
        cpu_us=used[0] / 1e3 if peer.pid else 0.0,
        total_us=ours / 1e3,
        noise=max(0.0, (busy - ours) / 1e9 / figures["seconds"]),
    )


def rounds(
    place: Place,
    cells: Sequence[Cell],
    peers: Sequence[Peer],
    origin: Origin,
    count: int,
    seconds: float,
    cpu: int | None = LOAD_CPU,
) -> dict[tuple[str, str], list[Sample]]:
    """Run every cell against every peer, interleaved, until each has `count` quiet samples or patience ends.

    Keys: (cell, peer).
    """
    samples: dict[tuple[str, str], list[Sample]] = {(cell.name, peer.name): [] for cell in cells for peer in peers}
    for cell in cells:
        for _ in range(count * PATIENCE):
            for peer in peers:
                sample = run(place, cell, peer, origin, "-t", str(seconds), cpu=cpu)
                samples[cell.name, peer.name].append(sample)
            if all(len(quiet(samples[cell.name, peer.name])) >= count for peer in peers):
                break
    return samples


def quiet(samples: list[Sample]) -> list[Sample]:
    """Return the samples that nothing else on the machine disturbed."""
    return [sample for sample in samples if sample.noise < QUIET]


def best(samples: list[Sample]) -> list[Sample]:
    """Return the quiet samples if there are two at least, else all."""
    chosen = quiet(samples)
    return chosen if len(chosen) >= 2 else samples
