# The worker's inbox: a socketpair of packets that the master keeps for the slot's whole life. What is in it when the
# worker dies is not lost: the master hands the connections on to whoever serves the slot then.

cdef enum:
    INBOX_WAKE = 1
    INBOX_LISTENER_ADD = 2
    INBOX_LISTENER_REMOVE = 3
    INBOX_CONNECTION = 4
    INBOX_DRAIN = 5
    INBOX_STOP = 6
    INBOX_LISTENERS = 7

cdef struct Message:
    uint32_t type
    uint32_t a
    uint32_t b
    uint32_t length
    uint8_t payload[1024]


cdef void tell_master(Worker *w, uint32_t state) noexcept nogil:
    cdef uint64_t one = 1
    fs_store_release_u32(&w.block.state, state)
    write(w.wake, &one, 8)      # an eventfd: fails only when it is full of news already


cdef void inbox_read(Worker *w) noexcept nogil:
    cdef Message message
    cdef ssize_t n
    cdef int fd
    while True:
        n = fs_recv_fd(w.inbox, &message, sizeof(message), &fd)
        if n < <ssize_t> 16:
            if fd >= 0:
                close(fd)
            if n <= 0:
                return
            continue
        inbox_handle(w, &message, <uint32_t> n - 16, fd)
        if w.stop:
            return


cdef void inbox_handle(Worker *w, const Message *message, uint32_t length, int fd) noexcept nogil:
    cdef Listener *listener
    if message.type == INBOX_CONNECTION and length >= sizeof(HandOver) - 16:
        if message.b:
            fs_add_u32(&w.block.connections, 1)
        listener = listener_by_id(w, message.a)
        if fd < 0 or listener == NULL:      # no descriptor: this process is short of them, and the kernel closed it
            if fd >= 0:
                close(fd)
            fs_sub_u32(&w.block.connections, 1)
            return
        w.block.counters[C_TAKEN_OVER] += 1
        downstream_start(w, listener, fd, <const HandOver *> message)
    elif message.type == INBOX_WAKE:
        listeners_sync(w)
    elif message.type == INBOX_LISTENER_ADD and fd >= 0:
        inbox_add_listener(w, message, length, fd)
    elif message.type == INBOX_LISTENER_REMOVE:
        listener = listener_by_id(w, message.a)
        if listener != NULL:
            listener_remove(w, listener)
    elif message.type == INBOX_LISTENERS:
        # Only now is there accepting from what was added: every sibling has the additions in its inbox, before any
        # connection that is handed over to it.
        listeners_sync(w)
        fs_store_release_u32(&w.block.listeners_version, message.a)
    elif message.type == INBOX_DRAIN:
        drain_start(w)
    elif message.type == INBOX_STOP:
        w.stop = True
    elif fd >= 0:
        close(fd)


cdef void inbox_add_listener(Worker *w, const Message *message, uint32_t length, int fd) noexcept nogil:
    """payload: direction, protocol, length of service, length of service header, then the two."""
    cdef const uint8_t *p = <const uint8_t *> &message.payload
    cdef Listener *listener = NULL
    if length >= 4 and length >= 4 + <uint32_t> p[2] + p[3] and message.b < MAX_WORKERS:
        listener = listener_make(w, message.a, p[0], p[1], p + 4, p[2], p + 4 + p[2], p[3])
    if listener == NULL or listener.fd[message.b] >= 0:     # seen before this worker was born: inherited
        close(fd)
        return
    listener.fd[message.b] = fd


cdef void drain_start(Worker *w) noexcept nogil:
    """Serves what is queued, closes what is idle; the rest closes at its next message boundary."""
    cdef uint32_t i, slot
    cdef Connection *c
    if w.draining:
        return
    for i in range(MAX_LISTENERS):
        for slot in range(MAX_WORKERS):
            if w.listeners[i].used and w.listeners[i].watched[slot]:
                accept_all(w, w.listeners + i, slot)
    w.draining = True
    listeners_sync(w)
    tell_master(w, WORKER_DRAINING)
    fs_fence()                  # see hand_over
    for i in range(w.fresh):
        c = w.connections + i
        if c.kind == CONN_HTTP_UP and c.state == ST_POOLED:
            connection_close(w, c)
        elif c.kind == CONN_FRAME_DOWN:
            frames_drain(w, c)
        elif c.kind == CONN_TCP_DOWN and is_passage(c):
            run_later(w, c)
        elif c.kind in (CONN_HTTP_DOWN, CONN_NEW_DOWN) and c.state == ST_HEAD and c.start == c.end:
            # Not closed at once: a request could be on its way, and its sender could not tell what became of it.
            timer_set(w, c, DRAIN_IDLE_MS)
