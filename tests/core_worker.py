"""Workers without a master: real worker processes on real sockets, with a routing table that the test writes itself.

Also the other end of the wire: a server whose every byte the test sends by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import resource
import select
import signal
import socket
import struct
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from fastside import _core
from fastside.config import Config, core_settings
from fastside.config import Listener as ListenerConfig
from fastside.listeners import Listener, open_listener
from fastside.worker import run_worker
from harness import DEADLINE, Raw, Stream, free_port, wait_until

SERVICE = "svc"
"""The service that most tests call."""

WAKE, LISTENER_ADD, LISTENER_REMOVE, CONNECTION, DRAIN, STOP, LISTENERS = range(1, 8)
"""Types of inbox messages."""

PR_SET_PDEATHSIG = 1

Address = tuple[str, int]
Endpoints = Iterable[Address | tuple[str, int, int]]


class Server:
    """A listening socket. The test accepts, reads and answers by itself, in the order that it wants."""

    def __init__(self, host: str = "127.0.0.1", backlog: int = 1024) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.create_server((host, 0), family=family, backlog=backlog)
        self.socket.settimeout(DEADLINE)
        self.address: Address = self.socket.getsockname()[:2]
        self._accepted: list[Stream] = []

    def accept(self) -> Stream:
        """Return the next connection; reading from it raises TimeoutError when nothing comes."""
        connected, _ = self.socket.accept()
        connected.settimeout(DEADLINE)
        stream = Stream(connected)
        self._accepted.append(stream)
        return stream

    def pending(self) -> bool:
        """Tell whether a connection waits to be accepted."""
        return bool(select.select([self.socket], [], [], 0)[0])

    def close(self) -> None:
        """Stop listening and close what was accepted."""
        self.socket.close()
        for stream in self._accepted:
            stream.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Workers:
    """Forked workers that share a table and their listeners, as a master would start them.

    services: endpoints by service name. listeners: configurations laid over "an http listener, outbound"; without any
    there is one. settings: over the defaults of the configuration. files: RLIMIT_NOFILE of the workers.
    Leaving the context kills what still runs; a worker that ended by itself fails the test, unless `wait_exit` was
    called for it.
    """

    def __init__(
        self,
        services: Mapping[str, Endpoints] | None = None,
        *,
        count: int = 1,
        listeners: Sequence[Mapping[str, str]] = ({},),
        settings: Mapping[str, int] | None = None,
        accept: str = "handover",
        max_connections: int = 4096,
        files: int | None = None,
    ) -> None:
        self.count = count
        self.accept = accept
        self.files = files
        self.table = _core.Table(1024, 4096, 16 << 20, count, max_connections, 64)
        self.settings = core_settings(Config()) | dict(settings or {})
        self.table.apply([{"op": "settings", "values": self.settings}])
        for service, endpoints in (services or {}).items():
            self.put(service, endpoints)
        protocols = [fields.get("protocol", "http") for fields in listeners]
        self._http = protocols.index("http") if "http" in protocols else 0
        ids = itertools.count(1)
        self.listeners: list[Listener] = []
        for number, fields in enumerate(listeners):
            values = {"name": f"listener-{number}", "direction": "outbound", "bind": f"127.0.0.1:{free_port()}"}
            values["protocol"] = "http"
            values |= fields
            self.listeners += open_listener(ids, ListenerConfig(**values), count, exclusive=accept == "exclusive")
        self.inboxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
        self.wake = os.eventfd(0, os.EFD_NONBLOCK)
        self.alive, self._alive_end = os.pipe()
        self.pids: dict[int, int] = {}
        self._clients: list[Raw] = []
        self._probe: Raw | None = None

    # what the master does

    def put(self, service: str, endpoints: Endpoints, **policy: Any) -> None:
        """Make or replace a service; `policy` as in Table.apply."""
        update = {
            "op": "put",
            "direction": "outbound",
            "service": service,
            "protocol": "http",
            "balance": "round_robin",
            "retry": False,
            "single": False,
            "grouped": False,
            "request_ms": 0,
            "endpoints": [[*endpoint, 1][:3] for endpoint in endpoints],
        }
        self.table.apply([update | policy])

    def set(self, **settings: int) -> None:
        """Change settings."""
        self.table.apply([{"op": "settings", "values": settings}])

    def start(self, slot: int) -> None:
        """Fork the worker of a slot and wait until it is ready."""
        self.table.reset_worker(slot)
        entries = [entry for listener in self.listeners for entry in listener.entries()]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the child leaves the threads of the test alone
            pid = os.fork()
        if pid == 0:
            with contextlib.suppress(BaseException):
                # It would serve on without a master, and so outlive a killed test.
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if self.files:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (self.files, self.files))
                outboxes = [outbox.fileno() for _, outbox in self.inboxes]
                inbox = self.inboxes[slot][0].fileno()
                run_worker(self.table, slot, entries, inbox, outboxes, self.wake, self.alive, self.accept)
            os._exit(70)
        self.pids[slot] = pid
        wait_until(lambda: self._running(slot) and self.table.worker(slot)["state"] == "ready", what="the worker runs")

    def send(self, slot: int, kind: int, a: int = 0, b: int = 0, payload: bytes = b"", fd: int | None = None) -> None:
        """Send an inbox message."""
        data = struct.pack("<IIII", kind, a, b, len(payload)) + payload
        socket.send_fds(self.inboxes[slot][1], [data], [fd] if fd is not None else [])

    def own(self, slot: int, owner: int) -> None:
        """Let the worker `owner` accept from a slot's listeners."""
        self.table.set_slot_owner(slot, owner)
        for each in self.pids:
            self.send(each, WAKE)

    def kill(self, slot: int) -> None:
        """SIGKILL a worker."""
        pid = self.pids.pop(slot)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def drain(self) -> None:
        for slot in self.pids:
            self.send(slot, DRAIN)

    def wait_exit(self, slot: int) -> int:
        """Wait until a worker ends by itself; return its exit code, negative for a signal."""
        pid = self.pids[slot]

        def ended() -> tuple[int] | None:
            found, status = os.waitpid(pid, os.WNOHANG)
            return (os.waitstatus_to_exitcode(status),) if found else None

        code = wait_until(ended, what=f"worker {slot} ends")[0]
        del self.pids[slot]
        return code

    # what the tests look at

    def address(self, listener: int = 0) -> Address:
        return self.listeners[listener].sockets[0].getsockname()[:2]

    def connect(self, listener: int = 0, source: str | None = None) -> Raw:
        """Open a connection to a listener. It is closed at the latest when the context is left."""
        client = Raw(self.address(listener), source=source)
        self._clients.append(client)
        return client

    def settle(self) -> None:
        """Return when the one worker has handled everything that reached it before this call.

        It takes the events of its sockets in the order of their coming, so an answer to a later request tells.
        """
        assert self.count == 1
        self._probe = self._probe or self.connect(self._http)
        assert self._probe.call("unknown").status == 404

    def send_split(self, stream: Stream, data: bytes, at: int) -> None:
        """Send bytes in two pieces; the second only when the worker has read the first."""
        stream.send(data[:at])
        self.settle()
        stream.send(data[at:])

    def silent(self, *streams: Stream) -> bool:
        """Tell whether the one worker has nothing to say on these connections, their end included."""
        self.settle()
        return not any(stream._buffer or select.select([stream.socket], [], [], 0)[0] for stream in streams)

    def counters(self, slot: int | None = None) -> dict[str, Any]:
        return _core.counters(self.table, slot)

    def connections(self, slot: int = 0) -> list[dict[str, Any]]:
        return _core.connections(self.table, slot)

    def loads(self) -> list[int]:
        """Downstream connections by slot."""
        return [self.table.worker(slot)["connections"] for slot in range(self.count)]

    def wait_for(self, **expected: int) -> None:
        """Wait until counters and gauges, summed over the workers, have these values."""
        self._end_probe()

        def reached() -> bool:
            found = self.counters()
            return all(found[name] == value for name, value in expected.items())

        try:
            wait_until(reached)
        except pytest.fail.Exception:
            found = self.counters()
            pytest.fail(f"counters are { {name: found[name] for name in expected} }, not {expected}")

    def wait_idle(self) -> None:
        """Wait until no connection, buffer or pipe is in use, pooled upstream connections aside."""
        self.wait_for(downstreams=0, buffers=0, pipes=0)
        wait_until(lambda: self.counters()["upstreams"] == self.counters()["pooled"], what="upstreams are free")
        wait_until(lambda: not any(self.loads()), what="no downstream connection is counted")

    def descriptors(self, slot: int = 0) -> int:
        """Open descriptors of a worker."""
        return len(os.listdir(f"/proc/{self.pids[slot]}/fd"))

    def memory(self, slot: int = 0, kind: str = "Pss") -> int:
        """Bytes of a worker's memory, by a name of /proc/PID/smaps_rollup."""
        lines = Path(f"/proc/{self.pids[slot]}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{kind}:"))

    def _end_probe(self) -> None:
        if self._probe:
            self._probe.close()
            self._probe = None

    def _running(self, slot: int) -> bool:
        """True; fails the test if the worker ended by itself."""
        found, status = os.waitpid(self.pids[slot], os.WNOHANG)
        if found:
            del self.pids[slot]
            pytest.fail(f"worker {slot} ended with {os.waitstatus_to_exitcode(status)}")
        return True

    def __enter__(self) -> Workers:
        try:
            for slot in range(self.count):
                self.table.set_slot_owner(slot, slot)
            for slot in range(self.count):
                self.start(slot)
        except BaseException:
            self._clean()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            for slot in list(self.pids):
                self._running(slot)
        finally:
            self._clean()

    def _clean(self) -> None:
        for client in self._clients:
            client.close()
        for slot in list(self.pids):
            self.kill(slot)
        for listener in self.listeners:
            listener.close()
        for pair in self.inboxes:
            for end in pair:
                end.close()
        for fd in (self.wake, self.alive, self._alive_end):
            os.close(fd)


def head(*lines: str) -> bytes:
    """Return a head of these lines."""
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def exact(stream: Stream, data: bytes) -> None:
    """Read as many bytes as `data` has, and assert that they are these."""
    assert stream.read(len(data)) == data


def was_reset(stream: Stream) -> bool:
    """Read to the end; tell whether it was a reset."""
    try:
        stream.read_all()
    except ConnectionResetError:
        return True
    return False
