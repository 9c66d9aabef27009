# Calls under way on multiplexed connections. A call's index is in the id that its request has on the upstream
# connection, so that its response finds it without a search.
#
# A call whose caller has gone, or was told of a timeout, stays until its response comes or its upstream connection
# ends: its id must not be given to another call while the server may still answer it.

cdef enum:
    CALL_BITS = 18
    MAX_CALLS = 1 << CALL_BITS  # of one worker
    CALL_ROUNDS = 1 << (31 - CALL_BITS)     # ids stay positive as 32-bit numbers
    CALL_NO_ID = 0x7FFFFFFF     # of one-way requests; the last index is never used
    CALL_WHEEL = 512


cdef inline Mux *mux_of(const Worker *w, const Connection *c) noexcept nogil:
    return w.mux + (c - w.connections)


cdef inline uint32_t call_id(const Worker *w, const Call *call) noexcept nogil:
    return (call.round << CALL_BITS) | <uint32_t> (call - w.calls)


cdef inline Call *call_find(const Worker *w, const Connection *u, uint64_t id) noexcept nogil:
    """The call that a response on u is for, or NULL."""
    cdef uint32_t index = <uint32_t> (id & (MAX_CALLS - 1))
    cdef Call *call = w.calls + index
    if index >= w.calls_fresh or call.upstream != index_of(w, u) or id >> CALL_BITS != call.round:
        return NULL
    return call


cdef Call *call_new(Worker *w, const Connection *d, const Frame *f, const Service *service) noexcept nogil:
    """A call of d's, not yet on an upstream connection; NULL when too many are under way."""
    cdef Call *call
    cdef Mux *m = mux_of(w, d)
    if w.free_call != NONE:
        call = w.calls + w.free_call
        w.free_call = call.up_next
    elif w.calls_fresh < MAX_CALLS - 1:
        call = w.calls + w.calls_fresh
        w.calls_fresh += 1
    else:
        return NULL
    call.caller_id = f.id
    call.begun_us = w.now_us
    call.upstream = call.timer_slot = NONE
    call.sid = service.sid
    call.sid_gen = service.sid_gen
    call.tried_count = 0
    call.version = f.version
    call.serialization = f.serialization
    call.flags = f.flags
    call.command = f.command
    call.downstream = index_of(w, d)
    call.down_previous = NONE
    call.down_next = m.calls
    if m.calls != NONE:
        w.calls[m.calls].down_previous = <uint32_t> (call - w.calls)
    m.calls = <uint32_t> (call - w.calls)
    m.outstanding += 1
    w.block.counters[G_CALLS] += 1
    return call


cdef void call_send(Worker *w, Call *call, Connection *u) noexcept nogil:
    """Counts the call on u."""
    cdef Mux *m = mux_of(w, u)
    call.upstream = index_of(w, u)
    call.up_previous = NONE
    call.up_next = m.calls
    if m.calls != NONE:
        w.calls[m.calls].up_previous = <uint32_t> (call - w.calls)
    m.calls = <uint32_t> (call - w.calls)
    m.outstanding += 1
    w.inflight[u.address] += 1


cdef void call_unsend(Worker *w, Call *call) noexcept nogil:
    cdef Connection *u
    cdef Mux *m
    if call.upstream == NONE:
        return
    u = w.connections + call.upstream
    m = mux_of(w, u)
    if call.up_previous != NONE:
        w.calls[call.up_previous].up_next = call.up_next
    else:
        m.calls = call.up_next
    if call.up_next != NONE:
        w.calls[call.up_next].up_previous = call.up_previous
    m.outstanding -= 1
    w.inflight[u.address] -= 1
    call.upstream = NONE


cdef void call_leave(Worker *w, Call *call) noexcept nogil:
    """Nobody waits for the response any more."""
    cdef Mux *m = w.mux + call.downstream
    if call.down_previous != NONE:
        w.calls[call.down_previous].down_next = call.down_next
    else:
        m.calls = call.down_next
    if call.down_next != NONE:
        w.calls[call.down_next].down_previous = call.down_previous
    m.outstanding -= 1
    call.downstream = NONE
    call_untime(w, call)
    if call.upstream != NONE:
        w.mux[call.upstream].abandoned += 1


cdef void call_end(Worker *w, Call *call) noexcept nogil:
    if call.downstream != NONE:
        call_leave(w, call)
    if call.upstream != NONE:
        w.mux[call.upstream].abandoned -= 1
        call_unsend(w, call)
    call.round = (call.round + 1) & (CALL_ROUNDS - 1)
    call.up_next = w.free_call
    w.free_call = <uint32_t> (call - w.calls)
    w.block.counters[G_CALLS] -= 1


cdef void call_time(Worker *w, Call *call, uint32_t ms) noexcept nogil:
    """The call times out in ms, one tick later at the latest."""
    cdef uint64_t tick
    cdef uint32_t first
    call.deadline_ms = w.now_ms + ms
    tick = tick_of(call.deadline_ms) + 1
    if w.calls_timed == 0:
        w.call_tick = tick_of(w.now_ms)
    if tick >= w.call_tick + CALL_WHEEL:
        tick = w.call_tick + CALL_WHEEL - 1
    call.timer_slot = tick % CALL_WHEEL
    first = w.call_wheel[call.timer_slot]
    call.timer_previous = NONE
    call.timer_next = first
    if first != NONE:
        w.calls[first].timer_previous = <uint32_t> (call - w.calls)
    w.call_wheel[call.timer_slot] = <uint32_t> (call - w.calls)
    w.calls_timed += 1


cdef void call_untime(Worker *w, Call *call) noexcept nogil:
    if call.timer_slot == NONE:
        return
    if call.timer_previous != NONE:
        w.calls[call.timer_previous].timer_next = call.timer_next
    else:
        w.call_wheel[call.timer_slot] = call.timer_next
    if call.timer_next != NONE:
        w.calls[call.timer_next].timer_previous = call.timer_previous
    call.timer_slot = NONE
    w.calls_timed -= 1


cdef void calls_expire(Worker *w) noexcept nogil:
    """Ends the calls whose time is over. Those of a slot that are due only in a later round are put back."""
    cdef uint64_t current = tick_of(w.now_ms)
    cdef uint32_t at, next
    cdef Call *call
    if current >= w.call_tick + CALL_WHEEL:         # after a long stop one round sees every slot
        w.call_tick = current - CALL_WHEEL + 1
    while w.calls_timed and w.call_tick <= current:
        at = w.call_wheel[w.call_tick % CALL_WHEEL]
        w.call_tick += 1
        while at != NONE:
            call = w.calls + at
            next = call.timer_next
            call_untime(w, call)
            if call.deadline_ms > w.now_ms:
                call_time(w, call, <uint32_t> (call.deadline_ms - w.now_ms))
            else:
                call_expired(w, call)
            at = next
