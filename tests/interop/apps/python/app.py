"""An application that its test drives by lines of JSON; see tests/interop/apps/README.md."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

Target = dict[str, Any]
Call = Callable[[Target, str, str], Awaitable[str]]


class EchoService:
    """The provider's side of Echo, with the gate that its test opens and closes."""

    def __init__(self) -> None:
        self._gate = threading.Condition()
        self._open = False
        self.held = 0

    def echo(self, text: str) -> str:
        return text

    def hold(self, text: str) -> str:
        with self._gate:
            self.held += 1
            self._gate.wait_for(lambda: self._open)
            self.held -= 1
        return text

    def fail(self, text: str) -> str:
        raise RuntimeError(text)

    def gate(self, is_open: bool) -> None:
        with self._gate:
            self._open = is_open
            self._gate.notify_all()


class Run:
    """Callers that make one call after the other, all at the same time, until the calls are made or it is stopped."""

    def __init__(self, call: Call, command: dict[str, Any]) -> None:
        self._call = call
        self._command = command
        self._filling = "0123456789abcdef" * (command["size"] // 16 + 1)
        self._started = self._finished = self._ok = self._wrong = 0
        self._errors: Counter[str] = Counter()
        self._messages: dict[str, str] = {}
        self.stopped = False
        self._callers = {asyncio.create_task(self._call_on()) for _ in range(command["callers"])}

    def look(self) -> dict[str, Any]:
        """What happened so far; `done` when nothing more will."""
        return {
            "started": self._started,
            "finished": self._finished,
            "ok": self._ok,
            "wrong": self._wrong,
            "errors": self._errors,
            "messages": self._messages,
            "done": self._started == self._finished and (self.stopped or self._started == self._command["calls"]),
        }

    async def _call_on(self) -> None:
        while not self.stopped and self._started != self._command["calls"]:
            prefix = f"{self._started}:"  # no two calls have the same text
            self._started += 1
            text = prefix + self._filling[: max(0, self._command["size"] - len(prefix))]
            try:
                result = await self._call(self._command["target"], self._command["method"], text)
            except Exception as error:
                name = type(error).__name__
                self._errors[name] += 1
                self._messages[name] = str(error)
            else:
                self._ok += result == text
                self._wrong += result != text
            self._finished += 1


async def main(
    provide: Callable[[dict[str, Any], EchoService], Callable[[], None]],
    consume: Callable[[dict[str, Any]], tuple[Call, Callable[[], None]]],
) -> None:
    """Run an application until its standard input ends. Both functions return also what closes the SDK's part."""
    options = json.loads(sys.argv[1])
    service = EchoService()
    runs: dict[str, Run] = {}
    if options["role"] == "provider":
        close = provide(options, service)
    else:
        call, close = consume(options)
    print('{"ready": true}', flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        command = json.loads(line)
        answer: dict[str, Any] = {}
        match command["action"]:
            case "start":
                runs[command["run"]] = Run(call, command)
            case "stop":
                runs[command["run"]].stopped = True
            case "look":
                answer = runs[command["run"]].look()
            case "gate":
                service.gate(command["open"])
            case "held":
                answer = {"held": service.held}
        print(json.dumps(answer), flush=True)
    close()
