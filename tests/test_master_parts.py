"""The master's parts: runtime directory, inboxes, restarts, the difference between two configurations, orphans."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time

import msgspec
import pytest

from fastside import orphans
from fastside.config import Config, Limits, ServicePolicy, Timeouts
from fastside.config import Listener as ListenerConfig
from fastside.config_diff import changes, effective
from fastside.event_loop import EventLoop
from fastside.listeners import open_listener
from fastside.runtime_dir import RuntimeDir, RuntimeDirError
from fastside.slots import Backoff, Slot, To, inbox_message
from harness import free_port, process_title, wait_until


class TestRuntimeDir:
    def test_is_private_and_names_its_owner(self, tmp_path):
        path = tmp_path / "a/run"
        path.mkdir(parents=True, mode=0o755)
        held = RuntimeDir(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert (path / "master.lock").read_text() == f"{os.getpid()}\n"
        held.close()
        assert list(path.iterdir()) == []

    def test_one_live_master_and_none_after_a_kill(self, tmp_path):
        code = (
            "import sys; from pathlib import Path; from fastside.runtime_dir import RuntimeDir;"
            f"held = RuntimeDir(Path({str(tmp_path)!r})); print('held', flush=True); sys.stdin.read()"
        )
        other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        with other:
            assert other.stdout.readline() == "held\n"
            with pytest.raises(RuntimeDirError, match=f"already running as pid {other.pid}; .* than {tmp_path}"):
                RuntimeDir(tmp_path)
            other.kill()
        RuntimeDir(tmp_path).close()

    def test_children_do_not_hold_the_lock(self, tmp_path):
        held = RuntimeDir(tmp_path)
        ours, theirs = socket.socketpair()
        child = os.fork()
        if child == 0:
            ours.close()
            theirs.recv(1)
            os._exit(0)
        held._lock.close()  # as the end of the master would
        RuntimeDir(tmp_path).close()
        ours.close()
        theirs.close()
        os.waitpid(child, 0)

    def test_what_is_no_directory(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(RuntimeDirError, match="cannot be used: File exists"):
            RuntimeDir(tmp_path / "file")


@pytest.fixture
def loop():
    return EventLoop()


@pytest.fixture
def slot(loop):
    slot = Slot(3, loop)
    yield slot
    slot.inbox.close()
    slot.outbox.close()


@pytest.fixture
def other_slot(loop):
    slot = Slot(4, loop)
    yield slot
    slot.inbox.close()
    slot.outbox.close()


@pytest.fixture
def listener():
    config = ListenerConfig(name="in", direction="inbound", bind=f"127.0.0.1:{free_port()}")
    [listener] = open_listener(itertools.count(7), config, 1)
    yield listener
    listener.close()


def drained(slot):
    """What the inbox holds."""
    messages = []
    with contextlib.suppress(BlockingIOError):
        while True:
            messages.append(slot.inbox.recv(2048))
    return messages


class TestSlot:
    def test_messages_outlast_a_full_inbox_in_order_and_with_descriptors(self, loop, slot, listener):
        for number in range(2000):
            slot.post(To.LISTENERS, number)
        slot.post_listener(listener)
        slot.wake()  # dropped: something waits already
        received = []
        while not received or received[-1][0] != To.LISTENER_ADD:
            try:
                data, fds, _, _ = socket.recv_fds(slot.inbox, 2048, 1)
            except BlockingIOError:
                loop.turn()
                continue
            received.append((*struct.unpack_from("=IIII", data), data[16:], fds))
        assert [message[1] for message in received[:-1]] == [*range(2000)]
        kind, identity, number, length, payload, [fd] = received[-1]
        assert (kind, identity, number, length) == (To.LISTENER_ADD, 7, 0, len(payload))
        [entry] = listener.entries()
        assert payload == bytes((entry.direction, entry.protocol, 0, 0))
        assert os.fstat(fd).st_ino == listener.inodes()[0]
        os.close(fd)
        assert drained(slot) == []

    def test_a_listener_that_was_closed_meanwhile_is_no_trouble(self, loop, slot, listener):
        for _ in range(2000):
            slot.post(To.WAKE)
        slot.post_listener(listener)
        slot.post(To.LISTENERS, 5)
        listener.close()
        messages = drained(slot)
        while messages[-1] != inbox_message(To.LISTENERS, 5):
            loop.turn()
            messages += drained(slot)
        assert len(messages) == 2002

    def test_connections_in_a_dead_worker_s_inbox_go_to_another(self, loop, slot, other_slot):
        slot.pid = 99
        slot.ready_at = 1.0
        mine, handed = socket.socketpair()
        kept, waiting = socket.socketpair()
        slot.post(To.CONNECTION, 7, 0, b"peer", [handed.detach()])
        while not slot._waiting:
            slot.post(To.WAKE)
        slot.post(To.CONNECTION, 8, 0, b"more", [waiting.detach()])
        assert slot.ended("was killed by SIGKILL") == 1.0
        assert (slot.pid, slot.ready, slot.last_end) == (0, False, "worker 3 (pid 99) was killed by SIGKILL")
        slot.hand_on(other_slot)
        for identity, payload, end in ((7, b"peer", mine), (8, b"more", kept)):
            data, [fd], _, _ = socket.recv_fds(other_slot.inbox, 2048, 1)
            assert data == inbox_message(To.CONNECTION, identity, 1, payload)
            os.write(fd, b"x")
            os.close(fd)
            assert end.recv(2) == b"x"
            assert end.recv(2) == b""  # no copy is left open
            end.close()
        assert drained(slot) == []
        slot.post(To.DRAIN)
        loop.turn()  # the retry that was due finds nothing more to do
        assert drained(slot) == [inbox_message(To.DRAIN)]


class TestBackoff:
    def test_doubles_up_to_its_limit_and_starts_afresh_after_a_good_life(self):
        backoff = Backoff()
        now = time.monotonic()
        assert backoff.next(now - 60) == 0
        delays = [backoff.next(None if number % 2 else now) for number in range(9)]
        assert delays == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10, 10]
        assert backoff.next(now - 60) == 0
        assert backoff.next(None) == 0.1


class TestEventLoop:
    def test_timers_run_in_order(self):
        loop = EventLoop()
        ran = []
        loop.after(0.002, lambda: ran.append("later"))
        loop.after(0, lambda: ran.append("first"))
        loop.after(0, lambda: ran.append("second"))
        while len(ran) < 3:
            loop.turn()
        assert ran == ["first", "second", "later"]

    def test_what_an_action_unwatches_is_not_called_any_more(self):
        loop = EventLoop()
        pairs = [socket.socketpair() for _ in range(2)]
        called = []

        def action(number):
            called.append(number)
            loop.unwatch(pairs[1 - number][0])

        for number, (reader, writer) in enumerate(pairs):
            loop.watch(reader, lambda number=number: action(number))
            writer.send(b"x")
        loop.turn()
        assert len(called) == 1
        for reader, writer in pairs:
            reader.close()
            writer.close()


class TestChanges:
    def test_nothing(self):
        assert changes(Config(), Config()) == []

    def test_each_difference_is_named(self):
        listeners = [*Config().listeners, ListenerConfig(name="redis", direction="outbound", bind="127.0.0.1:6380")]
        new = Config(
            workers=4,
            listeners=listeners[1:],
            timeouts=Timeouts(connect=0.5),
            limits=Limits(services=10, headers=50),
            services={"svc-a": ServicePolicy()},
        )
        late = " (takes effect at the next start)"
        assert changes(Config(), new) == [
            f"workers: auto -> 4{late}",
            "listeners.inbound: removed",
            "listeners.redis: added",
            "services.svc-a: added",
            "timeouts.connect: 1 -> 0.5",
            "limits.headers: 200 -> 50",
            f"limits.services: 131072 -> 10{late}",
        ]
        assert changes(new, msgspec.structs.replace(new, services={"svc-a": ServicePolicy(request_timeout=5.0)})) == [
            "services.svc-a.request_timeout: none -> 5"
        ]

    def test_what_is_fixed_keeps_its_running_value(self):
        new = Config(workers=4, accept="exclusive", limits=Limits(services=10, headers=50), splice_after=0)
        applied = effective(Config(), new)
        assert applied == Config(limits=Limits(headers=50), splice_after=0)
        assert changes(applied, new) == [line for line in changes(Config(), new) if line.endswith("next start)")]


class TestOrphans:
    @pytest.fixture
    def process(self):
        with subprocess.Popen(["sleep", "60"]) as child:
            wait_until(lambda: process_title(child.pid) == "sleep 60")
            yield child
            child.kill()

    @staticmethod
    def record(**parts):
        defaults = {"boot_id": orphans.boot_id(), "master": 1, "control": None, "workers": [], "listeners": {}}
        return orphans.Record(**{**defaults, "outboxes": [], **parts})

    def test_a_recycled_pid_is_left_alone(self, tmp_path, process):
        known = orphans.Process.of(process.pid)
        assert orphans.Orphan(known).pid == process.pid
        other = orphans.Process(known.pid, known.started - 1)
        with pytest.raises(ProcessLookupError):
            orphans.Orphan(other)
        self.record(control=other, workers=[other]).write(tmp_path)
        assert orphans.find(tmp_path) is None
        assert process.poll() is None

    def test_another_boot_s_record_counts_for_nothing(self, tmp_path, process):
        self.record(workers=[orphans.Process.of(process.pid)], boot_id="another").write(tmp_path)
        assert orphans.find(tmp_path) is None

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}'])
    def test_a_record_that_cannot_be_read(self, tmp_path, text):
        (tmp_path / orphans.RECORD).write_text(text)
        assert orphans.find(tmp_path) is None

    def test_ended_and_killed(self, process):
        orphan = orphans.Orphan(orphans.Process.of(process.pid))
        assert not orphan.ended
        orphan.kill()
        assert orphan.wait(20)
        orphan.kill()  # not an error
        assert process.wait() == -signal.SIGKILL
        orphan.close()

    def test_sockets_are_copied_by_inode(self, tmp_path):
        config = ListenerConfig(name="in", direction="inbound", bind=f"127.0.0.1:{free_port()}")
        [listener] = open_listener(itertools.count(1), config, 2)
        outbox, inbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        inodes = listener.inodes()
        child = os.fork()
        if child == 0:
            signal.pause()
        record = self.record(
            workers=[orphans.Process.of(child)],
            listeners={config.bind: inodes, "127.0.0.1:1": [1]},
            outboxes=[os.fstat(outbox.fileno()).st_ino],
        )
        record.write(tmp_path)
        listener.close()
        outbox.close()
        left = orphans.find(tmp_path)
        assert (left.refused, [worker.pid for worker in left.workers]) == ("", [child])
        taken = left.take_listeners(config.bind)
        assert [os.fstat(sock.fileno()).st_ino for sock in taken] == inodes
        assert left.take_listeners("127.0.0.1:1") == []
        left.drain(inbox_message(To.DRAIN))
        assert inbox.recv(100) == inbox_message(To.DRAIN)
        assert left.draining
        left.kill()
        assert left.workers[0].wait(20)
        left.forget(left.workers[0])
        assert left.workers == []
        os.waitpid(child, 0)
        for sock in (inbox, *taken):
            sock.close()
