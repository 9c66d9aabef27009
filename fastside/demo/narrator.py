"""What the demo says, and how: with colours and pauses on a terminal, plain elsewhere, not at all beside JSON."""

from __future__ import annotations

import os
import textwrap
import time
from collections.abc import Sequence
from typing import TextIO

PAUSE = 0.8
"""Seconds before each step, for people who read along."""
WIDTH = 96
BOLD, DIM, RED, PLAIN = "\033[1m", "\033[2m", "\033[31m", "\033[0m"


class Narrator:
    """Writes to a stream; without one it keeps silent."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._lively = stream is not None and stream.isatty()
        self._colours = self._lively and "NO_COLOR" not in os.environ

    def title(self, text: str) -> None:
        if self._lively:
            time.sleep(PAUSE)
        self._write("\n" + self._coloured(BOLD, text))

    def say(self, text: str) -> None:
        """A paragraph, wrapped."""
        for line in textwrap.wrap(text, WIDTH - 3, break_on_hyphens=False):
            self._write(f"   {line}")

    def show(self, text: str) -> None:
        """Lines as they are: what went over the wire, commands, tables."""
        for line in text.splitlines():
            self._write(f"     {self._coloured(DIM, line)}")

    def complain(self, text: str) -> None:
        for line in text.splitlines():
            self._write(f"   {self._coloured(RED, line)}")

    def progress(self, text: str) -> None:
        """A line that the next one replaces; only on a terminal."""
        if self._lively:
            self._write(f"\r\033[K   {self._coloured(DIM, text)}", end="")

    def progress_over(self) -> None:
        if self._lively:
            self._write("\r\033[K", end="")

    def table(self, rows: Sequence[tuple[str, str]]) -> None:
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            self._write(f"   {name.ljust(width)}  {value}")

    def _coloured(self, colour: str, text: str) -> str:
        return f"{colour}{text}{PLAIN}" if self._colours else text

    def _write(self, text: str, end: str = "\n") -> None:
        if self._stream:
            print(text, file=self._stream, end=end, flush=True)
