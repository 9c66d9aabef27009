"""The configuration: what a file means, and what an error says."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastside import _core
from fastside.config import (
    DEFAULT_LISTENERS,
    Config,
    ConfigError,
    DubbodApi,
    Listener,
    MeshApi,
    StaticEndpoint,
    core_settings,
    host_port,
    load,
    parse_duration,
    parse_service,
    parse_size,
)

EVERYTHING = """\
workers: 4
accept: exclusive
advertise: 10.0.0.9
runtime_dir: /tmp/run
state_dir: /tmp/state
listeners:
  - {name: outbound, bind: "127.0.0.1:30882", service_header: X-Service}
  - {name: redis, direction: outbound, bind: "[::1]:6380", protocol: tcp, service: Redis}
api: unix:/tmp/api.sock
metrics: "0.0.0.0:30884"
registry: {url: "http://10.0.0.5:20885", lease: 5s, protection: 0, stale: 1h}
services:
  Svc-A:
    balance: consistent_hash
    hash_by: "header:X-User"
    retry: idempotent
    request_timeout: 1.5
    protocol: bolt
    endpoints: ["10.0.0.1:80", {address: "10.0.0.2:80", weight: 3}]
mesh: {api: "127.0.0.1:33330", app_port: 32200}
dubbod: "127.0.0.1:32222"
timeouts: {connect: 250ms, header: 10s, request: 1m, keepalive: 5m, idle: 1h, half_close: 30s, pool_idle: 4s}
limits: {connections: 1024, head_bytes: 32KiB, headers: 100, buffer_memory: 64MiB, pool_per_endpoint: 0,
         services: 10, addresses: 100, table_bytes: 2MiB, service_series: 5}
drain: {delay: 0, deadline: 10s}
ejection: {failures: 0, time: 5s}
splice_after: 0
"""


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FASTSIDE_RUNTIME_DIR", "FASTSIDE_STATE_DIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)


def loaded(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "fastside.yaml"
    path.write_text(text)
    return load(path)


def problems(tmp_path: Path, text: str) -> list[str]:
    """The problems of a file, without the file's name."""
    path = tmp_path / "fastside.yaml"
    path.write_bytes(text.encode())
    with pytest.raises(ConfigError) as caught:
        load(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}:") for line in lines), lines
    return [line.removeprefix(f"{path}:") for line in lines]


def test_every_key(tmp_path: Path) -> None:
    config = loaded(tmp_path, EVERYTHING)
    assert config.workers == 4
    assert config.accept == "exclusive"
    assert config.listeners == [
        Listener(name="outbound", direction="outbound", bind="127.0.0.1:30882", service_header="x-service"),
        Listener(name="redis", direction="outbound", bind="[::1]:6380", protocol="tcp", service="redis"),
        Listener(name="inbound", direction="inbound", bind="0.0.0.0:20881"),
        Listener(name="mesh", direction="outbound", bind="127.0.0.1:12220", protocol="bolt"),
    ]
    assert config.mesh == MeshApi(api="127.0.0.1:33330", app_port=32200)
    assert config.dubbod == DubbodApi(api="127.0.0.1:32222", app_port=20880)
    assert config.apis == {
        "api": "unix:/tmp/api.sock",
        "mesh.api": "127.0.0.1:33330",
        "dubbod.api": "127.0.0.1:32222",
    }
    policy = config.services["svc-a"]
    assert policy.protocol == "bolt"
    assert policy.hash_by == "header:x-user"
    assert policy.request_timeout == 1.5
    assert policy.endpoints == [StaticEndpoint(address="10.0.0.1:80"), StaticEndpoint(address="10.0.0.2:80", weight=3)]
    assert config.registry.url == "http://10.0.0.5:20885"
    assert config.registry.protection == 0
    assert config.admin_socket == "/tmp/run/admin.sock"
    assert core_settings(config) == {
        "connect_ms": 250,
        "header_ms": 10_000,
        "request_ms": 60_000,
        "keepalive_ms": 300_000,
        "idle_ms": 3_600_000,
        "half_close_ms": 30_000,
        "pool_idle_ms": 4000,
        "pool_size": 0,
        "head_bytes": 32768,
        "headers": 100,
        "attempts": 3,
        "splice_bytes": 0,
        "eject_failures": 0,
        "eject_ms": 5000,
        "buffers": 4096,
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "timeouts:\nservices:\nlisteners:\n"])
def test_an_empty_file_means_the_defaults(tmp_path: Path, text: str) -> None:
    assert loaded(tmp_path, text) == load(None)


