# The worker's event loop.

cdef void take_time(Worker *w) noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    w.now_us = <uint64_t> now.tv_sec * 1000000 + <uint64_t> now.tv_nsec // 1000
    w.now_ms = w.now_us // 1000


cdef void connection_run(Worker *w, Connection *c) noexcept nogil:
    """Goes on with a connection after its readiness changed."""
    cdef Connection *peer
    if c.kind == CONN_HTTP_DOWN:
        http_run(w, c)
    elif c.kind == CONN_TCP_DOWN:
        relay_run(w, c)
    elif c.kind == CONN_FRAME_DOWN or c.kind == CONN_FRAME_UP:
        frames_run(w, c)
    elif c.kind == CONN_NEW_DOWN:
        greet_run(w, c)
    elif c.kind == CONN_TLS_DOWN:
        tls_run(w, c)
    elif c.kind == CONN_LINGER:
        linger_run(w, c)
    elif c.kind != CONN_FREE and c.state != ST_POOLED:      # it may have been queued before its exchange ended
        peer = peer_of(w, c)
        if peer == NULL:
            connection_close(w, c)
        elif c.kind == CONN_HTTP_UP:
            http_run(w, peer)
        elif peer.kind == CONN_NEW_DOWN:
            greet_run(w, peer)
        else:
            relay_run(w, peer)


cdef void connection_expired(Worker *w, Connection *c) noexcept nogil:
    """c's deadline passed."""
    cdef Connection *d = c if is_downstream(c) else peer_of(w, c)
    if c.kind == CONN_LINGER or c.state == ST_POOLED:
        connection_close(w, c)
    elif c.kind == CONN_HTTP_UP:
        w.block.counters[C_TIMEOUT_CONNECT] += 1
        if exchange_connect_failed(w, d):
            http_run(w, d)
    elif c.kind == CONN_TCP_UP:
        w.block.counters[C_TIMEOUT_CONNECT] += 1
        if d.kind == CONN_NEW_DOWN:
            greet_connect_failed(w, d)
        else:
            relay_retry(w, d)
    elif c.kind == CONN_FRAME_DOWN or c.kind == CONN_FRAME_UP:
        frames_expired(w, c)
    elif c.kind == CONN_NEW_DOWN or c.kind == CONN_TLS_DOWN:
        greet_expired(w, c)
    elif c.kind == CONN_TCP_DOWN:
        relay_expired(w, c)
    else:
        downstream_expired(w, c)


cdef void relay_expired(Worker *w, Connection *d) noexcept nogil:
    cdef Connection *u = peer_of(w, d)
    cdef bint half = d.flags & F_SENT or (u != NULL and u.flags & F_SENT)
    w.block.counters[C_TIMEOUT_HALF_CLOSE if half else C_TIMEOUT_IDLE] += 1
    w.block.counters[C_CLOSE_TIMEOUT] += 1
    reset_on_close(d)
    if u != NULL:
        reset_on_close(u)
    relay_end(w, d)


cdef void downstream_expired(Worker *w, Connection *d) noexcept nogil:
    cdef Text body
    if d.state == ST_HEAD and d.start == d.end:
        if w.draining:
            w.block.counters[C_CLOSE_DRAIN] += 1
        else:
            w.block.counters[C_TIMEOUT_KEEPALIVE] += 1
            w.block.counters[C_CLOSE_TIMEOUT] += 1
        connection_close(w, d)
    elif d.state == ST_HEAD:
        w.block.counters[C_TIMEOUT_HEADER] += 1
        body.length = 0
        text_say(&body, b"fastside: the request head did not arrive in time\n")
        d.flags |= F_CLOSE
        respond(w, d, 408, &body)
    elif d.flags & F_SENT and not d.flags & F_ANSWERED:
        w.block.counters[C_TIMEOUT_REQUEST] += 1
        upstream_drop(w, d)
        if fail(w, d, 504, b"the server did not answer in time"):
            http_run(w, d)
    else:
        w.block.counters[C_TIMEOUT_IDLE] += 1
        exchange_abort(w, d, C_CLOSE_TIMEOUT)


cdef inline Connection *event_target(const Worker *w, const epoll_event *event) noexcept nogil:
    """The connection an event is for; NULL for other descriptors and for connections closed since."""
    cdef Connection *c = w.connections + <uint32_t> event.data.u64
    cdef uint32_t gen = <uint32_t> (event.data.u64 >> 32)
    if gen >= TAG_FIRST or c.kind == CONN_FREE or c.gen != gen:
        return NULL
    return c


