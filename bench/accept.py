"""How the three ways to accept spread connections over two workers, and what that does to throughput and cost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from bench import cells, idle, peers
from bench.cells import Cell
from bench.peers import Origin, Peer
from bench.place import Place

MODES = ("fastside-reuseport", "fastside-exclusive", "fastside")
WORKERS = 2
TRIALS = {2: 50, 4: 50, 64: 20, 1000: 5}
"""Trials by number of connections; each opens new ones."""


@dataclass(frozen=True)
class Row:
    """What one way of accepting gave at one number of connections."""

    mode: str
    connections: int
    on_one_worker: float
    """Share of the trials in which one worker had all connections."""
    busiest: float
    """Mean share of the connections that the busiest worker had; 0.5 is even."""
    throughput: float
    """Requests/s."""
    cpu_us: float
    p50_us: float
    p99_us: float


def rows(place: Place, origin: Origin, folder: Path, rounds: int, seconds: float) -> list[Row]:
    """Measure every mode at every number of connections; nothing is pinned, the modes take turns."""
    modes = [peers.start(place, mode, origin, folder, WORKERS) for mode in MODES]
    try:
        return [row for count in TRIALS for row in _at(place, origin, modes, count, rounds, seconds)]
    finally:
        for mode in modes:
            mode.stop()


def _at(place: Place, origin: Origin, modes: list[Peer], count: int, rounds: int, seconds: float) -> list[Row]:
    cell = Cell(f"http-get-{count}", "", f"-m keepalive -c {count}", cells.CELLS["http-get"].port)
    samples = cells.rounds(place, [cell], modes, origin, rounds, seconds, cpu=None)
    found = []
    for mode in modes:
        trials = [idle.spread(place, mode, count) for _ in range(TRIALS[count])]
        taken = cells.best(samples[cell.name, mode.name])
        found.append(
            Row(
                mode=mode.name,
                connections=count,
                on_one_worker=mean(len(held) == 1 for held in trials),
                busiest=mean(held[0] / sum(held) for held in trials),
                throughput=median(sample.throughput(cell) for sample in taken),
                cpu_us=median(sample.cost(cell) for sample in taken),
                p50_us=median(sample.p50_us for sample in taken),
                p99_us=median(sample.p99_us for sample in taken),
            )
        )
    return found
