"""The master: a small single-threaded arbiter.

It owns what must outlive every other process: the listening sockets, the shared memory, the workers' inboxes. It starts
and replaces workers and control, writes the routing table for control, and takes signals. It imports no registry client
and no HTTP server, and everything it does in its loop is short.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec
from setproctitle import setproctitle

from fastside import __version__, _core, cgroup, config_diff, notify, orphans
from fastside.channel import Channel, ChannelClosed, ChannelError, ChannelFull, Message
from fastside.config import Config, ConfigError, core_settings, load
from fastside.config import Listener as ListenerConfig
from fastside.event_loop import EventLoop
from fastside.listeners import Listener, ListenError, open_listener, own_addresses, steer, unsteer
from fastside.runtime_dir import RuntimeDir, RuntimeDirError
from fastside.slots import Backoff, Slot, To, inbox_message
from fastside.worker import BOOT_FAILED, run_child, run_worker

SIGNALS = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
UNUSED_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)

CONTROL_PATIENCE = 10.0
"""Seconds that the workers wait at the start for control's first snapshot; then they serve without it."""
CONFIRM_PATIENCE = 10.0
"""Seconds that a reload waits for the workers."""
STOP_PATIENCE = 2.0
"""Seconds that control gets to end once the workers have, or a process that was told to stop at once."""
CONFIRM_POLL = 0.005
RECLAIM_DELAY = 1.0
"""Seconds after an update in which its readers have surely moved on, so that the old records can be freed."""
MAX_LISTENERS = 64
"""As many as a worker can hold, see core/worker.pxd."""
OTHER_DESCRIPTORS = 1024 + 256
"""What a worker may hold besides connections and listeners: the pipes of splice, and some to spare."""


class StartError(Exception):
    """The sidecar cannot start; str() says why and what to do."""


def run(config: Config, config_path: Path | None = None) -> int:
    """Run a sidecar until it is told to stop. Returns the exit code: 0, 1 if it could not start, 128 + N if a second
    signal N cut the drain short."""
    try:
        master = Master(config, config_path)
    except (StartError, ListenError, RuntimeDirError) as error:
        log(str(error))
        return 1
    return master.run()


def log(event: str) -> None:
    """Write a line to stderr. That nobody reads it is no reason to stop forwarding."""
    with contextlib.suppress(OSError):
        print(f"fastside: {event}", file=sys.stderr, flush=True)


def say(line: str) -> None:
    """Write a line to stdout."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def how_it_ended(status: int) -> str:
    """A wait status in words."""
    code = os.waitstatus_to_exitcode(status)
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def raise_descriptor_limit(wanted: int) -> None:
    """Make RLIMIT_NOFILE what a worker needs; the default of 1024 is far too small."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        if allowed < wanted:
            log(
                f"a worker with limits.connections as configured needs {wanted} descriptors, and {hard} are allowed: "
                "it will stop accepting before; raise the limit (ulimit -Hn, LimitNOFILE=) or lower limits.connections"
            )


@dataclass
class Control:
    """The present control process."""

    pid: int
    channel: Channel
    ready_at: float | None = None


@dataclass
class Reload:
    """A reload that the workers have yet to confirm."""

    asked_by: int | None
    """Id of control's request; None: a signal asked."""
    changes: list[str]
    table_version: int
    listeners_version: int
    removed: list[Listener]
    deadline: float


