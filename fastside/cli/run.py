"""Commands that start something, and those that look at it from outside: run, check, wait, registry, demo."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from fastside.cli.common import Failure, config_option, load_config


@click.command()
@config_option
def run(config_path: Path | None) -> None:
    """Run a sidecar in the foreground.

    SIGTERM or SIGINT drains and stops it, a second one stops it at once. SIGHUP reloads the configuration.
    """
    config = load_config(config_path)
    from fastside.master import run as run_master

    sys.exit(run_master(config, config_path))


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Check a configuration and name every problem with its line."""
    config = load_config(file)
    listeners = ", ".join(f"{listener.name} {listener.bind}" for listener in config.listeners)
    click.echo(f"{file}: ok (listeners: {listeners}; services: {len(config.services)})")


@click.command()
@click.option("--ready", is_flag=True, required=True, help="Wait until the sidecar takes traffic.")
@click.option("--timeout", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds.")
@config_option
def wait(ready: bool, timeout: float, config_path: Path | None) -> None:
    """Wait until a sidecar is ready. Ends with 1 if it is not by then."""
    from fastside.config import host_port

    metrics = load_config(config_path).metrics
    address = host_port(metrics)
    end = time.monotonic() + timeout
    while (reason := _not_ready(address)) is not None:
        if time.monotonic() >= end:
            raise Failure(f"not ready after {timeout:g} s: {reason}")
        time.sleep(0.05)


def _not_ready(address: tuple[str, int]) -> str | None:
    """Why the sidecar with health probes at `address` is not ready; None if it is."""
    import http.client

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0])
    connection = http.client.HTTPConnection(host, address[1], timeout=5)
    try:
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        text = response.read().decode(errors="replace").strip()
    except (OSError, http.client.HTTPException) as error:
        return f"{host}:{address[1]}: {error or type(error).__name__}"
    finally:
        connection.close()
    return None if response.status == 200 else text or f"status {response.status}"


@click.command()
@click.option("--bind", default="127.0.0.1:20885", show_default=True, metavar="IP:PORT", help="Where to serve.")
def registry(bind: str) -> None:
    """Run a small registry that several sidecars share (registry.url), for development and single machines."""
    from fastside.config import parse_bind

    try:
        address = parse_bind(bind)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--bind") from None
    from fastside.registry.server import main as serve

    sys.exit(serve(address))


@click.command()
@click.option("--keep", is_flag=True, help="Stay up at the end, and print commands to try.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object, and nothing else.")
def demo(keep: bool, as_json: bool) -> None:
    """Play a whole takeover on this machine: two sidecars, two providers, a caller, and a crash."""
    from fastside.demo import main as play

    sys.exit(play(keep=keep, as_json=as_json))


COMMANDS = (run, check, wait, registry, demo)
