"""A caller: an application that calls a service, counts what comes back, and measures how long it takes.

    python -m fastside.demo.caller compare SERVICE SIDECAR PROVIDER PAIRS    a call by each way in turn, on one thread
    python -m fastside.demo.caller load SERVICE SIDECAR CONNECTIONS          calls without a pause until stdin ends

It prints lines of JSON, a `Tally` each: several a second under load, while `compare` prints one, with latencies.
Connections are kept open. A call has failed if no answer with status 200 came, for whatever reason.
"""

from __future__ import annotations

import http.client
import select
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable

import msgspec

REPORT = 0.1
"""Seconds between two lines under load."""
TIMEOUT = 5.0
WARM_UP = 50
"""Pairs of calls before those that are measured."""


class Tally(msgspec.Struct):
    """What came of the calls through the sidecars."""

    answers: dict[str, int] = {}
    """Calls that went well, by what the answer said."""
    failures: dict[str, int] = {}
    """The others, by what was wrong."""
    latencies: dict[str, float] = {}
    """Milliseconds: p50_ms and p99_ms through the sidecars, direct_p50_ms and direct_p99_ms past them."""
    at: float = 0.0
    """When it was so, by time.monotonic()."""

    @property
    def calls(self) -> int:
        return sum(self.answers.values()) + self.failed

    @property
    def failed(self) -> int:
        return sum(self.failures.values())

    def since(self, earlier: Tally) -> Tally:
        """What has been added to an earlier tally of the same calls."""
        return Tally(
            {what: count - earlier.answers.get(what, 0) for what, count in self.answers.items()},
            {what: count - earlier.failures.get(what, 0) for what, count in self.failures.items()},
        )


class Line:
    """One connection that is kept open, and what came of the calls on it."""

    def __init__(self, address: str, service: str) -> None:
        host, _, port = address.rpartition(":")
        self.answers: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._connection = http.client.HTTPConnection(host, int(port), timeout=TIMEOUT)
        self._headers = {"Host": service}

    def call(self) -> float:
        """Make a call and return its seconds."""
        begin = time.perf_counter()
        try:
            self._connection.request("GET", "/", headers=self._headers)
            response = self._connection.getresponse()
            text = response.read().decode().strip()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            counter, what = self.failures, type(error).__name__
        else:
            good = response.status == 200
            counter, what = (self.answers, text) if good else (self.failures, f"status {response.status}")
        seconds = time.perf_counter() - begin
        with self._lock:
            counter[what] += 1
        return seconds

    def tally(self) -> Tally:
        """How it stands; may be asked for while another thread calls."""
        with self._lock:
            return Tally(dict(self.answers), dict(self.failures))


def compare(service: str, sidecar: str, provider: str, pairs: str) -> None:
    """Call by both ways in turn, so that whatever else the machine does meets both. Ends early when a call fails."""
    through, past = Line(sidecar, service), Line(provider, service)
    times: list[tuple[float, float]] = []
    while len(times) < WARM_UP + int(pairs) and not through.failures:
        times.append((past.call(), through.call()))
        if past.failures:
            raise SystemExit(f"a direct call to {provider} failed: {dict(past.failures)}")
    tally = through.tally()
    if not tally.failures:
        for name, column in (("direct_", 0), ("", 1)):
            parts = statistics.quantiles((pair[column] * 1000 for pair in times[WARM_UP:]), n=100)
            tally.latencies |= {f"{name}p50_ms": parts[49], f"{name}p99_ms": parts[98]}
    _print(tally)


def load(service: str, sidecar: str, connections: str) -> None:
    """Call on several connections until stdin ends."""
    over = threading.Event()

    def run(line: Line) -> None:
        while not over.is_set():
            failed = line.failures.total()
            line.call()
            if line.failures.total() > failed:
                over.wait(0.005)  # a caller in trouble does not call as fast as it can

    lines = [Line(sidecar, service) for _ in range(int(connections))]
    threads = [threading.Thread(target=run, args=(line,), daemon=True) for line in lines]
    for thread in threads:
        thread.start()
    while not select.select([sys.stdin], [], [], REPORT)[0]:
        _print(total(line.tally() for line in lines))
    over.set()
    for thread in threads:
        thread.join()
    _print(total(line.tally() for line in lines))


def total(tallies: Iterable[Tally]) -> Tally:
    """Add tallies up."""
    answers: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    latencies: dict[str, float] = {}
    for tally in tallies:
        answers.update(tally.answers)
        failures.update(tally.failures)
        latencies |= tally.latencies
    return Tally(dict(answers), dict(failures), latencies, time.monotonic())


def _print(tally: Tally) -> None:
    print(msgspec.json.encode(tally).decode(), flush=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["compare", *arguments]:
            compare(*arguments)
        case ["load", *arguments]:
            load(*arguments)
