"""The wanted routing table on its way to the master, which is played by a function here."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fastside import desired
from fastside.alarms import Alarms
from fastside.desired import DesiredTable, Key, Update
from fastside.master_link import MasterGone, Refused
from registry_process import eventually


def record(service: str, endpoints: int = 1) -> Update:
    addresses = [[f"10.0.{number >> 8}.{number & 255}", 80, 1] for number in range(endpoints)]
    return {"op": "put", "direction": "outbound", "service": service, "protocol": "http", "endpoints": addresses}


class Master:
    """Applies batches when the gate is open; refuses those that hold more than `room` services, as the table does."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.table: dict[str, Any] = {}
        self.batches: list[list[Update]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.gone = False

    async def apply(self, updates: list[Update]) -> int:
        self.batches.append(updates)
        await self.gate.wait()
        if self.gone:
            raise MasterGone
        after = dict(self.table)
        for update in updates:
            if update["op"] == "put":
                after[update["service"]] = update
            else:
                after.pop(update["service"], None)
        if len(after) > self.room:
            raise Refused(f"no room for {len(after)} services")
        self.table = after
        return len(self.batches)


class Setup:
    def __init__(self, room: int = 1 << 30) -> None:
        self.master = Master(room)
        self.alarms = Alarms()
        self.observed: list[float] = []
        self.desired = DesiredTable(self.master.apply, self.alarms, self.observed.append)

    async def __aenter__(self) -> Setup:
        self.task = asyncio.create_task(self.desired.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_the_latest_word_wins_while_a_batch_is_under_way():
    async with Setup() as setup:
        setup.master.gate.clear()
        setup.desired.put(record("svc-a", 1))
        await eventually(lambda: len(setup.master.batches) == 1)
        for endpoints in range(2, 50):
            setup.desired.put(record("svc-a", endpoints))
        setup.desired.put(record("svc-b"))
        setup.desired.delete("outbound", "svc-b")
        setup.desired.put(record("svc-b", 7))
        setup.master.gate.set()
        await setup.desired.settle()
        assert len(setup.master.batches) == 2
        assert setup.master.table == {"svc-a": record("svc-a", 49), "svc-b": record("svc-b", 7)}
        assert len(setup.observed) == 3


async def test_what_is_as_wanted_already_is_not_sent_again():
    async with Setup() as setup:
        setup.desired.put(record("svc-a"))
        await setup.desired.settle()
        setup.desired.put(record("svc-a"))
        setup.desired.delete("outbound", "svc-b")
        await setup.desired.settle()
        assert len(setup.master.batches) == 1


async def test_batches_are_bounded(monkeypatch):
    monkeypatch.setattr(desired, "MAX_UPDATES", 10)
    monkeypatch.setattr(desired, "MAX_ENDPOINTS", 25)
    async with Setup() as setup:
        for number in range(100):
            setup.desired.put(record(f"svc-{number}", endpoints=30 if number == 50 else 1 + number % 5))
        await setup.desired.settle()
        assert len(setup.master.table) == 100
        for batch in setup.master.batches:
            assert len(batch) <= 10
            assert len(batch) == 1 or sum(len(update["endpoints"]) for update in batch) <= 25


async def test_settle_waits_for_its_own_record_and_not_for_later_changes():
    async with Setup() as setup:
        setup.master.gate.clear()
        setup.desired.put(record("svc-a"))
        waiting = asyncio.create_task(setup.desired.settle(Key("outbound", "svc-a")))
        other = asyncio.create_task(setup.desired.settle(Key("outbound", "svc-b")))
        await asyncio.wait_for(other, 5)
        await eventually(lambda: setup.master.batches)
        assert not waiting.done()
        everything = asyncio.create_task(setup.desired.settle())
        await eventually(lambda: setup.desired._changes == 1 and not everything.done())
        setup.desired.put(record("svc-c"))
        setup.master.gate.set()
        await asyncio.wait_for(asyncio.gather(waiting, everything), 5)


async def test_a_refused_record_is_found_and_the_others_are_applied(monkeypatch):
    monkeypatch.setattr(desired, "RETRY", 0.05)
    async with Setup(room=7) as setup:
        for number in range(9):
            setup.desired.put(record(f"svc-{number}"))
        await setup.desired.settle()
        assert len(setup.master.table) == 7
        assert len(setup.desired.refused) == 2
        refused = next(iter(setup.desired.refused))
        with pytest.raises(Refused, match="no room for 8 services"):
            await setup.desired.settle(refused)
        await eventually(lambda: "table" in setup.alarms.on)
        assert "2 update(s) refused" in setup.alarms.on["table"].text
        # The last good record stays in force, and room is used as soon as there is some.
        setup.master.room = 8
        await eventually(lambda: len(setup.desired.refused) == 1, "one of them is applied at a later try")
        setup.desired.delete("outbound", next(iter(setup.master.table)))
        await eventually(lambda: not setup.desired.refused)
        await eventually(lambda: "table" not in setup.alarms.on)


async def test_leftovers_of_an_earlier_process_are_deleted():
    async with Setup() as setup:
        setup.master.table = {"old": record("old"), "svc-a": record("svc-a", 5)}
        setup.desired.put(record("svc-a"))
        setup.desired.delete_unknown([Key("outbound", "old"), Key("outbound", "svc-a")])
        await setup.desired.settle()
        assert setup.master.table == {"svc-a": record("svc-a")}


async def test_without_a_master_nobody_waits_for_ever():
    async with Setup() as setup:
        setup.master.gate.clear()
        setup.desired.put(record("svc-a"))
        waiting = asyncio.create_task(setup.desired.settle(Key("outbound", "svc-a")))
        await eventually(lambda: setup.master.batches)
        setup.master.gone = True
        setup.master.gate.set()
        with pytest.raises(MasterGone):
            await asyncio.wait_for(waiting, 5)
        with pytest.raises(MasterGone):
            await asyncio.wait_for(setup.desired.settle(), 5)