cdef inline void note_readiness(Connection *c, uint32_t events) noexcept nogil:
    if events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP):
        c.flags |= F_READABLE
    if events & EPOLLRDHUP:
        c.flags |= F_RDHUP
    if events & (EPOLLERR | EPOLLHUP):
        c.flags |= F_GONE
    if events & (EPOLLOUT | EPOLLERR | EPOLLHUP):
        c.flags |= F_WRITABLE


cdef void events_note(Worker *w, const epoll_event *events, int count) noexcept nogil:
    """First pass: readiness is noted everywhere, and pooled connections that show anything are closed, before any
    request of this turn could pick one of them."""
    cdef Connection *c
    cdef int i
    for i in range(count):
        c = event_target(w, events + i)
        if c == NULL:
            continue
        note_readiness(c, events[i].events)
        if c.state == ST_POOLED and events[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLERR | EPOLLHUP):
            w.block.counters[C_UPSTREAM_STALE] += 1
            connection_close(w, c)


cdef void events_run(Worker *w, const epoll_event *events, int count) noexcept nogil:
    """Second pass."""
    cdef Connection *c
    cdef uint32_t tag, low
    cdef int i
    for i in range(count):
        c = event_target(w, events + i)
        if c != NULL:
            connection_run(w, c)
            continue
        tag = <uint32_t> (events[i].data.u64 >> 32)
        low = <uint32_t> events[i].data.u64
        if tag == TAG_LISTENER:
            accept_event(w, low >> 8, low & 255)
        elif tag == TAG_INBOX:
            inbox_read(w)
        elif tag == TAG_ALIVE:          # the master is gone; the table stays as it was and so does the service
            epoll_ctl(w.epoll, EPOLL_CTL_DEL, w.alive, NULL)


cdef void run_queue(Worker *w) noexcept nogil:
    """Those that had more to do; what they add in turn waits for the next loop turn."""
    cdef uint32_t left = w.run_count
    cdef Connection *c
    while left and w.run_head != NONE:
        left -= 1
        c = w.connections + w.run_head
        run_remove(w, c)
        connection_run(w, c)


cdef bint watch_plain(Worker *w, int fd, uint32_t tag) noexcept nogil:
    cdef epoll_event event
    event.events = EPOLLIN
    event.data.u64 = <uint64_t> tag << 32
    return epoll_ctl(w.epoll, EPOLL_CTL_ADD, fd, &event) == 0


cdef int loop_run(Worker *w) noexcept nogil:
    """Until the worker is drained or told to stop: 0. An errno when epoll itself fails."""
    cdef epoll_event events[EVENTS]
    cdef int count, timeout
    while True:
        timeout = 0 if w.run_head != NONE else timer_sleep_ms(w)
        if w.calls_timed and timeout > TICK_MS:
            timeout = TICK_MS
        if not w.accepting and timeout > 100:
            timeout = 100
        epoch_leave(&w.shm, w.slot)
        count = epoll_wait(w.epoll, events, EVENTS, timeout)
        epoch_enter(&w.shm, w.slot)
        if count < 0:
            if errno != EINTR:
                return errno
            count = 0
        take_time(w)
        fs_store_relaxed_u64(&w.block.heartbeat_ns, w.now_us * 1000)
        fs_store_release_u64(&w.block.applied_version, fs_load_acquire_u64(&w.shm.head.version))
        w.settings = <const uint32_t *> (w.shm.table + fs_load_acquire_u64(&w.shm.head.settings))
        events_note(w, events, count)
        events_run(w, events, count)
        timers_run(w)
        run_queue(w)
        if w.calls_timed:
            calls_expire(w)
        flush_dirty(w)
        if w.waiters:
            wake_buffer_waiters(w)
        if not w.accepting and w.now_ms >= w.accept_again_ms and has_room(w):
            w.accepting = True
            listeners_sync(w)
        if w.stop or (w.draining and w.downstreams == 0 and fs_load_acquire_u32(&w.block.connections) == 0):
            return 0


cdef void *sparse(size_t size) noexcept nogil:
    """Private zeroed memory, of which a page costs something when it is first written. NULL: errno tells why."""
    cdef void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    return NULL if p == MAP_FAILED else p


