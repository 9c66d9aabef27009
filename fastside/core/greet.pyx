# A downstream connection on a listener that serves several protocols: its first bytes say which it is.

cdef void greet_start(Worker *w, Connection *d, const Listener *listener) noexcept nogil:
    """A fresh connection. Where opaque bytes have a service, that is connected to at once: its server may be one that
    speaks first, and only its speaking tells."""
    cdef Service *service = NULL
    cdef int why
    if listener.service_length:
        service = table_find(&w.shm, listener.direction, listener.service, listener.service_length)
    if listener.protocol == PROTOCOL_TCP:
        if service == NULL:
            greet_refuse(w, d)
        else:
            relay_to(w, d, service)
        return
    timer_set(w, d, idle_ms(w))
    if listener.protocol == PROTOCOL_HTTP:
        d.kind = CONN_HTTP_DOWN
    elif listener.protocol == PROTOCOL_TLS:
        d.kind = CONN_TLS_DOWN
    elif listener.protocol != PROTOCOL_AUTO:
        frames_accepted(w, d, listener.protocol)
    elif service != NULL:
        relay_service(d, service)
        relay_pick(w, d, &why)


cdef void greet_connect_failed(Worker *w, Connection *d) noexcept nogil:
    """The service of opaque bytes is not there; d may yet turn out to want another."""
    cdef uint32_t address = w.connections[d.peer].address
    upstream_drop(w, d)
    connect_failed(w, d, address)


cdef void greet_expired(Worker *w, Connection *d) noexcept nogil:
    if d.kind == CONN_NEW_DOWN and w.listeners[d.listener].service_length == 0:
        d.kind = CONN_HTTP_DOWN         # which says in words what was waited for
        downstream_expired(w, d)
        return
    w.block.counters[C_TIMEOUT_KEEPALIVE if d.start == d.end else C_TIMEOUT_HEADER] += 1
    w.block.counters[C_CLOSE_TIMEOUT] += 1
    pair_close(w, d)


cdef void greet_run(Worker *w, Connection *d) noexcept nogil:
    cdef Connection *u = peer_of(w, d)
    cdef int protocol = SNIFF_MORE
    cdef ssize_t n
    if d.flags & F_GONE:
        w.block.counters[C_CLOSE_DOWNSTREAM_RESET] += 1
        pair_close(w, d)
        return
    while d.flags & F_READABLE and protocol == SNIFF_MORE:
        if room_for_head(w, d) <= 0:
            return
        n = fill_buffer(w, d)
        if n == 0 or (n < 0 and d.flags & F_READABLE):
            if n == 0 and d.start < d.end:
                protocol = SNIFF_OPAQUE
                break
            w.block.counters[C_CLOSE_DOWNSTREAM_EOF if n == 0 else C_CLOSE_DOWNSTREAM_RESET] += 1
            pair_close(w, d)
            return
        if n > 0:
            protocol = sniff(buffer_data(d.buffer) + d.start, d.end - d.start)
    if protocol == SNIFF_MORE and u != NULL:
        if u.state == ST_CONNECTING and upstream_connected(w, u) < 0:
            greet_connect_failed(w, d)
        elif u.state != ST_CONNECTING and u.flags & F_READABLE:
            protocol = SNIFF_OPAQUE             # the server spoke first
    if protocol == SNIFF_MORE:
        if d.start == d.end:
            buffer_drop(w, d)
        elif not d.flags & F_HEAD_TIMED:
            d.flags |= F_HEAD_TIMED
            timer_set(w, d, w.settings[SET_HEADER_MS])
        return
    greet_over(w, d, protocol)


cdef void greet_over(Worker *w, Connection *d, int protocol) noexcept nogil:
    """What d speaks is known."""
    d.flags &= ~<uint32_t> F_HEAD_TIMED
    if protocol == SNIFF_OPAQUE and w.listeners[d.listener].service_length == 0:
        protocol = SNIFF_HTTP1          # it goes nowhere, and http says so in words
    if protocol == SNIFF_OPAQUE:
        greet_opaque(w, d)
        return
    upstream_drop(w, d)
    d.sid = NONE
    d.body = BODY_NONE
    d.tried_count = 0
    if protocol == SNIFF_HTTP1:
        d.kind = CONN_HTTP_DOWN
        timer_set(w, d, idle_ms(w))
        http_run(w, d)
    elif protocol == SNIFF_BOLT or protocol == SNIFF_DUBBO:
        frames_accepted(w, d, PROTOCOL_BOLT if protocol == SNIFF_BOLT else PROTOCOL_DUBBO)
        frames_run(w, d)
    elif protocol == SNIFF_TLS:
        d.kind = CONN_TLS_DOWN
        tls_run(w, d)
    else:
        greet_refuse(w, d)


cdef void greet_refuse(Worker *w, Connection *d) noexcept nogil:
    """No service has what d speaks."""
    w.block.counters[C_ROUTE_MISSES] += 1
    w.block.counters[C_CLOSE_UPSTREAM] += 1
    reset_on_close(d)
    pair_close(w, d)


cdef void greet_opaque(Worker *w, Connection *d) noexcept nogil:
    d.kind = CONN_TCP_DOWN
    if d.sid == NONE:
        greet_refuse(w, d)
    elif d.peer == NONE:                        # connecting failed; this tries the other endpoints
        relay_connect(w, d)
    else:
        relay_run(w, d)


cdef void tls_run(Worker *w, Connection *d) noexcept nogil:
    """Waits for the whole ClientHello and passes the connection on to the service of its server name."""
    cdef uint8_t name[MAX_SERVER_NAME]
    cdef uint8_t length = 0
    cdef Service *service
    cdef Span span
    cdef ssize_t n
    cdef int outcome = TLS_MORE
    while True:
        if d.start < d.end:
            outcome = tls_server_name(buffer_data(d.buffer) + d.start, d.end - d.start, name, &length)
            if outcome != TLS_MORE:
                break
        if d.flags & F_GONE:
            break
        if not d.flags & F_READABLE:
            if not d.flags & F_HEAD_TIMED:
                d.flags |= F_HEAD_TIMED
                timer_set(w, d, w.settings[SET_HEADER_MS])
            return
        n = room_for_head(w, d)
        if n == 0:
            return
        if n < 0:
            break
        n = fill_buffer(w, d)
        if n == 0 or (n < 0 and d.flags & F_READABLE):
            w.block.counters[C_CLOSE_DOWNSTREAM_EOF if n == 0 else C_CLOSE_DOWNSTREAM_RESET] += 1
            connection_close(w, d)
            return
    d.flags &= ~<uint32_t> F_HEAD_TIMED
    span.start = 0
    span.length = length
    lower_key(name, name, span)
    service = table_find(&w.shm, d.direction, name, length) if outcome == TLS_OK and length else NULL
    if service == NULL or service.protocol not in (PROTOCOL_TLS, PROTOCOL_TCP):
        greet_refuse(w, d)
        return
    relay_to(w, d, service)