def test_no_file_means_the_defaults() -> None:
    config = load(None)
    assert tuple(config.listeners) == DEFAULT_LISTENERS
    assert (config.api, config.metrics) == ("127.0.0.1:20883", "127.0.0.1:20884")


def test_json_is_accepted(tmp_path: Path) -> None:
    text = json.dumps({"workers": 3, "services": {"a": {"endpoints": ["[2001:db8::1]:80"]}}}, indent=1)
    assert loaded(tmp_path, text).services["a"].endpoints == [StaticEndpoint(address="[2001:db8::1]:80")]


def test_a_configuration_survives_encoding(tmp_path: Path) -> None:
    for config in (load(None), loaded(tmp_path, EVERYTHING)):
        assert msgspec.convert(msgspec.to_builtins(config), Config) == config


def test_the_least_table_that_is_accepted_can_be_made(tmp_path: Path) -> None:
    text = "limits: {{services: 1000, addresses: 5000, table_bytes: {}}}"
    needed = 8 * 1024 + 8 * 1000 + 32 * 5000 + (1 << 20)
    limits = loaded(tmp_path, text.format(needed)).limits
    assert len(problems(tmp_path, text.format(needed - 1))) == 1
    table = _core.Table(limits.services, limits.addresses, limits.table_bytes, 1, 64, 2)
    assert table.memory()["arena_bytes"] > (1 << 20) - 32768


