# Life of one socket: slab, epoll, run queue, closing.

cdef inline uint32_t index_of(const Worker *w, const Connection *c) noexcept nogil:
    return <uint32_t> (c - w.connections)


cdef inline Connection *peer_of(const Worker *w, const Connection *c) noexcept nogil:
    return NULL if c.peer == NONE else w.connections + c.peer


cdef inline bint is_downstream(const Connection *c) noexcept nogil:
    return c.kind not in (CONN_FREE, CONN_HTTP_UP, CONN_TCP_UP, CONN_FRAME_UP)


cdef Connection *connection_new(Worker *w, int fd, uint8_t kind) noexcept nogil:
    """Takes a slot for fd. NULL when all are in use; fd is then still the caller's."""
    cdef Connection *c
    cdef uint32_t gen
    if w.free_head != NONE:
        c = w.connections + w.free_head
        w.free_head = c.next
    elif w.fresh < w.max_connections:
        c = w.connections + w.fresh
        w.fresh += 1
    else:
        return NULL
    gen = c.gen + 1
    if gen >= TAG_FIRST:       # the values above are the tags of other descriptors in the epoll set
        gen = 1
    memset(c, 0, sizeof(Connection))
    c.gen = gen
    c.fd = fd
    c.kind = kind
    c.peer = NONE
    c.next = NONE
    c.previous = NONE
    c.address = NONE
    c.sid = NONE
    c.since = w.now_ms
    w.live += 1
    return c


cdef inline int connection_watch(Worker *w, Connection *c, uint32_t events) noexcept nogil:
    cdef epoll_event event
    event.events = events | EPOLLRDHUP | EPOLLET
    event.data.u64 = (<uint64_t> c.gen << 32) | index_of(w, c)
    return epoll_ctl(w.epoll, EPOLL_CTL_ADD, c.fd, &event)


cdef void watch_writable(Worker *w, Connection *c) noexcept nogil:
    """After a send that would block. Registering again makes epoll look again, so no edge is missed."""
    cdef epoll_event event
    c.flags &= ~<uint32_t> F_WRITABLE
    if c.flags & F_WATCH_OUT:
        return
    event.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET
    event.data.u64 = (<uint64_t> c.gen << 32) | index_of(w, c)
    if epoll_ctl(w.epoll, EPOLL_CTL_MOD, c.fd, &event) < 0:
        c.flags |= F_GONE
    c.flags |= F_WATCH_OUT


cdef void run_later(Worker *w, Connection *c) noexcept nogil:
    """Puts a connection that could go on at once at the end of the run queue: others get their turn first."""
    cdef uint32_t me = index_of(w, c)
    if c.flags & F_QUEUED:
        return
    c.flags |= F_QUEUED
    c.run_next = NONE
    if w.run_tail == NONE:
        w.run_head = me
    else:
        w.connections[w.run_tail].run_next = me
    w.run_tail = me
    w.run_count += 1


cdef void run_remove(Worker *w, Connection *c) noexcept nogil:
    cdef uint32_t at = w.run_head, before = NONE, me = index_of(w, c)
    while at != me:
        before = at
        at = w.connections[at].run_next
    if before == NONE:
        w.run_head = c.run_next
    else:
        w.connections[before].run_next = c.run_next
    if w.run_tail == me:
        w.run_tail = before
    w.run_count -= 1
    c.flags &= ~<uint32_t> F_QUEUED


cdef void wait_for_buffer(Worker *w, Connection *c, uint8_t what) noexcept nogil:
    cdef WaitList *waiting = w.waiting + what
    cdef uint32_t me = index_of(w, c)
    if c.waits != WAIT_NOTHING:
        return
    c.waits = what
    c.next = NONE
    if waiting.tail == NONE:
        waiting.head = me
    else:
        w.connections[waiting.tail].next = me
    waiting.tail = me
    w.waiters += 1
    w.block.counters[C_BUFFER_WAITS] += 1


cdef void wait_over(Worker *w, Connection *c) noexcept nogil:
    """c got on, perhaps before its turn came."""
    cdef WaitList *waiting = w.waiting + c.waits
    cdef uint32_t at = waiting.head, before = NONE, me = index_of(w, c)
    if c.waits == WAIT_NOTHING:
        return
    while at != me:
        before = at
        at = w.connections[at].next
    if before == NONE:
        waiting.head = c.next
    else:
        w.connections[before].next = c.next
    if waiting.tail == me:
        waiting.tail = before
    c.waits = WAIT_NOTHING
    w.waiters -= 1


