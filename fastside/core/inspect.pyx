# Read-only views of a worker's connections, for `fastside conns`. The worker is not asked: it may change a record while
# it is read, so a record is dropped when its generation moved meanwhile.

KIND_NAMES = ("free", "http downstream", "http upstream", "tcp downstream", "tcp upstream", "closing",
              "multiplexed downstream", "multiplexed upstream", "new", "tls downstream")
assert len(KIND_NAMES) == CONN_KINDS
STATE_NAMES = ("idle", "exchange", "connecting", "pooled")


cdef object socket_text(const uint8_t *ip, uint8_t family, uint16_t port):
    import socket
    if family == 6:
        return f"[{socket.inet_ntop(socket.AF_INET6, ip[:16])}]:{ntohs(port)}"
    return f"{socket.inet_ntop(socket.AF_INET, ip[:4])}:{ntohs(port)}"


def hash_key(key: bytes) -> int:
    """What consistent hashing makes of a header's value, or of a source address as 16 bytes (IPv4: 12 zeros behind)."""
    cdef const uint8_t *p = key
    return hash_bytes(p, <uint32_t> len(key), 0)


def connections(Table table, uint32_t slot):
    """The connections of a worker: list of dict with index, kind, state, address, peer (index or None), age_ms, bytes
    (sent by that side), buffer (bool), pipe (bool), inbound (bool)."""
    cdef const Connection *first
    cdef Connection c
    cdef const Address *addresses = <const Address *> (table.shm.table + table.shm.head.addresses)
    cdef uint32_t i
    cdef timespec now
    if slot >= table.shm.live.workers:
        raise ValueError(f"slot {slot} is out of range; this sidecar has {table.shm.live.workers} workers")
    first = (<const Connection *> (table.shm.state + table.shm.live.connections)
             + <size_t> slot * table.shm.live.max_connections)
    clock_gettime(CLOCK_MONOTONIC, &now)
    now_ms = now.tv_sec * 1000 + now.tv_nsec // 1000000
    result = []
    for i in range(table.shm.live.max_connections):
        if first[i].gen == 0:           # slots are taken in order: none beyond was ever used
            break
        c = first[i]
        if c.kind == CONN_FREE or c.kind >= CONN_KINDS or c.state > ST_POOLED or c.gen != first[i].gen:
            continue
        if c.kind in (CONN_HTTP_UP, CONN_TCP_UP, CONN_FRAME_UP):
            if c.address >= table.shm.head.max_addresses:
                continue
            address = socket_text(addresses[c.address].ip, addresses[c.address].family, addresses[c.address].port)
            state = "waiting" if c.state == ST_HEAD else STATE_NAMES[c.state]
        else:
            address = socket_text(c.peer_ip, c.peer_family, c.peer_port)
            state = STATE_NAMES[c.state]
        result.append({
            "index": i, "kind": KIND_NAMES[c.kind], "state": state, "address": address,
            "peer": None if c.peer == NONE else c.peer, "age_ms": max(0, now_ms - <object> c.since), "bytes": c.bytes,
            "buffer": c.buffer != NULL, "pipe": c.pipe != NULL, "inbound": c.direction == INBOUND,
        })
    return result
