"""The configuration: schema, every default, and what makes a configuration sound.

One YAML file (JSON is a part of YAML). Durations are seconds as float inside the program; in the file they are "500ms",
"10s", "5m", "1h" or a number of seconds. Sizes are bytes; in the file "64KiB", "1MiB" or a number of bytes.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, field

from fastside.yaml_reader import Parsers, Problem, Reader, Section

KIB = 1024
MIB = 1024 * KIB
BUFFER_SIZE = 16 * KIB
"""Bytes of one buffer of a worker's pool."""

Duration = Annotated[
    float, Meta(ge=0.001, le=30 * 86400, description="a duration from 1ms to 30d, such as 500ms or 5m")
]
DurationOrZero = Annotated[float, Meta(ge=0, le=30 * 86400, description="a duration such as 500ms or 5m, 30d at most")]
HeadSize = Annotated[int, Meta(ge=KIB, le=64 * KIB, description="a size from 1KiB to 64KiB")]
MemorySize = Annotated[int, Meta(ge=MIB, lt=2**40, description="a size from 1MiB to 1023GiB")]
SpliceSize = Annotated[int, Meta(ge=0, lt=2**32, description="a size such as 128KiB, below 4GiB; 0 = never")]
Bind = Annotated[str, Meta(description="IP:PORT, for example 127.0.0.1:20882 or [::1]:20882")]
BindOrSocket = Annotated[str, Meta(description="IP:PORT or unix:/path")]
Port = Annotated[int, Meta(ge=1, le=65535, description="a port from 1 to 65535")]
Url = Annotated[str, Meta(description="a URL such as http://10.0.0.5:20885")]
ServiceName = Annotated[str, Meta(description="a service name")]
Token = Annotated[str, Meta(description="the name of a header")]
HashBy = Annotated[str, Meta(description="source or header:NAME")]
Advertise = Annotated[str, Meta(description="auto or an IP address")]
AbsolutePath = Annotated[str, Meta(description="an absolute path")]
Workers = Annotated[
    Annotated[int, Meta(ge=1, le=64)] | Literal["auto"], Meta(description="auto or a number from 1 to 64")
]
Direction = Literal["inbound", "outbound"]
Protocol = Literal["http", "tcp", "bolt", "dubbo", "tls"]
"""What a service speaks. Of tls only the server name is read; it is passed through as it is."""
ListenerProtocol = Literal["http", "tcp", "bolt", "dubbo", "tls", "auto"]
"""auto: each connection says by its first bytes which of the others it speaks."""
Balance = Literal["round_robin", "least_request", "consistent_hash"]


class ConfigError(Exception):
    """A configuration that cannot be used. str() has one line per problem: file:line:column: key: what is wrong."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=lambda problem: (problem.line, problem.column))
        super().__init__("\n".join(f"{source}:{problem}" for problem in self.problems))


class Listener(Section, frozen=True, kw_only=True):
    """A port that the data path accepts on."""

    name: str
    direction: Direction
    bind: Bind
    protocol: ListenerProtocol = "auto"
    service: ServiceName = ""
    """Where everything goes that a tcp listener accepts, or that an auto listener cannot tell the protocol of."""
    service_header: Token = ""
    """An HTTP header that names the service; Host counts where it is absent."""

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """An entry that is called like a default listener changes only what it says."""
        for listener in (*DEFAULT_LISTENERS, MESH_LISTENER):
            if listener.name == given.get("name"):
                return {"direction": listener.direction, "bind": listener.bind, "protocol": listener.protocol}
        return {}


DEFAULT_LISTENERS = (
    Listener(name="inbound", direction="inbound", bind="0.0.0.0:20881"),
    Listener(name="outbound", direction="outbound", bind="127.0.0.1:20882"),
)


MESH_LISTENER = Listener(name="mesh", direction="outbound", bind="127.0.0.1:12220", protocol="bolt")
"""Where SOFARPC's clients call a sidecar. It exists where their API does."""


