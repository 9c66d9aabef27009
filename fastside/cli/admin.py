"""Commands for the sidecar's operator: status, services, conns, explain, reload, drain. They call the admin API."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

import click

from fastside.cli.common import (
    Failure,
    NoSidecarFailure,
    age,
    config_option,
    load_config,
    output_option,
    print_fields,
    print_json,
    print_table,
)

if TYPE_CHECKING:
    from fastside.admin_client import AdminClient

REFUSED = 1
"""Exit code of `explain` for a request that would be refused."""


def _ask(config_path: Path | None, question: Callable[[AdminClient], Any]) -> Any:
    """The answer of the sidecar that is meant; errors end the command."""
    from fastside.admin_client import AdminClient, AdminError, NoSidecar

    path = load_config(config_path).admin_socket
    try:
        return question(AdminClient(path))
    except NoSidecar as error:
        raise NoSidecarFailure(str(error)) from None
    except AdminError as error:
        raise Failure(str(error)) from None


@click.command()
@config_option
@output_option
def status(config_path: Path | None, output: str) -> None:
    """Show how the sidecar is: its processes, its routing table, its registry, its alarms."""
    answer = _ask(config_path, lambda client: client.get("/status"))
    if output == "json":
        print_json(answer)
        return
    print_fields(_status_fields(answer))
    click.echo()
    version = answer["table"]["version"]
    print_table(
        ["worker", "pid", "state", "connections", "table version", "restarts"],
        [
            [
                worker["slot"],
                worker["pid"],
                worker["state"],
                worker["connections"],
                # A worker that sleeps looks at the table when it wakes, before it does anything else.
                version if worker["asleep"] else worker["applied_version"],
                worker["restarts"],
            ]
            for worker in answer["workers"]
        ],
    )
    for refused in answer["table"]["refused"]:
        click.echo(f"refused: {refused['direction']} {refused['service']}: {refused['error']}")
    for alarm in answer["alarms"]:
        click.echo(f"alarm for {age(alarm['for_s'])}: {alarm['name']}: {alarm['text']}")


def _status_fields(answer: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    master, table, registry, snapshot = (answer[name] for name in ("master", "table", "registry", "snapshot"))
    yield "fastside", answer["version"]
    yield "state", "; ".join([answer["state"], *answer["not_ready"]])
    yield "master", f"pid {master['pid']}, {master['state']}" if "pid" in master else "gone; start fastside again"
    yield "control", f"pid {answer['pid']}"
    yield "configuration", master.get("config_path") or "built-in defaults"
    yield (
        "table",
        (
            f"version {table['version']}, {_ago(table['age_s'])}, from {table['source']}; "
            f"{table['services']} services, {table['endpoints']} endpoints"
        ),
    )
    reached = "reached" if registry["connected"] else f"away ({registry['last_error'] or 'not reached yet'})"
    yield "registry", f"{registry['name']}: {reached} for {age(registry['for_s'])}"
    yield "snapshot", f"{snapshot['path']}, {_ago(snapshot['saved_age_s'])}"


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{age(seconds)} ago"


@click.command()
@click.argument("service", required=False)
@config_option
@output_option
def services(service: str | None, config_path: Path | None, output: str) -> None:
    """Show what is routed where: all services, or SERVICE alone."""
    target = f"/services?service={quote(service, safe='')}" if service else "/services"
    answer = _ask(config_path, lambda client: client.get(target))
    if output == "json":
        print_json(answer)
        return
    print_table(
        ["direction", "service", "protocol", "balance", "endpoint", "weight", "state", "in flight", "note"],
        [
            [record["direction"], record["name"], record["protocol"], record["balance"], *endpoint]
            for record in answer["services"]
            for endpoint in _endpoint_cells(record)
        ],
    )
    for record in answer["services"]:
        if record["refused"]:
            click.echo(f"refused: {record['direction']} {record['name']}: {record['refused']}")


def _endpoint_cells(record: dict[str, Any]) -> list[list[Any]]:
    """Address, weight, state, requests under way and note of each endpoint; one row if there is none."""
    cells = [[one["address"], one["weight"], one["state"], one["inflight"], _note(one)] for one in record["endpoints"]]
    return cells or [[None, None, record["state"], None, "no endpoint"]]


def _note(endpoint: dict[str, Any]) -> str:
    if endpoint["loop"]:
        return "this sidecar's own listener: refused as a loop"
    if endpoint["ejected_for_ms"]:
        return f"left out for {age(endpoint['ejected_for_ms'] / 1000)} after failed connects"
    return ""


@click.command()
@click.option("--limit", type=click.IntRange(min=1), default=1000, show_default=True, help="Connections shown.")
@config_option
@output_option
def conns(limit: int, config_path: Path | None, output: str) -> None:
    """Show the workers' connections."""
    answer = _ask(config_path, lambda client: client.get(f"/conns?limit={limit}"))
    if output == "json":
        print_json(answer)
        return
    print_table(
        ["worker", "index", "direction", "kind", "state", "address", "peer", "age", "bytes"],
        [
            [
                conn["worker"],
                conn["index"],
                "inbound" if conn["inbound"] else "outbound",
                conn["kind"],
                conn["state"],
                conn["address"],
                conn["peer"],
                age(conn["age_ms"] / 1000),
                conn["bytes"],
            ]
            for conn in answer["connections"]
        ],
    )
    if answer["total"] > len(answer["connections"]):
        click.echo(f"{answer['total'] - len(answer['connections'])} more; see --limit")


