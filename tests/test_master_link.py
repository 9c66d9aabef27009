"""Control's end of the channel, with the other end in the test's hands."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest

from fastside.channel import Channel, Message
from fastside.master_link import MasterGone, MasterLink, Refused
from registry_process import eventually


class Ends:
    """A link, the master's end, and what the link reported."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.master = Channel(theirs)
        self.messages: list[Message] = []
        self.gone = 0
        self.link = MasterLink(ours, self.messages.append, self._on_gone)

    def _on_gone(self) -> None:
        self.gone += 1

    async def request(self) -> Message:
        """The next request that the master sees."""
        (message,) = await eventually(self.master.receive)
        return message

    def close(self) -> None:
        self.link.close()
        self.master.close()


@pytest.fixture
async def ends() -> Iterator[Ends]:
    both = Ends()
    yield both
    both.close()


async def test_answers_find_their_requests(ends):
    first = asyncio.create_task(ends.link.request("status"))
    one = await ends.request()
    second = asyncio.create_task(ends.link.request("apply", updates=[]))
    two = await ends.request()
    assert (one["op"], two["op"], two["updates"]) == ("status", "apply", [])
    ends.master.send({"op": "workers", "up": 1, "of": 2})
    ends.master.send({"op": "applied", "id": two["id"], "version": 7})
    ends.master.send({"op": "status", "id": one["id"], "workers": []})
    assert (await second)["version"] == 7
    assert (await first)["workers"] == []
    assert ends.messages == [{"op": "workers", "up": 1, "of": 2}]


@pytest.mark.parametrize("op", ["refused", "reload_failed"])
async def test_refusals_are_raised(ends, op):
    asked = asyncio.create_task(ends.link.request("apply", updates=[]))
    request = await ends.request()
    ends.master.send({"op": op, "id": request["id"], "error": "no room"})
    with pytest.raises(Refused, match="no room"):
        await asked


async def test_the_answer_to_a_request_that_was_given_up_is_no_news(ends):
    asked = asyncio.create_task(ends.link.request("status"))
    request = await ends.request()
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    ends.master.send({"op": "status", "id": request["id"]})
    ends.master.send({"op": "stop"})
    await eventually(lambda: {"op": "stop"} in ends.messages)
    assert ends.link.connected


async def test_a_master_that_reads_slowly_gets_everything(ends):
    updates = [{"blob": "x" * 1000}] * 2000
    asked = [asyncio.create_task(ends.link.request("apply", updates=updates)) for _ in range(5)]
    seen = 0
    while seen < 5:
        for message in ends.master.receive():
            seen += 1
            assert message["updates"] == updates
            ends.master.send({"op": "applied", "id": message["id"], "version": seen})
        await asyncio.sleep(0)
    assert [answer["version"] for answer in await asyncio.gather(*asked)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("end", ["death", "nonsense"])
async def test_the_end_of_the_master(ends, end):
    asked = asyncio.create_task(ends.link.request("status"))
    await ends.request()
    if end == "nonsense":
        ends.master._sock.send(b"\xc1")
    else:
        ends.master.close()
    with pytest.raises(MasterGone, match="calls are forwarded as before"):
        await asked
    assert (ends.gone, ends.link.connected) == (1, False)
    with pytest.raises(MasterGone):
        ends.link.tell("ready")
    with pytest.raises(MasterGone):
        await ends.link.request("status")
    assert ends.gone == 1
