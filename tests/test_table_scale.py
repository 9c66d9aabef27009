"""A large table: 100,000 services with 1,000,000 endpoints, and what one update costs beside it."""

from __future__ import annotations

import mmap
import os
import random
from typing import Any

import pytest

from fastside import _core
from table_support import fork, put

SERVICES = 100_000
ENDPOINTS = 10  # of each service, all addresses distinct
BATCH = 1000
PAGE = mmap.PAGESIZE


def update_of(number: int, shift: int = 0, count: int = ENDPOINTS) -> dict[str, Any]:
    first = (number * ENDPOINTS + shift) % (SERVICES * ENDPOINTS)
    endpoints = [[f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}", 8080, 1] for i in range(first, first + count)]
    return put(f"service-{number}", endpoints)


@pytest.fixture(scope="module")
def table() -> _core.Table:
    """The default limits, filled in the batches that control sends."""
    table = _core.Table(
        max_services=131072,
        max_addresses=1048576,
        table_bytes=512 << 20,
        workers=4,
        max_connections=16384,
        stat_slots=1024,
    )
    for first in range(0, SERVICES, BATCH):
        table.apply([update_of(number) for number in range(first, first + BATCH)])
    return table


def test_it_loads_in_bounded_memory(table: _core.Table) -> None:
    sizes = table.memory()
    assert (sizes["services"], sizes["endpoints"], sizes["addresses"]) == (SERVICES, 1_000_000, 1_000_000)
    assert sizes["table_resident"] < 80 << 20
    seed = random.Random(1)
    for number in seed.sample(range(SERVICES), 1000):
        found = table.lookup("outbound", f"service-{number}")
        assert found is not None
        assert found["endpoints"] == update_of(number)["endpoints"]


def table_pss(pid: int) -> int:
    """Proportional share of the table's region in a process, in bytes: summed over processes it is what is resident."""
    total = 0
    inside = False
    with open(f"/proc/{pid}/smaps") as maps:
        for line in maps:
            if "-" in line.split(maxsplit=1)[0]:
                inside = "fastside-table" in line
            elif inside and line.startswith("Pss:"):
                total += int(line.split()[1]) << 10
    return total


def private_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/smaps_rollup") as maps:
        return sum(int(line.split()[1]) << 10 for line in maps if line.startswith("Private_Dirty:"))


def with_readers(table: _core.Table, count: int) -> tuple[int, list[int]]:
    """Sum of the region's shares over this process and its readers; each reader's private memory."""
    ready_reader, ready_writer = os.pipe()
    go_reader, go_writer = os.pipe()

    def read() -> None:
        os.close(go_writer)
        table.seal()
        before = private_bytes(os.getpid())
        for number in range(SERVICES):
            assert table.lookup("outbound", f"service-{number}") is not None
        assert private_bytes(os.getpid()) - before < 16 << 20
        os.write(ready_writer, b"x")
        os.read(go_reader, 1)

    pids = [fork(read) for _ in range(count)]
    os.close(ready_writer)
    for _ in pids:
        assert os.read(ready_reader, 1) == b"x"
    shares = sum(table_pss(pid) for pid in [os.getpid(), *pids])
    os.close(go_writer)
    statuses = [os.waitpid(pid, 0)[1] for pid in pids]
    os.close(go_reader)
    os.close(ready_reader)
    return shares, statuses


def test_its_memory_does_not_grow_with_the_readers(table: _core.Table) -> None:
    resident = table.memory()["table_resident"]
    for count in (1, 4):
        shares, statuses = with_readers(table, count)
        assert statuses == [0] * count
        assert shares == pytest.approx(resident, rel=0.02)
        assert table.memory()["table_resident"] == resident


def changed_pages(table: _core.Table, updates: list[dict[str, Any]]) -> int:
    """Pages of the region that an update writes to."""
    sizes = table.memory()
    used = sizes["table_bytes"] - sizes["arena_bytes"] + sizes["arena_used"] + (1 << 20)
    before = os.pread(table.table_fd, used, 0)
    table.apply(updates)
    after = os.pread(table.table_fd, used, 0)
    return sum(before[i : i + PAGE] != after[i : i + PAGE] for i in range(0, used, PAGE))


def test_an_update_costs_its_own_size(table: _core.Table) -> None:
    """What it writes and what it takes from the arena is the same for a small and a large table."""
    small = _core.Table(
        max_services=64, max_addresses=4096, table_bytes=1 << 20, workers=1, max_connections=1, stat_slots=1
    )
    small.apply([update_of(number) for number in range(32)])
    for one in (small, table):
        # At most: the header, the link and the sid, the record over a page's end, and an address each in pages apart.
        assert changed_pages(one, [update_of(5, shift=7)]) <= 5 + ENDPOINTS
    grown = []
    for one in (small, table):
        one.reclaim()
        before = one.memory()
        for step in range(200):
            one.apply([update_of(step % 8, step, count=5 + step % 6)])
        after = one.memory()
        grown.append(after["arena_used"] - before["arena_used"])
    assert grown[0] == grown[1] < 16 << 10