class StaticEndpoint(Section, frozen=True, kw_only=True):
    """An endpoint that is given in the configuration; plain "IP:PORT" means weight 1."""

    shorthand: ClassVar[str] = "address"
    address: Bind
    weight: Annotated[int, Meta(ge=1, le=10000)] = 1


class ServicePolicy(Section, frozen=True, kw_only=True):
    """How calls to one service are made."""

    protocol: Protocol | None = None
    """Of a service with endpoints here; None = tcp if a listener passes everything to it, else http."""
    balance: Balance = "round_robin"
    hash_by: HashBy = "source"
    """For consistent_hash: the caller's address, or the value of a request header."""
    retry: Literal["connect", "idempotent"] = "connect"
    """connect: try another endpoint only if no byte of the request can have reached a server. idempotent: also send a
    GET, HEAD, OPTIONS, TRACE, PUT or DELETE again when the connection breaks before the response."""
    request_timeout: Duration | None = None
    """None: timeouts.request."""
    endpoints: list[StaticEndpoint] = field(default_factory=list)


class Timeouts(Section, frozen=True, kw_only=True):
    """How long a worker waits."""

    connect: Duration = 1.0
    header: Duration = 10.0
    """For a whole request head, from its first byte."""
    request: Duration = 60.0
    """For the response head, from the end of the request; and between two reads of a body."""
    keepalive: Duration = 300.0
    """For the next request on a downstream connection."""
    idle: Duration = 3600.0
    """Without a byte on a TCP or upgraded connection."""
    half_close: Duration = 60.0
    """For the second side of a connection to end after the first has."""
    pool_idle: Duration = 4.0
    """How long an upstream connection is kept for the next request; servers commonly keep theirs for 5 s."""


class Limits(Section, frozen=True, kw_only=True):
    """Bounds on what the sidecar uses."""

    connections: Annotated[int, Meta(ge=64, le=1 << 20)] = 16384
    """Sockets of one worker, both sides counted."""
    head_bytes: HeadSize = 64 * KIB
    headers: Annotated[int, Meta(ge=1, le=1000)] = 200
    buffer_memory: MemorySize = 256 * MIB
    """Of one worker."""
    pool_per_endpoint: Annotated[int, Meta(ge=0, le=65535)] = 128
    """Idle upstream connections that one worker keeps per endpoint; 0 = none."""
    services: Annotated[int, Meta(ge=1, le=1 << 24)] = 131072
    addresses: Annotated[int, Meta(ge=1, le=1 << 26)] = 1 << 20
    table_bytes: MemorySize = 512 * MIB
    service_series: Annotated[int, Meta(ge=1, le=65535)] = 1024
    """Services with metrics of their own; the rest is counted together."""


class Drain(Section, frozen=True, kw_only=True):
    """How the sidecar stops."""

    delay: DurationOrZero = 5.0
    """Between the withdrawal from the registry and the closing of connections: others take time to notice."""
    deadline: DurationOrZero = 30.0
    """From the signal to the end, whatever is still active."""


class Ejection(Section, frozen=True, kw_only=True):
    """When an endpoint is left out for a while."""

    failures: Annotated[int, Meta(ge=0, le=1000)] = 3
    """Consecutive failed connects; 0 = never."""
    time: Duration = 10.0


class RegistrySource(Section, frozen=True, kw_only=True):
    """Where endpoints come from, and how long the last known ones are trusted."""

    url: Url | None = None
    """A shared `fastside registry`; None = the sidecar's own, in its control process."""
    lease: Duration = 10.0
    """A registration that is not renewed for so long is dropped by the registry."""
    protection: DurationOrZero = 60.0
    """How long the last endpoints stay in use after the registry sent an empty list."""
    stale: DurationOrZero = 86400.0
    """How long they stay in use while the registry is away."""


class MeshApi(Section, frozen=True, kw_only=True):
    """SOFARPC's mesh registry API; plain "IP:PORT" stands for api."""

    shorthand: ClassVar[str] = "api"
    api: Bind
    app_port: Port = 12200
    """Where the application listens, unless it says so itself."""