@click.command()
@click.option("--host", default="", help="The Host header: the service.")
@click.option("--method", default="GET", show_default=True)
@click.option("--path", default="/", show_default=True, help="The request target.")
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="A header; may be repeated.")
@click.option("--direction", type=click.Choice(["outbound", "inbound"]), default="outbound", show_default=True)
@click.option("--listener", help="Name of the listener that it comes to; else the direction's first that takes it.")
@click.option("--source", default="127.0.0.1", show_default=True, help="The caller's address.")
@click.option(
    "--capture",
    type=click.File("rb"),
    metavar="FILE",
    help="The first bytes of a connection as captured, instead of --host, --method, --path, --header.",
)
@config_option
@output_option
def explain(
    host: str,
    method: str,
    path: str,
    headers: tuple[str, ...],
    direction: str,
    listener: str | None,
    source: str,
    capture: BinaryIO | None,
    config_path: Path | None,
    output: str,
) -> None:
    """Explain where a request would go, and why. Ends with 1 if it would be refused."""
    question: dict[str, Any] = {"direction": direction, "listener": listener, "source": source}
    if capture is not None:
        question["capture"] = base64.b64encode(capture.read()).decode()
    else:
        question |= {"method": method, "host": host, "path": path, "headers": dict(map(_header, headers))}
    answer = _ask(config_path, lambda client: client.post("/explain", question))
    if output == "json":
        print_json(answer)
    else:
        _print_explanation(answer)
    if answer["outcome"] == "refuse":
        raise click.exceptions.Exit(REFUSED)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise click.BadParameter(f"`{text}` has no colon; write it like x-user:42", param_hint="--header")
    return name, value.strip()


def _print_explanation(answer: dict[str, Any]) -> None:
    listener = answer["listener"]
    click.echo(f"comes to listener {listener['name']} ({listener['direction']}, {listener['bind']})")
    for step in answer["steps"]:
        click.echo(f"  {step}")
    if answer["outcome"] == "refuse":
        status = f" with status {answer['status']}" if answer["status"] is not None else ""
        click.echo(f"refused{status}: {answer['reason']}")
    else:
        click.echo(f"forwarded {answer['reason']}")
    if answer["endpoints"]:
        click.echo()
        print_table(
            ["endpoint", "weight", "in flight", "picked", "note"],
            [
                [one["address"], one["weight"], one["inflight"], one["address"] == answer["pick"], _note(one)]
                for one in answer["endpoints"]
            ],
        )


@click.command("reload")
@config_option
@output_option
def reload_(config_path: Path | None, output: str) -> None:
    """Read the configuration again. Returns when every worker runs it; a bad one changes nothing."""
    answer = _ask(config_path, lambda client: client.post("/reload"))
    if output == "json":
        print_json(answer)
        return
    for change in answer["changes"] or ["nothing has changed"]:
        click.echo(change)


@click.command()
@config_option
def drain(config_path: Path | None) -> None:
    """Stop the sidecar gracefully, as SIGTERM does. Returns when that has begun."""
    _ask(config_path, lambda client: client.post("/drain"))


COMMANDS = (status, services, conns, explain, reload_, drain)
