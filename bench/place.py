"""Where the measurements run: a network namespace of their own, with one CPU for the forwarder and one for the rest."""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

CLONE_NEWNET = 0x40000000
"""sched.h"""
FIRST_PORT = 8001
FORWARDER_CPU = 0
LOAD_CPU = 1


class Place:
    """Starts processes in one network namespace.

    Without the right to make one (CAP_SYS_ADMIN) it is the caller's own network, with ports that are free there.
    """

    def __init__(self) -> None:
        self.note = ""
        """What differs from the intended place, for the report."""
        self._net: int | None = None
        self._next_port = FIRST_PORT
        # unshare(2) moves the calling thread alone; the namespace lives on through the descriptor that it leaves.
        with ThreadPoolExecutor(1) as pool:
            try:
                self._net = pool.submit(_new_namespace).result()
                self.note = pool.submit(_set_up).result()
            except PermissionError:
                self.note = "shared network namespace, the machine's own congestion control"

    def port(self) -> int:
        """Return a TCP port on 127.0.0.1 that nothing uses."""
        if self._net is not None:
            self._next_port += 1
            return self._next_port - 1
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    def spawn(
        self, arguments: Sequence[str | Path], cpu: int | None, log: IO[bytes] | None = None
    ) -> subprocess.Popen[str]:
        """Start a process, on one CPU if given; it gets SIGTERM if this process dies.

        Its output goes to the log; without one its standard input and output are text pipes.
        """
        command: list[str | Path] = ["setpriv", "--pdeathsig", "TERM", *arguments]
        if cpu is not None and (os.cpu_count() or 1) > cpu:
            command = ["taskset", "-c", str(cpu), *command]
        if self._net is not None:
            command = ["nsenter", f"--net=/proc/self/fd/{self._net}", *command]
        return subprocess.Popen(
            command,
            pass_fds=[] if self._net is None else [self._net],
            stdin=subprocess.PIPE if log is None else subprocess.DEVNULL,
            stdout=subprocess.PIPE if log is None else log,
            stderr=None if log is None else subprocess.STDOUT,
            text=True,
        )

    def close(self) -> None:
        """Give the namespace up; it goes when the last process in it ends."""
        if self._net is not None:
            os.close(self._net)
            self._net = None


def _new_namespace() -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _set_up() -> str:
    """Set up the calling thread's namespace: loopback, cubic, and a bound on TIME_WAIT.

    Without that bound the cells with many connections measure the kernel's search for a free port.
    """
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    ipv4 = Path("/proc/sys/net/ipv4")
    (ipv4 / "tcp_max_tw_buckets").write_text("2000")
    (ipv4 / "ip_local_port_range").write_text("16384 65000")
    route = ["ip", "route", "change", "local", "127.0.0.1", "dev", "lo", "table", "local", "congctl", "cubic"]
    if subprocess.run(route, stderr=subprocess.DEVNULL).returncode == 0:
        return ""
    return f"congestion control {(ipv4 / 'tcp_congestion_control').read_text().strip()}, cubic could not be set"
