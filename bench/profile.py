"""Where a forwarder spends its time: system calls per operation (strace) and CPU time by function (perf)."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from bench import cells, measure
from bench.cells import Cell
from bench.peers import Origin, Peer
from bench.place import Place

SECONDS = 3.0


def system_calls(place: Place, cell: Cell, peer: Peer, origin: Origin, folder: Path) -> dict[str, float]:
    """Return the number of system calls of each name per operation."""
    output = folder / "strace"
    operations = _beside(
        place, cell, peer, origin, lambda pids: ["strace", "-c", "-qq", "-o", str(output), *_each("-p", pids)]
    ).operations
    calls = {}
    for line in output.read_text().splitlines():
        # "% time  seconds  usecs/call  calls  [errors]  name"
        match = re.match(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?(\w+)$", line)
        if match and match[2] != "total":
            calls[match[2]] = int(match[1]) / operations
    return dict(sorted(calls.items(), key=lambda item: -item[1]))


def functions(place: Place, cell: Cell, peer: Peer, origin: Origin, folder: Path) -> list[tuple[float, str, str]]:
    """Return (us per operation, binary, function), the most expensive first; "[k]" binaries are the kernel."""
    data = folder / "perf.data"
    record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "4000", "-o", str(data)]
    sample = _beside(place, cell, peer, origin, lambda pids: [*record, "-p", ",".join(map(str, pids))])
    show = ["perf", "report", "-i", str(data), "--stdio", "-q", "--no-children"]
    columns = ["--sort", "dso,symbol", "-F", "overhead,dso,symbol"]
    report = subprocess.run([*show, *columns], check=True, capture_output=True, text=True).stdout
    found = []
    for line in report.splitlines():
        if match := re.match(r"\s*([\d.]+)%\s+(\S+)\s+\[[.k]\] (\S+)", line):
            found.append((float(match[1]) / 100 * sample.cost(cell), match[2], match[3]))
    return sorted(found, reverse=True)


def _each(flag: str, pids: list[int]) -> list[str]:
    return [text for pid in pids for text in (flag, str(pid))]


def _beside(
    place: Place, cell: Cell, peer: Peer, origin: Origin, command: Callable[[list[int]], list[str]]
) -> cells.Sample:
    """Run a cell while a tracer is attached to the forwarder's processes."""
    assert peer.pid
    tracer = subprocess.Popen(command(measure.tree(peer.pid)))
    sample = cells.run(place, cell, peer, origin, "-t", str(SECONDS))
    tracer.send_signal(signal.SIGINT)
    tracer.wait()
    return sample
