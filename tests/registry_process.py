"""The shared registry as a process of its own, and waiting in asyncio."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import pytest

from harness import DEADLINE, free_port, wait_until

T = TypeVar("T")


async def eventually(condition: Callable[[], T], what: str = "", deadline: float = DEADLINE) -> T:
    """`wait_until` that leaves the event loop running."""
    end = time.monotonic() + deadline
    while not (result := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {deadline:g} s: {what or condition}")
        await asyncio.sleep(0.01)
    return result


class RegistryProcess:
    """A running `fastside registry` on a port that it keeps over restarts."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = free_port()
        self.url = f"http://{host}:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> RegistryProcess:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "fastside", "registry", "--bind", f"{self.host}:{self.port}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        wait_until(self.answers, what="the registry answers")
        return self

    def answers(self) -> bool:
        assert self.process
        assert self.process.poll() is None, "the registry exited"
        try:
            return self.call("GET", "/v1/services")[0] == 200
        except OSError:
            return False

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return status and decoded body of one request."""
        connection = http.client.HTTPConnection(self.host, self.port, timeout=DEADLINE)
        try:
            connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

    def addresses(self, service: str) -> set[str]:
        """The addresses that the registry lists."""
        return {endpoint["address"] for endpoint in self.call("GET", f"/v1/services/{service}")[1]["endpoints"]}

    def signal(self, number: int) -> None:
        assert self.process
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """SIGKILL: its memory is lost."""
        self.signal(signal.SIGKILL)
        assert self.process
        self.process.wait(DEADLINE)

    def __enter__(self) -> RegistryProcess:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process and self.process.poll() is None:
            self.kill()