class DubbodApi(Section, frozen=True, kw_only=True):
    """MOSN's dubbod API; plain "IP:PORT" stands for api."""

    shorthand: ClassVar[str] = "api"
    api: Bind
    app_port: Port = 20880
    """Where the application listens."""


def default_runtime_dir() -> str:
    """Where the sockets of a running sidecar are: $FASTSIDE_RUNTIME_DIR, or by user."""
    if given := os.environ.get("FASTSIDE_RUNTIME_DIR"):
        return given
    if os.geteuid() == 0:
        return "/run/fastside"
    base = os.environ.get("XDG_RUNTIME_DIR")
    return f"{base}/fastside" if base else f"/tmp/fastside-{os.geteuid()}"


def default_state_dir() -> str:
    """Where the snapshot is kept across restarts: $FASTSIDE_STATE_DIR, or by user."""
    if given := os.environ.get("FASTSIDE_STATE_DIR"):
        return given
    if os.geteuid() == 0:
        return "/var/lib/fastside"
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"{base}/fastside"


class Config(Section, frozen=True, kw_only=True):
    """A whole configuration. `msgspec.convert(msgspec.to_builtins(config), Config)` gives an equal one."""

    workers: Workers = "auto"
    """auto = the smallest of 2, the cgroup's CPU quota and the CPUs that the process may use."""
    accept: Literal["handover", "reuseport", "exclusive"] = "handover"
    advertise: Advertise = "auto"
    """The address published to the registry; auto = that of the default route's interface, else 127.0.0.1."""
    runtime_dir: AbsolutePath = field(default_factory=default_runtime_dir)
    state_dir: AbsolutePath = field(default_factory=default_state_dir)
    listeners: list[Listener] = field(default_factory=lambda: list(DEFAULT_LISTENERS))
    api: BindOrSocket = "127.0.0.1:20883"
    mesh: MeshApi | None = None
    dubbod: DubbodApi | None = None
    metrics: Bind = "127.0.0.1:20884"
    registry: RegistrySource = RegistrySource()
    services: dict[str, ServicePolicy] = field(default_factory=dict)
    timeouts: Timeouts = Timeouts()
    limits: Limits = Limits()
    drain: Drain = Drain()
    ejection: Ejection = Ejection()
    splice_after: SpliceSize = 128 * KIB
    """Bytes of a stream that are copied before it is spliced; 0 = never splice."""

    @property
    def apis(self) -> dict[str, str]:
        """The binds of the takeover APIs, by their keys in the file."""
        others = {"mesh": self.mesh, "dubbod": self.dubbod}
        return {"api": self.api} | {f"{key}.api": one.api for key, one in others.items() if one is not None}

    @property
    def admin_socket(self) -> str:
        """Path of the admin API's unix socket."""
        return f"{self.runtime_dir}/admin.sock"


def load(path: Path | None) -> Config:
    """Return the configuration in the file, or the defaults if path is None.

    FASTSIDE_RUNTIME_DIR and FASTSIDE_STATE_DIR override the file.
    Raises ConfigError with every problem that was found.
    """
    if path is None:
        return Config()
    reader = Reader(_PARSERS)
    config = reader.read(_text(path), Config)
    if config is not None:
        config = _completed(config)
        for key, message in _unsound(config):
            reader.add(key, message)
    if config is None or reader.problems:
        raise ConfigError(str(path), reader.problems)
    services = {name.lower(): policy for name, policy in config.services.items()}
    return msgspec.structs.replace(config, services=services)


