"""The child's side of a fork: what a process lets go of before it does its own work."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from setproctitle import setproctitle

from fastside import _core
from fastside.listeners import Entry

BOOT_FAILED = 3
"""Exit code of a child that could not start; trying again at once would not help."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run_worker(
    table: _core.Table,
    slot: int,
    listeners: Sequence[Entry],
    inbox: int,
    outboxes: Sequence[int],
    wake: int,
    alive: int,
    accept: str,
) -> NoReturn:
    """Be the worker of a slot until it is drained. Runs in the forked child, with the master's signals blocked."""

    def work() -> int:
        return _core.run_worker(
            table,
            slot,
            listeners,
            inbox,
            outboxes,
            wake,
            alive,
            exclusive=accept == "exclusive",
            handover=accept == "handover",
        )

    keep = [table.table_fd, table.state_fd, *(entry.fd for entry in listeners), inbox, *outboxes, wake, alive]
    # A worker ends when the master says so through the inbox; the signals of a terminal reach the whole process group.
    run_child(f"fastside: worker {slot}", work, table, keep, ignored=_SIGNALS)


def run_child(
    title: str,
    work: Callable[[], int],
    table: _core.Table,
    keep: Iterable[int],
    ignored: Iterable[signal.Signals],
) -> NoReturn:
    """Turn this forked copy of the master into a process of its own and exit with what `work` returns.

    keep: the descriptors it needs besides stdout and stderr. Any other would keep something open that must be seen to
    close: the end of the pipe whose closing tells that the master is gone, or a listener that was removed.
    """
    code = BOOT_FAILED
    try:
        signal.set_wakeup_fd(-1)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        setproctitle(title)
        _close_others(keep)
        table.seal()
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        # Not sys.exit: the frames above are the master's, and their clean-up is not this process's business.
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _close_others(keep: Iterable[int]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for fd in {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, *keep}:
        with contextlib.suppress(OSError):  # the listing's own descriptor is closed already
            os.close(fd)
