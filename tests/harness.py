"""Real things to test against: a running sidecar, an HTTP/1.1 origin that misbehaves on demand, raw sockets.

Every wait polls a condition and has a deadline; nothing sleeps for a fixed time and hopes.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import pytest

if TYPE_CHECKING:
    from fastside.client import Client

T = TypeVar("T")
Headers = Iterable[tuple[str, str]]

DEADLINE = 20.0
"""Seconds that a wait may take on a loaded machine before the test fails."""


def wait_until(condition: Callable[[], T], deadline: float = DEADLINE, what: str = "") -> T:
    """Poll `condition` until it returns something true, and return that. Exceptions of `condition` are not caught."""
    end = time.monotonic() + deadline
    while not (result := condition()):
        if time.monotonic() > end:
            pytest.fail(f"not within {deadline:g} s: {what or condition}")
        time.sleep(0.01)
    return result


def require(available: object, what: str) -> None:
    """Skip the test if a prerequisite is missing; fail it where CI=true, so that no test is skipped unseen there."""
    if available:
        return
    message = f"needs {what}"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


def require_root() -> None:
    require(os.geteuid() == 0, "root")


def require_program(name: str) -> str:
    """Return the path of a program."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    require(path, f"the program {name}")
    assert path
    return path


_given_ports: set[int] = set()


def free_port() -> int:
    """Return a TCP port that nobody listens on, outside the range from which the kernel takes ports for clients."""
    while True:
        port = random.randrange(10000, 32000)
        if port in _given_ports:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
                probe.listen(1)
            except OSError:
                continue
        _given_ports.add(port)
        return port


# Processes


