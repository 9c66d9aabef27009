"""The routing table as control wants it, and how it gets there.

Control says what a service's record should be; the newest word counts. Changes go to the master in bounded batches, one
at a time: what changes while a batch is under way is joined with what comes next. A batch that the master refuses is
split until what does not fit is alone; the rest is applied, and the last good record of the others stays in force.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

from fastside.alarms import Alarms
from fastside.master_link import MasterGone, Refused

Update = dict[str, Any]

MAX_UPDATES = 1000
MAX_ENDPOINTS = 100_000
"""Of one batch; it is about 5 MB then."""
RETRY = 10.0
"""Seconds after which refused records are tried again: others may have made room."""
RETRIES = 100
"""How many of them at once."""


class Key(NamedTuple):
    direction: str
    service: str


class Change(NamedTuple):
    """That a record is not as it is wanted yet."""

    number: int
    """Of all changes, in order."""
    since: float


class DesiredTable:
    """apply: sends a batch to the master, returns the table's version; raises Refused or MasterGone.

    observe: called with the seconds that a change took from `put` or `delete` until it was in force.
    """

    def __init__(
        self, apply: Callable[[list[Update]], Awaitable[int]], alarms: Alarms, observe: Callable[[float], None]
    ) -> None:
        self.records: dict[Key, Update] = {}
        """The records that are wanted."""
        self.refused: dict[Key, str] = {}
        """Those of them that the master refused, and why."""
        self._apply = apply
        self._alarms = alarms
        self._observe = observe
        self._waiting: dict[Key, Change] = {}
        self._under_way: dict[Key, Change] = {}
        self._changes = 0
        self._work = asyncio.Event()
        self._progress = asyncio.Condition()
        self._master_gone = False

    def put(self, update: Update) -> None:
        """Want this record, a "put" as Table.apply takes it."""
        key = Key(update["direction"], update["service"])
        if self.records.get(key) == update and key not in self.refused:
            return
        self.records[key] = update
        self._change(key)

    def delete(self, direction: str, service: str) -> None:
        """Want no record."""
        key = Key(direction, service)
        if self.records.pop(key, None) is not None:
            self._change(key)

    def delete_unknown(self, present: Iterable[Key]) -> None:
        """Have those of the present records deleted that are not wanted: leftovers of an earlier control process."""
        for key in present:
            if key not in self.records:
                self._change(key)

    async def settle(self, key: Key | None = None) -> None:
        """Wait until what is wanted by now (of one record, or of all) is in force.

        Raises Refused if the master refused that one record, MasterGone if there is no master.
        """

        last = self._changes

        def settled() -> bool:
            earlier = (
                other
                for changes in (self._under_way, self._waiting)
                for other, change in changes.items()
                if change.number <= last
            )
            return self._master_gone or not any(key in (None, other) for other in earlier)

        async with self._progress:
            await self._progress.wait_for(settled)
        if self._master_gone:
            raise MasterGone
        if key in self.refused:
            raise Refused(self.refused[key])

    async def run(self) -> None:
        """Send changes until the master is gone."""
        try:
            while True:
                await self._wait_for_work()
                while self._waiting:
                    await self._send(self._take_batch())
                    self._report_refusals()
        except MasterGone:
            self._waiting |= self._under_way
            self._under_way.clear()
            self._master_gone = True
            await self._tell_progress()

    def _change(self, key: Key) -> None:
        if key not in self._waiting:
            self._changes += 1
            self._waiting[key] = Change(self._changes, time.monotonic())
        self._work.set()

    async def _wait_for_work(self) -> None:
        try:
            async with asyncio.timeout(RETRY if self.refused else None):
                await self._work.wait()
        except TimeoutError:
            for key in list(self.refused)[:RETRIES]:
                self._change(key)
        self._work.clear()

    def _take_batch(self) -> list[Key]:
        batch: list[Key] = []
        endpoints = 0
        for key in self._waiting:
            endpoints += len(self.records[key]["endpoints"]) if key in self.records else 0
            if batch and (len(batch) == MAX_UPDATES or endpoints > MAX_ENDPOINTS):
                break
            batch.append(key)
        for key in batch:
            self._under_way[key] = self._waiting.pop(key)
        return batch

    async def _send(self, batch: list[Key]) -> None:
        updates = [
            self.records.get(key, {"op": "del", "direction": key.direction, "service": key.service}) for key in batch
        ]
        try:
            await self._apply(updates)
        except Refused as error:
            if len(batch) > 1:
                middle = len(batch) // 2
                await self._send(batch[:middle])
                await self._send(batch[middle:])
                return
            self.refused.pop(batch[0], None)  # so that the order is that of the last try
            self.refused[batch[0]] = str(error)
        else:
            now = time.monotonic()
            for key in batch:
                self.refused.pop(key, None)
                self._observe(now - self._under_way[key].since)
        for key in batch:
            del self._under_way[key]
        await self._tell_progress()

    async def _tell_progress(self) -> None:
        async with self._progress:
            self._progress.notify_all()

    def _report_refusals(self) -> None:
        if not self.refused:
            self._alarms.set("table", None)
            return
        key, error = next(iter(self.refused.items()))
        self._alarms.set("table", f"{len(self.refused)} update(s) refused, for example {' '.join(key)}: {error}")
