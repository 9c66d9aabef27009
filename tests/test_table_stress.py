"""The routing table under constant change: no reader ever sees a torn, reused or lost record.

The same readers must find a fault when the writer breaks a rule. Which rules can be broken here: the grace period, the
order of a record's bytes and its link, and the readers' epochs. A missing fence alone cannot be shown: x86 keeps the
order of stores, and the window of its one reordering (a reader's epoch behind its first read) is a few nanoseconds.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import time
from collections.abc import Callable
from types import ModuleType

import pytest

from fastside import _core
from table_support import delete, fork, load_probe

READERS = 3
SERVICES = 24
PERMANENT = 16  # the services that are never deleted
DEADLINE = 60.0


@pytest.fixture(scope="module")
def probe() -> ModuleType:
    return load_probe()


def make_table() -> _core.Table:
    # Small: whatever is given back is soon used again.
    return _core.Table(
        max_services=32,
        max_addresses=1024,
        table_bytes=128 << 10,
        workers=READERS,
        max_connections=1,
        stat_slots=8,
    )


def fill(table: _core.Table, probe: ModuleType) -> None:
    table.apply([probe.stress_update(number, number) for number in range(SERVICES)])


class Changes:
    """Endless random changes of the services that the readers look at."""

    def __init__(self, table: _core.Table, probe: ModuleType) -> None:
        self.table = table
        self.update = probe.stress_update
        self.random = random.Random(4)
        self.version = SERVICES

    def next(self) -> None:
        number = self.random.randrange(SERVICES)
        self.version = (self.version + 1) & 0xFFFF
        if number >= PERMANENT and self.random.random() < 0.5:
            update = delete(f"service-{number}")
        else:
            update = self.update(number, self.version)
        while True:
            try:
                self.table.apply([update])
                return
            except _core.TableFull:
                os.sched_yield()  # until a reader that was preempted leaves

    def go_on(self) -> None:
        while True:
            self.next()


def reader_is_dead(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


class Readers:
    """Forked processes that read without pause. Each leaves its count of reads or the problem it saw."""

    def __init__(self, table: _core.Table, probe: ModuleType, *, announce: bool = True) -> None:
        self.shared = mmap.mmap(-1, mmap.PAGESIZE)  # [0] stop, [1] a problem was seen
        self.running: dict[int, int] = {}
        for slot in range(READERS):
            reader, writer = os.pipe()

            def read(slot: int = slot, writer: int = writer) -> None:
                table.seal()
                reads, problem = probe.read_until(table, slot, SERVICES, PERMANENT, self.shared, announce=announce)
                if problem:
                    self.shared[1] = 1
                os.write(writer, f"{reads} {problem}".encode())

            self.running[fork(read)] = reader
            os.close(writer)

    def found_a_problem(self) -> bool:
        if self.shared[1]:
            return True
        # A reader that fell over a broken record saw it too.
        return any(reader_is_dead(pid) for pid in self.running)

    def stop(self) -> list[str]:
        """What each reader left."""
        self.shared[0] = 1
        results = []
        for pid, reader in self.running.items():
            with os.fdopen(reader, "rb") as pipe:
                results.append(pipe.read().decode())
            assert os.waitpid(pid, 0)[1] == 0
        return results

    def kill(self) -> None:
        for pid, reader in self.running.items():
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(reader)


def test_readers_never_see_a_torn_reused_or_lost_record(probe: ModuleType) -> None:
    table = make_table()
    fill(table, probe)
    changes = Changes(table, probe)
    readers = Readers(table, probe)
    for _ in range(60_000):
        changes.next()
    results = [result.partition(" ") for result in readers.stop()]
    assert [problem for _, _, problem in results] == [""] * READERS
    assert all(int(reads) > 1000 for reads, _, _ in results)
    assert table.version >= 60_000


@pytest.mark.parametrize("broken", ["no grace period", "links before it writes", "readers without an epoch"])
def test_the_readers_find_a_broken_rule(probe: ModuleType, broken: str) -> None:
    table = make_table()
    if broken != "readers without an epoch":
        probe.break_writer(table, no_grace=broken == "no grace period", link_first=broken == "links before it writes")
    fill(table, probe)
    changes = Changes(table, probe)
    readers = Readers(table, probe, announce=broken != "readers without an epoch")
    deadline = time.monotonic() + DEADLINE
    try:
        while not readers.found_a_problem():
            assert time.monotonic() < deadline, f"{table.version} changes with {broken}, and no reader noticed"
            for _ in range(100):
                changes.next()
    finally:
        readers.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0002)


def test_a_killed_writer_leaves_a_table_that_is_readable(probe: ModuleType) -> None:
    seed = random.Random(3)
    for _ in range(20):
        table = make_table()
        fill(table, probe)
        pid = fork(Changes(table, probe).go_on)
        enough = table.version + seed.randrange(1, 2000)
        wait_until(lambda table=table, enough=enough: table.version > enough)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        # A process that knows only the two descriptors.
        reader = _core.Table.attach(table.table_fd, table.state_fd)
        names = reader.services("outbound")
        assert {f"service-{number}" for number in range(PERMANENT)} <= set(names)
        for name in names:
            found = reader.lookup("outbound", name)
            assert found is not None
            update = probe.stress_update(int(name.removeprefix("service-")), found["request_ms"])
            assert found["endpoints"] == update["endpoints"]
            assert found["protocol"] == update["protocol"]


def test_a_reader_without_a_slot_notices_that_it_was_too_slow(probe: ModuleType) -> None:
    """It is stopped anywhere in its reading, while the records it may have stood on are used again and again."""
    table = make_table()
    fill(table, probe)
    changes = Changes(table, probe)
    names = {f"service-{number}" for number in range(PERMANENT)}
    shared = mmap.mmap(-1, mmap.PAGESIZE)

    def read() -> None:
        table.seal()
        while True:
            assert names <= set(table.services("outbound"))
            shared[0] = (shared[0] + 1) & 255

    pid = fork(read)
    try:
        for _ in range(1000):
            reads = shared[0]
            wait_until(lambda reads=reads: shared[0] != reads or reader_is_dead(pid))
            assert not reader_is_dead(pid)
            os.kill(pid, signal.SIGSTOP)
            for _ in range(40):
                changes.next()
            os.kill(pid, signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_a_reader_without_a_slot_sees_whole_records(probe: ModuleType) -> None:
    """Control and other observers have no epoch of their own."""
    table = make_table()
    fill(table, probe)
    pid = fork(Changes(table, probe).go_on)
    try:
        reader = _core.Table.attach(table.table_fd, table.state_fd)
        wait_until(lambda: reader.version > 100)
        for _ in range(200):
            assert len(reader.services("outbound")) >= PERMANENT
            for number in range(SERVICES):
                found = reader.lookup("outbound", f"service-{number}")
                assert found is not None or number >= PERMANENT
                if found is not None:
                    update = probe.stress_update(number, found["request_ms"])
                    assert found["endpoints"] == update["endpoints"]
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
