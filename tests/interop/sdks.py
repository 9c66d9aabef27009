"""The SDKs that the applications under apps/ are built on, and how a test drives such an application."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness import DEADLINE, wait_until
from hosts import OUTBOUND, Host

APPS = Path(__file__).parent / "apps"
BUILT = Path(__file__).parents[2] / ".interop"
MIB = 1 << 20
ENDLESS = (1 << 31) - 1


def _java(module: str, main: str, *flags: str) -> tuple[str, ...]:
    built = BUILT / "java" / module
    # A short life is faster without the second compiler and with the simplest collector.
    return (
        "java",
        "-XX:TieredStopAtLevel=1",
        "-XX:+UseSerialGC",
        *flags,
        "-cp",
        f"{built}/classes:{built}/dependency/*",
        f"interop.{main}",
    )


@dataclass(frozen=True)
class Sdk:
    """An SDK, and what its caller gets to see of each kind of failure."""

    name: str
    protocol: str
    command: tuple[str, ...]
    port: int
    """Where its providers listen by default."""
    errors: Mapping[str, str]
    """By kind of failure, a pattern of "CLASS: MESSAGE" of the exception that the caller gets:
    no provider  the sidecar knows no provider of the service    exception  the provider threw one
    lost         the provider died, or refuses connections       timeout    the caller's own
    away         the caller's sidecar is away, or goes           overload   the provider refuses more calls
    cut          likewise, but the call was on its way; only where the class tells that
    """
    mesh: bool = False
    """It publishes and subscribes by itself, through SOFARPC's mesh API."""
    outbound: str = f"127.0.0.1:{OUTBOUND}"
    """Where its consumers call the sidecar, unless they are told by the mesh API."""
    payload: int = 16 * MIB
    """The largest text that it can be made to carry."""

    def __str__(self) -> str:
        return self.name


SOFARPC_JAVA = Sdk(
    "sofarpc-java",
    "bolt",
    _java(
        "sofarpc",
        "SofaRpcApp",
        # Above the high mark it refuses calls; it must be more than a large call needs.
        f"-Dbolt.netty.buffer.low.watermark={32 * MIB}",
        f"-Dbolt.netty.buffer.high.watermark={64 * MIB}",
    ),
    12200,
    {
        "no provider": r"SofaRpcException\(299\): .* NO_PROCESSOR",
        "exception": r"IllegalStateException: |SofaRpcException\(230\): ",  # it cannot read an exception of Node.js
        "timeout": "SofaTimeOutException",
        "lost": r"SofaRpcException\(250\): .* Connection closed!",
        "away": r"Sofa(Rpc|Route)Exception\(2\d\d\): ",
        "cut": r"SofaRpcException\(250\): ",
        "overload": r"SofaRpcException\(100\)",
    },
    mesh=True,
)
SOFARPC_NODE = Sdk(
    "sofarpc-node",
    "bolt",
    ("node", str(APPS / "node/sofarpc.js")),
    12200,
    {
        "no provider": "Error: Server exception ",  # the same for every status
        "exception": r"java\.lang\.IllegalStateException: ",
        "timeout": "RpcResponseTimeoutError: ",
        "lost": "Error: Server exception ",
        "away": r"Rpc\w+Error: ",
        "cut": "RpcSocketCloseError: ",
    },
)
SOFARPC_PYTHON = Sdk(
    "sofarpc-python",
    "bolt",
    (str(BUILT / "python/bin/python"), str(APPS / "python/sofarpc.py")),
    12200,
    {
        "no provider": "KeyError: ",  # it looks for the result of a failed call, and does not find it
        "exception": "KeyError: ",
        "timeout": "(Timeout|Key)Error: ",  # its provider, too, ends a call when its time is over
        "lost": "KeyError: ",
        "away": "(Attribute|Timeout)Error: ",
        "cut": "TimeoutError: ",  # it does not notice that its connection has ended
    },
    mesh=True,
)
DUBBO_JAVA = Sdk(
    "dubbo-java",
    "dubbo",
    _java("dubbo", "DubboApp"),
    20880,
    {
        "no provider": r"RpcException\(1\): .* fastside: service ",
        "exception": "IllegalStateException: ",
        "timeout": r"RpcException\(2\): ",
        "lost": r"RpcException\(1\): .* fastside: service ",
        "away": r"RpcException\([16]\): ",
        "overload": r"RpcException\(1\): ",
    },
    outbound=f"[::1]:{OUTBOUND}",
)
DUBBO_NODE = Sdk(
    "dubbo-node",
    "dubbo",
    ("node", str(APPS / "node/dubbo.js")),
    20880,
    {
        "no provider": "Error: .*fastside: service ",
        "exception": "java.lang.IllegalStateException: ",
        "timeout": "Error: remote invoke timeout",
        "lost": "Error: .*fastside: service ",
        "away": "Error: ",
    },
    payload=7 * MIB,  # it refuses to send more than 8 MiB
)