def process_title(pid: int) -> str:
    """Return the command line as `ps` shows it, or "" if the process is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def session_members(session: int) -> dict[int, str]:
    """Return pid and title of every living process of a session."""
    members = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            state, _, _, sid = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == session and state not in "ZX":
            members[int(entry)] = process_title(int(entry))
    return members


class Sidecar:
    """A running `fastside run` with its own directories and ports.

    `config` is laid over a configuration that suits tests: free ports on 127.0.0.1, two workers, a drain without delay.
    Leaving the context stops the sidecar by SIGTERM, and asserts that it exits with 0 and leaves no process behind.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        *,
        directory: Path | None = None,
        env: Mapping[str, str] | None = None,
        wait_ready: bool = True,
    ) -> None:
        self._temporary = None if directory else tempfile.TemporaryDirectory(prefix="fastside-")
        self.directory = directory or Path(self._temporary.name)  # type: ignore[union-attr]
        self.directory.mkdir(parents=True, exist_ok=True)
        self.inbound_port = free_port()
        self.outbound_port = free_port()
        self.api_port = free_port()
        self.metrics_port = free_port()
        self.config_path = self.directory / "fastside.yaml"
        self.log_path = self.directory / "fastside.log"
        self.admin_socket = self.directory / "run/admin.sock"
        self.config: dict[str, Any] = {
            "workers": 2,
            "advertise": "127.0.0.1",
            "runtime_dir": str(self.directory / "run"),
            "state_dir": str(self.directory / "state"),
            "api": f"127.0.0.1:{self.api_port}",
            "metrics": f"127.0.0.1:{self.metrics_port}",
            "drain": {"delay": 0, "deadline": "5s"},
            "listeners": [
                {"name": "inbound", "bind": f"127.0.0.1:{self.inbound_port}"},
                {"name": "outbound", "bind": f"127.0.0.1:{self.outbound_port}"},
            ],
        }
        self.configure(config or {})
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("FASTSIDE_")} | dict(
            env or {}
        )
        self._wait_ready = wait_ready
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def outbound(self) -> tuple[str, int]:
        return ("127.0.0.1", self.outbound_port)

    @property
    def inbound(self) -> tuple[str, int]:
        return ("127.0.0.1", self.inbound_port)

    @property
    def api(self) -> str:
        return f"127.0.0.1:{self.api_port}"

    @property
    def pid(self) -> int:
        """Pid of the master."""
        assert self.process
        return self.process.pid

    @property
    def client(self) -> Client:
        """A client of the takeover API."""
        from fastside.client import Client

        return Client(self.api)

    def configure(self, config: Mapping[str, Any]) -> None:
        """Lay `config` over the present configuration and write the file; `reload` makes it count.

        Mappings are merged; listeners are merged by name; anything else is replaced.
        """
        config = dict(config)
        by_name = {listener["name"]: listener for listener in self.config["listeners"]}
        for listener in config.pop("listeners", []):
            by_name[listener["name"]] = by_name.get(listener["name"], {}) | listener
        self.config["listeners"] = list(by_name.values())
        for key, value in config.items():
            old = self.config.get(key)
            self.config[key] = old | dict(value) if isinstance(old, dict) and isinstance(value, Mapping) else value
        self.config_path.write_text(json.dumps(self.config, indent=1))

    def start(self) -> Sidecar:
        command = [sys.executable, "-m", "fastside", "run", "-c", str(self.config_path)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, start_new_session=True
            )
        if self._wait_ready:
            self.wait_ready()
        return self

    def wait_ready(self, deadline: float = DEADLINE) -> None:
        """Wait for 200 from /readyz."""

        def ready() -> bool:
            assert self.process
            if self.process.poll() is not None:
                self.fail(f"the sidecar exited with {self.process.returncode} before it was ready")
            return self.health("readyz") == 200

        with self.log_on_failure():
            wait_until(ready, deadline, "the sidecar is ready")

    def health(self, probe: str) -> int:
        """Return the status of a health probe, or 0 if nobody answers."""
        try:
            return get(("127.0.0.1", self.metrics_port), f"/{probe}", timeout=5).status
        except (OSError, http.client.HTTPException):
            return 0

    def metrics(self) -> dict[str, float]:
        """Return the samples of /metrics by name and labels as they are written."""
        text = get(("127.0.0.1", self.metrics_port), "/metrics", timeout=10).body.decode()
        lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def cli(self, *arguments: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a fastside command against this sidecar."""
        env = self.env | {"FASTSIDE_API": self.api, "FASTSIDE_RUNTIME_DIR": str(self.directory / "run")}
        result = subprocess.run(
            [sys.executable, "-m", "fastside", *arguments],
            capture_output=True,
            text=True,
            env=env,
            timeout=timeout,
            check=False,
        )
        if check and result.returncode:
            self.fail(f"fastside {' '.join(arguments)} exited with {result.returncode}: {result.stderr}{result.stdout}")
        return result

    def processes(self) -> dict[str, int]:
        """Return the pids of the sidecar's living processes by title: "fastside: worker 0" and so on."""
        return {title: pid for pid, title in session_members(self.pid).items()}

    def worker_pids(self) -> list[int]:
        """Return the pids of the workers that are up, by slot."""
        found = {title: pid for title, pid in self.processes().items() if title.startswith("fastside: worker ")}
        return [found[title] for title in sorted(found, key=lambda title: int(title.split()[-1]))]

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def fail(self, message: str) -> NoReturn:
        pytest.fail(f"{message}\n--- the sidecar's log ---\n{self.log()[-8000:]}")

    @contextlib.contextmanager
    def log_on_failure(self) -> Iterator[None]:
        """Print the sidecar's log when the block fails; pytest shows it with the failure."""
        try:
            yield
        except BaseException:
            print(f"--- log of the sidecar {self.process.pid if self.process else ''} ---\n{self.log()[-8000:]}")
            raise

    def stop(self, deadline: float = DEADLINE) -> None:
        """Stop by SIGTERM; assert that it exits with 0 and that none of its processes is left."""
        assert self.process
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            self.fail(f"the sidecar did not stop within {deadline:g} s; left: {self.processes()}")
        if code != 0:
            self.fail(f"the sidecar exited with {code}")
        if left := session_members(self.pid):
            self.fail(f"the sidecar left processes behind: {left}")

    def kill_everything(self) -> None:
        """SIGKILL whatever runs in the sidecar's session."""
        if self.process:
            for pid in session_members(self.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(DEADLINE)
            wait_until(lambda: not session_members(self.pid), what="all processes of the sidecar are gone")

    def __enter__(self) -> Sidecar:
        try:
            return self.start()
        except BaseException:
            self._clean()
            raise

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """A test that killed the master on purpose calls kill_everything() before it leaves."""
        try:
            if kind:
                print(f"--- log of the sidecar {self.pid} ---\n{self.log()[-8000:]}")
            elif self.process and self.process.returncode is None:
                self.stop()
            elif left := session_members(self.pid):
                self.fail(f"the sidecar left processes behind: {left}")
        finally:
            self._clean()

    def _clean(self) -> None:
        self.kill_everything()
        if self._temporary:
            self._temporary.cleanup()


# Clients


@dataclass
class Response:
    status: int
    reason: str
    headers: list[tuple[str, str]]
    body: bytes
    head: bytes = b""
    """The head as received."""
    trailers: list[tuple[str, str]] = field(default_factory=list)

    def header(self, name: str) -> str | None:
        """Return the value of a header, several joined by ", "."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None

    def json(self) -> Any:
        return json.loads(self.body)


class Stream:
    """A TCP connection on which every byte is the test's own."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self, count: int) -> bytes:
        """Return exactly `count` bytes; raises EOFError if the peer ends before."""
        while len(self._buffer) < count:
            self._more()
        result, self._buffer = self._buffer[:count], self._buffer[count:]
        return result

    def read_until(self, mark: bytes) -> bytes:
        """Return everything up to and including `mark`; raises EOFError if the peer ends before."""
        while mark not in self._buffer:
            self._more()
        return self.read(self._buffer.index(mark) + len(mark))

    def read_all(self) -> bytes:
        """Return everything until the peer ends its side. A reset raises ConnectionResetError."""
        with contextlib.suppress(EOFError):
            while True:
                self._more()
        result, self._buffer = self._buffer, b""
        return result

    def at_end(self) -> bool:
        """Tell whether the peer has ended its side and nothing is left to read, without waiting."""
        if self._buffer or not select.select([self.socket], [], [], 0)[0]:
            return False
        try:
            return self.socket.recv(1, socket.MSG_PEEK) == b""
        except ConnectionResetError:
            return True

    def end(self) -> None:
        """End the sending side (half-close)."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close with a reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    def _more(self) -> None:
        data = self.socket.recv(65536)
        if not data:
            raise EOFError(f"the peer ended the connection after {self._buffer[-200:]!r}")
        self._buffer += data


class Raw(Stream):
    """A client's connection. Reading raises TimeoutError when nothing comes for `timeout` seconds."""

    def __init__(self, address: tuple[str, int], timeout: float = DEADLINE, source: str | None = None) -> None:
        super().__init__(socket.create_connection(address, timeout, (source, 0) if source else None))

    def read_response(self, method: str = "GET") -> Response:
        """Return the next response, 1xx ones included."""
        head = self.read_until(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")[:-2]
        version, status, reason = (lines[0] + " ").split(" ", 2)
        assert version.startswith("HTTP/1."), lines[0]
        response = Response(int(status), reason.strip(), _fields(lines[1:]), b"", head)
        if method == "HEAD" or response.status < 200 or response.status in (204, 304):
            return response
        if response.header("transfer-encoding") == "chunked":
            response.body, response.trailers = read_chunked(self)
        elif (length := response.header("content-length")) is not None:
            response.body = self.read(int(length))
        else:
            response.body = self.read_all()
        return response

    def call(
        self, service: str, target: str = "/", method: str = "GET", headers: Headers = (), body: bytes = b""
    ) -> Response:
        """Send one request and return its response."""
        self.send(request_bytes(service, target, method, headers, body))
        return self.read_response(method)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def request_bytes(
    service: str, target: str = "/", method: str = "GET", headers: Headers = (), body: bytes = b""
) -> bytes:
    """Return the bytes of a request with a Content-Length if there is a body."""
    fields = [("Host", service), *headers]
    if body:
        fields.append(("Content-Length", str(len(body))))
    head = "".join(f"{name}: {value}\r\n" for name, value in fields)
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + body


def get(address: tuple[str, int], target: str = "/", timeout: float = DEADLINE) -> Response:
    """Make one GET on its own connection."""
    with Raw(address, timeout) as raw:
        return raw.call(f"{address[0]}:{address[1]}", target, headers=[("Connection", "close")])


def call(
    address: tuple[str, int],
    service: str,
    target: str = "/",
    method: str = "GET",
    headers: Headers = (),
    body: bytes = b"",
) -> Response:
    """Call a service through the sidecar at `address`, on a connection of its own."""
    with Raw(address) as raw:
        return raw.call(service, target, method, headers, body)


def read_chunked(raw: Stream) -> tuple[bytes, list[tuple[str, str]]]:
    """Return body and trailers of a chunked message."""
    body = b""
    while size := int(raw.read_until(b"\r\n").split(b";")[0], 16):
        body += raw.read(size)
        assert raw.read(2) == b"\r\n"
    trailers = []
    while (line := raw.read_until(b"\r\n")) != b"\r\n":
        trailers.append(line.decode("latin-1").rstrip("\r\n"))
    return body, _fields(trailers)


def chunked(parts: Iterable[bytes], trailers: Headers = ()) -> bytes:
    """Return a chunked body with one chunk per part."""
    body = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts if part)
    return body + b"0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in trailers).encode() + b"\r\n"


def _fields(lines: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]


# Origin


@dataclass
class Request:
    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    body: bytes
    head: bytes
    """The head as received."""
    connection: int
    """Number of the connection that it came on, from 0."""
    trailers: list[tuple[str, str]] = field(default_factory=list)

    def header(self, name: str) -> str | None:
        """Return the value of a header, several joined by ", "."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        return ", ".join(values) if values else None


class Exchange:
    """What a handler does with one request on one connection."""

    def __init__(self, origin: Origin, raw: Stream, request: Request) -> None:
        self.origin = origin
        self.raw = raw
        self.request = request
        self.over = False
        """True ends the connection after this exchange."""

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.raw.send(data)

    def reply(self, body: bytes = b"", status: int = 200, headers: Headers = ()) -> None:
        """Send a response with a Content-Length."""
        fields = [("Content-Length", str(len(body))), *headers]
        head = f"HTTP/1.1 {status} {http.client.responses.get(status, 'Status')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in fields)
        self.send(f"{head}\r\n".encode() + (b"" if self.request.method == "HEAD" else body))

    def reply_chunked(self, parts: Iterable[bytes], trailers: Headers = ()) -> None:
        """Send a chunked response, one chunk per part, each in its own write."""
        self.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in parts:
            self.send(b"%x\r\n%s\r\n" % (len(part), part))
        self.send(chunked([], trailers))

    def close(self) -> None:
        """End the connection after what was sent."""
        self.over = True

    def reset(self) -> None:
        """End the connection with a reset."""
        self.over = True
        self.raw.reset()


Handler = Callable[[Exchange], None]


class Origin:
    """An HTTP/1.1 server with one thread per connection. It keeps every request in `requests`.

    The default handler goes by the target:
      /echo           the request's body            /bytes/N     N bytes with a Content-Length
      /chunked/N      N bytes, 1,000 per chunk      /status/N    an empty response with that status
      /gate           waits until `gate` is set     /until-close N/A length: the body ends with the connection
      /close          closes without a response     /reset       resets without a response
      /half           sends half of a response, then closes
      anything else   the origin's name
    """

    def __init__(self, name: str = "origin", handler: Handler | None = None, host: str = "127.0.0.1", port: int = 0):
        self.name = name
        self.handler = handler or default_handler
        self.host = host
        self.port = port or free_port()
        self.gate = threading.Event()
        self.requests: list[Request] = []
        self.connections = 0
        """Connections accepted so far."""
        self._lock = threading.Lock()
        self._open: set[Stream] = set()
        self._listener: socket.socket | None = None
        self._accepting: threading.Thread | None = None

    @property
    def address(self) -> tuple[str, int]:
        return (self.host, self.port)

    @property
    def open_connections(self) -> int:
        with self._lock:
            return len(self._open)

    def start(self) -> Origin:
        self._listener = socket.create_server(self.address, backlog=1024)
        self._accepting = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._accepting.start()
        return self

    def crash(self) -> None:
        """Stop listening and reset every connection, as if the process had died; `start` brings it back."""
        assert self._listener
        assert self._accepting
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(DEADLINE)
        self._listener.close()
        with self._lock:
            for raw in self._open:
                with contextlib.suppress(OSError):
                    raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    raw.socket.shutdown(socket.SHUT_RD)
                    raw.socket.close()
            self._open.clear()
        self._listener = None

    def wait_for_requests(self, count: int) -> list[Request]:
        """Wait until at least `count` requests have come, and return them all."""
        wait_until(lambda: len(self.requests) >= count, what=f"{count} requests at {self.name}")
        return self.requests

    def __enter__(self) -> Origin:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.gate.set()
        if self._listener:
            self.crash()

    def _accept(self, listener: socket.socket) -> None:
        for number in itertools.count(self.connections):
            try:
                accepted, _ = listener.accept()
            except OSError:
                return
            accepted.settimeout(None)
            raw = Stream(accepted)
            with self._lock:
                self._open.add(raw)
                self.connections = number + 1
            threading.Thread(target=self._serve, args=(raw, number), daemon=True).start()

    def _serve(self, raw: Stream, number: int) -> None:
        try:
            while True:
                exchange = Exchange(self, raw, self._read_request(raw, number))
                self.requests.append(exchange.request)
                self.handler(exchange)
                if exchange.over or exchange.request.header("connection") == "close":
                    return
        except (EOFError, OSError):
            return  # the peer is gone, or crash() closed the socket
        finally:
            with self._lock:
                self._open.discard(raw)
            raw.close()

    def _read_request(self, raw: Stream, number: int) -> Request:
        head = raw.read_until(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, version = lines[0].split(" ")
        request = Request(method, target, version, _fields(lines[1:]), b"", head, number)
        if request.header("expect"):
            raw.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.header("transfer-encoding") == "chunked":
            request.body, request.trailers = read_chunked(raw)
        elif length := request.header("content-length"):
            request.body = raw.read(int(length))
        return request


def default_handler(exchange: Exchange) -> None:
    """See Origin."""
    path = exchange.request.target.partition("?")[0]
    number = int(match[0]) if (match := re.search(r"\d+$", path)) else 0
    match path.split("/")[1]:
        case "echo":
            exchange.reply(exchange.request.body)
        case "bytes":
            exchange.reply(pattern(number))
        case "chunked":
            body = pattern(number)
            exchange.reply_chunked(body[at : at + 1000] for at in range(0, number, 1000))
        case "status":
            exchange.send(f"HTTP/1.1 {number} Status\r\n".encode())
            exchange.send(b"\r\n" if number in (204, 304) else b"Content-Length: 0\r\n\r\n")
        case "gate":
            exchange.origin.gate.wait(DEADLINE)
            exchange.reply(exchange.origin.name.encode())
        case "until-close":
            exchange.send(b"HTTP/1.1 200 OK\r\n\r\n" + exchange.origin.name.encode())
            exchange.close()
        case "close":
            exchange.close()
        case "reset":
            exchange.reset()
        case "half":
            exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(500))
            exchange.close()
        case _:
            exchange.reply(exchange.origin.name.encode())


def pattern(count: int) -> bytes:
    """Return `count` bytes in which a lost, doubled or moved part shows."""
    return b"".join(struct.pack(">I", number) for number in range((count + 3) // 4))[:count]
