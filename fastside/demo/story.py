"""The takeover, step by step. Each step does something real and says what; it holds, or it ends the story."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import msgspec

from fastside.demo.caller import Tally, total
from fastside.demo.hosts import Host, Hosts
from fastside.demo.load import CallerBroke, Load, describe
from fastside.demo.narrator import Narrator
from fastside.demo.processes import Guard, Process

T = TypeVar("T")

SERVICE = "svc-a"
PAIRS = 1000
"""Pairs of calls from which the added latency is taken."""
CONNECTIONS = 4
"""Connections of the caller under load."""
MANY = 200
"""Calls that make a point."""
LOOK = 1.0
"""Seconds that the load is watched at least after each change."""
DEADLINE = 15.0
"""Seconds that anything may take to come about."""


class NotHeld(Exception):
    """A step did not do what it should; str() says what happened instead."""


class Step(msgspec.Struct):
    title: str
    held: bool = False
    seconds: float = 0.0


class Answer(NamedTuple):
    status: int
    head: str
    body: str


class Story:
    """Plays on two hosts, and keeps the results."""

    def __init__(self, narrator: Narrator, guard: Guard, hosts: Hosts) -> None:
        self.steps: list[Step] = []
        self.registered: list[str] = []
        """What the registry holds for the service."""
        self.subscribed = ""
        """What the caller was told to call."""
        self.tallies: list[Tally] = []
        """Of the calls through the sidecars."""
        self.cpu_seconds = 0.0
        """Of all processes of both sidecars, while the calls in `tallies` were made."""
        self._narrator = narrator
        self._guard = guard
        self._hosts = hosts
        self._registry_address = f"{hosts.caller.address}:{hosts.caller.ports.registry}"
        self._sidecars: list[Process] = []
        self._providers: list[Process] = []

    @property
    def tally(self) -> Tally:
        """What came of all calls through the sidecars."""
        return total(self.tallies)

    def play(self) -> None:
        """Raises NotHeld, saying in which way a step did not hold."""
        try:
            self._introduce()
            self._start_registry()
            self._start_provider_sidecar()
            self._publish()
            self._look_into_registry()
            self._subscribe()
            self._call()
            self._change_providers()
        except (CallerBroke, OSError, http.client.HTTPException, ValueError) as error:
            raise NotHeld(f"{type(error).__name__}: {error}") from error

    def stop_sidecars(self) -> None:
        """Stop them as an operator would. Raises NotHeld if one does not end well."""
        with self._step("Both sidecars are stopped"):
            for process in self._sidecars:
                if code := process.end(signal.SIGTERM):
                    raise NotHeld(f"the {process.name} exited with {code}")
            self._narrator.say("They left the registry, finished what was under way, and exited with 0.")

    def commands(self) -> list[tuple[str, str]]:
        """What to try while everything is up: what a command does, and the command."""
        host = self._hosts.caller
        sudo = "sudo " if "SUDO_UID" in os.environ else ""  # the other terminal is not root's then
        there = f"{sudo}nsenter -t {self._sidecars[1].pid} -n " if host.namespace else ""
        api, metrics = host.at(host.ports.api), host.at(host.ports.metrics)
        return [
            ("Call the service", f"{there}curl -i -H 'Host: {SERVICE}' http://{self.subscribed}/"),
            ("Call one that is unknown", f"{there}curl -i -H 'Host: svc-b' http://{self.subscribed}/"),
            ("Read the registry", f"{there}curl http://{self._registry_address}/v1/services/{SERVICE}"),
            ("Ask the caller's sidecar what it knows", f"{there}curl http://{api}/v1/services"),
            ("Read its metrics", f"{there}curl http://{metrics}/metrics"),
            ("Kill the provider that is left, and call again", f"{sudo}kill -KILL {self._providers[0].pid}"),
        ]

    # The steps

    def _introduce(self) -> None:
        provider, caller = self._hosts.provider, self._hosts.caller
        addresses = f"the provider's host {provider.address} and the caller's host {caller.address}"
        self._narrator.title("fastside demo: a takeover, step by step")
        if self._hosts.mode == "namespaces":
            self._narrator.say(f"Two network namespaces with a cable between them play two hosts: {addresses}.")
            return
        self._narrator.say(
            f"Two loopback addresses play two hosts: {addresses}. Network namespaces would be more like hosts, but "
            f"cannot be had here: {self._hosts.reason}. An application and its own sidecar meet at that address too, "
            "where it would be 127.0.0.1 on a host of their own."
        )

    def _start_registry(self) -> None:
        with self._step("A registry starts"):
            with self._hosts.caller.entered():
                process = self._guard.start("registry", "fastside", "registry", "--bind", self._registry_address)
            self._wait_for(self._hosts.caller, process, self._registry_address, "/v1/services")
            self._narrator.say(
                f"It keeps a list of which service is served at which addresses, and hands it to sidecars. It runs at "
                f"{self._registry_address}, and the list is empty."
            )

    def _start_provider_sidecar(self) -> None:
        host = self._hosts.provider
        with self._step("The provider's sidecar starts"):
            self._start_sidecar("provider's sidecar", host)
            self._narrator.say(
                f"It stands beside the provider, and will take the provider's calls on port {host.ports.inbound}."
            )

    def _publish(self) -> None:
        host = self._hosts.provider
        with self._step("A provider registers through its sidecar"):
            self._narrator.say(
                f"The provider is an ordinary HTTP server on port {host.ports.provider}. It tells its sidecar that it "
                f"serves {SERVICE}, where it would otherwise tell the registry:"
            )
            published = self._start_provider(host.ports.provider)
            if published != f"{host.address}:{host.ports.inbound}":
                raise NotHeld(f"the sidecar published {published}, which is not its inbound port")
            self._narrator.say(
                f"The sidecar has registered its own port {host.ports.inbound} in place of the provider's "
                f"{host.ports.provider}."
            )

    def _look_into_registry(self) -> None:
        host = self._hosts.provider
        with self._step(f"The registry holds port {host.ports.inbound}, not {host.ports.provider}"):
            target = f"/v1/services/{SERVICE}"

            def listed() -> dict[str, Any] | None:
                answer = self._ask(self._hosts.caller, self._registry_address, "GET", target)
                listing: dict[str, Any] = json.loads(answer.body)
                return listing if listing["endpoints"] else None

            listing = self._until(listed, f"{SERVICE} is in the registry")
            self._narrator.say("Read from the registry, past both sidecars:")
            self._narrator.show(f"> GET http://{self._registry_address}{target}\n< 200 {json.dumps(listing)}")
            self.registered = [endpoint["address"] for endpoint in listing["endpoints"]]
            if self.registered != [f"{host.address}:{host.ports.inbound}"]:
                raise NotHeld(f"the registry holds {self.registered}")

    def _subscribe(self) -> None:
        host = self._hosts.caller
        with self._step("A caller subscribes through its own sidecar"):
            self._start_sidecar("caller's sidecar", host)
            self._narrator.say(f"The caller asks its sidecar where {SERVICE} is:")
            answer = self._api(host, "subscribe", {"service": SERVICE})
            self.subscribed = answer["address"]
            if self.subscribed != host.at(host.ports.outbound):
                raise NotHeld(f"the caller was told {self.subscribed}, which is not its sidecar's outbound port")
            if answer["endpoints"] != self.registered:
                raise NotHeld(f"the caller's sidecar knows the endpoints {answer['endpoints']}")
            self._narrator.say(f"It is told {self.subscribed}, which is the outbound port of the sidecar itself.")

    def _call(self) -> None:
        provider, caller = self._hosts.provider, self._hosts.caller
        with self._step("Calls go through both sidecars"):
            self._narrator.say(
                f"caller -> {self.subscribed} caller's sidecar -> {self.registered[0]} provider's sidecar -> "
                f"{provider.at(provider.ports.provider)} provider"
            )
            self._narrator.show(f"$ curl -i -H 'Host: {SERVICE}' http://{self.subscribed}/")
            answer = self._ask(caller, self.subscribed, "GET", "/", headers={"Host": SERVICE})
            self._narrator.show(f"{answer.head}\n\n{answer.body}")
            if (answer.status, answer.body) != (200, "hello from provider 1\n"):
                raise NotHeld(f"the call was answered with {answer.status} {answer.body!r}")
            direct = f"{provider.address}:{provider.ports.provider}"
            self._narrator.say(
                f"To see what the sidecars cost, {PAIRS:,} calls go through them and {PAIRS:,} straight to {direct}, "
                "one by each way in turn:"
            )
            tally = self._compare(direct)
            if tally.failures:
                raise NotHeld(f"{tally.failed} of {tally.calls} calls failed: {tally.failures}")
            self._narrator.say(
                f"No call failed. The median was {tally.latencies['p50_ms']:.2f} ms through the sidecars and "
                f"{tally.latencies['direct_p50_ms']:.2f} ms past them."
            )

    def _compare(self, direct: str) -> Tally:
        with self._cpu_counted(), self._hosts.caller.entered():
            process = self._guard.start(
                "comparison",
                "fastside.demo.caller",
                "compare",
                SERVICE,
                self.subscribed,
                direct,
                str(PAIRS),
                piped=True,
            )
            line = process.output.readline()
            process.wait()
        if not line:
            raise CallerBroke("the caller has ended")
        self.tallies.append(msgspec.json.decode(line, type=Tally))
        return self.tallies[-1]

    def _change_providers(self) -> None:
        with self._cpu_counted():
            with self._hosts.caller.entered():
                load = Load(self._guard, self._narrator, SERVICE, self.subscribed, CONNECTIONS)
            self._add_provider(load)
            self._kill_provider(load)
            self.tallies.append(load.end())

    def _add_provider(self, load: Load) -> None:
        port = self._hosts.provider.ports.second_provider
        with self._step("A second provider comes while calls go on"):
            load.watch(load.now(), lambda made: made.calls >= MANY, LOOK, DEADLINE)
            self._narrator.say(
                f"The caller now calls without a pause on {CONNECTIONS} connections: {describe(load.last)}. A second "
                f"provider, on port {port}, registers for the same service:"
            )
            self._start_provider(port)
            made = load.watch(load.now(), lambda made: answered(made, 2) >= MANY, LOOK, DEADLINE)
            self._narrator.say(f"From then on the calls spread: {describe(made)}.")
            if min(answered(made, 1), answered(made, 2)) < made.calls / 4:
                raise NotHeld("the calls did not spread")
            if load.last.failed:
                raise NotHeld(f"{load.last.failed} calls failed although nothing was taken away")

    def _kill_provider(self, load: Load) -> None:
        with self._step("One provider is killed while calls go on"):
            pid = self._providers[1].pid
            self._narrator.say(f"kill -KILL {pid} hits provider 2 amid the calls, and nobody has been told.")
            before = load.now()
            self._providers[1].end(signal.SIGKILL)
            made = load.watch(before, lambda made: answered(made, 1) >= MANY, LOOK, DEADLINE)
            self._narrator.say(f"Since then, {describe(made)}.")
            if answered(made, 1) < MANY:
                raise NotHeld("the calls did not go on")
            if made.failed > CONNECTIONS:
                raise NotHeld(
                    f"{made.failed} calls failed; there were no more than {CONNECTIONS} under way at the kill"
                )
            self._narrator.say(
                "A call that was with the killed provider may fail, at most one for each connection: what has been "
                "sent is never sent twice. All others went to provider 1, even if they found provider 2's port closed."
            )

    # What the steps are made of

    @contextmanager
    def _step(self, title: str) -> Iterator[None]:
        step = Step(title)
        self.steps.append(step)
        self._narrator.title(f"{len(self.steps)}. {title}")
        begin = time.monotonic()
        try:
            yield
            step.held = True
        finally:
            step.seconds = time.monotonic() - begin

    @contextmanager
    def _cpu_counted(self) -> Iterator[None]:
        before = self._cpu()
        yield
        self.cpu_seconds += self._cpu() - before

    def _cpu(self) -> float:
        return sum(sidecar.cpu_seconds() for sidecar in self._sidecars)

    def _start_sidecar(self, name: str, host: Host) -> None:
        directory = self._guard.directory / name.partition("'")[0]
        directory.mkdir()
        config = host.sidecar_config(str(directory), self._registry_address)
        path = directory / "fastside.yaml"
        path.write_text(json.dumps(config, indent=1) + "\n")
        shown = {key: value for key, value in config.items() if not key.endswith("_dir")}
        self._narrator.show(f"$ fastside run -c {path}\n{json.dumps(shown)}")
        with host.entered():
            process = self._guard.start(name, "fastside", "run", "-c", str(path))
        self._sidecars.append(process)
        self._wait_for(host, process, host.at(host.ports.metrics), "/readyz")

    def _start_provider(self, port: int) -> str:
        """Start one, wait until it listens, let it register. Returns the address that its sidecar published."""
        host = self._hosts.provider
        name = f"provider {len(self._providers) + 1}"
        with host.entered():
            process = self._guard.start(name, "fastside.demo.provider", name, host.any_address, str(port))
        self._providers.append(process)
        self._wait_for(host, process, host.at(port), "/")
        where = {"address": host.local} if host.local != "127.0.0.1" else {}
        answer = self._api(host, "publish", {"service": SERVICE, "port": port, **where})
        published: str = answer["published"]
        return published

    def _api(self, host: Host, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Call the takeover API of the host's sidecar, and show what goes there and what comes back."""
        address = host.at(host.ports.api)
        self._narrator.show(f"> POST http://{address}/v1/{verb} {json.dumps(body)}")
        answer = self._ask(host, address, "POST", f"/v1/{verb}", json.dumps(body), {"Content-Type": "application/json"})
        self._narrator.show(f"< {answer.status} {answer.body}")
        if answer.status != 200:
            raise NotHeld(f"the sidecar refused: {answer.body}")
        decoded: dict[str, Any] = json.loads(answer.body)
        return decoded

    def _ask(
        self,
        host: Host,
        address: str,
        method: str,
        target: str,
        body: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Make one HTTP request from a host, on a connection of its own."""
        connection = http.client.HTTPConnection(address, timeout=DEADLINE)
        try:
            with host.entered():
                connection.request(method, target, body, headers or {})
            response = connection.getresponse()
            head = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{k}: {v}" for k, v in response.getheaders())]
            return Answer(response.status, "\n".join(head), response.read().decode())
        finally:
            connection.close()

    def _wait_for(self, host: Host, process: Process, address: str, target: str) -> None:
        """Wait until a process that was just started answers with 200."""

        def answers() -> bool:
            if not process.alive:
                raise NotHeld(f"the {process.name} ended at once")
            try:
                return self._ask(host, address, "GET", target).status == 200
            except (ConnectionError, http.client.HTTPException):
                return False

        self._until(answers, f"the {process.name} is up")

    def _until(self, condition: Callable[[], T | None], what: str) -> T:
        """Poll until the condition returns something true, and return that."""
        end = time.monotonic() + DEADLINE
        while not (result := condition()):
            if time.monotonic() > end:
                raise NotHeld(f"not within {DEADLINE:g} s: {what}")
            time.sleep(0.02)
        return result


def answered(tally: Tally, provider: int) -> int:
    """Calls that a provider answered."""
    return tally.answers.get(f"hello from provider {provider}", 0)