class Master:
    """States: starting, running, draining (everything still served), closing (workers end), ending (control ends)."""

    def __init__(self, config: Config, config_path: Path | None) -> None:
        """Open, or take over, what outlives the other processes. Raises StartError, ListenError, RuntimeDirError."""
        setproctitle("fastside: master")
        self.config = config
        self.config_path = config_path.absolute() if config_path is not None else None
        self.state = "starting"
        self.exit_code: int | None = None
        self.started = time.time()
        self.loop = EventLoop()
        self.control: Control | None = None
        self.control_backoff = Backoff()
        self.control_restarts = 0
        self.listeners: list[Listener] = []
        self.listeners_version = 0
        self.listener_ids = itertools.count(1)
        self.reload: Reload | None = None
        self.reloads_asked: list[int | None] = []
        self.reloads_done = 0
        self.reclaim_due = False
        with contextlib.ExitStack() as undo:
            self.runtime_dir = RuntimeDir(Path(config.runtime_dir))
            undo.callback(self.runtime_dir.close)
            self.orphans = self._find_orphans()
            if config.workers == "auto":
                count, self.workers_reason = cgroup.default_workers()
            else:
                count, self.workers_reason = config.workers, "as configured"
            self.slots = [Slot(number, self.loop) for number in range(count)]
            self._open_listeners()
            self.table = self._make_table()
            undo.pop_all()
        self.alive_reader, self.alive_writer = os.pipe2(os.O_CLOEXEC)
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    # Start

    def _find_orphans(self) -> orphans.Orphans | None:
        try:
            found = orphans.find(self.runtime_dir.path)
        except OSError as error:
            raise StartError(
                f"cannot look after the processes that a killed master left ({error.strerror}); their pids are in "
                f"{self.runtime_dir.path / orphans.RECORD}: end them, then start again"
            ) from error
        if found and found.refused:
            log(
                f"the sockets of the workers that master pid {found.master} left cannot be had ({found.refused}); "
                "new ones are opened beside them"
            )
        return found

    def _open_listeners(self) -> None:
        self._check_listener_count(len(self.config.listeners))
        left = self.orphans.inodes if self.orphans else {}
        for config in self.config.listeners:
            self.listeners += open_listener(
                self.listener_ids,
                config,
                len(self.slots),
                exclusive=self.config.accept == "exclusive",
                inherited=self.orphans.take_listeners(config.bind) if self.orphans else (),
                ours=itertools.chain.from_iterable(left.values()),
            )

    @staticmethod
    def _check_listener_count(count: int) -> None:
        if count > MAX_LISTENERS:
            raise ListenError(f"listeners: {count} are too many at a time; use at most {MAX_LISTENERS}")

    def _make_table(self) -> _core.Table:
        limits = self.config.limits
        try:
            table = _core.Table(
                max_services=limits.services,
                max_addresses=limits.addresses,
                table_bytes=limits.table_bytes,
                workers=len(self.slots),
                max_connections=limits.connections,
                stat_slots=limits.service_series + 1,  # one for all others
            )
            for slot in self.slots:
                table.set_slot_owner(slot.number, slot.owner)
            table.apply(self._own_updates(self.config, self.config.listeners))
        except (_core.TableFull, ValueError, OSError, MemoryError) as error:
            raise StartError(f"the shared memory cannot be set up: {error}") from error
        return table

    @staticmethod
    def _own_updates(config: Config, listeners: Iterable[ListenerConfig]) -> list[Message]:
        """What the master itself has to say in the table."""
        # Only outbound: a service that is published and called on one machine has the inbound listener as its endpoint.
        outbound = [listener for listener in listeners if listener.direction == "outbound"]
        addresses = [[host, port] for host, port in own_addresses(outbound)]
        return [
            {"op": "settings", "values": core_settings(config)},
            {"op": "listeners", "addresses": addresses},
        ]

    def run(self) -> int:
        """Start the children and handle events until the end; return the exit code.

        An exception that escapes from here ends this process alone: the workers serve on, and the next
        `fastside run` takes them over.
        """
        began = time.monotonic()
        self.loop.on_signals(SIGNALS, self._on_signal)
        for number in UNUSED_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        self.loop.watch(self.wake, self._on_wake)
        self._introduce()
        sockets = len(self.config.listeners) * len(self.slots)
        raise_descriptor_limit(self.config.limits.connections + sockets + OTHER_DESCRIPTORS)
        self._write_record()
        if self.orphans and self.orphans.control:
            # It has the ports that the new control needs. Its leases go on, and its snapshot is on disk.
            self.orphans.control.kill()
            self.orphans.control.wait(STOP_PATIENCE)
        # What exists now is there for good. Frozen, its pages stay shared with the children.
        gc.collect()
        gc.freeze()
        self._start_control()
        self.loop.after(CONTROL_PATIENCE, self._start_without_control)
        while self.exit_code is None:
            self.loop.turn()
            if self.state == "starting" and all(slot.ready for slot in self.slots):
                self._all_ready(time.monotonic() - began)
        self._remove_files()
        return self.exit_code

    def _introduce(self) -> None:
        config = self.config
        say(f"fastside {__version__}, pid {os.getpid()}")
        say(f"  configuration  {self.config_path or 'built-in defaults'}")
        say(f"  workers        {len(self.slots)}: {self.workers_reason}")
        for listener in config.listeners:
            target = f" to {listener.service}" if listener.service else ""
            say(f"  {listener.name:<13}  {listener.bind} ({listener.direction} {listener.protocol}{target})")
        for key, bind in config.apis.items():
            name = "API" if key == "api" else key.replace(".api", " API")
            say(f"  {name:<13}  {bind}")
        say(f"  metrics        http://{config.metrics}/metrics")
        say(f"  admin          {config.admin_socket}")
        say(f"  registry       {config.registry.url or 'its own, in this sidecar'}")
        say(f"  stopping       {self._drain_timeline()}")
        if self.orphans and self.orphans.workers:
            say(f"  taking over    {len(self.orphans.workers)} workers that master pid {self.orphans.master} left")

    def _drain_timeline(self) -> str:
        drain = self.config.drain
        delay = min(drain.delay, drain.deadline)
        return (
            f"at 0 s not ready and withdrawn from the registry, serving on; from {delay:g} s connections close "
            f"when idle or at their next response; at {drain.deadline:g} s what is left is cut"
        )

    def _start_without_control(self) -> None:
        if self.state == "starting" and not any(slot.pid for slot in self.slots):
            log(f"control is not ready after {CONTROL_PATIENCE:g} s; the workers start without its services")
            self._start_workers()

    def _start_workers(self) -> None:
        for slot in self.slots:
            self._start_worker(slot)

    def _all_ready(self, seconds: float) -> None:
        self.state = "running"
        say(f"ready after {1000 * seconds:.0f} ms; try: fastside publish svc-a --port 20880")
        notify.ready()
        if self.orphans:
            if self.orphans.refused:
                self._steer(self.orphans)
            self._end_orphans(self.orphans)
        self._next_reload()

    # Takeover from a killed master

    def _end_orphans(self, left: orphans.Orphans) -> None:
        """Let the old workers finish: the new ones serve, or the sidecar stops."""
        if left.draining:
            return
        left.drain(inbox_message(To.DRAIN))
        for worker in left.workers:
            self.loop.watch(worker, partial(self._orphan_ended, left, worker))
        self.loop.after(self.config.drain.deadline, left.kill)
        if not left.workers:
            self.orphans = None

    def _orphan_ended(self, left: orphans.Orphans, worker: orphans.Orphan) -> None:
        self.loop.unwatch(worker)
        left.forget(worker)
        if left.workers:
            return
        log(f"the workers that master pid {left.master} left have ended")
        if left.refused:
            self._steer(left, back=True)
        self.orphans = None
        self._write_record()
        self._end_if_idle()

    def _steer(self, left: orphans.Orphans, *, back: bool = False) -> None:
        """Give new connections to this master's sockets alone, or (back) let the kernel spread them again."""
        for listener in self.listeners:
            old = left.inodes.get(listener.config.bind)
            if not old:
                continue
            try:
                if back:
                    unsteer(listener.sockets[0])
                else:
                    steer(listener.sockets[0], first=len(old), count=len(listener.distinct()))
            except OSError as error:
                log(f"listener {listener.config.name}: new connections cannot be steered: {error.strerror}")

    # Children

    def _fork(self) -> int:
        """fork(2). The child has the master's signals blocked until it has dropped their handlers."""
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        pid = -1
        try:
            pid = os.fork()
        finally:
            if pid:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return pid

    def _try_again(self, what: str, error: OSError, start: Callable[[], None]) -> None:
        log(f"{what} cannot be started: {error.strerror}; trying again in {Backoff.LAST:g} s")
        self.loop.after(Backoff.LAST, start)

    def _start_worker(self, slot: Slot) -> None:
        if slot.pid or self.state in ("closing", "ending"):
            return
        try:
            pid = self._fork()
        except OSError as error:
            self._try_again(f"worker {slot.number}", error, lambda: self._start_worker(slot))
            return
        if pid == 0:
            run_worker(
                self.table,
                slot.number,
                [entry for listener in self.listeners for entry in listener.entries()],
                slot.inbox.fileno(),
                [each.outbox.fileno() for each in self.slots],
                self.wake,
                self.alive_reader,
                self.config.accept,
            )
        slot.pid = pid
        slot.post(To.LISTENERS, self.listeners_version)
        self._write_record()

    def _worker_ready(self, slot: Slot) -> None:
        slot.ready_at = time.monotonic()
        if slot.last_end:
            took = 1000 * (slot.ready_at - slot.ended_at)
            log(f"{slot.last_end}; replaced after {took:.0f} ms by pid {slot.pid}")
        self._assign_slots()
        self._tell_workers_up()

    def _worker_ended(self, slot: Slot, status: int) -> None:
        ready_at = slot.ended(how_it_ended(status))
        self.table.reset_worker(slot.number)
        self._assign_slots()
        slot.hand_on(self.slots[slot.owner])
        if self.state in ("closing", "ending"):
            if status:
                log(slot.last_end)
            self._end_if_idle()
        elif self.state == "starting" and os.waitstatus_to_exitcode(status) == BOOT_FAILED:
            self._give_up(f"{slot.last_end}, so it cannot run here")
        else:
            slot.restarts += 1
            if delay := slot.backoff.next(ready_at):
                log(f"{slot.last_end}; the next one starts in {delay:g} s")
            self.loop.after(delay, lambda: self._start_worker(slot))
            self._tell_workers_up()

    def _assign_slots(self) -> None:
        """Give the sockets of a slot whose worker has died to the ready worker with the fewest connections.

        A first worker is not stood in for: it is there in a moment, and early connections would all stay elsewhere.
        """
        ready = [slot for slot in self.slots if slot.ready]
        changed = False
        for slot in self.slots:
            if slot.ready or not slot.last_end or not ready:
                owner = slot.number
            elif self.slots[slot.owner].ready:
                continue
            else:
                owner = min(ready, key=lambda each: int(self.table.worker(each.number)["connections"])).number
            if owner != slot.owner:
                self.table.set_slot_owner(slot.number, owner)
                slot.owner = owner
                changed = True
        if changed:
            self._wake_workers()

    def _wake_workers(self) -> None:
        for slot in self.slots:
            if slot.pid:
                slot.wake()

    def _start_control(self) -> None:
        if self.control or self.state == "ending":
            return
        ours, theirs = socket.socketpair()
        try:
            pid = self._fork()
        except OSError as error:
            ours.close()
            theirs.close()
            self._try_again("control", error, self._start_control)
            return
        if pid == 0:
            self._become_control(theirs)
        theirs.close()
        self.control = Control(pid, Channel(ours))
        self._watch_channel(self.control)
        self._write_record()
        self._tell_workers_up()
        if self.state in ("draining", "closing"):
            self._tell({"op": "draining"})

    def _become_control(self, channel: socket.socket) -> None:
        def work() -> int:
            from fastside import control  # here: the master does without what control imports

            return control.run(self.config, self.table, channel)

        keep = (self.table.table_fd, self.table.state_fd, channel.fileno())
        # SIGTERM is its own business: without a master it may be told to end.
        ignored = (signal.SIGINT, signal.SIGHUP, *UNUSED_SIGNALS)
        run_child("fastside: control", work, self.table, keep, ignored)

    def _control_ready(self, control: Control) -> None:
        control.ready_at = time.monotonic()
        if self.state == "starting":
            self._start_workers()

    def _control_ended(self, control: Control, status: int) -> None:
        self._drop_channel(control)
        self.control = None
        # The next one counts its requests from 1 again: it must not get an answer that was for this one.
        self.reloads_asked = [None for _ in self.reloads_asked]
        if self.reload:
            self.reload.asked_by = None
        how = f"control (pid {control.pid}) {how_it_ended(status)}"
        if self.state == "ending":
            self.exit_code = 0
        elif self.state == "starting" and control.ready_at is None and os.waitstatus_to_exitcode(status) == BOOT_FAILED:
            self._give_up(f"{how}, so the sidecar cannot run here")
        else:
            self.control_restarts += 1
            delay = self.control_backoff.next(control.ready_at)
            log(f"{how}; the next one starts {f'in {delay:g} s' if delay else 'now'}, calls are forwarded as before")
            self.loop.after(delay, self._start_control)

    def _kill_control(self, control: Control, reason: str) -> None:
        log(f"control (pid {control.pid}) is killed: {reason}")
        self._drop_channel(control)
        os.kill(control.pid, signal.SIGKILL)  # not reaped yet, so the pid is still its own

    def _give_up(self, reason: str) -> None:
        log(reason)
        self._kill_children()
        self.exit_code = 1

    def _kill_children(self) -> None:
        pids = [slot.pid for slot in self.slots if slot.pid] + ([self.control.pid] if self.control else [])
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)
        for slot in self.slots:
            slot.pid = 0
        self.control = None

    # Events

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGHUP:
            self._ask_reload(None)
        elif self.state in ("starting", "running"):
            self._drain(number.name)
        elif self.exit_code is None:
            log(f"second signal ({number.name}): ending at once")
            self._kill_children()
            if self.orphans:
                self.orphans.kill()
                self.orphans = None
            self.exit_code = 128 + number

    def _reap(self) -> None:
        while self.exit_code is None:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self.control and self.control.pid == pid:
                self._control_ended(self.control, status)
            for slot in self.slots:
                if slot.pid == pid:
                    self._worker_ended(slot, status)

    def _on_wake(self) -> None:
        os.eventfd_read(self.wake)
        for slot in self.slots:
            if slot.pid and not slot.ready and self.table.worker(slot.number)["state"] == "ready":
                self._worker_ready(slot)

    # Talking to control

    def _watch_channel(self, control: Control) -> None:
        self.loop.watch(control.channel, lambda: self._on_channel(control), also_writable=control.channel.pending)

    def _drop_channel(self, control: Control) -> None:
        if control.channel.fileno() >= 0:
            self.loop.unwatch(control.channel)
            control.channel.close()

    def _on_channel(self, control: Control) -> None:
        try:
            control.channel.flush()
            for request in control.channel.receive():
                self._handle(control, request)
        except ChannelClosed:
            self._drop_channel(control)  # it has ended, and SIGCHLD says how
            return
        except ChannelError as error:
            self._kill_control(control, str(error))
            return
        if control.channel.fileno() >= 0:
            self._watch_channel(control)

    def _tell(self, message: Message) -> None:
        control = self.control
        if not control or control.channel.fileno() < 0:
            return
        try:
            control.channel.send(message)
        except ChannelFull as error:
            self._kill_control(control, str(error))
        except ChannelClosed:
            self._drop_channel(control)
        else:
            self._watch_channel(control)

    def _tell_workers_up(self) -> None:
        self._tell({"op": "workers", "up": sum(slot.ready for slot in self.slots), "of": len(self.slots)})

    def _handle(self, control: Control, request: Message) -> None:
        match request:
            case {"op": "apply", "id": number, "updates": updates}:
                self._apply(number, updates)
            case {"op": "status", "id": number}:
                self._tell({"op": "status", "id": number, **self._status()})
            case {"op": "reload", "id": number}:
                self._ask_reload(number)
            case {"op": "drain"}:
                if self.state in ("starting", "running"):
                    self._drain("fastside drain")
            case {"op": "ready"}:
                self._control_ready(control)
            case {"op": "withdrawn"}:
                log("withdrawn from the registry")
            case _:
                log(f"control (pid {control.pid}) sent an unknown message: {str(request)[:200]}")

    def _apply(self, number: int, updates: list[Message]) -> None:
        try:
            version = self.table.apply(updates)
        except (_core.TableFull, ValueError) as error:
            self._tell({"op": "refused", "id": number, "error": str(error)})
            return
        self._wake_workers()  # for one that sleeps would not say that it has the new version
        if not self.reclaim_due:
            self.reclaim_due = True
            self.loop.after(RECLAIM_DELAY, self._reclaim)
        self._tell({"op": "applied", "id": number, "version": version})

    def _reclaim(self) -> None:
        self.reclaim_due = False
        self.table.reclaim()

    def _status(self) -> Message:
        workers = [
            {**self.table.worker(slot.number), "slot": slot.number, "pid": slot.pid, "restarts": slot.restarts}
            for slot in self.slots
        ]
        master = {
            "pid": os.getpid(),
            "started": self.started,
            "generation": self.reloads_done,
            "config_path": str(self.config_path) if self.config_path else None,
            "state": self.state,
            "listeners_version": self.listeners_version,
            "control_restarts": self.control_restarts,
            "orphans": len(self.orphans.workers) if self.orphans else 0,
        }
        return {"master": master, "workers": workers}

    # Reload

    def _ask_reload(self, asked_by: int | None) -> None:
        if self.reload or self.state == "starting":
            self.reloads_asked.append(asked_by)
        elif self.state != "running":
            self._refuse_reload(asked_by, "the sidecar is stopping")
        else:
            notify.reloading()
            self._begin_reload(asked_by)

    def _refuse_reload(self, asked_by: int | None, error: str) -> None:
        log(f"reload refused, the running configuration stays in force: {error}")
        if asked_by is not None:
            self._tell({"op": "reload_failed", "id": asked_by, "error": error})

    def _begin_reload(self, asked_by: int | None) -> None:
        """Check everything, open what is new, and only then change anything."""
        try:
            wanted = load(self.config_path)
            opened, kept, removed = self._open_changed_listeners(wanted)
        except (ConfigError, ListenError) as error:
            self._refuse_reload(asked_by, str(error))
            notify.ready()
            return
        changes = config_diff.changes(self.config, wanted)
        config = config_diff.effective(self.config, wanted)
        try:
            version = self.table.apply(self._own_updates(config, (each.config for each in opened + kept + removed)))
        except (_core.TableFull, ValueError) as error:
            for listener in opened:
                listener.close()
            self._refuse_reload(asked_by, str(error))
            notify.ready()
            return
        self.config = config
        self.listeners = kept + opened
        self.listeners_version += 1
        up = [slot for slot in self.slots if slot.pid]
        for slot in up:
            for listener in opened:
                slot.post_listener(listener)
        # A worker accepts from the new ones when it hears of the version. By then all have them, so that a connection
        # that is handed over finds its listener.
        for slot in up:
            for listener in removed:
                slot.post(To.LISTENER_REMOVE, listener.id)
            slot.post(To.LISTENERS, self.listeners_version)
        self._write_record()
        self._tell({"op": "config", "config": msgspec.to_builtins(config)})
        deadline = time.monotonic() + CONFIRM_PATIENCE
        self.reload = Reload(asked_by, changes, version, self.listeners_version, removed, deadline)
        self._finish_reload()

    def _open_changed_listeners(self, wanted: Config) -> tuple[list[Listener], list[Listener], list[Listener]]:
        """Listeners that are new or changed and now open, those that stay, and those that are to go."""
        kept = [listener for listener in self.listeners if listener.config in wanted.listeners]
        removed = [listener for listener in self.listeners if listener not in kept]
        running = [listener.config for listener in kept]
        new = [config for config in wanted.listeners if config not in running]
        self._check_listener_count(len(self.listeners) + len(new))
        ours = [inode for listener in self.listeners for inode in listener.inodes()]
        opened: list[Listener] = []
        try:
            for config in new:
                same = [listener for listener in removed if listener.config.bind == config.bind]
                opened += open_listener(
                    self.listener_ids,
                    config,
                    len(self.slots),
                    exclusive=self.config.accept == "exclusive",
                    inherited=[sock.dup() for listener in same for sock in listener.distinct()],
                    ours=ours,
                )
        except ListenError:
            for listener in opened:
                listener.close()
            raise
        return opened, kept, removed

    def _finish_reload(self) -> None:
        """Answer once every living worker runs the new version."""
        reload = self.reload
        if not reload:
            return
        late = [slot for slot in self.slots if slot.pid and not self._runs(slot, reload)]
        if late and time.monotonic() < reload.deadline:
            self.loop.after(CONFIRM_POLL, self._finish_reload)
            return
        self.reload = None
        self.reloads_done += 1
        for listener in reload.removed:
            listener.close()
        if late:
            names = ", ".join(f"worker {slot.number} (pid {slot.pid})" for slot in late)
            error = f"the new configuration is in force, but {names} did not confirm it within {CONFIRM_PATIENCE:g} s"
            log(error)
            answer: Message = {"op": "reload_failed", "error": error}
        else:
            log(f"reloaded: {'; '.join(reload.changes) or 'nothing has changed'}")
            answer = {"op": "reloaded", "version": reload.table_version, "changes": reload.changes}
        if reload.asked_by is not None:
            self._tell({**answer, "id": reload.asked_by})
        notify.ready()
        self._next_reload()

    def _next_reload(self) -> None:
        while self.reloads_asked and not self.reload:
            self._ask_reload(self.reloads_asked.pop(0))

    def _runs(self, slot: Slot, reload: Reload) -> bool:
        block = self.table.worker(slot.number)
        return bool(
            block["listeners_version"] >= reload.listeners_version and block["applied_version"] >= reload.table_version
        )

    # Stopping

    def _drain(self, reason: str) -> None:
        log(f"{reason}: stopping; {self._drain_timeline()}")
        notify.stopping()
        drain = self.config.drain
        serving = any(slot.pid for slot in self.slots)
        self.state = "draining"
        self._tell({"op": "draining"})
        self.loop.after(min(drain.delay, drain.deadline) if serving else 0, self._close_workers)
        self.loop.after(drain.deadline, self._cut)

    def _close_workers(self) -> None:
        if self.state != "draining":
            return
        self.state = "closing"
        for slot in self.slots:
            if slot.pid:
                # Removed first, so that the port closes as soon as what is queued has been taken: otherwise callers
                # would go on queueing where nobody accepts any more.
                for listener in self.listeners:
                    slot.post(To.LISTENER_REMOVE, listener.id)
                slot.post(To.DRAIN)
        for listener in self.listeners:
            listener.close()
        self.listeners = []
        if self.orphans:
            self._end_orphans(self.orphans)
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self.state != "closing" or any(slot.pid for slot in self.slots) or (self.orphans and self.orphans.workers):
            return
        self.state = "ending"
        if not self.control:
            self.exit_code = 0
            return
        self._tell({"op": "stop"})
        self.loop.after(STOP_PATIENCE, self._kill_late_control)

    def _kill_late_control(self) -> None:
        if self.control:
            self._kill_control(self.control, f"it did not end within {STOP_PATIENCE:g} s")

    def _cut(self) -> None:
        """The deadline."""
        if self.state == "ending":
            return
        self._close_workers()
        left = [slot for slot in self.slots if slot.pid]
        if left:
            count = sum(int(self.table.worker(slot.number)["connections"]) for slot in left)
            log(f"the drain's deadline has come: {count} connections are cut")
        for slot in left:
            slot.post(To.STOP)
        if self.orphans:
            self.orphans.kill()
        self.loop.after(STOP_PATIENCE, self._kill_late_workers)

    def _kill_late_workers(self) -> None:
        for slot in self.slots:
            if slot.pid:
                os.kill(slot.pid, signal.SIGKILL)

    # Files

    def _write_record(self) -> None:
        """Leave what a successor needs, should this process be killed."""
        left = self.orphans
        listening: dict[str, list[int]] = dict(left.inodes) if left and left.refused else {}
        for listener in self.listeners:
            inodes = listening.setdefault(listener.config.bind, [])
            listening[listener.config.bind] = [*inodes, *(each for each in listener.inodes() if each not in inodes)]
        workers = [orphans.Process.of(slot.pid) for slot in self.slots if slot.pid]
        record = orphans.Record(
            boot_id=orphans.boot_id(),
            master=os.getpid(),
            control=orphans.Process.of(self.control.pid) if self.control else None,
            workers=workers + ([orphan.process for orphan in left.workers] if left else []),
            listeners=listening,
            outboxes=[os.fstat(slot.outbox.fileno()).st_ino for slot in self.slots] + (left.outboxes if left else []),
        )
        record.write(self.runtime_dir.path)

    def _remove_files(self) -> None:
        if self.orphans and self.orphans.workers:
            self._write_record()  # this start failed, and they serve on: the next one takes them over
        else:
            (self.runtime_dir.path / orphans.RECORD).unlink(missing_ok=True)
        Path(self.config.admin_socket).unlink(missing_ok=True)
        self.runtime_dir.close()
