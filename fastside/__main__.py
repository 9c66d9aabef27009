"""`python -m fastside` is the `fastside` command."""

from fastside.cli import main

main()
