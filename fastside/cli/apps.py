"""Commands that an application's owner uses: publish, unpublish, subscribe, unsubscribe. They call the takeover API."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fastside.cli.common import (
    Command,
    Failure,
    NoSidecarFailure,
    config_option,
    load_config,
    output_option,
    print_json,
)

if TYPE_CHECKING:
    from fastside.client import Client


def _api_option(command: Command) -> Command:
    return click.option(
        "--api",
        envvar="FASTSIDE_API",
        metavar="ADDRESS",
        help="The sidecar's takeover API, IP:PORT or unix:/path. [env: FASTSIDE_API; default: from -c]",
    )(config_option(command))


_protocol_option = click.option(
    "--protocol",
    type=click.Choice(["http", "tcp", "bolt", "dubbo", "tls"]),
    default="http",
    show_default=True,
    help="What the service speaks.",
)


@contextmanager
def _client(api: str | None, config_path: Path | None) -> Iterator[Client]:
    """A client of the sidecar that is meant; its errors end the command."""
    from fastside.client import ApiError, Client, NotReachable

    address = api or load_config(config_path).api
    try:
        with Client(address) as client:
            yield client
    except NotReachable as error:
        raise NoSidecarFailure(error.error) from None
    except ApiError as error:
        raise Failure(str(error)) from None


@click.command()
@click.argument("service")
@click.option("--port", type=click.IntRange(1, 65535), required=True, help="Where the application listens.")
@click.option("--address", default="127.0.0.1", show_default=True, help="Where the application listens.")
@_protocol_option
@click.option("--weight", type=click.IntRange(1, 10000), default=1, show_default=True, help="Share of the calls.")
@click.option(
    "--lease",
    type=click.FloatRange(min=1),
    help="Seconds after which the service is withdrawn unless it is published again. Without one, the sidecar looks "
    "whether the port still answers.",
)
@_api_option
@output_option
def publish(
    service: str,
    port: int,
    address: str,
    protocol: str,
    weight: int,
    lease: float | None,
    api: str | None,
    config_path: Path | None,
    output: str,
) -> None:
    """Publish an application on a port of this machine as SERVICE. Others see the sidecar's inbound port."""
    with _client(api, config_path) as client:
        published = client.publish(service, port, address=address, protocol=protocol, weight=weight, lease=lease)
    if output == "json":
        print_json(dataclasses.asdict(published))
        return
    click.echo(f"{published.service} is published as {published.published}")
    if published.owner == "waiting":
        click.echo(f"port {port} does not answer yet; the registry hears of it when it does", err=True)
    elif not published.registered:
        click.echo("the registry has not confirmed it yet", err=True)


@click.command()
@click.argument("service")
@click.option("--port", type=click.IntRange(1, 65535), required=True, help="The port given to publish.")
@_api_option
def unpublish(service: str, port: int, api: str | None, config_path: Path | None) -> None:
    """Withdraw what was published as SERVICE with this port."""
    with _client(api, config_path) as client:
        client.unpublish(service, port)


@click.command()
@click.argument("service")
@_protocol_option
@_api_option
@output_option
def subscribe(service: str, protocol: str, api: str | None, config_path: Path | None, output: str) -> None:
    """Subscribe to SERVICE and print the address to call: the sidecar's outbound port.

    Standard output has the address alone; standard error says which endpoints are behind it.
    """
    with _client(api, config_path) as client:
        subscription = client.subscribe(service, protocol=protocol)
    if output == "json":
        print_json(dataclasses.asdict(subscription))
        return
    click.echo(subscription.address)
    endpoints = ", ".join(subscription.endpoints) or "no endpoint yet"
    click.echo(f"{subscription.service}: {endpoints} ({subscription.state})", err=True)


@click.command()
@click.argument("service")
@_api_option
def unsubscribe(service: str, api: str | None, config_path: Path | None) -> None:
    """End the subscription to SERVICE."""
    with _client(api, config_path) as client:
        client.unsubscribe(service)


COMMANDS = (publish, unpublish, subscribe, unsubscribe)
