"""What a tree of processes has used: CPU time and memory, read from /proc; and what else ran on the machine."""

from __future__ import annotations

import os
from pathlib import Path

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> list[int]:
    """Return pid and all its descendants that are alive."""
    found = [pid]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            try:
                found += [int(child) for child in children.read_text().split()]
            except OSError:  # it ended meanwhile
                continue
    return found


def cpu_ns(pid: int) -> int:
    """Return the CPU time in ns that all threads of a tree of processes have used (schedstat, not the 10 ms ticks)."""
    total = 0
    for process in tree(pid):
        for thread in Path(f"/proc/{process}/task").glob("*/schedstat"):
            try:
                total += int(thread.read_text().split()[0])
            except OSError:
                continue
    return total


def pss_bytes(pid: int) -> int:
    """Return the memory in bytes of a tree of processes, shared pages counted in proportion (PSS)."""
    total = 0
    for process in tree(pid):
        for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def machine_busy_ns() -> int:
    """Return the CPU time in ns that the whole machine has used, time stolen by its host included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) * TICK_NS


def listening_ports(pid: int) -> set[int]:
    """Return the TCP ports on which something listens in the network namespace of pid."""
    return {port for port, state, _inode in _sockets(pid) if state == "0A"}


def connections_per_process(pid: int, port: int) -> dict[int, int]:
    """Return for each process of a tree how many established connections it holds whose own port is `port`."""
    established = {inode for own, state, inode in _sockets(pid) if own == port and state == "01"}
    counts: dict[int, int] = {}
    for process in tree(pid):
        counts[process] = 0
        for descriptor in Path(f"/proc/{process}/fd").iterdir():
            try:
                target = os.readlink(descriptor)
            except OSError:
                continue
            counts[process] += target.removeprefix("socket:[").removesuffix("]") in established
    return counts


def _sockets(pid: int) -> list[tuple[int, str, str]]:
    """Return (own port, state, inode) of the IPv4 TCP sockets in the namespace of pid (proc(5), /proc/net/tcp)."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [(int(row[1].rpartition(":")[2], 16), row[3], row[9]) for row in rows]


def machine() -> str:
    """Return one line that says what machine this is."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")), "CPUs")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    system = release.get("PRETTY_NAME", "").strip('"')
    return f"{os.cpu_count()} x {model}, {memory:.0f} GiB, Linux {os.uname().release.split('-')[0]}, {system}"
