"""The control process: everything that talks to the outside but does not carry calls.

It speaks to the registry, serves the takeover API, the admin API, metrics and health, and tells the master what the
routing table should be. Nothing on the data path waits for it: it may die and come back, by its snapshot on disk, and
calls are forwarded meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from fastside import _core, admin, health, metrics
from fastside.alarms import Alarms
from fastside.channel import Message
from fastside.config import Config, RegistrySource, host_port
from fastside.desired import DesiredTable, Key, Update
from fastside.master_link import MasterGone, MasterLink
from fastside.registry import Address, Endpoint, Registry
from fastside.registry import snapshot as snapshots
from fastside.registry.memory import MemoryRegistry
from fastside.registry.remote import RemoteRegistry
from fastside.takeover import api, dubbod, mesh
from fastside.takeover.flags import FlaggedTable
from fastside.takeover.publications import Publications
from fastside.takeover.subscriptions import Subscriptions

log = logging.getLogger("fastside")

CANNOT_START = 3
"""Exit code for a port or socket that cannot be had."""
WITHDRAWAL = 2.0
"""Seconds that the registry gets at most to confirm that everything is withdrawn."""
STATUS_TIMEOUT = 2.0
SAVES_PER_STALE_TIME = 24
"""How often the snapshot is saved without a change: a crash costs at most this part of registry.stale."""


def run(config: Config, table: _core.Table, channel: socket.socket) -> int:
    """Be the control process until the master says stop. Returns the exit code."""
    logging.basicConfig(format="fastside: %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        return asyncio.run(_main(config, table, channel))
    except CannotStart as error:
        print(f"fastside: {error}", file=sys.stderr)
        return CANNOT_START


async def _main(config: Config, table: _core.Table, channel: socket.socket) -> int:
    return await Control(config, table, channel).serve()


class CannotStart(Exception):
    """A port or socket cannot be had; str() names it."""


class Control:
    """The parts of the control process and what they share.

    table: the routing table, sealed. channel: the socket to the master.
    """

    def __init__(self, config: Config, table: _core.Table, channel: socket.socket) -> None:
        self.config = config
        self.table = table
        self.draining = False
        self.was_ready = False
        """Whether it has been ready once."""
        self.alarms = Alarms()
        self.metrics = metrics.Metrics(self)
        self.link = MasterLink(channel, self._on_message, self._on_master_gone)
        self.registry = _make_registry(config.registry)
        self.desired = DesiredTable(self._apply, self.alarms, self.metrics.push_to_apply.observe)
        self.saver = snapshots.Saver(
            Path(config.state_dir) / "snapshot.json",
            self._collect,
            config.registry.stale / SAVES_PER_STALE_TIME or None,
            self.alarms,
        )
        flagged = FlaggedTable(self.desired)
        self.publications = Publications(config, self.registry, flagged, table, self.saver.change)
        self.subscriptions = Subscriptions(config, self.registry, flagged, self.saver.change)
        self.first_subscriptions: set[str] = set()
        """Those that were there at the start: the sidecar is ready when something is known about each of them."""
        self._stop = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()

    async def serve(self) -> int:
        """Serve until the master says stop, or nobody needs this process any more. Raises CannotStart."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._on_sigterm)
        # Ports that cannot be had are found before anything is begun.
        servers = [(web.AppRunner(application, **_RUNNER), sock) for application, sock in self._servers()]
        try:
            self._restore()
            await self.registry.start(self.subscriptions)
            self._spawn(self.desired.run())
            self._spawn(self.saver.run())
            self._spawn(self._watch_admin_socket())
            for runner, sock in servers:
                await runner.setup()
                await web.SockSite(runner, sock).start()
            with contextlib.suppress(MasterGone):
                await self.desired.settle()
                self.link.tell("ready")
            await self._stop.wait()
        finally:
            await self._close([runner for runner, _ in servers])
        return 0

    def _servers(self) -> list[tuple[web.Application, socket.socket]]:
        """What is served, and the sockets for it. Raises CannotStart."""
        config = self.config
        servers = [
            (admin.application(self), _listen("the admin socket", f"unix:{config.admin_socket}", 0o600)),
            (health.application(self), _listen("metrics and health", config.metrics)),
            # Who may reach a unix socket is up to its directory, as who may reach a port is up to the network.
            (api.application(self), _listen("the API", config.api, 0o666)),
        ]
        if config.mesh is not None:
            servers.append((mesh.application(self), _listen("the mesh API", config.mesh.api)))
        if config.dubbod is not None:
            servers.append((dubbod.application(self), _listen("the dubbod API", config.dubbod.api)))
        return servers

    def not_ready(self) -> list[str]:
        """What is missing before calls are served as they should be; empty when nothing is."""
        missing = []
        if self.draining:
            missing.append("the sidecar is draining")
        if not any(self.table.worker(slot)["state"] == "ready" for slot in range(self.table.workers)):
            missing.append("no worker is ready")
        unknown = []
        for service in sorted(self.first_subscriptions):
            subscription = self.subscriptions.get(service)
            if subscription is None or subscription.view.answered:
                self.first_subscriptions.discard(service)
            else:
                unknown.append(service)
        if unknown:
            missing.append(
                f"registry {self.registry.status.name} has not been heard about {', '.join(unknown[:5])}"
                f"{' and others' if len(unknown) > 5 else ''}, and no snapshot knows better"
            )
        self.was_ready = self.was_ready or not missing
        return missing

    async def master_status(self) -> Message | None:
        """What the master says about itself and the workers; None if it does not answer."""
        try:
            async with asyncio.timeout(STATUS_TIMEOUT):
                return await self.link.request("status")
        except (MasterGone, TimeoutError):
            return None

    async def reload(self) -> Message:
        """Have the configuration read again; return the answer when it is in force everywhere.

        Raises Refused (of master_link) or MasterGone.
        """
        answer = await self.link.request("reload")  # the new configuration itself has come before the answer
        await self.desired.settle()
        return answer

    def _restore(self) -> None:
        """Know what an earlier process knew, and have the routing table say so."""
        saved = snapshots.load(self.saver.path)
        if saved is not None:
            self.publications.restore(saved.publications)
            self.subscriptions.restore(saved)
        self.subscriptions.reconfigure(self.config)
        present = [Key(direction, name) for direction in _core.DIRECTIONS for name in self.table.services(direction)]
        if saved is None:
            self._adopt(key for key in present if key not in self.desired.records)
        self.desired.delete_unknown(present)
        self.first_subscriptions = {subscription.service for subscription in self.subscriptions}

    def _adopt(self, keys: Iterable[Key]) -> None:
        """Without a snapshot (a read-only disk), the routing table still says what is published and subscribed to."""
        for direction, service in keys:
            record = self.table.lookup(direction, service)
            if record is None:
                continue
            endpoints = [Endpoint(Address(ip, port), weight) for ip, port, weight in record["endpoints"]]
            log.info("%s %s is taken over from the routing table", direction, service)
            if direction == "outbound":
                self.subscriptions.adopt(service, record["protocol"], endpoints)
            else:
                self.publications.adopt(service, record["protocol"], endpoints)

    def _collect(self) -> snapshots.Snapshot:
        return snapshots.Snapshot(
            saved=time.time(), publications=self.publications.save(), subscriptions=self.subscriptions.save()
        )

    async def _apply(self, updates: list[Update]) -> int:
        answer = await self.link.request("apply", updates=updates)
        version: int = answer["version"]
        return version

    def _on_message(self, message: Message) -> None:
        match message:
            case {"op": "draining"}:
                self._spawn(self._drain())
            case {"op": "stop"}:
                self._stop.set()
            case {"op": "config", "config": config}:
                self._reconfigure(msgspec.convert(config, Config))

    def _on_master_gone(self) -> None:
        self.alarms.set("master", f"{MasterGone()}; start fastside again with the same configuration to take over")

    def _on_sigterm(self) -> None:
        """A service manager signals every process; the master says what to do then, if there is one."""
        if not self.link.connected:
            self._stop.set()

    async def _drain(self) -> None:
        """Take everything out of the registry, and tell the master when it is out."""
        if self.draining:
            return
        self.draining = True
        self.publications.withdraw()
        if not await self.registry.settle(WITHDRAWAL):
            log.warning("registry %s did not confirm the withdrawal; the leases end it", self.registry.status.name)
        with contextlib.suppress(MasterGone):
            self.link.tell("withdrawn")

    def _reconfigure(self, config: Config) -> None:
        before, self.config = self.config, config
        self.publications.reconfigure(config)
        self.subscriptions.reconfigure(config)
        if (config.registry.url, config.registry.lease) != (before.registry.url, before.registry.lease):
            self._spawn(self._change_registry())

    async def _change_registry(self) -> None:
        left, self.registry = self.registry, _make_registry(self.config.registry)
        self.publications.move(self.registry)
        self.subscriptions.move(self.registry)
        # The one that is left must not be heard any more when the other begins to speak.
        await asyncio.gather(left.close(WITHDRAWAL), self.registry.start(self.subscriptions))

    async def _watch_admin_socket(self) -> None:
        """An orphan whose place another sidecar has taken has nothing left to do."""
        path = self.config.admin_socket
        identity = _identity(path)
        while True:
            await asyncio.sleep(1.0)
            if not self.link.connected and _identity(path) not in (identity, None):
                log.info("another sidecar has taken over")
                self._stop.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside the others; one that fails ends this process, and the master starts another."""
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("control fails", exc_info=error)
            os._exit(1)

    async def _close(self, runners: list[web.AppRunner]) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        for runner in runners:
            await runner.cleanup()
        await self.publications.close()
        await self.registry.close()
        await self.saver.flush()
        self.link.close()


_RUNNER: dict[str, Any] = {"access_log": None, "handler_cancellation": True, "shutdown_timeout": 0.1}


def _listen(what: str, bind: str, mode: int = 0) -> socket.socket:
    try:
        if bind.startswith("unix:"):
            return _listen_unix(bind.removeprefix("unix:"), mode)
        address = host_port(bind)
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        return socket.create_server(address, family=family, backlog=1024)
    except OSError as error:
        reason = error.strerror or error
        raise CannotStart(f"{bind} cannot be had for {what}: {reason}; free it, or configure another one") from None


def _listen_unix(path: str, mode: int) -> socket.socket:
    """Listen at a path, in place of what a process that is gone has left there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sock = socket.socket(socket.AF_UNIX)
    umask = os.umask(0o177)  # never more open than it should be, not even for a moment
    try:
        sock.bind(path)
    finally:
        os.umask(umask)
    os.chmod(path, mode)
    sock.listen(1024)
    return sock


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _make_registry(source: RegistrySource) -> Registry:
    return MemoryRegistry() if source.url is None else RemoteRegistry(source.url, source.lease)
