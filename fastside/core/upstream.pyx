# Upstream connections: the pool of idle ones per address, connecting, in-flight counts.

cdef void pool_unlink(Worker *w, Connection *u) noexcept nogil:
    cdef PoolHead *pool = w.pool + u.address
    if u.previous != NONE:
        w.connections[u.previous].next = u.next
    else:
        pool.first = 0 if u.next == NONE else u.next + 1
    if u.next != NONE:
        w.connections[u.next].previous = u.previous
    u.next = u.previous = NONE
    pool.count -= 1
    w.block.counters[G_POOLED] -= 1
    u.state = ST_HEAD


cdef void pool_put(Worker *w, Connection *u) noexcept nogil:
    """Keeps an idle connection for the next request to its address, or closes it when enough are kept."""
    cdef PoolHead *pool = w.pool + u.address
    if pool.count >= w.settings[SET_POOL_SIZE] or w.draining:
        connection_close(w, u)
        return
    buffer_drop(w, u)
    pipe_drop(w, u)
    u.state = ST_POOLED
    u.previous = NONE
    u.next = NONE
    if pool.first != 0:
        u.next = pool.first - 1
        w.connections[u.next].previous = index_of(w, u)
    pool.first = index_of(w, u) + 1
    pool.count += 1
    w.block.counters[G_POOLED] += 1
    u.since = w.now_ms
    timer_set(w, u, w.settings[SET_POOL_IDLE_MS])


cdef Connection *pool_take(Worker *w, uint32_t address, uint32_t gen) noexcept nogil:
    """An idle connection that the server has not closed, or NULL. The most recently used one: the others grow old and
    go.

    The loop closes pooled connections that show an event before it handles any other event. What may still be missed
    is a FIN on its way in; after a longer pause, when servers time out, a peek narrows that window.
    """
    cdef Connection *u
    cdef uint8_t byte
    while w.pool[address].first != 0:
        u = w.connections + (w.pool[address].first - 1)
        if u.address_gen == gen and not u.flags & (F_RDHUP | F_GONE):
            if w.now_ms - u.since < 250 and not u.flags & F_READABLE:
                pool_unlink(w, u)
                return u
            # F_READABLE: bytes that nobody asked for may have come with the last response.
            if recv(u.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 and errno == EAGAIN:
                u.flags &= ~<uint32_t> F_READABLE
                pool_unlink(w, u)
                return u
        w.block.counters[C_UPSTREAM_STALE] += 1
        connection_close(w, u)
    return NULL


cdef inline void upstream_count(Worker *w, Connection *u) noexcept nogil:
    u.flags |= F_COUNTED
    w.inflight[u.address] += 1


cdef inline void upstream_uncount(Worker *w, Connection *u) noexcept nogil:
    u.flags &= ~<uint32_t> F_COUNTED
    w.inflight[u.address] -= 1


cdef extern from *:
    """
    #include <errno.h>
    static inline void set_errno(int value) { errno = value; }
    """
    void set_errno(int value) nogil


cdef Connection *upstream_connect(Worker *w, uint32_t address, uint8_t kind) noexcept nogil:
    """Starts a connection to an address of the table; NULL when it failed at once (errno tells why)."""
    cdef const Address *a = w.addresses + address
    cdef sockaddr_in v4
    cdef sockaddr_in6 v6
    cdef int fd, rc, one = 1
    cdef Connection *u
    fd = socket(AF_INET6 if a.family == 6 else AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
    if fd < 0:
        return NULL
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one))
    if a.family == 6:
        memset(&v6, 0, sizeof(v6))
        v6.sin6_family = AF_INET6
        v6.sin6_port = a.port
        memcpy(&v6.sin6_addr, a.ip, 16)
        rc = connect(fd, <sockaddr *> &v6, sizeof(v6))
    else:
        memset(&v4, 0, sizeof(v4))
        v4.sin_family = AF_INET
        v4.sin_port = a.port
        memcpy(&v4.sin_addr, a.ip, 4)
        rc = connect(fd, <sockaddr *> &v4, sizeof(v4))
    if rc < 0 and errno != EINPROGRESS:
        close(fd)
        return NULL
    u = connection_new(w, fd, kind)
    if u == NULL:
        close(fd)
        set_errno(ENOBUFS)
        return NULL
    u.state = ST_CONNECTING
    u.address = address
    u.address_gen = a.gen
    u.flags |= F_WATCH_OUT
    w.block.counters[G_UPSTREAMS] += 1
    w.block.counters[C_UPSTREAM_CONNECTS] += 1
    if connection_watch(w, u, EPOLLIN | EPOLLOUT) < 0:
        connection_close(w, u)
        return NULL
    timer_set(w, u, w.settings[SET_CONNECT_MS])
    return u


