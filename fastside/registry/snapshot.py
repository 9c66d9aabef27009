"""What a sidecar knows, on disk: its publications, its subscriptions and their last endpoints.

Read at the start before any registry is reached, so that a restart needs no network to serve. Replaced as a whole by
rename(2), so that a crash leaves the old one or the new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from fastside.alarms import Alarms

log = logging.getLogger("fastside")

FORMAT = 1


class SavedEndpoint(msgspec.Struct, frozen=True):
    address: str
    weight: int
    missing: float | None = None
    """Seconds for which the registry had not listed it; None = it did."""


class SavedSubscription(msgspec.Struct, frozen=True):
    service: str
    protocol: str
    epoch: str = ""
    away: float | None = None
    """Seconds for which the registry had been away; None = it was there."""
    endpoints: list[SavedEndpoint] = []
    name: str = ""
    """As in SavedPublication."""


class SavedPublication(msgspec.Struct, frozen=True):
    service: str
    protocol: str
    address: str
    weight: int
    lease: float | None = None
    up: bool = True
    """Whether its owner was there."""
    name: str = ""
    """The service as its owner spells it; "" = as `service`."""


class Snapshot(msgspec.Struct, frozen=True):
    saved: float
    """Unix time. Ages in the snapshot are those of that moment."""
    format: int = FORMAT
    publications: list[SavedPublication] = []
    subscriptions: list[SavedSubscription] = []

    def age(self) -> float:
        """Seconds since it was saved; a clock that was set back makes it 0."""
        return max(0.0, time.time() - self.saved)


def load(path: Path) -> Snapshot | None:
    """Return the snapshot, or None if there is none that can be read. One that cannot is kept aside and logged."""
    try:
        snapshot = msgspec.json.decode(path.read_bytes(), type=Snapshot)
        if snapshot.format != FORMAT:
            raise ValueError(f"its format is {snapshot.format}, this version reads {FORMAT}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        log.warning("snapshot %s cannot be used: %s; starting without it", path, error)
        with contextlib.suppress(OSError):
            path.replace(path.with_suffix(".bad"))
        return None
    return snapshot


def save(path: Path, snapshot: Snapshot) -> None:
    """Replace the file, durably. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(msgspec.json.encode(snapshot))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


class Saver:
    """Saves when something changed, and now and then because ages are counted from the last time.

    collect: returns the snapshot of the moment. every: seconds between saves without a change; None = never.
    """

    PAUSE = 0.05
    """Seconds in which changes are gathered into one save, unless somebody waits for it."""

    def __init__(self, path: Path, collect: Callable[[], Snapshot], every: float | None, alarms: Alarms) -> None:
        self.path = path
        self.saved_at: float | None = None
        """`time.monotonic` of the last save."""
        self._collect = collect
        self._every = every
        self._alarms = alarms
        self._changed = asyncio.Event()
        self._saving = asyncio.Lock()
        self._dirty = False

    def change(self) -> None:
        """Something that the snapshot keeps has changed."""
        self._dirty = True
        self._changed.set()

    async def flush(self) -> None:
        """Return when all changes so far are on disk, or have failed to get there (an alarm says so)."""
        async with self._saving:
            if not self._dirty:
                return
            self._dirty = False
            snapshot = self._collect()
            try:
                await asyncio.to_thread(save, self.path, snapshot)
            except OSError as error:
                self._alarms.set("snapshot", f"{self.path} cannot be written: {error.strerror or error}")
            else:
                self._alarms.set("snapshot", None)
                self.saved_at = time.monotonic()

    async def run(self) -> None:
        """Save as changes come, for ever."""
        while True:
            try:
                async with asyncio.timeout(self._every):
                    await self._changed.wait()
                await asyncio.sleep(self.PAUSE)
            except TimeoutError:
                self._dirty = True
            self._changed.clear()
            await self.flush()