def test_the_settings_are_those_of_the_data_path() -> None:
    assert set(core_settings(load(None))) == set(_core.SETTINGS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("timeout: {}", "1:1: unknown key `timeout`; did you mean `timeouts`?"),
        ("limits:\n  conections: 5", "2:3: limits: unknown key `conections`; did you mean `connections`?"),
        ("drain: {zzz: 1}", "1:9: drain: unknown key `zzz`; use one of deadline, delay"),
        ("accept: handovr", "1:9: accept: `handovr` is not one of the choices; did you mean `handover`?"),
        ("accept: 7", "1:9: accept: `7` is not one of the choices; use one of exclusive, handover, reuseport"),
        ("workers: 0", "1:10: workers: expected auto or a number from 1 to 64, got a number (`0`)"),
        ("workers: no", "1:10: workers: expected auto or a number from 1 to 64, got a boolean (`no`)"),
        ("workers: 2.5", "1:10: workers: expected auto or a number from 1 to 64, got a number (`2.5`)"),
        ("workers: [2]", "1:10: workers: expected auto or a number from 1 to 64, got a list"),
        ("workers:", "1:9: workers: expected auto or a number from 1 to 64, got nothing"),
        ("workers: 2\nworkers: 3", "2:1: `workers` is given twice; keep one of them"),
        ("[1, 2]", "1:1: expected keys and values, got a list"),
        ("hello", "1:1: expected keys and values, got text (`hello`)"),
        ("1: 2", "1:1: unknown key `1`; use one of accept, "),
        ("[]: 2", "1:1: a key must be text"),
        ("timeouts: 5", "1:11: timeouts: expected keys and values, got a number (`5`)"),
        (
            "timeouts: {connect: 1 sec}",
            "1:21: timeouts.connect: `1 sec` is not a duration; write it like 500ms, 10s, 5m or 1h",
        ),
        ("timeouts: {connect: -1}", "expected a duration from 1ms to 30d, such as 500ms or 5m, got a number (`-1`)"),
        ("timeouts: {connect: .nan}", "`nan` is not a duration"),
        ("timeouts: {connect: true}", "`True` is not a duration"),
        ("timeouts: {connect: 1:30}", "`1:30` is not a duration"),
        ("timeouts: {connect: 0}", "expected a duration from 1ms to 30d"),
        ("timeouts: {connect: 31d}", "expected a duration from 1ms to 30d"),
        ("timeouts: {connect: 2026-01-01}", "`2026-01-01` is not a duration"),
        ("limits: {head_bytes: 1MiB}", "limits.head_bytes: expected a size from 1KiB to 64KiB, got text (`1MiB`)"),
        ("limits: {head_bytes: 64k}", "`64k` is not a size; write it like 64KiB, 1MiB or as a number of bytes"),
        ("limits: {headers: many}", "expected a whole number from 1 to 1000, got text (`many`)"),
        ("limits: {headers: '5'}", "expected a whole number from 1 to 1000, got text (`5`)"),
        (
            "limits: {table_bytes: 16MiB}",
            "limits.table_bytes: 16777216 bytes hold no table of 131072 services and 1048576 addresses; use 35MiB",
        ),
        ("splice_after: 4GiB", "expected a size such as 128KiB, below 4GiB; 0 = never"),
        ("api: 127.0.0.1", "api: `127.0.0.1` is not an address with a port; write IP:PORT or [IPv6]:PORT, in quotes"),
        ("api: localhost:80", "`localhost` is not an IP address; names are not looked up, write an address"),
        ("api: 127.0.0.1:99999", "1:6: api: port 99999 is out of range; use 1..65535"),
        ("api: 127.0.0.1:0", "port 0 is out of range"),
        ("api: 10:80", "`10` is not an IP address"),
        ("api: '127.0.0.1:٣٤'", "is not an address with a port"),
        ("api: unix:api.sock", "`api.sock` is not an absolute path; begin it with /"),
        (f"api: unix:/{'x' * 120}", "is too long for a unix socket (107 bytes)"),
        ("api: 0.0.0.0:20883", "the takeover API has no authentication; use a loopback address or unix:/path"),
        ("runtime_dir: run", "`run` is not an absolute path; begin it with /"),
        (f"runtime_dir: /{'x' * 100}", "is too long for a unix socket"),
        ("metrics: '127.0.0.1:20883'", "127.0.0.1:20883 (api) is taken by metrics (127.0.0.1:20883)"),
        ("advertise: 0.0.0.0", "others cannot reach 0.0.0.0"),
        ("advertise: eth0", "`eth0` is neither `auto` nor an IP address"),
        ("registry: {url: 10.0.0.5:20885}", "is not the URL of a registry; write it like http://10.0.0.5:20885"),
        ("registry: {url: 'https://10.0.0.5'}", "is not the URL of a registry"),
        ("registry: {url: 'http://h:x'}", "is not a URL"),
        ("drain: {delay: 40s}", "1:16: drain.delay: longer than drain.deadline (30s), which covers the delay too"),
        ("listeners: {name: a}", "listeners: expected a list, got keys and values"),
        ("listeners: [redis]", "1:13: listeners[0]: expected keys and values, got text (`redis`)"),
        ("listeners: [{bind: '1.2.3.4:5', direction: inbound}]", "listeners[0]: `name` is missing"),
        (
            "listeners: [{name: x, bind: '1.2.3.4:5'}]",
            "1:13: listeners[0]: `direction` is missing; say inbound or outbound",
        ),
        ("listeners: [{name: 'a b', bind: '1.2.3.4:5', direction: inbound}]", "listeners[0].name: use 1 to 63 of"),
        (
            "listeners: [{name: inbound}, {name: inbound, bind: '1.2.3.4:5'}]",
            "two listeners are called `inbound`; give each its own name",
        ),
        ("listeners: [{name: inbound, bind: '0.0.0.0:20882'}]", "(listener `outbound`) is taken by listener `inbound`"),
        ("listeners: [{name: inbound, protocol: tcp}]", "a tcp listener needs `service`"),
        ("listeners: [{name: inbound, protocol: bolt, service: a}]", "listeners[0].service: only for tcp and auto"),
        ("listeners: [{name: inbound, protocol: http, service: a}]", "listeners[0].service: only for tcp and auto"),
        (
            "listeners: [{name: inbound, protocol: udp}]",
            "`udp` is not one of the choices; use one of auto, bolt, dubbo",
        ),
        (
            "listeners: [{name: inbound, protocol: tcp, service: a, service_header: x}]",
            "listeners[0].service_header: only an http or auto listener can read a header",
        ),
        ("listeners: [{name: inbound, service_header: 'x y'}]", "`x y` is not the name of a header"),
        ("listeners: [{name: inbound, protocol: tcp, service: 'a b'}]", "`a b` is not a service name"),
        ("listeners: [{name: inbound, protocol: tcp, service: 8080}]", "put the service's name in quotes"),
        ("services: {no: {}}", "1:12: services: YAML reads the key no as a boolean (`no`); put it in quotes"),
        ("services: {'a b': {}}", "services.a b: `a b` is not a service name"),
        ("services: {a: {}, A: {}}", "services.A: given twice, in different case"),
        ("services: {a: {hash_by: 'header:x'}}", "services.a.hash_by: only consistent_hash looks at it"),
        ("services: {a: {hash_by: cookie}}", "`cookie` is neither `source` nor `header:NAME`"),
        ("services: {a: {balance: random}}", "`random` is not one of the choices; use one of consistent_hash, "),
        ("mesh: '127.0.0.1:20883'", "1:7: mesh.api: 127.0.0.1:20883 (mesh.api) is taken by api"),
        ("dubbod: {app_port: 20880}", "1:9: dubbod: `api` is missing; say IP:PORT"),
        ("dubbod: '0.0.0.0:22222'", "dubbod.api: the takeover API has no authentication; use a loopback address"),
        ("mesh: {api: '127.0.0.1:1', app_port: 0}", "mesh.app_port: expected a port from 1 to 65535, got"),
        ("services: {a: {protocol: bolt}}", "services.a.protocol: only for `endpoints`"),
        (
            "{listeners: [{name: outbound, service: a}], services: {A: {protocol: bolt, endpoints: ['1.2.3.4:5']}}}",
            "services.A.protocol: a listener passes everything to this service, so it is tcp",
        ),
        ("services: {a: {protocol: auto, endpoints: ['1.2.3.4:5']}}", "services.a.protocol: `auto` is not one of"),
        ("services: {a: {endpoints: [{weight: 2}]}}", "services.a.endpoints[0]: `address` is missing; say IP:PORT"),
        ("services: {a: {endpoints: [localhost:80]}}", "1:28: services.a.endpoints[0]: `localhost` is not an IP"),
        ("services: {a: {endpoints: ['1.2.3.4:5', '1.2.3.4:5']}}", "is listed twice; give it a weight instead"),
        ("services: {a: {endpoints: ['0.0.0.0:5']}}", "0.0.0.0 is no address to connect to"),
        ("services: {a: {endpoints: ['127.0.0.1:20882']}}", "is this sidecar's own listener `outbound`: a loop"),
        ("services: {a: {endpoints: ['127.0.0.1:20881']}}", "is this sidecar's own listener `inbound`: a loop"),
        ("workers: [", "not valid YAML: "),
        ("workers: 1\n--- \nworkers: 2", "not valid YAML: "),
        ("workers: *nothing", "not valid YAML: "),
        ("workers: !!python/name:os.system x", "1:10: workers: could not determine a constructor"),
        ("\tworkers: 1", "1:1: not valid YAML: "),
        ("[" * 5000, "not valid YAML: "),
    ],
)
def test_a_problem_says_where_and_what_would_be_right(tmp_path: Path, text: str, problem: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1, found
    assert problem in found[0]


def test_the_mesh_api_brings_its_listener(tmp_path: Path) -> None:
    """A name of SOFARPC's clients' port, which an entry of that name changes like any other."""
    assert all(listener.name != "mesh" for listener in loaded(tmp_path, "workers: 1").listeners)
    text = "{mesh: '127.0.0.1:13330', listeners: [{name: mesh, bind: '127.0.0.1:12221'}]}"
    (mesh,) = (listener for listener in loaded(tmp_path, text).listeners if listener.name == "mesh")
    assert (mesh.direction, mesh.bind, mesh.protocol) == ("outbound", "127.0.0.1:12221", "bolt")


def test_all_problems_are_named_in_order(tmp_path: Path) -> None:
    text = "workers: no\nmetric: x\ntimeouts: {connect: never}\nservices:\n  a: {endpoints: [b:1]}\n"
    found = problems(tmp_path, text)
    assert [line.split(":")[0] for line in found] == ["1", "2", "3", "5"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    missing = tmp_path / "missing.yaml"
    with pytest.raises(ConfigError, match=r"missing.yaml:1:1: cannot be read: No such file or directory"):
        load(missing)
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory"):
        load(tmp_path)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "latin.yaml"
    path.write_bytes("workers: 1\n# größer".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin.yaml:2:5: not UTF-8 text"):
        load(path)


def test_bytes_that_yaml_does_not_allow(tmp_path: Path) -> None:
    assert problems(tmp_path, "workers: 1\n# \0")[0] == "2:3: not valid YAML: the character '\\x00'"


def test_a_problem_takes_one_line(tmp_path: Path) -> None:
    assert problems(tmp_path, 'accept: "a\\nb"') == [
        "1:9: accept: `a\\nb` is not one of the choices; use one of exclusive, handover, reuseport"
    ]


def test_the_environment_overrides_the_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSIDE_RUNTIME_DIR", "/tmp/r")
    monkeypatch.setenv("FASTSIDE_STATE_DIR", "/tmp/s")
    for config in (load(None), loaded(tmp_path, EVERYTHING)):
        assert (config.runtime_dir, config.state_dir) == ("/tmp/r", "/tmp/s")


def test_the_directories_of_root_and_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert (load(None).runtime_dir, load(None).state_dir) == ("/run/fastside", "/var/lib/fastside")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/a")
    assert (load(None).runtime_dir, load(None).state_dir) == ("/tmp/fastside-1000", "/home/a/.local/state/fastside")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/a/state")
    assert (load(None).runtime_dir, load(None).state_dir) == ("/run/user/1000/fastside", "/home/a/state/fastside")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("10s", 10),
        ("5m", 300),
        ("1h", 3600),
        ("2d", 172800),
        ("1.5s", 1.5),
        ("7", 7),
        (3, 3),
        (0.25, 0.25),
    ],
)
def test_durations(text: object, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("text", "size"), [("64KiB", 65536), ("1MiB", 1 << 20), ("2GiB", 2 << 30), ("9B", 9), (5, 5)])
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("name", ["", "a b", "a" * 256, "ä", "a\n", "a\r", "a\0"])
def test_names_that_no_service_has(name: str) -> None:
    with pytest.raises(ValueError, match="is not a service name"):
        parse_service(name)


def test_addresses_are_brought_to_one_spelling() -> None:
    assert host_port("[2001:DB8:0::1]:080") == ("2001:db8::1", 80)


# Whatever the file says, the answer is a configuration or problems with places inside the file.


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    check_any(tmp_path_factory, text)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["10s", "1.2.3.4:5", "http", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*Config.__struct_fields__, "name", "bind", "endpoints", "connect"]), inner)
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(Config.__struct_fields__), _json))
def test_any_structure_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, document: object) -> None:
    check_any(tmp_path_factory, json.dumps(document))


def check_any(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode())
    try:
        config = load(path)
    except ConfigError as error:
        found = [problem.line for problem in error.problems]
    else:
        assert msgspec.convert(msgspec.to_builtins(config), Config) == config
        return
    assert found
    assert min(found) >= 1
    assert max(found) <= len(text.splitlines()) + 1
