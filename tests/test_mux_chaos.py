"""Many callers on few connections, on which anything may happen at once: each gets the answer to his own call."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter

import pytest

from bolt_frames import BUSY, CLOSED, SUCCESS, TIMEOUT, BoltFrame, missing, parse, request, response
from core_worker import Workers

SERVICES = ("com.x.a:1.0", "com.x.b:1.0", "com.x.c:1.0")
CONNECTIONS = 12
CALLS = 150
AT_ONCE = 30
SERVER_DOES = ["answers"] * 150 + ["answers late"] * 8 + ["never answers", "closes", "resets", "breaks off"]
CLIENT_DOES = ["waits"] * 100 + ["closes", "resets", "breaks off", "stops reading"]


def reset(writer: asyncio.StreamWriter) -> None:
    if writer.is_closing():
        return
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def content_of(name: str, size: int, *words: object) -> bytes:
    """Bytes that tell whose they are, wherever one looks; words are in front."""
    start = " ".join(map(str, (name, *words))).encode() + b"\n"
    return start + (f"<{name}>" * (size // (len(name) + 2) + 1)).encode()[:size]


async def read_frame(reader: asyncio.StreamReader) -> BoltFrame:
    data = b""
    while count := missing(data):
        data += await reader.readexactly(count)
    return parse(data)


class Chaos:
    """Callers and servers, with all that they may do to each other."""

    def __init__(self, seed: int) -> None:
        self.numbers = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.outcomes: Counter[int] = Counter()
        self.failures: list[BaseException] = []
        self.serving = 0

    def size(self) -> int:
        return int(2 ** self.numbers.uniform(0, 18))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving += 1
        answers: set[asyncio.Task[None]] = set()
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while not writer.is_closing():
                    frame = await read_frame(reader)
                    if frame.command == 0:
                        continue
                    answers.add(asyncio.create_task(self.answer(frame, writer)))
        except Exception as failure:
            self.failures.append(failure)
        finally:
            for result in await asyncio.gather(*answers, return_exceptions=True):
                if isinstance(result, BaseException) and not isinstance(result, ConnectionError):
                    self.failures.append(result)
            writer.close()
            self.serving -= 1

    async def answer(self, frame: BoltFrame, writer: asyncio.StreamWriter) -> None:
        words = frame.content[: frame.content.index(b"\n")].decode().split(" ", 3)
        name, sent, wanted, does = words[0], int(words[1]), int(words[2]), words[3]
        self.seen[name] += 1
        assert frame.content == content_of(name, sent, sent, wanted, does), "the request is another's"
        for _ in range(self.numbers.randrange(20)):
            await asyncio.sleep(0)
        if does == "answers late":
            await asyncio.sleep(0.6)
        if writer.is_closing():  # another call's doing
            return
        answer = response(frame, content_of(name, wanted))
        if does == "breaks off":
            writer.write(answer[: self.numbers.randrange(len(answer))])
        if does in ("closes", "breaks off"):
            writer.close()
        elif does == "resets":
            reset(writer)
        elif does.startswith("answers"):
            writer.write(answer)
            await writer.drain()

    async def connection(self, port: int, number: int) -> None:
        """Keeps AT_ONCE calls under way, one connection after the other."""
        left = list(range(number * CALLS, (number + 1) * CALLS))
        while left:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await self.call_all(reader, writer, left)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def call_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: list[int]) -> None:
        waiting: dict[int, tuple[str, int]] = {}
        while left or waiting:
            while left and len(waiting) < AT_ONCE:
                id = left.pop()
                name, sent, wanted = str(1_000_000 + id), self.size(), self.size()
                content = content_of(name, sent, sent, wanted, self.numbers.choice(SERVER_DOES))
                version = 1 if self.numbers.random() < 0.8 else 2
                data = request(
                    id, self.numbers.choice(SERVICES), content, timeout=400, version=version, crc=version == 2
                )
                does = self.numbers.choice(CLIENT_DOES)
                if does == "breaks off":
                    writer.write(data[: self.numbers.randrange(len(data))])
                else:
                    writer.write(data)
                if does == "resets":
                    reset(writer)
                if does in ("closes", "resets", "breaks off"):
                    return
                if does == "stops reading":
                    await asyncio.sleep(0.3)
                waiting[id] = name, wanted
            frame = await read_frame(reader)
            name, wanted = waiting.pop(frame.id)
            assert frame.status is not None
            self.outcomes[frame.status] += 1
            if frame.status == SUCCESS:
                assert frame.content == content_of(name, wanted), "the response is another's"
            else:
                assert frame.status in (CLOSED, TIMEOUT, BUSY)


@pytest.mark.parametrize(
    ("seed", "count", "max_connections", "settings"),
    [
        pytest.param(104, 1, 4096, {}, id="usual"),
        pytest.param(107, 1, 4096, {}, id="usual-again"),
        pytest.param(2, 2, 4096, {"splice_bytes": 1}, id="spliced"),
        pytest.param(3, 1, 64, {"buffers": 48, "splice_bytes": 65_536}, id="short-of-everything"),
    ],
)
async def test_each_caller_gets_the_answer_to_his_own_call(
    seed: int, count: int, max_connections: int, settings: dict[str, int]
) -> None:
    chaos = Chaos(seed)
    servers = [await asyncio.start_server(chaos.serve, "127.0.0.1", 0, limit=1 << 20) for _ in range(3)]
    addresses = [server.sockets[0].getsockname() for server in servers]
    settings = {"eject_failures": 0, "header_ms": 2000, **settings}
    listeners = [{"protocol": "bolt"}, {}]
    with Workers(count=count, listeners=listeners, settings=settings, max_connections=max_connections) as workers:
        for at, service in enumerate(SERVICES):
            workers.put(service, addresses[at:], protocol="bolt")
        port = workers.address()[1]
        async with asyncio.timeout(90):
            await asyncio.gather(*(chaos.connection(port, number) for number in range(CONNECTIONS)))
        await asyncio.to_thread(workers.wait_for, downstreams=0, buffers=0, pipes=0)
    for server in servers:
        server.close()
    while chaos.serving:  # the workers' end ends their connections
        await asyncio.sleep(0.01)
    assert not chaos.failures
    assert max(chaos.seen.values()) == 1, "a request came twice"
    assert chaos.outcomes[SUCCESS] > CONNECTIONS * CALLS // 8
    assert chaos.outcomes[CLOSED] > 0
    assert chaos.outcomes[TIMEOUT] > 0
