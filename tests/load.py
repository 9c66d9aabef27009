"""For tests that break something: callers that go on meanwhile and count what fails, and the processes to break."""

from __future__ import annotations

import contextlib
import select
import threading

from harness import DEADLINE, Raw, Sidecar, wait_until


def all_workers(sidecar: Sidecar, count: int = 2) -> list[int]:
    """Return the workers' pids by slot, once all are there: a sidecar is ready when one of them is."""

    def pids() -> list[int] | None:
        found = sidecar.worker_pids()
        return found if len(found) == count else None

    return wait_until(pids, what=f"{count} workers are up") or []


class Load:
    """Callers in threads of their own; each makes one call after the other until the block ends.

    keep_alive: one connection per caller as long as the server keeps it, else one per call.
    """

    def __init__(self, address: tuple[str, int], service: str, *, callers: int = 8, keep_alive: bool = True) -> None:
        self.address = address
        self.service = service
        self.keep_alive = keep_alive
        self.failures: list[str] = []
        self._calls = [0] * callers
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(callers)]

    @property
    def calls(self) -> int:
        """Calls that were answered with 200."""
        return sum(self._calls)

    def wait_for_calls(self, each: int = 5) -> None:
        """Wait until every caller has made so many more calls that were answered with 200."""
        goals = [calls + each for calls in self._calls]
        wait_until(
            lambda: all(calls >= goal for calls, goal in zip(self._calls, goals, strict=True)),
            what=f"every caller goes on; failures: {self.failures}",
        )

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        self.wait_for_calls()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * DEADLINE)

    def _run(self, caller: int) -> None:
        raw: Raw | None = None
        while not self._stop.is_set():
            try:
                if raw and select.select([raw.socket], [], [], 0)[0]:  # closed between two calls, as a server may
                    raw.close()
                    raw = None
                raw = raw or Raw(self.address)
                headers = [] if self.keep_alive else [("Connection", "close")]
                response = raw.call(self.service, headers=headers)
                if response.status == 200:
                    self._calls[caller] += 1
                else:
                    self.failures.append(f"{response.status} {response.body!r}")
                over = (response.header("connection") or "").lower() == "close"
            except (OSError, EOFError) as error:
                self.failures.append(repr(error))
                over = True
            if over and raw:
                raw.close()
                raw = None
        if raw:
            with contextlib.suppress(OSError):
                raw.close()
