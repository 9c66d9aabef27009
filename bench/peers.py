"""The forwarders that are measured side by side, each set up for the same job as simply and fast as it can be.

The job: route HTTP by Host to one of three services with kept-alive upstream connections, relay two TCP ports, carry
Bolt calls for three services that one backend has, log nothing. fastside routes each Bolt call by its header; the
others pass the bytes on. A peer without a forwarder is `direct`: the load generator talks to the backend.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench import measure
from bench.place import LOAD_CPU, Place
from bench.tools import tool

SERVICES = ("svc-a", "svc-b", "svc-c")
BOLT_SERVICES = ("com.example.hello:1.0", "com.example.order:1.0", "com.example.stock:1.0")
START_DEADLINE = 20.0
"""Seconds that a forwarder may take until it answers for every service."""
STOP_DEADLINE = 5.0
"""Seconds between SIGTERM and SIGKILL."""
MAX_CONNECTIONS = 32768
NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


@dataclass(frozen=True)
class Ports:
    """Where one party listens on 127.0.0.1: HTTP (the backend: one port per service), a TCP echo and source, Bolt."""

    http: tuple[int, ...]
    echo: int
    source: int
    bolt: int

    def every(self) -> set[int]:
        """Return all of them."""
        return {*self.http, self.echo, self.source, self.bolt}


class Origin:
    """The backend of all peers, on the load generator's CPU."""

    def __init__(self, place: Place, cpu: int | None = LOAD_CPU) -> None:
        self.ports = Ports(tuple(place.port() for _ in SERVICES), place.port(), place.port(), place.port())
        http = [f"http:{port}:{name}" for port, name in zip(self.ports.http, SERVICES, strict=True)]
        others = [f"echo:{self.ports.echo}", f"source:{self.ports.source}", f"bolt:{self.ports.bolt}"]
        self._process = place.spawn([tool("origin"), *http, *others], cpu)
        self.pid = self._process.pid
        assert self._process.stdout is not None
        if self._process.stdout.readline() != "ready\n":
            raise RuntimeError("the backend did not start; its message is above")

    def stop(self) -> None:
        """End the backend."""
        self._process.kill()
        self._process.communicate()


class Peer:
    """A running forwarder, or the direct path."""

    def __init__(self, name: str, ports: Ports, process: subprocess.Popen[str] | None, log: Path) -> None:
        self.name = name
        self.ports = ports
        self.pid = process.pid if process else None
        self._process = process
        self._log = log

    def wait_ready(self, place: Place, command: list[str | Path] | None) -> None:
        """Return when the command, if any, ends with 0 and every service answers. Raises RuntimeError with the log."""
        deadline = time.monotonic() + START_DEADLINE
        while time.monotonic() < deadline:
            if self._process and self._process.poll() is not None:
                break
            if self.pid is None or self.ports.every() <= measure.listening_ports(self.pid):
                arguments = ["-m", "hold", "-c", "3", "-s", ",".join(SERVICES if self.pid else SERVICES[:1])]
                probe: list[str | Path] = [tool("load"), *arguments, str(self.ports.http[0])]
                with self._log.open("ab") as log:
                    ready = command is None or place.spawn(command, LOAD_CPU, log).wait() == 0
                    if ready and place.spawn(probe, LOAD_CPU, log).wait() == 0:
                        return
            time.sleep(0.1)
        raise RuntimeError(f"{self.name} did not get ready in {START_DEADLINE:.0f} s:\n{self._log.read_text()[-4000:]}")

    def stop(self) -> None:
        """End it and everything it started."""
        if not self._process:
            return
        processes = measure.tree(self._process.pid)
        self._process.terminate()
        try:
            self._process.wait(STOP_DEADLINE)
        except subprocess.TimeoutExpired:
            for pid in processes:  # workers outlive a master that was killed
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.wait()


@dataclass(frozen=True)
class Program:
    """How to start a forwarder, and the command, if it has one, that ends with 0 when all its workers serve."""

    run: list[str | Path]
    ready: list[str | Path] | None = None


@dataclass(frozen=True)
class Job:
    """What a forwarder is to be set up for."""

    front: Ports
    back: Ports
    workers: int
    folder: Path
    place: Place


def _haproxy(job: Job, options: str = "") -> Program:
    http = "\n".join(
        f"backend {name}\n    server origin 127.0.0.1:{port}"
        for name, port in zip(SERVICES, job.back.http, strict=True)
    )
    config = job.folder / "haproxy.cfg"
    config.write_text(f"""
global
    nbthread {job.workers}
    no strict-limits
    maxconn {MAX_CONNECTIONS}
defaults
    mode http
    timeout connect 1s
    timeout client 10m
    timeout server 10m
    http-reuse always
    {options}
frontend http
    bind 127.0.0.1:{job.front.http[0]}
    use_backend %[req.hdr(host)]
{http}
listen echo
    mode tcp
    bind 127.0.0.1:{job.front.echo}
    server origin 127.0.0.1:{job.back.echo}
listen source
    mode tcp
    bind 127.0.0.1:{job.front.source}
    server origin 127.0.0.1:{job.back.source}
listen bolt
    mode tcp
    bind 127.0.0.1:{job.front.bolt}
    server origin 127.0.0.1:{job.back.bolt}
""")
    return Program(["haproxy", "-db", "-f", config])


