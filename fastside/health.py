"""Health probes and metrics over HTTP.

    /livez, /healthz   200 while every process of the sidecar that is up makes progress
    /readyz            200 while calls are served as they should be
    /startupz          200 once that has been so
    /metrics           Prometheus

A body says what is missing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from fastside.control import Control

HEARTBEAT = 10.0
"""Seconds after which a worker that neither waits for events nor turns its loop counts as hung."""


def application(control: Control) -> web.Application:
    """Health and metrics of a control process."""
    health = Health(control)
    app = web.Application()
    app.add_routes(
        [
            web.get("/livez", health.live),
            web.get("/healthz", health.live),
            web.get("/readyz", health.ready),
            web.get("/startupz", health.started),
            web.get("/metrics", control.metrics.serve),
        ]
    )
    return app


class Health:
    def __init__(self, control: Control) -> None:
        self._control = control

    async def live(self, request: web.Request) -> web.Response:
        """That this answers shows that control's own loop turns."""
        return _answer(self._hung())

    async def ready(self, request: web.Request) -> web.Response:
        return _answer(self._control.not_ready())

    async def started(self, request: web.Request) -> web.Response:
        missing = self._control.not_ready()
        return _answer([] if self._control.was_ready else missing)

    def _hung(self) -> list[str]:
        table = self._control.table
        hung = []
        for slot in range(table.workers):
            worker = table.worker(slot)
            age = (time.monotonic_ns() - worker["heartbeat_ns"]) / 1e9
            if worker["state"] in ("ready", "draining") and not worker["asleep"] and age > HEARTBEAT:
                hung.append(f"worker {slot} (pid {worker['pid']}) has made no progress for {age:.0f} s")
        return hung


def _answer(problems: list[str]) -> web.Response:
    """200 "ok", or 503 with a problem per line."""
    text = "".join(f"{problem}\n" for problem in problems) or "ok\n"
    return web.Response(text=text, status=503 if problems else 200)
