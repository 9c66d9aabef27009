"""Control's end of the channel to the master, in asyncio."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable

from fastside.channel import Channel, ChannelClosed, ChannelError, Message


class MasterGone(Exception):
    """The master does not answer any more: it died, or broke the channel."""

    def __init__(self) -> None:
        super().__init__("the master process is gone; calls are forwarded as before, but nothing can be changed")


class Refused(Exception):
    """The master refused a request; str() says why."""


REFUSALS = {"refused", "reload_failed"}


class MasterLink:
    """Sends requests and awaits their answers; passes on what the master says by itself.

    on_message is called with messages that answer no request, on_gone once at the end of the channel.
    """

    def __init__(self, sock: socket.socket, on_message: Callable[[Message], None], on_gone: Callable[[], None]) -> None:
        self.connected = True
        self._channel = Channel(sock)
        self._on_message = on_message
        self._on_gone = on_gone
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Message]] = {}
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._channel.fileno(), self._readable)

    async def request(self, op: str, **fields: object) -> Message:
        """Send a request and return its answer. Raises Refused or MasterGone."""
        number = next(self._ids)
        answer: asyncio.Future[Message] = self._loop.create_future()
        self._answers[number] = answer
        try:
            self.tell(op, id=number, **fields)
            message = await answer
        finally:
            del self._answers[number]
        if message["op"] in REFUSALS:
            raise Refused(str(message["error"]))
        return message

    def tell(self, op: str, **fields: object) -> None:
        """Send a message that has no answer. Raises MasterGone."""
        if not self.connected:
            raise MasterGone
        try:
            self._channel.send({"op": op, **fields})
        except ChannelClosed:
            self._end()
            raise MasterGone from None
        if self._channel.pending:
            self._loop.add_writer(self._channel.fileno(), self._writable)

    def close(self) -> None:
        """Let go of the channel without telling anybody."""
        if self.connected:
            self.connected = False
            self._loop.remove_reader(self._channel.fileno())
            self._loop.remove_writer(self._channel.fileno())
            self._channel.close()

    def _readable(self) -> None:
        try:
            messages = self._channel.receive()
        except ChannelError:
            self._end()
            return
        for message in messages:
            answer = self._answers.get(message.get("id", 0))
            if answer is None:
                self._on_message(message)
            elif not answer.done():
                answer.set_result(message)

    def _writable(self) -> None:
        try:
            self._channel.flush()
        except ChannelClosed:
            self._end()
            return
        if not self._channel.pending:
            self._loop.remove_writer(self._channel.fileno())

    def _end(self) -> None:
        if self.connected:
            self.close()
            for answer in self._answers.values():
                if not answer.done():
                    answer.set_exception(MasterGone())
            self._on_gone()