cdef void wake_buffer_waiters(Worker *w) noexcept nogil:
    """Lets as many go on as there is room for, in the order of their coming. Asked once per loop turn rather than when
    a buffer is given back: one that was woken and found another way then keeps nobody from being woken."""
    cdef uint32_t used = w.buffers_used, units
    cdef Connection *c
    cdef uint8_t what
    for what in range(WAIT_HEAD, WAIT_LISTS):
        units = buffer_units(LARGE_BUFFER if what == WAIT_LARGE_HEAD else SMALL_BUFFER)
        while w.waiting[what].head != NONE:
            if used + units > buffer_share(w, what):
                break
            used += units
            c = w.connections + w.waiting[what].head
            wait_over(w, c)
            run_later(w, c)


cdef inline void buffer_drop(Worker *w, Connection *c) noexcept nogil:
    if c.buffer != NULL:
        buffer_give(w, c.buffer)
        c.buffer = NULL
    c.start = c.end = c.ready = c.scanned = 0


cdef inline void pipe_drop(Worker *w, Connection *c) noexcept nogil:
    if c.pipe != NULL:
        pipe_give(w, c.pipe)
        c.pipe = NULL


cdef void connection_close(Worker *w, Connection *c) noexcept nogil:
    """Frees everything the connection holds and closes its socket. Its peer, if any, must be unlinked by the caller."""
    if c.flags & F_QUEUED:
        run_remove(w, c)
    wait_over(w, c)
    timer_unlink(w, c)
    if is_downstream(c):
        w.listeners[c.listener].open -= 1
        w.downstreams -= 1
        w.block.counters[G_DOWNSTREAMS] = w.downstreams
        if fs_load_relaxed_u32(&w.block.connections) != 0:      # siblings add to it when they hand over
            fs_sub_u32(&w.block.connections, 1)
    else:
        w.block.counters[G_UPSTREAMS] -= 1
        if c.state == ST_POOLED:
            pool_unlink(w, c)
        if c.flags & F_COUNTED:
            w.inflight[c.address] -= 1
    close(c.fd)
    c.kind = CONN_FREE
    buffer_drop(w, c)
    pipe_drop(w, c)
    c.fd = -1
    c.flags = 0
    c.next = w.free_head
    w.free_head = index_of(w, c)
    w.live -= 1


cdef void reset_on_close(Connection *c) noexcept nogil:
    """The peer shall see RST: what it got is not the whole stream."""
    cdef linger value
    value.l_onoff = 1
    value.l_linger = 0
    setsockopt(c.fd, SOL_SOCKET, SO_LINGER, &value, sizeof(value))


cdef void pair_close(Worker *w, Connection *c) noexcept nogil:
    """Closes both sides of an exchange or relay."""
    cdef Connection *peer = peer_of(w, c)
    if peer != NULL:
        peer.peer = NONE
        connection_close(w, peer)
    connection_close(w, c)


cdef void linger_close(Worker *w, Connection *d) noexcept nogil:
    """Closes a downstream that was answered. While it may still be sending, close(2) would answer its bytes by RST, and
    an RST can overtake the answer (RFC 9112 9.6): then send FIN, and read and throw away for a while first."""
    cdef bint quiet = d.start == d.end and not d.flags & (F_READABLE | F_GONE) and d.flags & F_DONE
    if quiet or d.flags & F_GONE or shutdown(d.fd, SHUT_WR) < 0:
        connection_close(w, d)
        return
    buffer_drop(w, d)
    pipe_drop(w, d)
    d.kind = CONN_LINGER
    d.remaining = 1 << 20
    timer_set(w, d, 2000)
    if d.flags & F_READABLE:
        run_later(w, d)


cdef void linger_run(Worker *w, Connection *d) noexcept nogil:
    cdef uint8_t trash[4096]
    cdef ssize_t n
    while d.flags & F_READABLE:
        n = recv(d.fd, trash, sizeof(trash), MSG_DONTWAIT)
        if n < 0 and errno == EAGAIN:
            d.flags &= ~<uint32_t> F_READABLE
        elif n <= 0 or <uint64_t> n > d.remaining:
            connection_close(w, d)
            return
        else:
            d.remaining -= n
    if d.flags & F_GONE:
        connection_close(w, d)