def core_settings(config: Config) -> dict[str, int]:
    """Return the data path's settings (milliseconds, bytes, counts) by their names in core/settings.pyx."""
    timeouts, limits = config.timeouts, config.limits
    return {
        "connect_ms": milliseconds(timeouts.connect),
        "header_ms": milliseconds(timeouts.header),
        "request_ms": milliseconds(timeouts.request),
        "keepalive_ms": milliseconds(timeouts.keepalive),
        "idle_ms": milliseconds(timeouts.idle),
        "half_close_ms": milliseconds(timeouts.half_close),
        "pool_idle_ms": milliseconds(timeouts.pool_idle),
        "pool_size": limits.pool_per_endpoint,
        "head_bytes": limits.head_bytes,
        "headers": limits.headers,
        "attempts": CONNECT_ATTEMPTS,
        "splice_bytes": config.splice_after,
        "eject_failures": config.ejection.failures,
        "eject_ms": milliseconds(config.ejection.time),
        "buffers": limits.buffer_memory // BUFFER_SIZE,
    }


CONNECT_ATTEMPTS = 3
"""Endpoints that are tried for one request."""


def milliseconds(seconds: float) -> int:
    """Return a duration in whole milliseconds, at least 1 unless it is 0."""
    return math.ceil(seconds * 1000)


# Scalars of the file. Each function returns the value or raises ValueError with what would be right.


def parse_duration(value: object) -> float:
    """Return seconds. Accepts a number of seconds, or text such as 500ms, 10s, 5m, 1h."""
    units = {None: 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?) ?(ms|s|m|h|d)?", value, re.ASCII)):
        return float(match[1]) * units[match[2]]
    raise ValueError(f"`{value}` is not a duration; write it like 500ms, 10s, 5m or 1h")


def parse_size(value: object) -> int:
    """Return bytes. Accepts a number of bytes, or text such as 64KiB, 1MiB."""
    units = {None: 1, "B": 1, "KiB": KIB, "MiB": MIB, "GiB": 1024 * MIB}
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+) ?(B|KiB|MiB|GiB)?", value, re.ASCII)):
        return int(match[1]) * units[match[2]]
    raise ValueError(f"`{value}` is not a size; write it like 64KiB, 1MiB or as a number of bytes")


def parse_bind(value: object) -> str:
    """Return "IP:PORT" in its usual spelling."""
    host, port = host_port(value)
    return join_host_port(host, port)


def host_port(value: object) -> tuple[str, int]:
    """Split "127.0.0.1:80" or "[::1]:80". Raises ValueError that says what is wrong."""
    match = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*)):(\d+)", value, re.ASCII) if isinstance(value, str) else None
    if not match:
        raise ValueError(f"`{value}` is not an address with a port; write IP:PORT or [IPv6]:PORT, in quotes")
    host, port = match[1] if match[1] is not None else match[2], int(match[3])
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        raise ValueError(f"`{host}` is not an IP address; names are not looked up, write an address") from None
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} is out of range; use 1..65535")
    return str(address), port


