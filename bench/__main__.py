"""Prints the tables of docs/performance.md."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import click

from bench import accept, cells, idle, measure, peers, profile
from bench.cells import CELLS, Cell, Sample
from bench.peers import KINDS, Origin, Peer
from bench.place import FORWARDER_CPU, LOAD_CPU, Place

DEFAULT_PEERS = "direct,fastside,haproxy,haproxy-splice,nginx"


@dataclass(frozen=True)
class Bench:
    """A place with a backend in it."""

    place: Place
    origin: Origin
    folder: Path


@contextmanager
def bench(pinned: bool = True) -> Iterator[Bench]:
    """Set up a place and its backend; say what machine it is."""
    place = Place()
    with tempfile.TemporaryDirectory(prefix="fastside-bench-") as folder:
        origin = Origin(place, LOAD_CPU if pinned else None)
        click.echo(f"{measure.machine()}{'; ' if place.note else ''}{place.note}\n")
        try:
            yield Bench(place, origin, Path(folder))
        finally:
            origin.stop()
            place.close()


@contextmanager
def started(setting: Bench, names: Sequence[str], workers: int, cpu: int | None) -> Iterator[list[Peer]]:
    """Start forwarders for one block."""
    running: list[Peer] = []
    try:
        for name in names:
            running.append(peers.start(setting.place, name, setting.origin, setting.folder, workers, cpu))
        yield running
    finally:
        for peer in running:
            peer.stop()


def names(known: Sequence[str]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return a callback that takes a comma-separated list of known names apart."""

    def split(_context: click.Context, _parameter: click.Parameter, text: str) -> list[str]:
        for name in (given := text.split(",")):
            if name not in known:
                raise click.BadParameter(f"{name} is none of {', '.join(known)}")
        return given

    return split


peers_option = click.option(
    "--peers", "chosen", default=DEFAULT_PEERS, callback=names(["direct", *KINDS]), show_default=True
)
cells_option = click.option("--cells", "loads", default=",".join(CELLS), callback=names(list(CELLS)), show_default=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    for row in (head, ["---"] * len(head), *rows):
        click.echo(f"| {' | '.join(row)} |")
    click.echo()


@click.group()
def main() -> None:
    """Measure the forwarder beside HAProxy and nginx."""


@main.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=2.0, show_default=True, help="of each round")
@click.option("--workers", default=1, show_default=True, help="more than 1: nothing is pinned")
@peers_option
@cells_option
def report(rounds: int, seconds: float, workers: int, chosen: list[str], loads: list[str]) -> None:
    """Cost, throughput and latency of every cell."""
    measured(chosen, [CELLS[name] for name in loads], workers, rounds, seconds)


@main.command()
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=2.0, show_default=True, help="of each round")
def bolt(rounds: int, seconds: float) -> None:
    """Bolt calls: fastside, which routes each, beside HAProxy's TCP mode and no forwarder."""
    loads = [cell for name, cell in CELLS.items() if name.startswith("bolt-")]
    samples = measured(["direct", "haproxy", "fastside"], loads, 1, rounds, seconds)

    def ratio(cell: Cell, cost: Callable[[Sample], float]) -> str:
        pairs = zip(samples[cell.name, "fastside"], samples[cell.name, "haproxy"], strict=True)
        return f"{median(cost(ours) / cost(theirs) for ours, theirs in pairs):.2f}"

    click.echo("CPU time per call, fastside / HAProxy: median of the rounds' ratios\n")
    table(
        ["cell", "forwarder", "total"],
        [[cell.name, ratio(cell, partial(Sample.cost, cell=cell)), ratio(cell, Sample.total_cost)] for cell in loads],
    )


def measured(
    chosen: list[str], wanted: list[Cell], workers: int, rounds: int, seconds: float
) -> dict[tuple[str, str], list[Sample]]:
    """Measure cells against peers, print the figures and return the samples by (cell, peer)."""
    pinned = workers == 1
    with bench(pinned) as setting, started(setting, chosen, workers, FORWARDER_CPU if pinned else None) as running:
        samples = cells.rounds(
            setting.place, wanted, running, setting.origin, rounds, seconds, LOAD_CPU if pinned else None
        )

    def figures(title: str, peers: Sequence[str], show: Callable[[Cell, list[Sample]], str]) -> None:
        click.echo(f"{title}\n")
        table(
            ["cell", *peers],
            [[label(cell), *(show(cell, cells.best(samples[cell.name, peer])) for peer in peers)] for cell in wanted],
        )

    taken = [sample for each in samples.values() for sample in each]
    click.echo(
        f"{workers} worker(s), rounds of {seconds:g} s, median (lowest) of at least {rounds} rounds; "
        f"{len(taken) - len(cells.quiet(taken))} of {len(taken)} runs were disturbed by other programs\n"
    )
    figures(
        "CPU time of the forwarder: us per operation (s per GB)",
        [name for name in chosen if name != "direct"],
        show_cost,
    )
    figures("CPU time of forwarder, load and backend: us per operation", chosen, show_total_cost)
    figures("Throughput: operations/s (GB/s)", chosen, show_throughput)
    figures("Latency p50 / p99, us", chosen, show_latency)
    return samples


