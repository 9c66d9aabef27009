"""The limits that the forwarder keeps, measured beside HAProxy in the same run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import cells, idle, peers
from bench.peers import Origin, Peer
from bench.place import FORWARDER_CPU, Place

pytestmark = pytest.mark.bench

SECONDS = "2"
"""On a busy machine a round has as many operations as these allow."""
ROUNDS = 7
MOST_ROUNDS = 18
"""If the limit is exceeded after ROUNDS, more are run, and all of them together decide."""


class Gate(NamedTuple):
    """What is allowed in a cell."""

    operations: int
    """Of a round and forwarder: about a second's worth."""
    most: float
    """Of HAProxy's CPU time per operation."""


# Bolt calls cost about the same through both, and two runs of one program differ by as much as 7%.
GATES = {
    "http-get": Gate(60_000, 1.0),
    "bolt-64": Gate(200_000, 1.1),
    "bolt-1000": Gate(1_000_000, 1.1),
    "bolt-rate": Gate(20_000, 1.1),
}
IDLE_CONNECTIONS = 10_000
IDLE_BYTES = 400
SPREAD_TRIALS = 20


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    place = Place()
    yield place
    place.close()


@pytest.fixture(scope="module")
def origin(place: Place) -> Iterator[Origin]:
    origin = Origin(place)
    yield origin
    origin.stop()


def running(place: Place, name: str, origin: Origin, folder: Path, workers: int, cpu: int | None) -> Iterator[Peer]:
    peer = peers.start(place, name, origin, folder, workers, cpu)
    yield peer
    peer.stop()


@pytest.fixture
def fastside(place: Place, origin: Origin, tmp_path: Path) -> Iterator[Peer]:
    yield from running(place, "fastside", origin, tmp_path, 1, FORWARDER_CPU)


@pytest.fixture
def haproxy(place: Place, origin: Origin, tmp_path: Path) -> Iterator[Peer]:
    yield from running(place, "haproxy", origin, tmp_path, 1, FORWARDER_CPU)


@pytest.fixture
def fastside_with_two_workers(place: Place, origin: Origin, tmp_path: Path) -> Iterator[Peer]:
    yield from running(place, "fastside", origin, tmp_path, 2, None)


@pytest.mark.parametrize("name", GATES)
def test_costs_no_more_cpu_than_haproxy(
    name: str,
    place: Place,
    origin: Origin,
    fastside: Peer,
    haproxy: Peer,
    benchmark: BenchmarkFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """CPU time per HTTP request routed by Host, and per Bolt call, which HAProxy passes on unseen: one worker against
    nbthread 1."""
    cell = cells.CELLS[name]
    gate = GATES[name]
    bound = ("-n", str(gate.operations), "-t", SECONDS)
    samples: dict[str, list[cells.Sample]] = {fastside.name: [], haproxy.name: []}

    def one_round(peer: Peer) -> None:
        samples[peer.name].append(cells.run(place, cell, peer, origin, *bound))

    def ratio() -> float:
        pairs = zip(samples[fastside.name], samples[haproxy.name], strict=True)
        return median(ours.cost(cell) / theirs.cost(cell) for ours, theirs in pairs)

    benchmark.pedantic(one_round, args=(fastside,), setup=lambda: one_round(haproxy), rounds=ROUNDS)  # type: ignore[no-untyped-call]
    while ratio() > gate.most and len(samples[fastside.name]) < MOST_ROUNDS:
        one_round(haproxy)
        one_round(fastside)
    with capsys.disabled():
        print(f"\n{cell.name}: {cell.what}; median of {len(samples[fastside.name])} rounds")
        for peer_name, taken in samples.items():
            figures = {
                "per_s": round(median(sample.throughput(cell) for sample in taken)),
                "p50_us": round(median(sample.p50_us for sample in taken)),
                "p99_us": round(median(sample.p99_us for sample in taken)),
                "cpu_us": round(median(sample.cost(cell) for sample in taken), 3),
                "total_cpu_us": round(median(sample.total_cost() for sample in taken), 3),
            }
            benchmark.extra_info[peer_name] = figures
            print(f"  {peer_name:10}" + "  ".join(f"{key} {value:,}" for key, value in figures.items()))
        print(f"  CPU of the forwarder, fastside / HAProxy: {ratio():.3f}")
    assert ratio() <= gate.most


def test_idle_connection_costs_little_memory(place: Place, fastside: Peer, capsys: pytest.CaptureFixture[str]) -> None:
    """User memory (PSS of all processes) per idle HTTP connection after one exchange on each."""
    cost = idle.bytes_per_connection(place, fastside, IDLE_CONNECTIONS)
    with capsys.disabled():
        print(f"\nuser memory per idle connection: {cost:.0f} bytes")
    assert cost <= IDLE_BYTES


@pytest.mark.parametrize("count", [2, 4])
def test_few_connections_use_both_workers(place: Place, fastside_with_two_workers: Peer, count: int) -> None:
    """Each worker has half of a few long-lived connections, every time."""
    trials = [idle.spread(place, fastside_with_two_workers, count) for _ in range(SPREAD_TRIALS)]
    assert trials == [[count // 2, count // 2]] * SPREAD_TRIALS
