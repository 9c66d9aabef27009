"""`fastside demo` as its users run it: its result, and that it leaves nothing behind however it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fastside.demo.story import CONNECTIONS, MANY, PAIRS
from fastside.netns import Namespace
from harness import DEADLINE, require, require_program, require_root, wait_until

DURATION = 60.0
"""Seconds that a whole demo may take on a loaded machine."""


@pytest.fixture
def place() -> Iterator[Place]:
    """Where a demo runs: a namespace of its own where that is permitted, so that its interfaces can be counted."""
    with contextlib.ExitStack() as stack:
        try:
            namespace = stack.enter_context(contextlib.closing(Namespace()))
        except PermissionError:
            namespace = None
        yield Place(namespace, Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="demo-"))))


class Place:
    def __init__(self, namespace: Namespace | None, directory: Path) -> None:
        self.directory = directory
        """The demo's TMPDIR."""
        self.namespace = namespace
        with self.entered():
            self._links = links()

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return self.namespace.entered() if self.namespace else contextlib.nullcontext()

    def start(self, *arguments: str, prefix: Sequence[str] = ()) -> Demo:
        command = [*prefix, sys.executable, "-m", "fastside", "demo", *arguments]
        with self.entered():
            return Demo(command, os.environ | {"TMPDIR": str(self.directory)})

    def assert_clean(self, seen: dict[int, str], namespaces: set[str]) -> None:
        """Nothing that was seen while the demo ran is left, nor anything else of it. The guard may still be at it."""
        wait_until(lambda: not living(seen), what=f"no process is left of {living(seen)}")
        wait_until(lambda: not self._users(), what=f"no process uses the demo's files: {self._users()}")
        wait_until(lambda: not list(self.directory.iterdir()), what="the demo's directory is removed")
        assert not namespaces & {network(pid) for pid in all_pids()}
        with self.entered():
            assert links() == self._links

    def _users(self) -> list[int]:
        return [pid for pid in all_pids() if any(str(self.directory) in path for path in open_files(pid))]


class Demo:
    """A running demo, in a session of its own."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True
        )

    def finish(self) -> tuple[int, str, str]:
        """Wait for the end; return the exit code and what it wrote."""
        out, err = self.process.communicate(timeout=DURATION)
        return self.process.returncode, out, err

    def read_to(self, text: str) -> str:
        """Read the demo's narration up to a line with this text, and return that line."""
        assert self.process.stdout
        for line in self.process.stdout:
            if text in line:
                return line
        pytest.fail(f"the demo ended before it said {text!r}: {self.finish()}")

    def family(self) -> dict[int, str]:
        """The demo and what it has started, directly or not: pids, with the start times that tell them from others."""
        parents = {pid: int(fields[1]) for pid in all_pids() if (fields := stat(pid))}
        members = {self.process.pid}
        while more := {pid for pid, parent in parents.items() if parent in members} - members:
            members |= more
        return {pid: fields[19] for pid in members if (fields := stat(pid))}

    def namespaces(self) -> set[str]:
        """Network namespaces that it has made."""
        used = {network(pid) for pid in self.family()}
        return used - {network(self.process.pid), network(os.getpid()), ""}


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; none if the process has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []
    return [] if fields[0] in "ZX" else fields


def living(seen: dict[int, str]) -> list[int]:
    return [pid for pid, start in seen.items() if (fields := stat(pid)) and fields[19] == start]


def network(pid: int) -> str:
    """A name for the network namespace of a process; "" if it has ended."""
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return ""


def open_files(pid: int) -> list[str]:
    paths = []
    with contextlib.suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                paths.append(os.readlink(link))
    return paths


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def assert_full_story(result: dict[str, Any]) -> None:
    """What holds in every place."""
    assert result["held"], result
    assert all(step["held"] for step in result["steps"])
    assert len(result["steps"]) == 9
    assert result["calls"] > PAIRS + 3 * MANY
    assert result["calls"] == sum(result["answers"].values()) + result["failures"]
    assert result["answers"]["hello from provider 1"] > result["answers"]["hello from provider 2"] >= MANY
    # One call on each connection may have been with the killed provider; nothing else may fail.
    assert result["failures"] <= CONNECTIONS
    assert result["p99_ms"] >= result["p50_ms"] > 0
    assert result["direct_p99_ms"] >= result["direct_p50_ms"] > 0
    for part in ("p50_ms", "p99_ms"):
        assert result[f"added_{part}"] == pytest.approx(result[part] - result[f"direct_{part}"], abs=0.002)
    assert result["cpu_us_per_call"] > 0


