# Listeners, and which worker gets a connection.
#
# The kernel's reuseport hash spreads many connections well and few ones badly: two long-lived RPC connections land on
# one of two workers every other time. So the worker that accepts compares its load with its siblings' and passes the
# connection on when theirs is clearly lower.

cdef struct HandOver:           # message from sibling to sibling
    uint32_t type
    uint32_t listener           # id
    uint32_t uncounted          # 1: it comes from the inbox of a worker that died, and counts nowhere
    uint32_t length
    uint8_t ip[16]
    uint16_t port
    uint8_t family


cdef void listener_watch(Worker *w, uint32_t index, uint32_t slot, bint on) noexcept nogil:
    cdef Listener *listener = w.listeners + index
    cdef epoll_event event
    if listener.fd[slot] < 0 or listener.watched[slot] == on:
        return
    event.events = EPOLLIN | EPOLLEXCLUSIVE if w.exclusive else EPOLLIN
    event.data.u64 = (<uint64_t> TAG_LISTENER << 32) | (index << 8) | slot
    if epoll_ctl(w.epoll, EPOLL_CTL_ADD if on else EPOLL_CTL_DEL, listener.fd[slot], &event) == 0:
        listener.watched[slot] = on


cdef void listeners_sync(Worker *w) noexcept nogil:
    """Accepts from exactly the slots that the master gave this worker."""
    cdef uint32_t i, slot
    cdef bint mine
    for i in range(MAX_LISTENERS):
        if not w.listeners[i].used:
            continue
        for slot in range(w.shm.live.workers):
            mine = fs_load_acquire_u32(&w.shm.live.slot_owner[slot]) == w.slot
            listener_watch(w, i, slot, mine and w.accepting and not w.draining)


cdef Listener *listener_by_id(Worker *w, uint32_t id) noexcept nogil:
    cdef uint32_t i
    for i in range(MAX_LISTENERS):
        if w.listeners[i].used and w.listeners[i].id == id:
            return w.listeners + i
    return NULL


cdef Listener *listener_make(Worker *w, uint32_t id, uint8_t direction, uint8_t protocol, const uint8_t *service,
                             uint8_t service_length, const uint8_t *header, uint8_t header_length) noexcept nogil:
    """The listener of that id, made if it is new. NULL: all MAX_LISTENERS are in use."""
    cdef Listener *listener = listener_by_id(w, id)
    if listener == NULL:
        listener = listener_unused(w)
        if listener == NULL:
            return NULL
        memset(listener, 0, sizeof(Listener))
        memset(listener.fd, 0xFF, sizeof(listener.fd))
        listener.used = 1
        listener.id = id
        listener.direction = direction
        listener.protocol = protocol
        listener.service_length = service_length
        listener.header_length = header_length
        memcpy(listener.service, service, service_length)
        memcpy(listener.header, header, header_length)
    return listener


cdef Listener *listener_unused(Worker *w) noexcept nogil:
    """A free entry, else that of the listener removed longest ago that has no connection left. It is kept as long as it
    can be: a sibling that has yet to hear of the removal may still hand connections of that listener over."""
    cdef Listener *oldest = NULL
    cdef Listener *listener
    cdef uint32_t i
    for i in range(MAX_LISTENERS):
        listener = w.listeners + i
        if not listener.used:
            return listener
        if listener.closing and listener.open == 0 and (oldest == NULL or listener.id < oldest.id):
            oldest = listener
    return oldest


cdef void listener_remove(Worker *w, Listener *listener) noexcept nogil:
    """Serves what is queued, then lets go of the sockets. Connections already accepted go on."""
    cdef uint32_t slot
    for slot in range(MAX_WORKERS):
        if listener.fd[slot] < 0:
            continue
        if listener.watched[slot]:
            accept_all(w, listener, slot)
            listener_watch(w, <uint32_t> (listener - w.listeners), slot, False)
        close(listener.fd[slot])
        listener.fd[slot] = -1
    listener.closing = True


cdef inline int32_t load_of(const Worker *w, uint32_t slot) noexcept nogil:
    return <int32_t> fs_load_relaxed_u32(&w.blocks[slot].connections)


cdef uint32_t least_loaded(const Worker *w) noexcept nogil:
    """A sibling whose load is clearly below this worker's own, or this worker itself."""
    cdef uint32_t slot, best = w.slot
    cdef int32_t mine = load_of(w, w.slot), least = mine
    for slot in range(w.shm.live.workers):
        if slot != w.slot and load_of(w, slot) < least and fs_load_acquire_u32(&w.blocks[slot].state) == WORKER_READY:
            least = load_of(w, slot)
            best = slot
    # With few connections every one counts; with many an eighth more is even enough and spares the hand-over.
    return best if mine > least + (least >> 3) else w.slot