@dataclass(frozen=True)
class Result:
    """What happened to the calls of a run."""

    started: int
    finished: int
    ok: int
    wrong: int
    """Calls that returned something else than what they should."""
    errors: Mapping[str, int]
    """Failed calls by class of the exception."""
    messages: Mapping[str, str]
    """The last message of each class of exception."""
    done: bool

    @property
    def in_flight(self) -> int:
        return self.started - self.finished

    def assert_ok(self, count: int | None = None) -> None:
        """Every call returned what it should, and there were `count` of them."""
        assert self.done
        assert self.ok == self.finished, self
        assert count in (None, self.ok)

    def assert_failed(self, pattern: str, count: int | None = None) -> None:
        """Every call failed with an exception like `pattern`, and there were `count` of them."""
        assert self.done
        assert sum(self.errors.values()) == self.finished, self
        self.assert_errors_like(pattern)
        assert count in (None, self.finished)

    def assert_errors_like(self, pattern: str) -> None:
        """No call returned something wrong, and those that failed did so with an exception like `pattern`."""
        assert self.wrong == 0, self
        assert self.failures_like(pattern) == sum(self.errors.values()), self

    def failures_like(self, pattern: str) -> int:
        """How many calls failed with an exception like `pattern`."""
        return sum(
            count
            for name, count in self.errors.items()
            if re.match(pattern, f"{name}: {self.messages[name]}", re.DOTALL)
        )


