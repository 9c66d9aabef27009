"""What the commands share: finding the sidecar, errors, tables, JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from fastside.config import Config

Command = TypeVar("Command", bound=Callable[..., Any])


class Failure(click.ClickException):
    """Ends the command with a message on stderr."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        click.echo(f"fastside: {self.message}", err=True, file=file)


class NoSidecarFailure(Failure):
    """Ends the command because nobody answers at an address."""

    exit_code = 3

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}\nStart a sidecar with `fastside run`, or name the configuration of yours with -c.")


def config_option(command: Command) -> Command:
    """Add -c FILE: the configuration of the sidecar that is meant."""
    return click.option(
        "-c",
        "--config",
        "config_path",
        type=click.Path(path_type=Path),
        envvar="FASTSIDE_CONFIG",
        help="The sidecar's configuration; without one, the defaults. [env: FASTSIDE_CONFIG]",
    )(command)


def output_option(command: Command) -> Command:
    """Add -o table|json."""
    return click.option(
        "-o",
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        help="A table for people (default), or JSON.",
    )(command)


def load_config(path: Path | None) -> Config:
    """Return the configuration, or end the command with its problems."""
    from fastside.config import ConfigError, load

    try:
        return load(path)
    except ConfigError as error:
        click.echo(str(error), err=True)
        raise click.exceptions.Exit(Failure.exit_code) from None


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print aligned columns: numbers to the right, text to the left."""
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [bool(cells) and all(_is_number(row[at]) for row in cells) for at in range(len(columns))]
    widths = [max(len(row[at]) for row in [list(columns), *cells]) for at in range(len(columns))]
    for row in [list(columns), *cells]:
        aligned = [
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(row, widths, numeric, strict=True)
        ]
        click.echo("  ".join(aligned).rstrip())


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """Print "name  value" lines with the values aligned."""
    texts = [(name, _cell(value)) for name, value in fields]
    width = max((len(name) for name, _ in texts), default=0)
    for name, text in texts:
        click.echo(f"{name.ljust(width)}  {text}".rstrip())


def age(seconds: float) -> str:
    """Return a duration in two units at most: 4.2s, 3m07s, 5h12m, 2d03h."""
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for limit, big, small, names in ((3600, 60, 1, "ms"), (86400, 3600, 60, "hm"), (float("inf"), 86400, 3600, "dh")):
        if whole < limit:
            return f"{whole // big}{names[0]}{whole % big // small:02}{names[1]}"
    raise AssertionError(seconds)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).isdigit()