def test_namespaces(place: Place) -> None:
    require_root()
    require(place.namespace, "permission to make network namespaces")
    demo = place.start("--json")
    seen = demo.family()
    code, out, err = demo.finish()
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert_full_story(result)
    assert result["mode"] == "namespaces"
    assert result["registered"] == ["10.88.0.1:20881"]
    assert result["subscribed"] == "127.0.0.1:20882"
    place.assert_clean(seen, set())


def test_loopback_where_namespaces_are_refused_and_a_port_is_taken(place: Place) -> None:
    refused = [require_program("setpriv"), "--bounding-set=-sys_admin"] if os.geteuid() == 0 else []
    with contextlib.ExitStack() as stack:
        with place.entered(), contextlib.suppress(OSError):  # it is taken by another program
            stack.enter_context(socket.create_server(("127.0.0.3", 20883)))
        code, out, err = place.start("--json", prefix=refused).finish()
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert_full_story(result)
    assert result["mode"] == "loopback"
    (host, inbound), (caller, outbound) = (
        address.split(":") for address in (result["registered"][0], result["subscribed"])
    )
    assert (host, caller) == ("127.0.0.2", "127.0.0.3")
    assert int(inbound) > 20881
    assert (int(inbound) - 20881) % 100 == 0
    assert int(outbound) == int(inbound) + 1
    place.assert_clean({}, set())


@pytest.mark.parametrize(
    ("moment", "number", "everybody"),
    [
        ("fastside demo:", signal.SIGINT, True),
        ("2. ", signal.SIGINT, False),
        ("3. ", signal.SIGHUP, False),
        ("5. ", signal.SIGTERM, False),
        ("6. ", signal.SIGINT, True),
        ("7. ", signal.SIGKILL, False),
        ("8. ", signal.SIGKILL, True),
    ],
)
def test_leaves_nothing_when_interrupted(place: Place, moment: str, number: signal.Signals, everybody: bool) -> None:
    """everybody: the signal goes to the process group, as it does when Ctrl-C is typed."""
    hangups = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a child inherits it, and the tests may run under nohup(1)
    demo = place.start()
    signal.signal(signal.SIGHUP, hangups)
    demo.read_to(moment)
    seen, namespaces = demo.family(), demo.namespaces()
    assert len(seen) >= 2  # the demo and its guard
    assert namespaces or not place.namespace or moment == "fastside demo:"
    if everybody:
        os.killpg(demo.process.pid, number)
    else:
        demo.process.send_signal(number)
    code, out, err = demo.finish()
    if number == signal.SIGKILL:
        assert code == -number
    else:
        assert code == 128 + number
        assert "Interrupted" in out
    assert err == ""
    place.assert_clean(seen, namespaces)


def test_keep_prints_commands_that_work(place: Place) -> None:
    require_program("curl")
    demo = place.start("--keep", "--json")
    assert demo.process.stdout
    result = json.loads(demo.process.stdout.readline())
    call, unknown, registry, sidecar, metrics, kill = result["try"]
    answer = shell(call)
    assert answer.startswith("HTTP/1.1 200")
    assert answer.endswith("hello from provider 1\n")
    assert shell(unknown).startswith("HTTP/1.1 404")
    assert json.loads(shell(registry))["endpoints"][0]["address"] == result["registered"][0]
    assert json.loads(shell(sidecar))["subscribed"][0]["address"] == result["subscribed"]
    assert "\nfastside_requests_total{" in shell(metrics)
    shell(kill)
    assert shell(call).startswith("HTTP/1.1 502")
    seen, namespaces = demo.family(), demo.namespaces()
    assert len(seen) > 8  # the demo, its guard, a registry, two sidecars
    demo.process.send_signal(signal.SIGINT)
    code, out, err = demo.finish()
    assert (code, out, err) == (0, "", "")
    place.assert_clean(seen, namespaces)


def shell(command: str) -> str:
    """Run a command as it is typed, and return what it prints."""
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=DEADLINE, check=True)
    return done.stdout.replace("\r\n", "\n")


def test_says_what_did_not_hold(place: Place) -> None:
    """The provider dies before the first call: the exit code tells, and the logs are shown."""
    demo = place.start()
    demo.read_to("5. ")
    providers = [pid for pid in demo.family() if b"fastside.demo.provider" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    seen, namespaces = demo.family(), demo.namespaces()
    for pid in providers:
        os.kill(pid, signal.SIGKILL)
    code, out, err = demo.finish()
    assert code == 1
    assert "did not hold: the call was answered with 502" in out
    assert "--- provider-sidecar ---" in err
    place.assert_clean(seen, namespaces)