cdef int upstream_connected(Worker *w, Connection *u) noexcept nogil:
    """Looks whether a connect under way has ended. 1: connected, 0: not yet, -1: failed."""
    cdef int error = 0
    cdef socklen_t length = sizeof(error)
    if not u.flags & (F_WRITABLE | F_GONE):
        return 0
    if getsockopt(u.fd, SOL_SOCKET, SO_ERROR, &error, &length) < 0 or error != 0:
        return -1
    if not u.flags & F_WRITABLE:
        return -1
    u.state = ST_HEAD
    timer_set(w, u, 0)
    address_ok(&w.shm, u.address)
    return 1


cdef Connection *upstream_pick(Worker *w, Connection *d, const Service *service, bint pooled, int *why) noexcept nogil:
    """A connection, pooled or new, to the endpoint that the service's policy gives; d is linked to it.

    NULL when there is none, and then *why is the HTTP status that tells it: 502 all attempts failed, 503 no endpoint,
    508 the endpoint is one of our own listeners, 500 the fault is here. Endpoints in d.tried are not tried again.
    """
    cdef const Endpoint *endpoint
    cdef Connection *u
    while True:
        if d.tried_count >= 3 or d.tried_count >= w.settings[SET_ATTEMPTS]:
            why[0] = 502
            return NULL
        endpoint = balance_pick(&w.shm, &w.balance, service, d.hash, w.now_ms, d.tried, d.tried_count)
        if endpoint == NULL:
            why[0] = 502 if d.tried_count else 503
            return NULL
        if w.addresses[endpoint.address].flags & ADDRESS_LOOP:
            why[0] = 508
            return NULL
        u = pool_take(w, endpoint.address, endpoint.gen) if pooled else NULL
        if u != NULL:
            w.block.counters[C_UPSTREAM_REUSES] += 1
            timer_set(w, u, 0)
        else:
            u = upstream_connect(w, endpoint.address, CONN_HTTP_UP if pooled else CONN_TCP_UP)
            if u == NULL:
                if errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):      # no reason to think ill of the endpoint
                    why[0] = 500
                    return NULL
                connect_failed(w, d, endpoint.address)
                continue
        upstream_count(w, u)
        u.direction = d.direction
        u.sid = d.sid
        u.peer = index_of(w, d)
        d.peer = index_of(w, u)
        return u


cdef void connect_failed(Worker *w, Connection *d, uint32_t address) noexcept nogil:
    endpoint_failed(w, address)
    endpoint_tried(d.tried, &d.tried_count, address)


cdef void endpoint_failed(Worker *w, uint32_t address) noexcept nogil:
    """A connect to the address failed."""
    w.block.counters[C_UPSTREAM_CONNECT_FAILURES] += 1
    address_failed(&w.shm, address, w.now_ms, w.settings[SET_EJECT_FAILURES], w.settings[SET_EJECT_MS])


cdef inline void endpoint_tried(uint32_t *tried, uint8_t *count, uint32_t address) noexcept nogil:
    """Leaves the address out when the same request or call picks again."""
    if count[0] < 3:
        tried[count[0]] = address
        count[0] += 1


cdef void upstream_release(Worker *w, Connection *u, bint reusable) noexcept nogil:
    """The exchange on u is over; the caller unlinked its downstream."""
    u.peer = NONE
    if reusable and not u.flags & (F_CLOSE | F_RDHUP | F_GONE):
        upstream_uncount(w, u)
        u.flags = (u.flags & F_SOCKET) | F_REUSED
        u.scanned = 0
        pool_put(w, u)
    else:
        connection_close(w, u)


cdef void upstream_drop(Worker *w, Connection *d) noexcept nogil:
    """Closes the upstream side of d, which stays."""
    cdef Connection *u = peer_of(w, d)
    d.peer = NONE
    if u != NULL:
        u.peer = NONE
        connection_close(w, u)
