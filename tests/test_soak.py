"""Nothing leaks over a million connections, and an idle connection costs next to nothing."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.tools import tool
from core_worker import Workers
from harness import free_port, wait_until

SERVICE = "a"  # the backend answers in its name, and the load generator checks that
KEPT_PIPES = 32  # KEEP_PIPES of core/worker.pxd: free pipes that wait for the next use
MILLION = 1_000_000
PARTS = 11  # the first is to warm up
LIMIT = 400
"""Bytes of user memory that an idle HTTP connection may cost."""


@pytest.fixture(scope="module")
def backend() -> Iterator[tuple[str, int]]:
    port = free_port()
    with subprocess.Popen([tool("origin"), f"http:{port}:{SERVICE}"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield "127.0.0.1", port
        process.kill()


@contextmanager
def load(port: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The load generator, after one exchange on each of its connections; killed at the end if it still runs."""
    command = [tool("load"), "-s", SERVICE, *arguments, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def finish(process: subprocess.Popen[str]) -> dict[str, int]:
    """Let the load generator do its operations; what it says about them."""
    out, _ = process.communicate("go\n")
    result: dict[str, int] = json.loads(out)
    return result


def exchange(port: int, *arguments: str) -> None:
    """Make many calls, none of which may fail."""
    with load(port, *arguments) as process:
        result = finish(process)
    assert result["errors"] == 0, result
    assert result["misrouted"] == 0, result


@pytest.fixture(scope="module")
def soaked(backend: tuple[str, int]) -> Iterator[Workers]:
    """The worker that all parts of the million go through."""
    with Workers({SERVICE: [backend]}, settings={"pool_idle_ms": 200, "splice_bytes": 65536}) as workers:
        yield workers


@pytest.fixture(scope="module")
def at_rest(soaked: Workers) -> dict[str, int]:
    """Descriptors before the first connection; bytes of memory, from the first part on."""
    return {"descriptors": soaked.descriptors()}


@pytest.mark.parametrize("part", range(PARTS))
def test_a_million_connections_leave_nothing_behind(part: int, soaked: Workers, at_rest: dict[str, int]) -> None:
    _, port = soaked.address()
    exchange(port, "-m", "close", "-c", "64", "-t", "600", "-n", str(MILLION // (PARTS - 1)))
    exchange(port, "-m", "close", "-c", "8", "-t", "600", "-n", "50", "-p", "/1m")
    with load(port, "-m", "keepalive", "-c", "32", "-t", "600", "-p", "/1m") as process:
        process.send_signal(signal.SIGKILL)  # in the middle of spliced bodies
    soaked.wait_idle()
    soaked.wait_for(pooled=0, upstreams=0)
    assert soaked.connections() == []
    assert soaked.descriptors() <= at_rest["descriptors"] + 2 * KEPT_PIPES
    assert soaked.memory() - at_rest.setdefault("memory", soaked.memory()) < 1 << 20
    if part == PARTS - 1:
        assert soaked.counters()["accepted"] > MILLION
        assert soaked.counters()["bytes_spliced"] > 0


def test_an_idle_connection_costs_at_most_400_bytes(backend: tuple[str, int]) -> None:
    count = 10_000
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert files[1] >= count + 100, f"the limit on open files is {files[1]}; {count + 100} are needed"
    with Workers({SERVICE: [backend]}, max_connections=16_384, files=files[1]) as workers:
        _, port = workers.address()
        with load(port, "-m", "hold", "-c", "16"):
            pass
        workers.wait_idle()
        before = workers.memory()
        with load(port, "-m", "hold", "-c", str(count)):
            workers.wait_for(downstreams=count, buffers=0, pipes=0)
            assert (workers.memory() - before) / count <= LIMIT
        wait_until(lambda: workers.counters()["downstreams"] == 0, 60)
