"""Worker slots: what survives a worker, and how the master talks to the present one."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Iterable, Sequence
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
    CONNECTION = 4
    DRAIN = 5
    STOP = 6
    LISTENERS = 7


_HEADER = struct.Struct("=IIII")  # type, a, b, length of the payload
_LONGEST = 2048


def inbox_message(kind: To, a: int = 0, b: int = 0, payload: bytes = b"") -> bytes:
    return _HEADER.pack(kind, a, b, len(payload)) + payload


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
        self._waiting: deque[tuple[bytes, list[int]]] = deque()
        """Messages that the inbox had no room for, with their descriptors."""

    @property
    def ready(self) -> bool:
        return self.ready_at is not None

    def ended(self, how: str) -> float | None:
        """Note the end of the worker; return when it had become ready."""
        ready_at = self.ready_at
        self.last_end = f"worker {self.number} (pid {self.pid}) {how}"
        self.ended_at = time.monotonic()
        self.pid = 0
        self.ready_at = None
        return ready_at

    def post(self, kind: To, a: int = 0, b: int = 0, payload: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Send a message that must arrive: what a full inbox does not take now is tried again.

        fds: go with it, and are closed here when it has been sent.
        """
        self._waiting.append((inbox_message(kind, a, b, payload), list(fds)))
        if len(self._waiting) == 1:
            self._flush()

    def post_listener(self, listener: Listener) -> None:
        """Give a listener's sockets to the worker."""
        for entry in listener.entries():
            sizes = bytes((entry.direction, entry.protocol, len(entry.service), len(entry.service_header)))
            payload = sizes + entry.service + entry.service_header
            self.post(To.LISTENER_ADD, entry.id, entry.slot, payload, [os.dup(entry.fd)])

    def wake(self) -> None:
        """Make the worker look at shared memory. Any message does that, so this one may be dropped."""
        if not self._waiting:
            with contextlib.suppress(OSError):
                self.outbox.send(inbox_message(To.WAKE))

    def hand_on(self, other: Slot) -> None:
        """Empty a dead worker's inbox: connections that siblings had handed over to it go to `other`.

        Anything else is dropped, for the next worker is born with what it says.
        """
        messages = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data, fds, _, _ = socket.recv_fds(self.inbox, _LONGEST, 1, socket.MSG_CMSG_CLOEXEC)
                messages.append((data, fds))
        messages += self._waiting
        self._waiting.clear()
        for data, fds in messages:
            kind, listener, _, _ = _HEADER.unpack_from(data)
            if kind == To.CONNECTION:
                # Marked, for it was counted among the connections of the worker that died.
                other.post(To.CONNECTION, listener, 1, data[_HEADER.size :], fds)
            else:
                _close(fds)

    def _flush(self) -> None:
        while self._waiting:
            data, fds = self._waiting[0]
            try:
                socket.send_fds(self.outbox, [data], fds)
            except OSError:  # the inbox is full, or too many descriptors are on their way
                self._loop.after(RETRY, self._flush)
                return
            self._waiting.popleft()
            _close(fds)


def _close(fds: Iterable[int]) -> None:
    for fd in fds:
        os.close(fd)
