"""What a killed master leaves behind, and how its successor takes it over.

A master keeps a record of its processes and sockets in the runtime directory. When it is killed, its workers go on
serving. The next master finds them by the record, takes copies of their listening sockets with pidfd_getfd(2), lets its
own workers accept from them, and tells the orphans to drain: no socket is ever closed, so no connection in an accept
queue is lost.

Where pidfd_getfd is refused (Linux before 5.6, Yama's ptrace_scope), the successor binds sockets of its own beside the
old ones, steers new connections to those, and ends the orphans when the drain's deadline has come.

Sources: pidfd_open(2), pidfd_getfd(2), proc_pid_stat(5), proc_pid_fd(5).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Iterable
from pathlib import Path

import msgspec

FORMAT = 1
RECORD = "state.json"
_PIDFD_GETFD = 438  # the same on all architectures that have it since Linux 5.6


class Process(msgspec.Struct, frozen=True):
    """A process as the record names it. A pid is used again one day; together with the start time it is not."""

    pid: int
    started: int
    """Clock ticks after boot, field 22 of /proc/PID/stat."""

    @classmethod
    def of(cls, pid: int) -> Process:
        """Raises ProcessLookupError if there is no such process."""
        started = _start_time(pid)
        if started is None:
            raise ProcessLookupError(f"no process {pid}")
        return cls(pid, started)


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The file's content."""

    format: int = FORMAT
    boot_id: str
    master: int
    control: Process | None
    workers: list[Process]
    """Those of earlier masters that still drain are among them."""
    listeners: dict[str, list[int]]
    """Inodes of the listening sockets by bind address, in the order in which they began to listen."""
    outboxes: list[int]
    """Inodes of the sockets that lead to the workers."""

    def write(self, runtime_dir: Path) -> None:
        """Replace the record in one step."""
        temporary = runtime_dir / f"{RECORD}.new"
        temporary.write_bytes(msgspec.json.encode(self))
        temporary.replace(runtime_dir / RECORD)


def boot_id() -> str:
    """What tells this boot of the machine from any other: pids and start times count from it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


class Orphan:
    """A living process of a dead master, held by a descriptor so that no other process can be hit in its place."""

    def __init__(self, process: Process) -> None:
        """Raises ProcessLookupError if it has ended."""
        self.process = process
        self.pid = process.pid
        self._pidfd = os.pidfd_open(process.pid)
        # Opened first and checked then: the descriptor stays with the process that was checked.
        if _start_time(process.pid) != process.started or self.ended:
            os.close(self._pidfd)
            raise ProcessLookupError(f"process {process.pid} has ended")

    def fileno(self) -> int:
        """Readable once the process has ended."""
        return self._pidfd

    @property
    def ended(self) -> bool:
        return self.wait(0)

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the process; tell whether it has ended."""
        return bool(select.select([self._pidfd], [], [], seconds)[0])

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def sockets(self) -> dict[int, int]:
        """Its sockets: inode to descriptor number. Raises PermissionError."""
        found = {}
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(f"/proc/{self.pid}/fd/{name}")
                if target.startswith("socket:["):
                    found[int(target[8:-1])] = int(name)
        return found

    def copy(self, fd: int) -> int:
        """A copy of one of its descriptors. Raises OSError, PermissionError if the kernel does not allow it."""
        import ctypes  # here, for it is seldom needed and every process would carry it

        copied: int = ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, self._pidfd, fd, 0)
        if copied < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot copy descriptor {fd} of process {self.pid}: {os.strerror(number)}")
        return copied

    def close(self) -> None:
        os.close(self._pidfd)


class Orphans:
    """All that is left of a dead master."""

    def __init__(self, record: Record) -> None:
        self.master = record.master
        self.control = next(iter(_living([record.control] if record.control else [])), None)
        self.workers = _living(record.workers)
        self.inodes = record.listeners
        """Of the listening sockets that the workers hold, by bind address."""
        self.refused = ""
        """Why their sockets cannot be had; "" when they can."""
        self.draining = False
        self._sockets: dict[int, socket.socket] = {}
        self.outboxes = record.outboxes
        if self.workers:
            self._copy_sockets({inode for inodes in record.listeners.values() for inode in inodes} | {*record.outboxes})

    def _copy_sockets(self, wanted: set[int]) -> None:
        try:
            for worker in self.workers:
                held = worker.sockets()
                for inode in wanted & held.keys() - self._sockets.keys():
                    sock = socket.socket(fileno=worker.copy(held[inode]))
                    if os.fstat(sock.fileno()).st_ino == inode:  # else the number was used again in between
                        self._sockets[inode] = sock
                    else:
                        sock.close()
        except OSError as error:
            self.refused = error.strerror or str(error)

    def take_listeners(self, bind: str) -> list[socket.socket]:
        """Copies of the sockets that listen on `bind`; they are the caller's from now on."""
        return [self._sockets.pop(inode) for inode in self.inodes.get(bind, []) if inode in self._sockets]

    def drain(self, message: bytes) -> None:
        """Send `message` to the workers' inboxes where their sockets could be had; close what was not taken."""
        self.draining = True
        for inode in self.outboxes:
            if sock := self._sockets.get(inode):
                with contextlib.suppress(OSError):  # whoever does not take it is killed at the deadline
                    sock.send(message, socket.MSG_DONTWAIT)
        for sock in self._sockets.values():
            sock.close()
        self._sockets.clear()

    def kill(self) -> None:
        for worker in self.workers:
            worker.kill()

    def forget(self, worker: Orphan) -> None:
        """Close what holds a worker that has ended."""
        self.workers.remove(worker)
        worker.close()


def find(runtime_dir: Path) -> Orphans | None:
    """What the last master of this runtime directory left, or None. To be called with the directory's lock held."""
    try:
        record = msgspec.json.decode((runtime_dir / RECORD).read_bytes(), type=Record)
    except (OSError, msgspec.DecodeError):
        return None  # none, or of a version that wrote it otherwise
    if record.format != FORMAT or record.boot_id != boot_id():
        return None
    orphans = Orphans(record)
    return orphans if orphans.workers or orphans.control else None


def _living(processes: Iterable[Process]) -> list[Orphan]:
    living = []
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            living.append(Orphan(process))
    return living


def _start_time(pid: int) -> int | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(stat.rpartition(")")[2].split()[19])
