# Timer wheel. A deadline is only written into its connection; the connection stays where it is linked and is looked at
# again when that slot comes up, so that pushing a deadline back (the usual case, once per request) costs one store.

cdef inline uint64_t tick_of(uint64_t ms) noexcept nogil:
    return ms // TICK_MS


cdef inline void timer_link(Worker *w, Connection *c, uint64_t tick) noexcept nogil:
    cdef uint32_t slot, me = <uint32_t> (c - w.connections), first
    if tick < w.wheel_tick:
        tick = w.wheel_tick
    if tick >= w.wheel_tick + WHEEL_SLOTS:
        tick = w.wheel_tick + WHEEL_SLOTS - 2       # not the slot that timers_run is emptying
    slot = tick % WHEEL_SLOTS
    first = w.wheel[slot]
    c.timer_slot = slot
    c.timer_at = tick
    c.timer_previous = NONE
    c.timer_next = first
    if first != NONE:
        w.connections[first].timer_previous = me
    w.wheel[slot] = me
    w.wheel_used[slot >> 6] |= <uint64_t> 1 << (slot & 63)
    c.flags |= F_TIMED


cdef inline void timer_unlink(Worker *w, Connection *c) noexcept nogil:
    if not c.flags & F_TIMED:
        return
    if c.timer_previous != NONE:
        w.connections[c.timer_previous].timer_next = c.timer_next
    else:
        w.wheel[c.timer_slot] = c.timer_next
        if c.timer_next == NONE:
            w.wheel_used[c.timer_slot >> 6] &= ~(<uint64_t> 1 << (c.timer_slot & 63))
    if c.timer_next != NONE:
        w.connections[c.timer_next].timer_previous = c.timer_previous
    c.flags &= ~<uint32_t> F_TIMED


cdef inline void timer_set(Worker *w, Connection *c, uint32_t after_ms) noexcept nogil:
    """Expires at now + after_ms at the earliest, one tick later at the latest; 0 = never."""
    cdef uint64_t tick
    if after_ms == 0:
        c.deadline = 0
        return
    c.deadline = w.now_ms + after_ms
    tick = tick_of(c.deadline) + 1
    if c.flags & F_TIMED:
        if c.timer_at <= tick:
            return
        timer_unlink(w, c)
    timer_link(w, c, tick)


cdef inline uint32_t idle_ms(const Worker *w) noexcept nogil:
    """How long an HTTP downstream may wait for its next request."""
    return DRAIN_IDLE_MS if w.draining else w.settings[SET_KEEPALIVE_MS]


cdef int timer_sleep_ms(const Worker *w) noexcept nogil:
    """How long the loop may sleep: until the next slot in use, at most 5 s so that the heartbeat shows life."""
    cdef uint32_t start = w.wheel_tick % WHEEL_SLOTS, word, i
    cdef uint64_t bits, tick
    cdef uint32_t limit = 5000
    for i in range(9):
        word = ((start >> 6) + i) & 7
        bits = w.wheel_used[word]
        if i == 0:
            bits &= ~<uint64_t> 0 << (start & 63)
        elif i == 8:
            bits &= ~(~<uint64_t> 0 << (start & 63))
        if bits:
            tick = w.wheel_tick + (((word << 6) + fs_ctz_u64(bits) - start) & (WHEEL_SLOTS - 1))
            if tick * TICK_MS <= w.now_ms:
                return 0
            if tick * TICK_MS - w.now_ms < limit:
                return <int> (tick * TICK_MS - w.now_ms)
            return limit
    return limit


cdef void timers_run(Worker *w) noexcept nogil:
    cdef uint64_t current = tick_of(w.now_ms)
    cdef uint32_t slot, index
    cdef Connection *c
    if current >= w.wheel_tick + WHEEL_SLOTS:       # after a long stop (SIGSTOP): one round sees every slot
        w.wheel_tick = current - WHEEL_SLOTS + 1
    while w.wheel_tick <= current:
        slot = w.wheel_tick % WHEEL_SLOTS
        w.wheel_tick += 1                           # before the links below: what is not due goes to a later slot
        while w.wheel[slot] != NONE:
            index = w.wheel[slot]
            c = w.connections + index
            timer_unlink(w, c)
            if c.deadline == 0:
                continue
            if c.deadline > w.now_ms:
                timer_link(w, c, tick_of(c.deadline) + 1)
                continue
            c.deadline = 0
            connection_expired(w, c)
