"""The channel between master and control: msgpack maps, back to back, over one non-blocking stream socket.

Both ends drive the same class, the master from its selector and control from asyncio's ``add_reader``:

* when ``fileno()`` is readable, call ``receive()`` and handle what it returns;
* after ``send()``, and when ``fileno()`` is writable, call ``flush()`` while ``pending`` is true.

Nothing here waits, and both directions are bounded.
"""

from __future__ import annotations

import socket
from typing import Any

import msgpack  # type: ignore[import-untyped]

Message = dict[str, Any]

LIMIT = 16 << 20
"""Bytes of the largest message, and of what may wait to be written."""

_READ_BYTES = 256 << 10
_READS_PER_CALL = 8  # so that one busy peer cannot hold up the caller's loop


class ChannelError(Exception):
    """The peer broke the channel's rules: not msgpack maps, or a message beyond ``LIMIT``. Close the channel."""


class ChannelFull(ChannelError):
    """The peer does not read: ``LIMIT`` bytes wait already. The message was not taken; the channel stays usable."""


class ChannelClosed(ChannelError):
    """The peer closed its end, or died."""


class Decoder:
    """Cuts a byte stream into messages. Raises ChannelError for anything but maps of at most ``limit`` bytes."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._unpacker = msgpack.Unpacker(max_buffer_size=limit)

    def feed(self, data: bytes) -> list[Message]:
        """The messages that ``data`` completes, in order."""
        try:
            self._unpacker.feed(data)
            messages = list(self._unpacker)
        except (msgpack.UnpackException, ValueError) as error:
            raise ChannelError(f"unreadable data on the control channel: {error or type(error).__name__}") from error
        for message in messages:
            if not isinstance(message, dict):
                raise ChannelError(f"a message on the control channel is a {type(message).__name__}, not a map")
        return messages


class Channel:
    """One end of the channel. Takes over ``sock`` and makes it non-blocking."""

    def __init__(self, sock: socket.socket, limit: int = LIMIT) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._limit = limit
        self._decoder = Decoder(limit)
        self._out = bytearray()

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def pending(self) -> bool:
        """True while bytes wait for the socket to become writable."""
        return bool(self._out)

    def receive(self) -> list[Message]:
        """Reads what has arrived; may return no message yet.

        A bounded amount is read per call, and the socket stays readable when there is more. Raises ChannelClosed at the
        end of the stream, ChannelError for unreadable data. Messages that came before the end are returned first.
        """
        messages: list[Message] = []
        for _ in range(_READS_PER_CALL):
            try:
                data = self._sock.recv(_READ_BYTES)
            except BlockingIOError:
                break
            except ConnectionError:
                data = b""
            if not data:
                if messages:
                    break  # the next call sees the end again
                raise ChannelClosed("the other end of the control channel is closed")
            messages += self._decoder.feed(data)
        return messages

    def send(self, message: Message) -> None:
        """Queues a message and writes what the socket takes. Raises ChannelFull or ChannelClosed."""
        data = msgpack.packb(message)
        if len(self._out) + len(data) > self._limit:
            raise ChannelFull(
                f"a message of {len(data)} bytes does not fit the control channel: "
                f"{len(self._out)} of {self._limit} bytes already wait"
            )
        self._out += data
        self.flush()

    def flush(self) -> None:
        """Writes as much as the socket takes. Raises ChannelClosed."""
        while self._out:
            try:
                sent = self._sock.send(self._out)
            except BlockingIOError:
                return
            except ConnectionError as error:
                raise ChannelClosed("the other end of the control channel is closed") from error
            del self._out[:sent]

    def close(self) -> None:
        self._sock.close()
