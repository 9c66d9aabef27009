"""The command line where no sidecar runs: usage, checking, errors, exit codes, tables."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from fastside import __version__
from fastside.cli import main
from fastside.cli.common import age, print_fields, print_table
from harness import free_port


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FASTSIDE_API", "FASTSIDE_CONFIG", "FASTSIDE_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FASTSIDE_RUNTIME_DIR", str(tmp_path / "run"))


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_version() -> None:
    assert invoke("--version").output == f"fastside {__version__}\n"


def test_the_module_is_the_command() -> None:
    output = subprocess.check_output([sys.executable, "-m", "fastside", "--version"], text=True)
    assert output == f"fastside {__version__}\n"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_explains_itself(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert f"Usage: main {name}" in result.output
    command = main.commands[name]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert command.help
    assert all(option.help or option.show_default for option in options), [option.name for option in options]


def test_check_accepts(tmp_path: Path) -> None:
    path = tmp_path / "fastside.yaml"
    path.write_text("services: {a: {}}\n")
    result = invoke("check", path)
    assert result.output == f"{path}: ok (listeners: inbound 0.0.0.0:20881, outbound 127.0.0.1:20882; services: 1)\n"
    assert result.exit_code == 0


def test_check_names_every_problem(tmp_path: Path) -> None:
    path = tmp_path / "fastside.yaml"
    path.write_text("workers: 0\nmetric: 1\n")
    result = invoke("check", path)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines() == [
        f"{path}:1:10: workers: expected auto or a number from 1 to 64, got a number (`0`)",
        f"{path}:2:1: unknown key `metric`; did you mean `metrics`?",
    ]


@pytest.mark.parametrize("command", ["run", "wait --ready", "status", "reload", "publish a --port 1"])
def test_a_bad_configuration_ends_every_command(tmp_path: Path, command: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("workers: 0\n")
    result = invoke(*command.split(), "-c", path)
    assert (result.exit_code, result.stderr.startswith(f"{path}:1:10: workers:")) == (1, True)


@pytest.mark.parametrize("command", ["status", "services", "conns", "reload", "drain", "explain --host a"])
def test_without_a_sidecar_the_admin_commands_say_what_to_do(tmp_path: Path, command: str) -> None:
    result = invoke(*command.split())
    assert result.exit_code == 3
    assert result.stderr.splitlines() == [
        f"fastside: no sidecar answers at {tmp_path}/run/admin.sock",
        "Start a sidecar with `fastside run`, or name the configuration of yours with -c.",
    ]


@pytest.mark.parametrize("command", ["publish a --port 1", "unpublish a --port 1", "subscribe a", "unsubscribe a"])
@pytest.mark.parametrize("place", ["option", "configuration"])
def test_without_a_sidecar_the_api_commands_say_what_to_do(tmp_path: Path, command: str, place: str) -> None:
    address = f"127.0.0.1:{free_port()}"
    path = tmp_path / "fastside.yaml"
    path.write_text(f'api: "{address}"\n')
    result = invoke(*command.split(), *(["--api", address] if place == "option" else ["-c", path]))
    assert result.exit_code == 3
    assert result.stderr.startswith(f"fastside: no sidecar answers at {address}: ")
    assert "Start a sidecar with `fastside run`" in result.stderr


def test_wait_ends_in_time_and_says_why(tmp_path: Path) -> None:
    path = tmp_path / "fastside.yaml"
    port = free_port()
    path.write_text(f'metrics: "0.0.0.0:{port}"\n')
    result = invoke("wait", "--ready", "--timeout", "0.1", "-c", path)
    assert result.exit_code == 1
    assert result.stderr == f"fastside: not ready after 0.1 s: 127.0.0.1:{port}: [Errno 111] Connection refused\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("wait", "Missing option '--ready'"),
        ("publish a", "Missing option '--port'"),
        ("publish a --port 0", "'--port': 0 is not in the range 1<=x<=65535"),
        ("publish a --port 1 --lease 0", "'--lease': 0.0 is not in the range x>=1"),
        ("registry --bind localhost", "--bind: `localhost` is not an address with a port"),
        ("status -o xml", "'xml' is not one of 'table', 'json'"),
    ],
)
def test_wrong_usage(arguments: str, message: str) -> None:
    result = invoke(*arguments.split())
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.fixture
def silent_admin_socket(tmp_path: Path) -> Iterator[socket.socket]:
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "run/admin.sock"))
        listener.listen()
        yield listener


def test_a_socket_that_a_dead_sidecar_left(tmp_path: Path, silent_admin_socket: socket.socket) -> None:
    silent_admin_socket.close()
    assert invoke("status").exit_code == 3


def test_a_table_is_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "count", "note"], [["a", 5, None], ["long-name", 12345, "x"]])
    assert capsys.readouterr().out == "name       count  note\na              5  -\nlong-name  12345  x\n"


def test_an_empty_table_has_its_head(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["name", "count"], [])
    assert capsys.readouterr().out == "name  count\n"


def test_fields_are_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    print_fields([("pid", 5), ("state", "running"), ("ready", True)])
    assert capsys.readouterr().out == "pid    5\nstate  running\nready  yes\n"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0s"), (59.94, "59.9s"), (59.96, "1m00s"), (187, "3m07s"), (18720, "5h12m"), (183600, "2d03h")],
)
def test_ages(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_json_output_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    from fastside.cli.common import print_json

    print_json({"a": [1, None]})
    assert json.loads(capsys.readouterr().out) == {"a": [1, None]}
