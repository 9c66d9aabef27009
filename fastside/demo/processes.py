"""The demo's processes: started in a session each, counted, stopped, and never left behind.

Sources: setsid(2), proc_pid_stat(5), clock_getcpuclockid(3).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from setproctitle import setproctitle

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 10.0
"""Seconds that a process gets to end."""


@contextmanager
def signals_held_back() -> Iterator[None]:
    """The STOPPING signals wait until the end of the block."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


class Process:
    """A running program and what it starts in turn: they share a session."""

    def __init__(self, guard: Guard, name: str, popen: subprocess.Popen[str], log: Path) -> None:
        self.name = name
        self.pid = popen.pid
        self.log = log
        self._guard = guard
        self._popen = popen

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def input(self) -> IO[str]:
        assert self._popen.stdin
        return self._popen.stdin

    @property
    def output(self) -> IO[str]:
        assert self._popen.stdout
        return self._popen.stdout

    def cpu_seconds(self) -> float:
        """CPU time that the living processes of the session have used, in user and kernel mode."""
        return sum(_cpu_seconds(pid) for pid in members({self.pid}))

    def end(self, by: signal.Signals) -> int:
        """Send the signal, and wait."""
        self._popen.send_signal(by)
        return self.wait()

    def wait(self) -> int:
        """Wait for the end and return the exit code. Raises TimeoutError after PATIENCE."""
        try:
            code = self._popen.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} did not end within {PATIENCE:g} s") from None
        self._guard.forget(self)
        return code


class Guard:
    """Starts processes, and sees to it that none of them and no file outlives the demo.

    It is a process of its own, in its own session: it hears of every process before that runs, and when its pipe to the
    demo breaks, for whatever reason, it kills them and removes the directory.
    """

    def __init__(self) -> None:
        """Called with signals held back, so that there is never a directory without a guard."""
        self.processes: list[Process] = []
        self.directory = Path(tempfile.mkdtemp(prefix="fastside-demo-"))
        reader, self._writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            _stand_guard(reader, self.directory)
        os.close(reader)

    def start(self, name: str, *arguments: str, piped: bool = False) -> Process:
        """Run a module of this package; `name` is that of its log. piped: its stdin and stdout are pipes."""
        log = self.directory / (name.replace("'s", "").replace(" ", "-") + ".log")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("FASTSIDE_")}
        with log.open("ab") as stream, signals_held_back():
            popen = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.PIPE if piped else subprocess.DEVNULL,
                stdout=subprocess.PIPE if piped else stream,
                stderr=stream,
                text=True,
                env=environment,
                start_new_session=True,
                preexec_fn=self._begin,  # it is safe, for the demo has a single thread
            )
            process = Process(self, name, popen, log)
            self.processes.append(process)
        return process

    def forget(self, process: Process) -> None:
        """The process has ended, and its number may become another's."""
        if not members({process.pid}):
            self.processes.remove(process)
            self._tell(-process.pid)

    def close(self) -> None:
        """Kill what still runs and remove the directory."""
        _clean({process.pid for process in self.processes}, self.directory)
        os.close(self._writer)
        os.waitpid(self._pid, 0)

    def _begin(self) -> None:
        """The first that a child does. A signal that met it beside the demo ends it now, and not in the demo's way."""
        self._tell(os.getpid())
        for each in STOPPING:
            signal.signal(each, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def _tell(self, number: int) -> None:
        os.write(self._writer, b"%d\n" % number)


def _stand_guard(reader: int, directory: Path) -> None:
    """The guard's life. Never returns."""
    try:
        os.setsid()
        for each in STOPPING:
            signal.signal(each, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for old, new in ((reader, 0), (null, 1), (null, 2)):
            os.dup2(old, new)
        os.closerange(3, os.sysconf("SC_OPEN_MAX"))  # the demo's end of the pipe above all
        setproctitle("fastside: demo guard")
        sessions: set[int] = set()
        with os.fdopen(0) as lines:
            for line in lines:
                number = int(line)
                sessions.add(number) if number > 0 else sessions.discard(-number)
        _clean(sessions, directory)
    finally:
        os._exit(0)


def _clean(sessions: set[int], directory: Path) -> None:
    end = time.monotonic() + PATIENCE
    while (left := members(sessions)) and time.monotonic() < end:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    shutil.rmtree(directory, ignore_errors=True)


def members(sessions: set[int]) -> list[int]:
    """The living processes of these sessions."""
    return [pid for pid in _pids() if _session(pid) in sessions]


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _session(pid: int) -> int | None:
    """The session of a process; None if it has ended."""
    try:
        state, _, _, session = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:4]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else int(session)


_libc = ctypes.CDLL(None)


def _cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a process, to the nanosecond; /proc counts in steps of 10 ms. 0 if it has ended."""
    clock = ctypes.c_int()
    if _libc.clock_getcpuclockid(pid, ctypes.byref(clock)) != 0:
        return 0.0
    try:
        return time.clock_gettime(clock.value)
    except OSError:
        return 0.0
