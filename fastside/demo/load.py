"""The caller under load, as the story sees it: a process that reports several times a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from fastside.demo.caller import Tally
from fastside.demo.narrator import Narrator
from fastside.demo.processes import Guard, Process


class CallerBroke(Exception):
    """The caller itself has ended; its log says why."""


class Load:
    """Calls a service from `connections` connections until `end`. Started where the calling thread is."""

    def __init__(self, guard: Guard, narrator: Narrator, service: str, address: str, connections: int) -> None:
        self.last = Tally()
        """As of the last report."""
        self._narrator = narrator
        self._process: Process = guard.start(
            "caller", "fastside.demo.caller", "load", service, address, str(connections), piped=True
        )

    def now(self) -> Tally:
        """How it stands."""
        asked = time.monotonic()
        while self.last.at < asked:
            self.last = self._report()
        return self.last

    def watch(self, before: Tally, enough: Callable[[Tally], bool], at_least: float, deadline: float) -> Tally:
        """Look on for `at_least` seconds and until it is enough, and return the calls since `before`.

        enough: told the calls since then. It ends after `deadline` seconds in any case.
        """
        begin = time.monotonic()
        while True:
            self.last = self._report()
            made, seconds = self.last.since(before), time.monotonic() - begin
            self._narrator.progress(f"{made.calls:,} calls: {describe(made)}")
            if (seconds >= at_least and enough(made)) or seconds >= deadline:
                self._narrator.progress_over()
                return made

    def end(self) -> Tally:
        """Let the calls under way come back, and return the tally of all."""
        self._process.input.close()
        for line in self._process.output:
            self.last = msgspec.json.decode(line, type=Tally)
        self._process.wait()
        return self.last

    def _report(self) -> Tally:
        if line := self._process.output.readline():
            return msgspec.json.decode(line, type=Tally)
        raise CallerBroke("the caller has ended")


def describe(tally: Tally) -> str:
    """In words: who answered how many calls, and what failed."""
    parts = [f"{what.removeprefix('hello from ')} answered {count:,}" for what, count in sorted(tally.answers.items())]
    parts += [f"{count:,} failed ({what})" for what, count in sorted(tally.failures.items()) if count]
    return ", ".join(parts) or "no calls yet"