def join_host_port(host: str, port: int) -> str:
    """Return "IP:PORT", an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_service(value: object) -> str:
    """Return the name of a service, in lower case. Raises ValueError if it is not one."""
    return check_service(value).lower()


def check_service(value: object) -> str:
    """Return the name of a service as it is spelled. Raises ValueError if it is not one."""
    if not isinstance(value, str):
        raise ValueError(f"YAML reads `{value}` as something other than text; put the service's name in quotes")
    if not re.fullmatch(r"[a-zA-Z0-9._:@/$-]{1,255}", value, re.ASCII):
        raise ValueError(f"`{value}` is not a service name; use 1 to 255 of a-z 0-9 . _ : @ / $ -")
    return value


def _bind_or_socket(value: object) -> str:
    if isinstance(value, str) and value.startswith("unix:"):
        path = value.removeprefix("unix:")
        _absolute_path(path)
        _check_socket_path(path)
        return value
    return parse_bind(value)


def _absolute_path(value: object) -> str:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        raise ValueError(f"`{value}` is not an absolute path; begin it with /")
    return value.rstrip("/") or "/"


def _check_socket_path(path: str) -> None:
    if len(os.fsencode(path)) > 107:
        raise ValueError(f"{path} is too long for a unix socket (107 bytes); use a shorter directory")


def _header_name(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-zA-Z0-9!#$%&'*+.^_`|~-]{1,255}", value, re.ASCII):
        raise ValueError(f"`{value}` is not the name of a header; write it like x-service")
    return value.lower()


def _hash_by(value: object) -> str:
    if value == "source":
        return "source"
    if isinstance(value, str) and value.startswith("header:"):
        return "header:" + _header_name(value.removeprefix("header:"))
    raise ValueError(f"`{value}` is neither `source` nor `header:NAME`")


def _url(value: object) -> str:
    try:
        parts = urlsplit(value if isinstance(value, str) else "")
        port = parts.port
    except ValueError:
        raise ValueError(f"`{value}` is not a URL; write it like http://10.0.0.5:20885") from None
    if (
        parts.scheme != "http"
        or not parts.hostname
        or port == 0
        or parts.path.strip("/")
        or parts.query
        or parts.username
    ):
        raise ValueError(f"`{value}` is not the URL of a registry; write it like http://10.0.0.5:20885")
    return f"http://{parts.netloc}"


def _advertise(value: object) -> str:
    if value == "auto":
        return "auto"
    try:
        address = ipaddress.ip_address(value if isinstance(value, str) else "")
    except ValueError:
        raise ValueError(f"`{value}` is neither `auto` nor an IP address") from None
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"others cannot reach {value}; write the address of one of this machine's interfaces")
    return str(address)


_PARSERS: Parsers = {
    Duration: parse_duration,
    DurationOrZero: parse_duration,
    HeadSize: parse_size,
    MemorySize: parse_size,
    SpliceSize: parse_size,
    Bind: parse_bind,
    BindOrSocket: _bind_or_socket,
    Url: _url,
    ServiceName: parse_service,
    Token: _header_name,
    HashBy: _hash_by,
    Advertise: _advertise,
    AbsolutePath: _absolute_path,
}


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        column = error.start - error.object.rfind(b"\n", 0, error.start)
        problem = Problem(line, column, "", "not UTF-8 text; save the file as UTF-8")
        raise ConfigError(str(path), [problem]) from None
    except OSError as error:
        problem = Problem(1, 1, "", f"cannot be read: {error.strerror}")
        raise ConfigError(str(path), [problem]) from None


def _completed(config: Config) -> Config:
    """Add the default listeners of which no entry has the name, and apply the environment."""
    names = {listener.name for listener in config.listeners}
    wanted = DEFAULT_LISTENERS if config.mesh is None else (*DEFAULT_LISTENERS, MESH_LISTENER)
    missing = [listener for listener in wanted if listener.name not in names]
    changes: dict[str, Any] = {"listeners": config.listeners + missing}
    if "FASTSIDE_RUNTIME_DIR" in os.environ:
        changes["runtime_dir"] = default_runtime_dir()
    if "FASTSIDE_STATE_DIR" in os.environ:
        changes["state_dir"] = default_state_dir()
    return msgspec.structs.replace(config, **changes)


def _unsound(config: Config) -> Iterator[tuple[str, str]]:
    """What is wrong between the keys of a configuration of which each key is right: pairs of key and message."""
    yield from _unsound_listeners(config)
    yield from _unsound_binds(config)
    yield from _unsound_services(config)
    if config.drain.delay > config.drain.deadline:
        yield "drain.delay", f"longer than drain.deadline ({config.drain.deadline:g}s), which covers the delay too"
    if config.limits.table_bytes < (needed := _table_bytes(config.limits)):
        yield (
            "limits.table_bytes",
            f"{config.limits.table_bytes} bytes hold no table of {config.limits.services} services and "
            f"{config.limits.addresses} addresses; use {-(-needed // MIB)}MiB or more, or lower these two",
        )
    try:
        _check_socket_path(config.admin_socket)
    except ValueError as error:
        yield "runtime_dir", str(error)


def _table_bytes(limits: Limits) -> int:
    """What a routing table takes before its first record (see core/shm.pxd), and 1 MiB for records."""
    buckets = 1 << max(6, (limits.services - 1).bit_length())
    return 8 * buckets + 8 * limits.services + 32 * limits.addresses + MIB


def _unsound_listeners(config: Config) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for index, listener in enumerate(config.listeners):
        key = f"listeners[{index}]"
        if not re.fullmatch(r"[a-zA-Z0-9._-]{1,63}", listener.name, re.ASCII):
            yield f"{key}.name", "use 1 to 63 of a-z A-Z 0-9 . _ -"
        if listener.name in seen:
            yield f"{key}.name", f"two listeners are called `{listener.name}`; give each its own name"
        seen.add(listener.name)
        if listener.protocol == "tcp" and not listener.service:
            yield key, "a tcp listener needs `service`: the bytes do not say where they go"
        if listener.service and listener.protocol not in ("tcp", "auto"):
            yield (
                f"{key}.service",
                f"only for tcp and auto; what a {listener.protocol} listener takes names its service",
            )
        if listener.service_header and listener.protocol not in ("http", "auto"):
            yield f"{key}.service_header", "only an http or auto listener can read a header; remove it"


def _unsound_binds(config: Config) -> Iterator[tuple[str, str]]:
    binds = [(f"listeners[{index}].bind", x.bind, f"listener `{x.name}`") for index, x in enumerate(config.listeners)]
    binds += [("metrics", config.metrics, "metrics")]
    for key, bind in config.apis.items():
        if not bind.startswith("unix:"):
            binds += [(key, bind, key)]
            if not ipaddress.ip_address(host_port(bind)[0]).is_loopback:
                path = " or unix:/path" if key == "api" else ""
                yield key, f"the takeover API has no authentication; use a loopback address{path}"
    for index, (key, bind, what) in enumerate(binds):
        for _, other_bind, other in binds[:index]:
            if _overlap(bind, other_bind):
                yield key, f"{bind} ({what}) is taken by {other} ({other_bind}); use another port"


def _overlap(bind: str, other: str) -> bool:
    (host, port), (other_host, other_port) = host_port(bind), host_port(other)
    one, two = ipaddress.ip_address(host), ipaddress.ip_address(other_host)
    same_family = one.version == two.version
    return port == other_port and same_family and (one == two or one.is_unspecified or two.is_unspecified)


def _unsound_services(config: Config) -> Iterator[tuple[str, str]]:
    opaque = {listener.service for listener in config.listeners if listener.direction == "outbound"}
    own = [(listener.name, *host_port(listener.bind)) for listener in config.listeners]
    names: set[str] = set()
    for name, policy in config.services.items():
        key = f"services.{name}"
        try:
            parse_service(name)
        except ValueError as error:
            yield key, str(error)
        if name.lower() in names:
            yield key, "given twice, in different case; services are compared in lower case"
        names.add(name.lower())
        if policy.protocol is not None and not policy.endpoints:
            yield (
                f"{key}.protocol",
                "only for `endpoints`; who publishes or subscribes to the service says it otherwise",
            )
        if policy.protocol not in (None, "tcp") and name.lower() in opaque:
            yield f"{key}.protocol", "a listener passes everything to this service, so it is tcp"
        if policy.hash_by != "source" and policy.balance != "consistent_hash":
            yield f"{key}.hash_by", "only consistent_hash looks at it; set `balance: consistent_hash` or remove it"
        seen: set[str] = set()
        for index, endpoint in enumerate(policy.endpoints):
            host, port = host_port(endpoint.address)
            address = ipaddress.ip_address(host)
            place = f"{key}.endpoints[{index}]"
            if endpoint.address in seen:
                yield place, f"{endpoint.address} is listed twice; give it a weight instead"
            seen.add(endpoint.address)
            if address.is_unspecified:
                yield place, f"{host} is no address to connect to"
            for listener, own_host, own_port in own:
                wildcard = ipaddress.ip_address(own_host).is_unspecified and address.is_loopback
                if port == own_port and (host == own_host or wildcard):
                    yield place, f"{endpoint.address} is this sidecar's own listener `{listener}`: a loop"