cdef bint hand_over(Worker *w, const Listener *listener, int fd, const HandOver *peer) noexcept nogil:
    """Gives a fresh connection to the least loaded sibling. False: it stays here."""
    cdef uint32_t to = least_loaded(w)
    if to == w.slot:
        return False
    # Counted at once, so that the next accept sees it, and before the last look at the state: a worker that drains ends
    # only when none is counted, so it either takes this one or is seen draining here.
    fs_add_u32(&w.blocks[to].connections, 1)
    fs_fence()
    if (fs_load_acquire_u32(&w.blocks[to].state) != WORKER_READY
            or fs_send_fd(w.outboxes[to], peer, sizeof(HandOver), fd) < 0):
        fs_sub_u32(&w.blocks[to].connections, 1)
        return False
    close(fd)
    w.block.counters[C_HANDED_OVER] += 1
    return True


cdef void downstream_start(Worker *w, const Listener *listener, int fd, const HandOver *peer) noexcept nogil:
    """A connection that is counted in block.connections becomes this worker's."""
    cdef Connection *d = connection_new(w, fd, CONN_NEW_DOWN)
    if d == NULL:
        close(fd)
        fs_sub_u32(&w.block.connections, 1)
        return
    d.listener = <uint8_t> (listener - w.listeners)
    d.direction = listener.direction
    memcpy(d.peer_ip, peer.ip, 16)
    d.peer_port = peer.port
    d.peer_family = peer.family
    d.flags |= F_WRITABLE
    w.listeners[d.listener].open += 1
    w.downstreams += 1
    w.block.counters[G_DOWNSTREAMS] = w.downstreams
    w.block.counters[C_ACCEPTED] += 1
    if connection_watch(w, d, EPOLLIN) < 0:
        connection_close(w, d)
        return
    # No read yet: if the request is there already, the epoll set says so in this turn's successor at no extra call.
    greet_start(w, d, listener)


cdef void peer_address(HandOver *peer, const sockaddr_storage *address) noexcept nogil:
    cdef const sockaddr_in6 *v6 = <const sockaddr_in6 *> address
    cdef const sockaddr_in *v4 = <const sockaddr_in *> address
    memset(peer.ip, 0, 16)
    if address.ss_family == AF_INET6:
        peer.family = 6
        peer.port = v6.sin6_port
        memcpy(peer.ip, &v6.sin6_addr, 16)
    else:
        peer.family = 4
        peer.port = v4.sin_port
        memcpy(peer.ip, &v4.sin_addr, 4)


cdef inline bint has_room(const Worker *w) noexcept nogil:
    """For one more downstream and its upstream. A quarter of all connections is left to upstreams, so that idle
    downstreams cannot take what it needs to serve a request."""
    return w.live + 2 <= w.max_connections and w.downstreams < w.max_connections - w.max_connections // 4


cdef void accept_pause(Worker *w, uint32_t ms) noexcept nogil:
    """Out of connections or descriptors: leaves the queue to the siblings, and to better times."""
    w.block.counters[C_ACCEPT_PAUSES] += 1
    w.accepting = False
    w.accept_again_ms = w.now_ms + ms
    listeners_sync(w)


cdef bint accept_one(Worker *w, const Listener *listener, int listening) noexcept nogil:
    cdef sockaddr_storage address
    cdef socklen_t length = sizeof(address)
    cdef HandOver peer
    cdef int fd
    if not has_room(w):
        accept_pause(w, 100)
        return False
    fd = accept4(listening, <sockaddr *> &address, &length, SOCK_NONBLOCK | SOCK_CLOEXEC)
    if fd < 0:
        if errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
            accept_pause(w, 100)
            return False
        return errno != EAGAIN                  # ECONNABORTED and the like concern one connection
    memset(&peer, 0, sizeof(peer))
    peer.type = INBOX_CONNECTION
    peer.listener = listener.id
    peer.length = sizeof(HandOver) - 16
    peer_address(&peer, &address)
    if w.hand_over and hand_over(w, listener, fd, &peer):
        return True
    fs_add_u32(&w.block.connections, 1)
    downstream_start(w, listener, fd, &peer)
    return True


cdef void accept_event(Worker *w, uint32_t index, uint32_t slot) noexcept nogil:
    cdef Listener *listener = w.listeners + index
    cdef uint32_t _i
    for _i in range(ACCEPT_BURST):
        if listener.fd[slot] < 0 or not accept_one(w, listener, listener.fd[slot]):
            return


cdef void accept_all(Worker *w, Listener *listener, uint32_t slot) noexcept nogil:
    while accept_one(w, listener, listener.fd[slot]):
        pass