class App:
    """A running application; see apps/README.md for what it is told. Leaving the context stops it.

    host: where it runs; None: in the test's own namespace.
    """

    def __init__(self, sdk: Sdk, host: Host | None, logs: Path, options: dict[str, Any]) -> None:
        self.sdk = sdk
        self._host = host
        self._options = options
        self._log_path = logs / f"{sdk}-{options['role']}.log"
        self._runs: list[str] = []

    def start(self) -> App:
        place = self._host.entered() if self._host else contextlib.nullcontext()
        with place, self._log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.sdk.command, json.dumps(self._options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                cwd=self._log_path.parent,
                env=os.environ | {"NODE_PATH": str(BUILT / "node/node_modules")},
                start_new_session=True,
            )
        try:
            assert self._answer() == {"ready": True}
        except BaseException:
            self.kill()
            raise
        return self

    def tell(self, action: str, **arguments: Any) -> dict[str, Any]:
        """Give a command and return the answer."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"action": action, **arguments}).encode() + b"\n")
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE)
            assert ready, f"{self.sdk} does not answer"
            data = self.process.stdout.read(65536)
            assert data, f"{self.sdk} ended"
            line += data
        answer: dict[str, Any] = json.loads(line)
        return answer

    # What consumers do

    def call(self, method: str = "echo", calls: int = 1, **arguments: Any) -> Result:
        """Make calls and wait until all have ended; see `begin`."""
        return self.begin(method, calls, **arguments).wait()

    def begin(
        self,
        method: str = "echo",
        calls: int = ENDLESS,
        *,
        callers: int = 1,
        size: int = 16,
        name: str | None = None,
        version: str | None = None,
        serialization: str | None = None,
        timeout: float = DEADLINE,
    ) -> Run:
        """Let callers make calls, by default until they are stopped. `size` is in bytes, `timeout` in seconds."""
        target = {"name": name, "version": version, "serialization": serialization, "timeout": int(timeout * 1000)}
        run = f"run {len(self._runs)}"
        self._runs.append(run)
        self.tell("start", run=run, method=method, calls=calls, callers=callers, size=size, target=target)
        return Run(self, run)

    def stop_runs(self) -> None:
        """Let no caller make a further call."""
        for run in self._runs:
            self.tell("stop", run=run)

    # What providers do

    def open_gate(self) -> None:
        """Let the held calls go on, and those that follow."""
        self.tell("gate", open=True)

    def close_gate(self) -> None:
        """Hold the calls that follow."""
        self.tell("gate", open=False)

    def wait_held(self, count: int) -> None:
        """Wait until so many calls wait at the gate."""
        wait_until(lambda: self.tell("held")["held"] == count, what=f"{count} calls wait at the gate of {self.sdk}")

    # How they end

    @contextmanager
    def restarted_with(self, **options: Any) -> Iterator[None]:
        """It runs with other options."""
        usual = self._options
        self._restart(usual | options)
        try:
            yield
        finally:
            self._restart(usual)

    def _restart(self, options: dict[str, Any]) -> None:
        self.kill()
        self._options = options
        self.start()

    def recover(self) -> None:
        """Start it again if it has ended."""
        if self.process.poll() is not None:
            self.start()

    def stop(self) -> None:
        """End it in the SDK's orderly way."""
        assert self.process.stdin
        self.process.stdin.close()
        assert self.process.wait(DEADLINE) == 0
        self._close()

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        self.process.kill()
        self.process.wait(DEADLINE)
        self._close()

    def __enter__(self) -> App:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind:
            self.kill()
        else:
            self.stop()

    def _close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()


def provider(sdk: Sdk, host: Host | None, logs: Path, **options: Any) -> App:
    """A provider. By default it executes 200 calls at a time, and lets 20,000 more wait."""
    defaults = {"role": "provider", "registry": None, "port": sdk.port, "threads": 200, "queue": 20000}
    return App(sdk, host, logs, defaults | options)


def consumer(sdk: Sdk, host: Host | None, logs: Path, **options: Any) -> App:
    """A consumer, which needs a registry or an address."""
    return App(sdk, host, logs, {"role": "consumer", "registry": None, "address": None} | options)


@dataclass(frozen=True)
class Run:
    """The calls of a consumer that are under way together."""

    app: App
    name: str

    def look(self) -> Result:
        return Result(**self.app.tell("look", run=self.name))

    def wait(self) -> Result:
        """Wait until all calls have been made and have ended."""
        return self._until(lambda result: result.done, 3 * DEADLINE)

    def stop(self) -> Result:
        """Start no further call, and wait until those under way have ended."""
        self.app.tell("stop", run=self.name)
        return self.wait()

    def wait_finished(self, more: int) -> None:
        """Wait until so many further calls have ended, well or not."""
        goal = self.look().finished + more
        self._until(lambda result: result.finished >= goal)

    def wait_in_flight(self, count: int) -> None:
        """Wait until so many calls have neither returned nor failed."""
        self._until(lambda result: result.in_flight == count)

    def wait_ok(self, more: int = 10) -> None:
        """Wait until so many further calls have succeeded."""
        goal = self.look().ok + more
        self._until(lambda result: result.ok >= goal, 2 * DEADLINE)

    def _until(self, condition: Callable[[Result], bool], deadline: float = DEADLINE) -> Result:
        end = time.monotonic() + deadline
        while not condition(result := self.look()):
            if time.monotonic() > end:
                pytest.fail(f"not within {deadline:g} s what was expected of these calls: {result}")
            time.sleep(0.01)
        return result