def _haproxy_splice(job: Job) -> Program:
    return _haproxy(job, "option splice-request\n    option splice-response")


def _nginx(job: Job) -> Program:
    if not NGINX_STREAM.exists():
        raise RuntimeError(f"{NGINX_STREAM} is missing; apt-get install libnginx-mod-stream")
    reuseport = " reuseport" if job.workers > 1 else ""
    # The options of a port may be given once.
    listen = dict.fromkeys(SERVICES, str(job.front.http[0])) | {SERVICES[0]: f"{job.front.http[0]}{reuseport}"}
    upstreams = "".join(
        f"    upstream {name} {{ server 127.0.0.1:{port}; keepalive 128; keepalive_requests 1000000000; }}\n"
        f"    server {{ listen 127.0.0.1:{listen[name]}; server_name {name};"
        f" location / {{ proxy_pass http://{name}; }} }}\n"
        for name, port in zip(SERVICES, job.back.http, strict=True)
    )
    config = job.folder / "nginx.conf"
    config.write_text(f"""
daemon off;
pid {job.folder}/nginx.pid;
error_log {job.folder}/nginx-error.log;
worker_processes {job.workers};
load_module {NGINX_STREAM};
events {{ worker_connections {MAX_CONNECTIONS}; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 10m;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Host $host;
    proxy_max_temp_file_size 0;
    proxy_buffers 8 64k;
{upstreams}}}
stream {{
    server {{ listen 127.0.0.1:{job.front.echo}{reuseport}; proxy_pass 127.0.0.1:{job.back.echo}; }}
    server {{ listen 127.0.0.1:{job.front.source}{reuseport}; proxy_pass 127.0.0.1:{job.back.source}; }}
    server {{ listen 127.0.0.1:{job.front.bolt}{reuseport}; proxy_pass 127.0.0.1:{job.back.bolt}; }}
}}
""")
    return Program(["nginx", "-c", config, "-p", job.folder])


def _fastside(job: Job, accept: str = "handover") -> Program:
    loopback = "127.0.0.1:{}".format
    front, back = job.front, job.back
    targets = dict(zip(SERVICES, back.http, strict=True)) | {"echo": back.echo, "source": back.source}
    services: dict[str, object] = {name: {"endpoints": [loopback(port)]} for name, port in targets.items()}
    services |= {name: {"protocol": "bolt", "endpoints": [loopback(back.bolt)]} for name in BOLT_SERVICES}
    listeners = [
        {"name": "outbound", "direction": "outbound", "bind": loopback(front.http[0]), "protocol": "http"},
        {"name": "bolt", "direction": "outbound", "bind": loopback(front.bolt), "protocol": "bolt"},
        {"name": "inbound", "direction": "inbound", "bind": loopback(job.place.port()), "protocol": "http"},
    ]
    for name, port in {"echo": front.echo, "source": front.source}.items():
        listeners.append(
            {"name": name, "direction": "outbound", "bind": loopback(port), "protocol": "tcp", "service": name}
        )
    settings = {
        "workers": job.workers,
        "accept": accept,
        "runtime_dir": str(job.folder),
        "state_dir": str(job.folder),
        "advertise": "127.0.0.1",
        "api": loopback(job.place.port()),
        "metrics": loopback(job.place.port()),
        "limits": {"connections": MAX_CONNECTIONS},
        "drain": {"delay": 0, "deadline": 1},
        "listeners": listeners,
        "services": services,
    }
    config = job.folder / "fastside.yaml"
    config.write_text(json.dumps(settings, indent=1))  # JSON is a part of YAML
    fastside: list[str | Path] = [sys.executable, "-m", "fastside"]
    wait: list[str | Path] = [*fastside, "wait", "--ready", "--timeout", str(START_DEADLINE), "-c", config]
    return Program([*fastside, "run", "-c", config], wait)


def _fastside_reuseport(job: Job) -> Program:
    return _fastside(job, "reuseport")


def _fastside_exclusive(job: Job) -> Program:
    return _fastside(job, "exclusive")


KINDS: dict[str, Callable[[Job], Program]] = {
    "fastside": _fastside,
    "fastside-reuseport": _fastside_reuseport,
    "fastside-exclusive": _fastside_exclusive,
    "haproxy": _haproxy,
    "haproxy-splice": _haproxy_splice,
    "nginx": _nginx,
}


def start(place: Place, name: str, origin: Origin, folder: Path, workers: int = 1, cpu: int | None = None) -> Peer:
    """Start a forwarder of KINDS, or make the peer `direct`; return when it answers.

    Raises RuntimeError if the program is not installed or does not get ready.
    """
    if name == "direct":
        return Peer(name, origin.ports, None, folder)
    front = Ports((place.port(),), place.port(), place.port(), place.port())
    home = folder / name
    home.mkdir()
    program = KINDS[name](Job(front, origin.ports, workers, home, place))
    if shutil.which(program.run[0]) is None:
        raise RuntimeError(f"{program.run[0]} is not installed; apt-get install {program.run[0]}")
    log = home / "log"
    with log.open("wb") as output:
        peer = Peer(name, front, place.spawn(program.run, cpu, output), log)
    try:
        peer.wait_ready(place, program.ready)
    except RuntimeError:
        peer.stop()
        raise
    return peer
