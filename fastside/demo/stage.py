"""From the command to its exit code: signals, the story, its summary, what is shown when it fails."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from types import FrameType
from typing import Any

from fastside.demo.hosts import Hosts, two_hosts
from fastside.demo.narrator import Narrator
from fastside.demo.processes import STOPPING, Guard, signals_held_back
from fastside.demo.story import NotHeld, Story

LOG_LINES = 20
"""Of each process, shown when a step does not hold."""


def run(*, keep: bool, as_json: bool) -> int:
    """See fastside.demo.main."""
    return Stage(keep, as_json).run()


class Stage:
    """One performance."""

    def __init__(self, keep: bool, as_json: bool) -> None:
        self._keep = keep
        self._as_json = as_json
        self._narrator = Narrator(None if as_json else sys.stdout)
        self._staying = False
        """Everything has been shown, and a signal is the expected end."""
        with signals_held_back():
            self._guard = Guard()
            for number in STOPPING:
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup(1) means what it says
                    signal.signal(number, self._leave)

    def run(self) -> int:
        """Return the exit code."""
        try:
            with two_hosts() as hosts:
                return self._play(hosts)
        except BrokenPipeError:  # nobody reads any more, and nobody must be told so by the interpreter when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        finally:
            _ignore_signals()
            self._guard.close()

    def _leave(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: end everything and the demo itself, here.

        It raises nothing, for that would be lost if a finalizer happened to run, and HTTP responses have one.
        """
        _ignore_signals()
        self._guard.close()
        if not self._as_json:
            with contextlib.suppress(OSError):  # the terminal may be what has gone; a print may have been interrupted
                os.write(sys.stdout.fileno(), b"\n\nInterrupted. Everything is stopped and removed.\n")
        os._exit(0 if self._staying else 128 + number)

    def _play(self, hosts: Hosts) -> int:
        story = Story(self._narrator, self._guard, hosts)
        error = ""
        try:
            story.play()
            if not self._keep:
                story.stop_sidecars()
        except NotHeld as not_held:
            error = str(not_held)
        result = summary(story, hosts, error)
        self._staying = self._keep and not error
        if self._staying:
            result["try"] = [command for _, command in story.commands()]
        if self._as_json:
            print(json.dumps(result), flush=True)
        if error:
            self._narrator.complain(f"This step did not hold: {error}")
            print(_logs(self._guard), file=sys.stderr)
            return 1
        _show(self._narrator, result)
        if self._staying:
            self._stay(story)
        return 0

    def _stay(self, story: Story) -> None:
        """Until a signal comes."""
        self._narrator.title("Everything stays up. Try from another terminal:")
        for what, command in story.commands():
            self._narrator.say(f"{what}:")
            self._narrator.show(command)
        self._narrator.say("Ctrl-C here ends and removes everything.")
        while True:
            signal.pause()


def _ignore_signals() -> None:
    """From here on everything is being stopped, which does not take long."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def summary(story: Story, hosts: Hosts, error: str) -> dict[str, Any]:
    """What `--json` prints. Times in milliseconds, CPU time in microseconds.

    p50_ms and p99_ms are those of calls through both sidecars, direct_... of calls past them in the same run, added_...
    the difference. Where the story broke off before the measurement, they are missing.
    """
    tally = story.tally
    latencies = dict(tally.latencies)
    for part in ("p50_ms", "p99_ms") if latencies else ():
        latencies[f"added_{part}"] = latencies[part] - latencies[f"direct_{part}"]
    return {
        "held": not error,
        **({"error": error} if error else {}),
        "mode": hosts.mode,
        "registered": story.registered,
        "subscribed": story.subscribed,
        "calls": tally.calls,
        "failures": tally.failed,
        "failed_how": tally.failures,
        "answers": tally.answers,
        **{name: round(value, 3) for name, value in latencies.items()},
        **({"cpu_us_per_call": round(story.cpu_seconds / tally.calls * 1e6, 1)} if tally.calls else {}),
        "steps": [{"title": step.title, "held": step.held, "seconds": round(step.seconds, 3)} for step in story.steps],
    }


def _show(narrator: Narrator, result: dict[str, Any]) -> None:
    narrator.title("In figures")
    how = ", ".join(result["failed_how"])
    narrator.table(
        [
            ("calls through both sidecars", f"{result['calls']:,}"),
            ("of these failed", f"{result['failures']:,}" + (f" ({how}), at the kill" if how else "")),
            *(
                (
                    f"latency {part}",
                    f"{result[f'{part}_ms']:.2f} ms; {result[f'direct_{part}_ms']:.2f} ms past the sidecars; "
                    f"added {result[f'added_{part}_ms']:.2f} ms",
                )
                for part in ("p50", "p99")
            ),
            ("CPU time per call", f"{result['cpu_us_per_call']:.0f} µs, all processes of both sidecars together"),
        ]
    )
    narrator.say(
        "Latency is that of step 6: one call at a time, by both ways in turn. Caller and provider are Python programs "
        "and share this machine's CPUs with the sidecars; they are in all the figures but the last."
    )


def _logs(guard: Guard) -> str:
    """The last lines that each process wrote."""
    parts = []
    for log in sorted(guard.directory.glob("*.log")):
        lines = log.read_text(errors="replace").splitlines()[-LOG_LINES:]
        parts.append(f"--- {log.stem} ---\n" + "\n".join(lines))
    return "\n".join(parts)
