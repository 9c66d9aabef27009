"""Many connections on which anything may happen at once: nobody gets a byte that was meant for another."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
from collections import Counter

import pytest

from core_worker import SERVICE, Workers, head

CALLERS = 40
CALLS = 30
SERVER_DOES = ["answers"] * 6 + ["answers early", "closes after", "closes at once", "resets at once", "breaks off"]
SERVER_DOES += ["resets"]
CLIENT_DOES = ["reads"] * 8 + ["leaves", "resets", "stops sending", "reads slowly"]


class Broken(Exception):
    """The peer ended the exchange early, as it may here."""


def body_of(name: str, size: int) -> bytes:
    """Bytes that tell whose they are, wherever one looks."""
    return (f"<{name}>" * (size // (len(name) + 2) + 1)).encode()[:size]


def encoded(body: bytes, chunk: int) -> bytes:
    """A body in chunks of that size; 0 = as it is."""
    if not chunk:
        return body
    parts = (body[at : at + chunk] for at in range(0, len(body), chunk))
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def framing(size: int, chunk: int) -> str:
    return "Transfer-Encoding: chunked" if chunk else f"Content-Length: {size}"


def reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def read_head(reader: asyncio.StreamReader) -> tuple[str, dict[str, str]]:
    """First line and fields of the next message."""
    try:
        start, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Broken from error
    return start, dict(line.lower().split(": ", 1) for line in lines)


async def read_body(reader: asyncio.StreamReader, fields: dict[str, str], slowly: bool = False) -> bytes:
    body = b""
    try:
        if "transfer-encoding" in fields:
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                assert await reader.readexactly(2) == b"\r\n"
            assert await reader.readexactly(2) == b"\r\n"
        else:
            while left := int(fields.get("content-length", "0")) - len(body):
                body += await reader.readexactly(min(left, 4000) if slowly else left)
                await asyncio.sleep(0)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Broken from error
    return body


class Chaos:
    """Callers and the server that they call, with all that they may do to each other."""

    def __init__(self, seed: int) -> None:
        self.numbers = random.Random(seed)
        self.seen: Counter[str] = Counter()
        """Requests that reached the server, by name."""
        self.outcomes: Counter[str] = Counter()
        self.failures: list[Exception] = []
        self.serving = 0
        """Connections of the server."""

    def size(self) -> int:
        return int(2 ** self.numbers.uniform(0, 18))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving += 1
        try:
            with contextlib.suppress(Broken, ConnectionError):
                while await self.serve_one(reader, writer):
                    pass
            with contextlib.suppress(ConnectionError):
                writer.close()
                await writer.wait_closed()
        except Exception as failure:
            self.failures.append(failure)
        finally:
            self.serving -= 1

    async def serve_one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """False: the connection ends."""
        start, fields = await read_head(reader)
        match = re.fullmatch(r"POST /(\d+)/(\d+)/(\d+)/([a-z-]+) HTTP/1.1", start)
        assert match, start
        name, size, chunk, does = match[1], int(match[2]), int(match[3]), match[4].replace("-", " ")
        self.seen[name] += 1
        if does == "closes at once":
            return False
        if does == "resets at once":
            reset(writer)
            return False
        answer = head("HTTP/1.1 200 OK", f"X-Name: {name}", framing(size, chunk)) + encoded(body_of(name, size), chunk)
        if does == "answers early":
            writer.write(answer)
            await writer.drain()
        body = await read_body(reader, fields)
        assert body == body_of(name, len(body)), "the body is another's"
        if does in ("breaks off", "resets"):
            answer = answer[: len(answer) // 2]
        if does != "answers early":
            writer.write(answer)
            await writer.drain()
        if does == "resets":
            reset(writer)
        return does.startswith("answers")

    async def call_often(self, port: int, caller: int) -> None:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for call in range(CALLS):
            connection = connection or await asyncio.open_connection("127.0.0.1", port)
            goes_on = False
            with contextlib.suppress(Broken, ConnectionError):
                goes_on = await self.call(*connection, str(1_000_000 + caller * CALLS + call))
            if not goes_on or call == CALLS - 1:
                with contextlib.suppress(ConnectionError):
                    connection[1].close()
                    await connection[1].wait_closed()
                connection = None

    async def call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: str) -> bool:
        """False: the connection ends."""
        size, answer = self.size(), self.size()
        chunk, answer_chunk = (self.numbers.choice([0, 0, self.size() + 1]) for _ in range(2))
        server, client = self.numbers.choice(SERVER_DOES), self.numbers.choice(CLIENT_DOES)
        target = f"/{name}/{answer}/{answer_chunk}/{server.replace(' ', '-')}"
        data = head(f"POST {target} HTTP/1.1", "Host: svc", framing(size, chunk)) + encoded(body_of(name, size), chunk)
        if client == "stops sending":
            writer.write(data[: self.numbers.randrange(len(data))])
            writer.write_eof()
        else:
            writer.write(data)
        if client == "leaves":
            return False
        if client == "resets":
            reset(writer)
            return False
        start, fields = await read_head(reader)
        body = await read_body(reader, fields, client == "reads slowly")
        if start.endswith("200 OK"):
            assert fields["x-name"] == name, "the response is another's"
            assert body == body_of(name, answer), "the body is another's"
            self.outcomes["answered"] += 1
        else:
            assert start.startswith(("HTTP/1.1 502", "HTTP/1.1 503")), start
            self.outcomes["refused"] += 1
        return fields.get("connection") != "close"


@pytest.mark.parametrize(
    ("seed", "count", "max_connections", "settings"),
    [
        pytest.param(1, 1, 4096, {}, id="usual"),
        pytest.param(2, 2, 4096, {"splice_bytes": 1, "pool_size": 3}, id="spliced"),
        pytest.param(3, 1, 60, {"buffers": 10, "splice_bytes": 65_536}, id="short-of-everything"),
    ],
)
async def test_nobody_gets_what_is_not_his(
    seed: int, count: int, max_connections: int, settings: dict[str, int]
) -> None:
    chaos = Chaos(seed)
    server = await asyncio.start_server(chaos.serve, "127.0.0.1", 0, limit=1 << 20)
    address = server.sockets[0].getsockname()
    settings = {"eject_failures": 0, **settings}
    with Workers({SERVICE: [address]}, count=count, settings=settings, max_connections=max_connections) as workers:
        port = workers.address()[1]
        async with asyncio.timeout(60):
            await asyncio.gather(*(chaos.call_often(port, caller) for caller in range(CALLERS)))
        await asyncio.to_thread(workers.wait_idle)
    server.close()
    while chaos.serving:  # the workers' end ends their connections
        await asyncio.sleep(0.01)
    assert not chaos.failures
    assert set(chaos.seen.values()) == {1}, "a request came twice"
    assert chaos.outcomes["answered"] > CALLERS * CALLS // 4
    assert chaos.outcomes["refused"] > 0
