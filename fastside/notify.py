"""Messages to the service manager, sd_notify(3); nothing is sent unless it asked by $NOTIFY_SOCKET."""

from __future__ import annotations

import contextlib
import os
import socket
import time


def ready() -> None:
    _send("READY=1")


def reloading() -> None:
    """A reload begins; `ready` ends it. The time is what Type=notify-reload asks for."""
    _send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")


def stopping() -> None:
    _send("STOPPING=1")


def _send(state: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A manager that is not there, or does not read, must not hold the sidecar up.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.connect(address)
        sock.send(state.encode())
