COUNTER_NAMES = (
    "accepted", "handed_over", "taken_over", "requests",
    "upstream_connects", "upstream_reuses", "upstream_connect_failures", "upstream_stale", "retries",
    "route_misses", "no_endpoints", "loops",
    "timeout_connect", "timeout_header", "timeout_request", "timeout_keepalive", "timeout_idle", "timeout_half_close",
    "close_done", "close_downstream_eof", "close_downstream_reset", "close_upstream", "close_timeout", "close_refused",
    "close_drain",
    "bytes_copied", "bytes_spliced", "buffer_waits", "accept_pauses",
    "heartbeats", "overloads", "late_responses", "batches",
)
GAUGE_NAMES = ("downstreams", "upstreams", "pooled", "buffers", "pipes", "calls")
assert len(COUNTER_NAMES) == C_COUNTERS and len(COUNTER_NAMES) + len(GAUGE_NAMES) == C_STATISTICS
assert C_REJECTS + len(REJECT_REASONS) <= C_FRAME_REASONS and C_FRAME_REASONS + BAD_END - FRAME_BAD <= COUNTERS


cdef inline ServiceStats *stats_of(const Shm *shm, uint32_t slot, uint32_t stat_slot) noexcept nogil:
    cdef ServiceStats *all = <ServiceStats *> (shm.state + shm.live.service_stats)
    return all + (<size_t> slot * shm.live.stat_slots + stat_slot)


cdef inline ServiceStats *stats_for(const Worker *w, uint32_t sid, uint32_t sid_gen) noexcept nogil:
    """Where to count what was done for a service; under "other" if there is none, or it has left the table since."""
    cdef const Service *service = NULL if sid == NONE else table_by_sid(&w.shm, sid, sid_gen)
    return stats_of(&w.shm, w.slot, 0 if service == NULL else service.stat_slot)


cdef inline uint32_t histogram_bucket(uint64_t us) noexcept nogil:
    """Log-linear: exact below 8 us, then 8 buckets per octave, the last one open-ended above 67 s."""
    cdef uint32_t exponent
    if us < 8:
        return <uint32_t> us
    if us >= (<uint64_t> 1 << 26):
        return HISTOGRAM_BUCKETS - 1
    exponent = 63 - fs_clz_u64(us)
    return ((exponent - 3) << 3) + <uint32_t> (us >> (exponent - 3))


def histogram_bounds():
    """Upper bounds (exclusive) of the latency histogram's buckets, in microseconds: a list of int."""
    bounds = []
    for i in range(HISTOGRAM_BUCKETS):
        bounds.append(i + 1 if i < 8 else (i % 8 + 9) << (i // 8 - 1))
    return bounds


def counters(Table table, slot=None):
    """Counters and gauges of one worker slot, or summed over all of them.

    Returns a dict of name -> int; refused messages by reason are under "rejects" (HTTP) and
    "frame_rejects" (multiplexed protocols), dicts of reason -> int.
    """
    cdef uint32_t first = 0, last = table.shm.live.workers, i, k
    cdef const WorkerBlock *blocks = <const WorkerBlock *> (table.shm.state + table.shm.live.blocks)
    if slot is not None:
        if not 0 <= slot < last:
            raise ValueError(f"slot {slot} is out of range; this sidecar has {last} workers")
        first = slot
        last = first + 1
    result = dict.fromkeys(COUNTER_NAMES + GAUGE_NAMES, 0)
    rejects = dict.fromkeys(REJECT_REASONS, 0)
    frame_rejects = dict.fromkeys(FRAME_REASONS, 0)
    for i in range(first, last):
        for k, name in enumerate(COUNTER_NAMES + GAUGE_NAMES):
            result[name] += blocks[i].counters[k]
        for k, name in enumerate(REJECT_REASONS):
            rejects[name] += blocks[i].counters[C_REJECTS + k]
        for k, name in enumerate(FRAME_REASONS):
            frame_rejects[name] += blocks[i].counters[C_FRAME_REASONS + k]
    result["rejects"] = rejects
    result["frame_rejects"] = frame_rejects
    return result


def service_stats(Table table):
    """RED figures per service that has series of its own, summed over the workers, and those of "other" (slot 0).

    Returns a list of dict: direction, service, protocol, stat_slot, responses (6 int, by class of status, [0] = none
    given), statuses (of protocols with statuses of their own: those that came, name -> int),
    bytes_received, bytes_sent, duration_us (sums) and histogram (HISTOGRAM_BUCKETS counts, see histogram_bounds).
    """
    cdef Snapshot copy
    cdef uint32_t sid
    named = {0: (None, "other", None)}
    memset(&copy, 0, sizeof(copy))
    for sid in range(min(table.shm.head.sid_limit, table.shm.head.max_services)):
        if read_sid(&table.shm, sid, &copy) == FOUND and copy.service.stat_slot:
            named[copy.service.stat_slot] = (
                "inbound" if copy.service.direction == INBOUND else "outbound",
                (<const char *> copy.text)[:copy.service.key_len].decode("utf-8", "replace"),
                PROTOCOLS[copy.service.protocol])
    return [_sum_stats(table, slot, direction, service, protocol)
            for slot, (direction, service, protocol) in named.items()]


STATUS_NAMES = {"bolt": BOLT_STATUSES, "dubbo": DUBBO_STATUSES}


cdef dict _sum_stats(Table table, uint32_t stat_slot, direction, service, protocol):
    cdef const ServiceStats *one
    cdef uint32_t i, k
    responses = [0] * 6
    histogram = [0] * HISTOGRAM_BUCKETS
    statuses = [0] * 16
    received = sent = duration = 0
    for i in range(table.shm.live.workers):
        one = stats_of(&table.shm, i, stat_slot)
        for k in range(6):
            responses[k] += one.responses[k]
        for k in range(16):
            statuses[k] += one.statuses[k]
        for k in range(HISTOGRAM_BUCKETS):
            histogram[k] += one.histogram[k]
        received += one.bytes_received
        sent += one.bytes_sent
        duration += one.duration_us
    names = STATUS_NAMES.get(protocol, ())
    return {"direction": direction, "service": service, "protocol": protocol, "stat_slot": stat_slot,
            "responses": responses, "statuses": {name: count for name, count in zip(names, statuses) if count},
            "bytes_received": received, "bytes_sent": sent, "duration_us": duration, "histogram": histogram}
