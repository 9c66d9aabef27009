"""The master's event loop: descriptors, timers and signals, each with the function to call."""

from __future__ import annotations

import heapq
import itertools
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterable
from typing import Protocol

Action = Callable[[], None]


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class EventLoop:
    """Calls one action after the other; an action that raises ends `turn`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Action]] = []
        self._order = itertools.count()  # of timers that are due at the same time

    def watch(self, source: int | HasFileno, action: Action, *, also_writable: bool = False) -> None:
        """Call `action` whenever `source` is readable (or writable); replaces an earlier watch."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if also_writable else 0)
        if source in self._selector.get_map():
            self._selector.modify(source, events, action)
        else:
            self._selector.register(source, events, action)

    def unwatch(self, source: int | HasFileno) -> None:
        """To be called before `source` is closed."""
        self._selector.unregister(source)

    def after(self, seconds: float, action: Action) -> None:
        """Call `action` once. There is no way to cancel it: it looks whether it still has something to do."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._order), action))

    def on_signals(self, numbers: Iterable[signal.Signals], action: Callable[[signal.Signals], None]) -> None:
        """Call `action` for each signal, in the loop: the handler itself only writes the number to a socket."""
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        self._signal_ends = reader, writer

        def read() -> None:
            for number in reader.recv(4096):
                action(signal.Signals(number))

        for number in numbers:
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self.watch(reader, read)

    def turn(self) -> None:
        """Wait for the next event, then call what is due."""
        timeout = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None
        for key, _ in self._selector.select(timeout):
            if key.fd in self._selector.get_map():  # an action before may have unwatched it
                key.data()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
