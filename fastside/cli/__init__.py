"""The `fastside` command.

Commands import what they need when they run, so that `fastside --help` and the small verbs start fast.

Exit codes: 0 done; 1 refused, failed or not ready in time; 2 wrong usage; 3 no sidecar answers.
"""

from __future__ import annotations

import click

from fastside import __version__
from fastside.cli import admin, apps, run

EPILOG = "Exit codes: 0 done; 1 refused, failed or not ready in time; 2 wrong usage; 3 no sidecar answers."


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fastside", message="%(prog)s %(version)s")
def main() -> None:
    """A sidecar forwarder: takes an application's inbound and outbound calls to where they belong."""


for module in (run, apps, admin):
    for command in module.COMMANDS:
        main.add_command(command)
