"""What an idle connection costs in user memory, and how connections spread over the workers."""

from __future__ import annotations

from bench import measure
from bench.cells import Load
from bench.peers import SERVICES, Peer
from bench.place import LOAD_CPU, Place


def bytes_per_connection(place: Place, peer: Peer, count: int) -> float:
    """Return the growth of PSS in bytes per idle HTTP connection that has made one exchange.

    To be called once per fresh forwarder: what it keeps of a first call would be missing from a second.
    """
    assert peer.pid
    warm_up = Load(place, ["-m", "hold", "-c", "16", "-s", ",".join(SERVICES)], peer.ports.http[0], LOAD_CPU)
    warm_up.end()
    before = measure.pss_bytes(peer.pid)
    load = Load(place, ["-m", "hold", "-c", str(count), "-s", ",".join(SERVICES)], peer.ports.http[0], LOAD_CPU)
    after = measure.pss_bytes(peer.pid)
    load.end()
    return (after - before) / count


def spread(place: Place, peer: Peer, count: int) -> list[int]:
    """Open `count` connections, make one exchange on each and return how many each worker holds, the most first.

    A worker is a process that holds at least one; a shorter list than there are workers means that some hold none.
    """
    assert peer.pid
    load = Load(place, ["-m", "hold", "-c", str(count), "-s", ",".join(SERVICES)], peer.ports.http[0], None)
    held = measure.connections_per_process(peer.pid, peer.ports.http[0])
    load.end()
    return sorted((number for number in held.values() if number), reverse=True)