cdef int worker_open(Worker *w) noexcept nogil:
    """Prepares what Python did not. 0, or an errno."""
    cdef timespec now
    cdef size_t pool_bytes = <size_t> w.shm.live.max_addresses * sizeof(PoolHead)
    cdef uint32_t i
    w.blocks = <WorkerBlock *> (w.shm.state + w.shm.live.blocks)
    w.block = w.blocks + w.slot
    w.inflight = <uint32_t *> (w.shm.state + w.shm.live.inflight) + <size_t> w.slot * w.shm.live.max_addresses
    w.address_states = <AddressState *> (w.shm.state + w.shm.live.address_states)
    w.addresses = <const Address *> (w.shm.table + w.shm.head.addresses)
    w.max_connections = w.shm.live.max_connections
    w.connections = (<Connection *> (w.shm.state + w.shm.live.connections)) + <size_t> w.slot * w.max_connections
    w.free_head = w.run_head = w.run_tail = w.dirty = w.free_call = NONE
    for i in range(WAIT_LISTS):
        w.waiting[i].head = w.waiting[i].tail = NONE
    w.accepting = True
    for i in range(WHEEL_SLOTS):
        w.wheel[i] = NONE
    for i in range(CALL_WHEEL):
        w.call_wheel[i] = NONE
    w.pool = <PoolHead *> sparse(pool_bytes)
    w.shared = <PoolHead *> sparse(pool_bytes)
    w.balance.cursors = <uint32_t *> sparse(<size_t> w.shm.head.max_services * sizeof(uint32_t))
    w.mux = <Mux *> sparse(<size_t> w.max_connections * sizeof(Mux))
    w.calls = <Call *> sparse(<size_t> MAX_CALLS * sizeof(Call))
    if w.pool == NULL or w.shared == NULL or w.balance.cursors == NULL or w.mux == NULL or w.calls == NULL:
        return errno
    clock_gettime(CLOCK_MONOTONIC, &now)
    w.balance.random = hash_bytes(<const uint8_t *> &now, sizeof(now), w.slot) | 1
    w.balance.seed = w.balance.random
    take_time(w)
    w.wheel_tick = tick_of(w.now_ms)
    for i in range(C_COUNTERS, C_STATISTICS):
        w.block.counters[i] = 0
    w.epoll = epoll_create1(EPOLL_CLOEXEC)
    if w.epoll < 0 or not watch_plain(w, w.inbox, TAG_INBOX) or not watch_plain(w, w.alive, TAG_ALIVE):
        return errno
    listeners_sync(w)
    fs_store_relaxed_u32(&w.block.pid, getpid())
    tell_master(w, WORKER_READY)
    return 0


def run_worker(Table table, int slot, listeners, int inbox, outboxes, int wake, int alive, *, exclusive=False,
               handover=True):
    """Serves until drained or stopped. Meant for a process of its own, which exits afterwards.

    listeners: iterable of (id, slot, fd, direction, protocol, service, service_header), the last two bytes.
    inbox, outboxes (by slot), wake (eventfd), alive (pipe): descriptors, see inbox.pyx.
    Returns 0; raises OSError when the loop cannot be set up or epoll fails, ValueError for more than 64 listeners.
    """
    cdef Worker *w = <Worker *> calloc(1, sizeof(Worker))
    cdef Listener *listener
    cdef int rc
    if w == NULL:
        raise MemoryError
    w.shm = table.shm
    w.slot = slot
    w.inbox = inbox
    w.wake = wake
    w.alive = alive
    w.exclusive = exclusive
    w.hand_over = handover
    for rank, fd in enumerate(outboxes):
        w.outboxes[<uint32_t> rank] = fd
    for identity, listener_slot, fd, direction, protocol, service, header in listeners:
        listener = listener_make(w, identity, direction, protocol, service, len(service), header, len(header))
        if listener == NULL:
            raise ValueError(f"more than {MAX_LISTENERS} listeners")
        listener.fd[<uint32_t> listener_slot] = fd
    with nogil:
        rc = worker_open(w)
        if rc == 0:
            rc = loop_run(w)
    if rc != 0:
        raise OSError(rc, "the worker's event loop failed")
    tell_master(w, WORKER_DONE)
    epoch_leave(&w.shm, w.slot)
    return 0