def label(cell: Cell) -> str:
    return f"{cell.name} (GB)" if cell.by_volume else cell.name


def show_cost(cell: Cell, samples: list[Sample]) -> str:
    costs = [sample.cost(cell) for sample in samples]
    return f"{median(costs):.3f} ({min(costs):.3f})"


def show_total_cost(_cell: Cell, samples: list[Sample]) -> str:
    if not samples[0].operations:
        return "-"
    costs = [sample.total_cost() for sample in samples]
    return f"{median(costs):.3f} ({min(costs):.3f})"


def show_throughput(cell: Cell, samples: list[Sample]) -> str:
    value = median(sample.throughput(cell) for sample in samples)
    return f"{value:.2f}" if cell.by_volume else f"{value:,.0f}"


def show_latency(_cell: Cell, samples: list[Sample]) -> str:
    if not samples[0].operations:
        return "-"
    return f"{median(sample.p50_us for sample in samples):,.0f} / {median(sample.p99_us for sample in samples):,.0f}"


@main.command()
@click.option("--connections", default=10_000, show_default=True)
@click.option("--repeat", default=3, show_default=True)
@click.option("--peers", "chosen", default="fastside,haproxy,nginx", callback=names(list(KINDS)), show_default=True)
def memory(connections: int, repeat: int, chosen: list[str]) -> None:
    """User memory of the forwarder, and per idle HTTP connection; each time of a fresh one."""
    rows = []
    with bench() as setting:
        for name in chosen:
            alone, each = [], []
            for _ in range(repeat):
                with (
                    tempfile.TemporaryDirectory(dir=setting.folder) as folder,
                    started(replace(setting, folder=Path(folder)), [name], 1, FORWARDER_CPU) as (peer,),
                ):
                    assert peer.pid
                    alone.append(measure.pss_bytes(peer.pid) / 2**20)
                    each.append(idle.bytes_per_connection(setting.place, peer, connections))
            rows.append([name, f"{median(alone):.1f}", f"{median(each):,.0f}"])
    table(["forwarder", "PSS without connections, MiB", "bytes per idle connection"], rows)


@main.command("accept")
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=2.0, show_default=True)
def accept_command(rounds: int, seconds: float) -> None:
    """How the ways to accept spread connections over two workers."""
    with bench(pinned=False) as setting:
        rows = accept.rows(setting.place, setting.origin, setting.folder, rounds, seconds)
    table(
        ["connections", "accept", "all on one", "on the busiest", "requests/s", "CPU us/request", "p50 / p99 us"],
        [
            [
                f"{row.connections:,}",
                row.mode.removeprefix("fastside-").replace("fastside", "handover"),
                f"{row.on_one_worker:.0%}",
                f"{row.busiest:.0%}",
                f"{row.throughput:,.0f}",
                f"{row.cpu_us:.1f}",
                f"{row.p50_us:,.0f} / {row.p99_us:,.0f}",
            ]
            for row in rows
        ],
    )


@main.command("profile")
@click.option("--peer", default="fastside", type=click.Choice(list(KINDS)), show_default=True)
@click.option("--cell", default="http-get", type=click.Choice(list(CELLS)), show_default=True)
@click.option("--lines", default=40, show_default=True, help="functions to print")
def profile_command(peer: str, cell: str, lines: int) -> None:
    """System calls per operation and CPU time by function."""
    with bench() as setting, started(setting, [peer], 1, FORWARDER_CPU) as (running,):
        load = CELLS[cell]
        click.echo(f"{peer}, {cell}: {load.what}\n")
        calls = profile.system_calls(setting.place, load, running, setting.origin, setting.folder)
        found = profile.functions(setting.place, load, running, setting.origin, setting.folder)
    table(
        ["system call", "per operation"], [[name, f"{number:.2f}"] for name, number in calls.items() if number >= 0.01]
    )
    binaries: dict[str, float] = {}
    for us, binary, _ in found:
        binaries[binary] = binaries.get(binary, 0.0) + us
    table(["us", "binary"], [[f"{us:.2f}", name] for name, us in binaries.items()])
    table(["us", "binary", "function"], [[f"{us:.2f}", binary, name] for us, binary, name in found[:lines]])


if __name__ == "__main__":
    os.chdir(Path(__file__).parent.parent)
    try:
        main()
    except RuntimeError as problem:
        sys.exit(f"bench: {problem}")
