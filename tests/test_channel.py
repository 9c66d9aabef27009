"""The control channel over a real socketpair."""

from __future__ import annotations

import socket

import msgpack
import pytest

from fastside.channel import Channel, ChannelClosed, ChannelError, ChannelFull, Decoder


@pytest.fixture
def ends():
    left, right = socket.socketpair()
    yield Channel(left), Channel(right)
    left.close()
    right.close()


def test_messages_arrive_in_order(ends):
    left, right = ends
    sent = [
        {"op": "apply", "id": n, "updates": [{"service": "svc-a", "endpoints": [["10.0.0.1", 80, 1]]}]}
        for n in range(50)
    ]
    for message in sent:
        left.send(message)
    assert not left.pending
    assert right.receive() == sent
    assert right.receive() == []


def test_a_message_larger_than_the_socket_buffer_needs_flushes(ends):
    left, right = ends
    big = {"op": "apply", "blob": "x" * (4 << 20)}
    left.send(big)
    assert left.pending
    got = []
    while left.pending or not got:
        got += right.receive()
        left.flush()
    assert got == [big]


def test_a_message_cut_at_every_byte():
    data = msgpack.packb({"op": "ready"}) + msgpack.packb({"op": "stop"})
    for cut in range(len(data) + 1):
        decoder = Decoder()
        assert decoder.feed(data[:cut]) + decoder.feed(data[cut:]) == [{"op": "ready"}, {"op": "stop"}]


def test_messages_before_the_end_are_not_lost(ends):
    left, right = ends
    left.send({"op": "drain"})
    left.close()
    assert right.receive() == [{"op": "drain"}]
    with pytest.raises(ChannelClosed):
        right.receive()
    with pytest.raises(ChannelClosed):
        right.send({"op": "ready"})


def test_a_peer_that_does_not_read_is_noticed_and_the_queue_stays_whole():
    sock, peer = socket.socketpair()
    left, right = Channel(sock, limit=1 << 20), Channel(peer, limit=1 << 20)
    message = {"op": "workers", "pad": "x" * 100_000}
    taken = 0
    with pytest.raises(ChannelFull):
        while True:
            left.send(message)
            taken += 1
    got = []
    while len(got) < taken:
        got += right.receive()
        left.flush()
    assert got == [message] * taken
    left.close()
    right.close()


@pytest.mark.parametrize(
    "data", [b"\xc1", msgpack.packb([1]), msgpack.packb(7), b"\x81\xa1\xff\x01", b"\xdd\xff\xff\xff\xff"]
)
def test_what_is_not_a_map_is_refused(data):
    with pytest.raises(ChannelError):
        Decoder().feed(data)


def test_a_message_beyond_the_limit_is_refused():
    decoder = Decoder(limit=1000)
    with pytest.raises(ChannelError):
        for _ in range(3):
            decoder.feed(b"\xc6\x00\x00\x08\x00" + b"x" * 500)
