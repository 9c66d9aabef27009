"""The admin API, on a unix socket for the sidecar's own user and root. HTTP/JSON.

    GET  /status               how the sidecar, its processes, its table and its registry are
    GET  /services?service=a   routing records with what is known about each endpoint
    GET  /conns?limit=1000     the workers' connections
    POST /explain              where a request would go, and why (see explain.py)
    POST /reload               read the configuration again; answers when it is in force in every worker
    POST /drain                stop gracefully

Errors are {"error": ...}.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from aiohttp import web

from fastside import __version__, _core
from fastside.desired import Key, Update
from fastside.explain import BadQuestion, explain
from fastside.master_link import MasterGone, Refused
from fastside.registry import Address

if TYPE_CHECKING:
    from fastside.control import Control

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CONNECTIONS = 1000
"""Shown at most, unless more are asked for."""
_PEER = struct.Struct("iII")  # pid, uid, gid: struct ucred, see unix(7)


def application(control: Control) -> web.Application:
    """The admin API of a control process."""
    handlers = Admin(control)
    app = web.Application(middlewares=[_own_user_only, _errors_as_json])
    app.add_routes(
        [
            web.get("/status", handlers.status),
            web.get("/services", handlers.services),
            web.get("/conns", handlers.conns),
            web.post("/explain", handlers.explain),
            web.post("/reload", handlers.reload),
            web.post("/drain", handlers.drain),
        ]
    )
    return app


class Admin:
    def __init__(self, control: Control) -> None:
        self._control = control

    async def status(self, request: web.Request) -> web.Response:
        control = self._control
        now = time.monotonic()
        said = await control.master_status()
        missing = control.not_ready()
        registry = control.registry.status
        memory = control.table.memory()
        applied_ns = control.table.applied_ns
        saved_at = control.saver.saved_at
        return web.json_response(
            {
                "version": __version__,
                "pid": os.getpid(),
                "state": "draining" if control.draining else "starting" if missing else "ready",
                "not_ready": missing,
                "master": {"connected": control.link.connected, **(said["master"] if said else {})},
                "table": {
                    "version": control.table.version,
                    "age_s": max(0.0, time.time() - applied_ns / 1e9) if applied_ns else None,
                    "source": self._source(),
                    "services": memory["services"],
                    "endpoints": memory["endpoints"],
                    "memory": memory,
                    "refused": [
                        {"direction": key.direction, "service": key.service, "error": error}
                        for key, error in control.desired.refused.items()
                    ],
                },
                "workers": self._workers(said["workers"] if said else []),
                "registry": {
                    "name": registry.name,
                    "connected": registry.connected,
                    "for_s": registry.age(),
                    "epoch": registry.epoch,
                    "last_error": registry.last_error,
                    "rejected_records": registry.rejected_records,
                    "reconnects": registry.reconnects,
                },
                "snapshot": {
                    "path": str(control.saver.path),
                    "saved_age_s": None if saved_at is None else now - saved_at,
                },
                "alarms": [
                    {"name": name, "for_s": now - alarm.since, "text": alarm.text}
                    for name, alarm in control.alarms.on.items()
                ],
            }
        )

    async def services(self, request: web.Request) -> web.Response:
        wanted = request.query.get("service", "").lower()
        records = sorted(self._control.desired.records.items())
        return web.json_response(
            {"services": [self._service(key, record) for key, record in records if wanted in ("", key.service)]}
        )

    async def conns(self, request: web.Request) -> web.Response:
        try:
            limit = int(request.query.get("limit", CONNECTIONS))
        except ValueError:
            raise BadQuestion("limit is not a number") from None
        shown = [
            {"worker": slot, **connection}
            for slot in range(self._control.table.workers)
            for connection in _core.connections(self._control.table, slot)
        ]
        return web.json_response({"connections": shown[: max(0, limit)], "total": len(shown)})

    async def explain(self, request: web.Request) -> web.Response:
        try:
            question = json.loads(await request.read())
        except ValueError:
            raise BadQuestion("the question is not JSON") from None
        return web.json_response(explain(question, self._control.config, self._control.table))

    async def reload(self, request: web.Request) -> web.Response:
        answer = await self._control.reload()
        return web.json_response({"version": answer["version"], "changes": answer["changes"]})

    async def drain(self, request: web.Request) -> web.Response:
        self._control.link.tell("drain")
        return web.json_response({"state": "draining"})

    def _source(self) -> str:
        """Where the table's endpoints come from."""
        registry = self._control.registry.status
        if registry.connected:
            return f"registry {registry.name}"
        known = any(subscription.view.answered for subscription in self._control.subscriptions)
        return f"last known; registry {registry.name} is away" if known else "nothing yet"

    def _workers(self, said: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """What the workers' blocks say, and what only the master knows."""
        now_ns = time.monotonic_ns()
        workers = []
        for slot in range(self._control.table.workers):
            block = self._control.table.worker(slot)
            heartbeat_ns = block.pop("heartbeat_ns")
            age = max(0, now_ns - heartbeat_ns) / 1e9 if heartbeat_ns else None
            restarts = next((one["restarts"] for one in said if one["slot"] == slot), None)
            workers.append({"slot": slot, **block, "heartbeat_age_s": age, "restarts": restarts})
        return workers

    def _service(self, key: Key, record: Update) -> dict[str, Any]:
        states: dict[Address, str] = {}
        state = source = "published"
        if key.direction == "outbound":
            state, known = self._control.subscriptions.endpoints(key.service)
            name = self._control.subscriptions.spelling(key.service)
            states = {one.endpoint.address: one.state for one in known}
            source = "configuration" if self._control.subscriptions.is_static(key.service) else "registry"
        else:
            publications = self._control.publications.of(key.service)
            states = {one.local: one.liveness.owner for one in publications}
            name = publications[0].name
        live = {one["address"]: one for one in self._control.table.explain_pick(key.direction, key.service)}
        endpoints = []
        for ip, port, weight in record["endpoints"]:
            address = Address(ip, port)
            now = live.get(str(address), {})
            endpoints.append(
                {
                    "address": str(address),
                    "weight": weight,
                    "state": states.get(address, "gone"),
                    "inflight": now.get("inflight", 0),
                    "ejected_for_ms": now.get("ejected_for_ms", 0),
                    "loop": now.get("loop", False),
                }
            )
        return {
            "direction": key.direction,
            "service": key.service,
            "name": name,
            "protocol": record["protocol"],
            "balance": record["balance"],
            "state": state,
            "source": source,
            "refused": self._control.desired.refused.get(key),
            "endpoints": endpoints,
        }


@web.middleware
async def _own_user_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    assert request.transport is not None
    peer: socket.socket = request.transport.get_extra_info("socket")
    _, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    if uid not in (0, os.geteuid()):
        error = f"user {uid} may not use the admin socket; the sidecar's own user ({os.geteuid()}) and root may"
        return web.json_response({"error": error}, status=403)
    return await handler(request)


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except BadQuestion as error:
        return web.json_response({"error": str(error)}, status=400)
    except Refused as error:
        return web.json_response({"error": str(error)}, status=409)
    except MasterGone as error:
        return web.json_response({"error": str(error)}, status=503)
    except web.HTTPException as error:
        return web.json_response({"error": f"{request.method} {request.path}: {error.reason}"}, status=error.status)
