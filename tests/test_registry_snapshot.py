"""The snapshot on disk."""

from __future__ import annotations

import asyncio
import json
import stat
import time
from pathlib import Path

import pytest

from fastside.alarms import Alarms
from fastside.registry.snapshot import SavedEndpoint, SavedPublication, SavedSubscription, Saver, Snapshot, load, save
from registry_process import eventually

SNAPSHOT = Snapshot(
    saved=1000.0,
    publications=[SavedPublication("svc-a", "http", "127.0.0.1:80", 2, lease=5.0)],
    subscriptions=[SavedSubscription("svc-b", "tcp", "epoch", 3.5, [SavedEndpoint("10.0.0.1:80", 1, missing=2.5)])],
)


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "new" / "snapshot.json"
    assert load(path) is None
    save(path, SNAPSHOT)
    assert load(path) == SNAPSHOT
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    save(path, Snapshot(saved=2000.0))
    assert load(path) == Snapshot(saved=2000.0)
    assert [each.name for each in path.parent.iterdir()] == ["snapshot.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"saved": "x"}',
        '{"saved": 1, "format": 2}',
        '{"saved": 1, "publications": [{}]}',
        "\0" * 99,
    ],
)
def test_what_cannot_be_used_is_kept_aside(tmp_path, text):
    path = tmp_path / "snapshot.json"
    path.write_text(text)
    assert load(path) is None
    assert not path.exists()
    assert (tmp_path / "snapshot.bad").read_text() == text


def test_age_is_never_negative():
    assert Snapshot(saved=time.time() - 100).age() == pytest.approx(100, abs=50)
    assert Snapshot(saved=time.time() + 1e6).age() == 0  # the clock was set back


class Setup:
    def __init__(self, path: Path, every: float | None = None) -> None:
        self.collected = 0
        self.alarms = Alarms()
        self.saver = Saver(path, self.collect, every, self.alarms)

    def collect(self) -> Snapshot:
        self.collected += 1
        return Snapshot(saved=float(self.collected))

    async def __aenter__(self) -> Setup:
        self.task = asyncio.create_task(self.saver.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_flush_returns_when_it_is_on_disk(tmp_path):
    setup = Setup(tmp_path / "snapshot.json")
    await setup.saver.flush()
    assert not setup.saver.path.exists()  # nothing has changed
    setup.saver.change()
    await asyncio.gather(*(setup.saver.flush() for _ in range(10)))
    assert json.loads(setup.saver.path.read_text())["saved"] == setup.collected == 1
    setup.saver.change()
    await setup.saver.flush()
    assert json.loads(setup.saver.path.read_text())["saved"] == setup.collected == 2


async def test_changes_are_saved_without_being_asked_and_gathered(tmp_path):
    async with Setup(tmp_path / "snapshot.json") as setup:
        for _ in range(100):
            setup.saver.change()
        await eventually(setup.saver.path.exists)
        setup.saver.change()
        await eventually(lambda: setup.collected == 2)


async def test_it_is_saved_now_and_then_because_ages_count_from_there(tmp_path):
    async with Setup(tmp_path / "snapshot.json", every=0.01) as setup:
        await eventually(lambda: setup.collected >= 3)
        assert load(setup.saver.path)


async def test_a_disk_that_cannot_be_written_raises_an_alarm_until_it_can(tmp_path):
    (tmp_path / "file").write_text("")
    setup = Setup(tmp_path / "file" / "snapshot.json")
    setup.saver.change()
    await setup.saver.flush()
    assert "cannot be written" in setup.alarms.on["snapshot"].text
    assert setup.saver.saved_at is None
    (tmp_path / "file").unlink()
    setup.saver.change()
    await setup.saver.flush()
    assert setup.alarms.on == {}
    assert setup.saver.saved_at is not None
