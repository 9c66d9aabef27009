"""Worker slots: what survives a worker, and how the master talks to the present one."""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections import deque
from enum import IntEnum

from fastside.event_loop import EventLoop
from fastside.listeners import Listener

RETRY = 0.05
"""Seconds between two attempts to write to a full inbox."""


class To(IntEnum):
    """Types of the messages in a worker's inbox, see core/inbox.pyx."""

    WAKE = 1
    LISTENER_ADD = 2
    LISTENER_REMOVE = 3
    DRAIN = 5
    STOP = 6
    LISTENERS = 7


def inbox_message(kind: To, a: int = 0, b: int = 0, payload: bytes = b"") -> bytes:
    return struct.pack("=IIII", kind, a, b, len(payload)) + payload


class Backoff:
    """Delays before the restarts of a process: none, unless it keeps dying."""

    FIRST, LAST = 0.1, 10.0
    """Seconds; the delay doubles from the one to the other."""
    QUICK = 1.0
    """A process that was ready for so long (seconds) had a good start."""

    def __init__(self) -> None:
        self._delay = 0.0

    def next(self, ready_at: float | None) -> float:
        """Seconds to wait, now that a process has died that was ready at `ready_at` (monotonic; None: never)."""
        if ready_at is not None and time.monotonic() - ready_at >= self.QUICK:
            self._delay = 0.0
        else:
            self._delay = min(max(self.FIRST, 2 * self._delay), self.LAST)
        return self._delay


class Slot:
    """A worker's place. The inbox lives as long as the slot: what siblings put in is not lost with a worker."""

    def __init__(self, number: int, loop: EventLoop) -> None:
        self.number = number
        self.inbox, self.outbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._loop = loop
        self.owner = number
        """The worker that accepts from this slot's listeners."""
        self.pid = 0
        """0: there is no worker now."""
        self.ready_at: float | None = None
        """Monotonic; None: it does not serve yet."""
        self.restarts = 0
        self.backoff = Backoff()
        self.last_end = ""
        """What became of the last worker; "" until one has ended."""
        self.ended_at = 0.0
        self._waiting: deque[tuple[bytes, socket.socket | None]] = deque()

    @property
    def ready(self) -> bool:
        return self.ready_at is not None

    def ended(self, how: str) -> float | None:
        """Note the end of the worker; return when it had become ready.

        Messages that wait are dropped: the next worker is born with what they say.
        """
        ready_at = self.ready_at
        self.last_end = f"worker {self.number} (pid {self.pid}) {how}"
        self.ended_at = time.monotonic()
        self.pid = 0
        self.ready_at = None
        self._waiting.clear()
        return ready_at

    def post(
        self, kind: To, a: int = 0, b: int = 0, payload: bytes = b"", attached: socket.socket | None = None
    ) -> None:
        """Send a message that must arrive: what a full inbox does not take now is tried again."""
        self._waiting.append((inbox_message(kind, a, b, payload), attached))
        if len(self._waiting) == 1:
            self._flush()

    def post_listener(self, listener: Listener) -> None:
        """Give a listener's sockets to the worker."""
        for entry in listener.entries():
            sizes = bytes((entry.direction, entry.protocol, len(entry.service), len(entry.service_header)))
            payload = sizes + entry.service + entry.service_header
            self.post(To.LISTENER_ADD, entry.id, entry.slot, payload, listener.sockets[entry.slot])

    def wake(self) -> None:
        """Make the worker look at shared memory. Any message does that, so this one may be dropped."""
        if not self._waiting:
            with contextlib.suppress(OSError):
                self.outbox.send(inbox_message(To.WAKE))

    def _flush(self) -> None:
        while self._waiting:
            data, attached = self._waiting[0]
            if attached is None:
                fds = []
            elif (fd := attached.fileno()) >= 0:
                fds = [fd]
            else:  # a listener that was removed again in the meantime
                self._waiting.popleft()
                continue
            try:
                socket.send_fds(self.outbox, [data], fds)
            except OSError:  # the inbox is full, or too many descriptors are on their way
                self._loop.after(RETRY, self._flush)
                return
            self._waiting.popleft()
