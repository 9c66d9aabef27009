# HTTP/1.1: one request at a time per downstream connection, each routed by itself, its response brought back. Heads are
# forwarded as they came, less the hop-by-hop lines; bodies go through pump.
#
# The functions below return True when the downstream can go on at once, False when it waits or was closed. After False
# a connection must not be touched.

cdef void http_run(Worker *w, Connection *d) noexcept nogil:
    cdef uint32_t turns = 0
    while True:
        if d.state == ST_HEAD:
            turns += 1
            if turns > 64:      # a client that pipelines without end
                run_later(w, d)
                return
            if not request_read(w, d):
                return
        elif not exchange_run(w, d):
            return


# ----------------------------------------------------------------------------------------------------------- request

cdef int room_for_head(Worker *w, Connection *c) noexcept nogil:
    """Makes room behind c.end for more of a head. 1: there is room, 0: waiting for a buffer, -1: it is too long."""
    cdef Buffer *larger
    if c.buffer == NULL:
        c.buffer = buffer_take(w, SMALL_BUFFER, buffer_share(w, WAIT_HEAD))
        if c.buffer == NULL:
            wait_for_buffer(w, c, WAIT_HEAD)
            return 0
        c.start = c.end = HEADROOM
        wait_over(w, c)
    elif c.start == c.end:
        c.start = c.end = HEADROOM
    elif c.end == c.buffer.size:
        larger = c.buffer
        if c.start == HEADROOM:
            if c.buffer.size == LARGE_BUFFER:
                return -1
            larger = buffer_take(w, LARGE_BUFFER, buffer_share(w, WAIT_LARGE_HEAD))
            if larger == NULL:
                wait_for_buffer(w, c, WAIT_LARGE_HEAD)
                return 0
            wait_over(w, c)
        memmove(buffer_data(larger) + HEADROOM, buffer_data(c.buffer) + c.start, c.end - c.start)
        c.end = HEADROOM + c.end - c.start
        c.start = HEADROOM
        if larger != c.buffer:
            buffer_give(w, c.buffer)
            c.buffer = larger
    return 1


cdef bint request_read(Worker *w, Connection *d) noexcept nogil:
    """Reads until a request head is complete and starts its exchange."""
    cdef uint32_t head_length = 0
    cdef int outcome
    cdef ssize_t n
    while True:
        if d.start < d.end:
            if d.scanned <= 1:          # a CR alone may be the first half of an empty line
                d.scanned = 0
                d.start += http1_skip_empty(buffer_data(d.buffer) + d.start, d.end - d.start)
            if d.start < d.end:
                if d.request_us == 0:
                    d.request_us = w.now_us
                outcome = http1_find_end(buffer_data(d.buffer) + d.start, d.end - d.start, w.settings[SET_HEAD_BYTES],
                                         &d.scanned, &head_length)
                if outcome == HTTP_OK:
                    return request_start(w, d, head_length)
                if outcome >= HTTP_REJECT:
                    return refuse(w, d, outcome)
        if not d.flags & F_READABLE:
            if d.start == d.end:
                buffer_drop(w, d)
            elif not d.flags & F_HEAD_TIMED:
                d.flags |= F_HEAD_TIMED
                timer_set(w, d, w.settings[SET_HEADER_MS])
            return False
        outcome = room_for_head(w, d)
        if outcome <= 0:
            return False if outcome == 0 else refuse(w, d, REJECT_HEAD_LONG)
        n = fill_buffer(w, d)
        if n == 0 or (n < 0 and d.flags & F_READABLE):
            w.block.counters[C_CLOSE_DOWNSTREAM_EOF if n == 0 else C_CLOSE_DOWNSTREAM_RESET] += 1
            connection_close(w, d)
            return False


cdef inline uint32_t lower_key(uint8_t *key, const uint8_t *p, Span span) noexcept nogil:
    """Copies a service name in lower case; longer names than MAX_KEY are cut, and then no service has them."""
    cdef uint32_t i = 0, length = span.length if span.length < MAX_KEY else MAX_KEY
    p += span.start
    if length >= 8:
        while length - i > 8:
            store_8(key + i, lower_8(load_8(p + i)))
            i += 8
        i = length - 8                  # the last eight, some of them once more
        store_8(key + i, lower_8(load_8(p + i)))
        return length
    while i < length:
        key[i] = lower_byte(p[i])
        i += 1
    return length


cdef inline int32_t edit_head(uint8_t *p, const HttpHead *head, const char *field,
                              uint32_t field_length) noexcept nogil:
    """Takes head.cuts out of the head at p and puts `field` (one line with its CRLF, or nothing) after the first line.

    The head's end stays where it is, since the body follows it: what remains moves up against it. Returns how far the
    start moved (negative: into the HEADROOM).
    """
    cdef uint32_t to = head.length, end = head.length, first, i, n
    if head.cut_count == 0 and field_length == 0:
        return 0
    first = <uint32_t> (<const uint8_t *> memchr(p, c'\n', head.length) - p) + 1
    for i in range(head.cut_count, 0, -1):
        n = end - (head.cuts[i - 1].start + head.cuts[i - 1].length)
        to -= n
        memmove(p + to, p + end - n, n)
        end = head.cuts[i - 1].start
    n = end - first
    to -= n
    memmove(p + to, p + first, n)
    # May reach into the headroom, which begins before p.
    memmove(p + <int32_t> (to - field_length - first), p, first)
    if field_length:
        memcpy(p + <int32_t> (to - field_length), field, field_length)
    return <int32_t> (to - field_length - first)


cdef bint request_start(Worker *w, Connection *d, uint32_t head_length) noexcept nogil:
    """A whole head is at d.start: parses it, finds its service, starts the exchange."""
    cdef HttpHead head
    cdef uint8_t key[MAX_KEY]
    cdef uint32_t key_length
    cdef uint8_t *p = buffer_data(d.buffer) + d.start
    cdef const Listener *listener = w.listeners + d.listener
    cdef const Service *service
    cdef Span field
    cdef int32_t shift
    cdef int outcome

    w.block.counters[C_REQUESTS] += 1
    outcome = http1_parse_request(p, head_length, w.settings[SET_HEADERS], listener.header, listener.header_length,
                                  &head)
    if outcome != HTTP_OK:
        return refuse(w, d, outcome)
    d.method = head.method
    d.minor = head.minor
    d.request_flags = head.flags
    d.body = head.body
    d.remaining = head.content_length
    d.chunk_phase = 0
    d.chunk_digits = 0
    d.chunk_trailer = 0
    if head.flags & HEAD_CLOSE or (head.minor == 0 and not head.flags & HEAD_KEEP_ALIVE):
        d.flags |= F_CLOSE

    key_length = lower_key(key, p, head.service if head.service.length else head.host)
    service = table_find(&w.shm, d.direction, key, key_length)
    if service != NULL:
        d.sid = service.sid
        d.sid_gen = service.sid_gen
        d.hash = 0
        if service.policy == HASH_SOURCE:
            d.hash = hash_bytes(d.peer_ip, 16, 0)
        elif service.policy == HASH_HEADER:
            field = http1_field(p, head_length, service.text + service.key_len, service.hash_header_len)
            d.hash = hash_bytes(p + field.start, field.length, 0)

    if head.flags & HEAD_UPGRADE:
        shift = edit_head(p, &head, b"Connection: Upgrade\r\n", 21)
    else:
        shift = edit_head(p, &head, NULL, 0)
    d.start += shift
    d.ready = head_length - shift
    outcome = release_body(w, d)
    if outcome:
        return refuse(w, d, outcome)
    if service == NULL:
        return unknown_service(w, d, key, key_length)
    if service.protocol != PROTOCOL_HTTP:
        return fail(w, d, 404, b"it does not speak http")
    if is_worth_keeping(w, d, service):
        d.flags |= F_KEPT
    d.state = ST_BODY
    timer_set(w, d, 0)          # the header's; connecting has its own, and request_forward sets the next
    return exchange_connect(w, d)


cdef inline bint is_worth_keeping(const Worker *w, const Connection *d, const Service *service) noexcept nogil:
    """Whether the request stays in its buffer until the response begins, so that another endpoint can have it: as long
    as buffers are plenty, and its body is not known to be too long."""
    return (service.endpoint_count > 1 and (d.direction == OUTBOUND or service.flags & SERVICE_RETRY)
            and w.buffers_used <= w.settings[SET_BUFFERS] // 2
            and (d.body != BODY_LENGTH or d.remaining <= d.buffer.size - d.end))


cdef inline bint may_repeat(const Worker *w, const Connection *d) noexcept nogil:
    """Whether the user allowed to send a request twice, and it is idempotent (RFC 9110 9.2.2)."""
    cdef const Service *service = table_by_sid(&w.shm, d.sid, d.sid_gen)
    return service != NULL and service.flags & SERVICE_RETRY and d.method in (
        METHOD_GET, METHOD_HEAD, METHOD_PUT, METHOD_DELETE, METHOD_OPTIONS, METHOD_TRACE)


cdef inline void request_rewind(Worker *w, Connection *d) noexcept nogil:
    """The kept request is to be sent from its first byte."""
    d.start -= <uint32_t> d.streak
    d.ready += <uint32_t> d.streak
    d.streak = 0
    d.flags &= ~<uint32_t> (F_SENT | F_REQUEST_BROKEN)
    timer_set(w, d, 0)


cdef void request_ended(Worker *w, Connection *d) noexcept nogil:
    """Counts the request under way, whose response has d.status (0: none could be given)."""
    cdef ServiceStats *stats = stats_for(w, d.sid, d.sid_gen)
    cdef Connection *u = peer_of(w, d)
    cdef uint64_t us = w.now_us - d.request_us if d.request_us else 0
    stats.responses[d.status // 100 if d.status < 600 else 5] += 1
    stats.bytes_received += d.streak
    if u != NULL:
        stats.bytes_sent += u.streak
    stats.duration_us += us
    stats.histogram[histogram_bucket(us)] += 1


cdef bint request_next(Worker *w, Connection *d) noexcept nogil:
    """The exchange is over and the connection stays: ready for the next request, which may be in the buffer already."""
    d.state = ST_HEAD
    d.flags &= F_SOCKET
    d.ready = 0
    d.scanned = 0
    d.tried_count = 0
    d.request_us = 0
    d.status = 0
    d.method = METHOD_OTHER
    d.sid = NONE
    d.streak = 0
    if d.start == d.end:
        buffer_drop(w, d)
    timer_set(w, d, idle_ms(w))
    return True


# ---------------------------------------------------------------------------------------------------------- exchange

cdef bint exchange_connect(Worker *w, Connection *d) noexcept nogil:
    cdef Service *service = table_by_sid(&w.shm, d.sid, d.sid_gen)
    cdef int why = 503
    if service != NULL and upstream_pick(w, d, service, True, &why) != NULL:
        return True
    if why == 508:
        w.block.counters[C_LOOPS] += 1
        return fail(w, d, 508, b"the endpoint is one of this sidecar's own listeners; forwarding would loop")
    if why == 503:
        w.block.counters[C_NO_ENDPOINTS] += 1
        return fail(w, d, 503, b"no endpoint is registered")
    if why == 500:
        return fail(w, d, 503, b"this sidecar is out of connections or descriptors")
    return fail(w, d, 502, b"no endpoint accepted a connection")


cdef bint exchange_connect_failed(Worker *w, Connection *d) noexcept nogil:
    """The connect failed, so nothing was sent: another endpoint may have the request."""
    cdef uint32_t address = w.connections[d.peer].address
    upstream_drop(w, d)
    connect_failed(w, d, address)
    w.block.counters[C_RETRIES] += 1
    return exchange_connect(w, d)


cdef bint exchange_lost(Worker *w, Connection *d, Connection *u) noexcept nogil:
    """The upstream connection ended before a response. The request is sent again only if no byte of it can have reached
    the server, or if it may be repeated."""
    cdef uint32_t address = u.address
    cdef bint reused = u.flags & F_REUSED
    upstream_drop(w, d)
    if d.streak == 0:
        if reused:
            w.block.counters[C_UPSTREAM_STALE] += 1
        else:
            connect_failed(w, d, address)
    elif d.flags & F_KEPT and may_repeat(w, d):
        request_rewind(w, d)
        connect_failed(w, d, address)
    else:
        return fail(w, d, 502, b"the server closed the connection before it answered; the request was not sent again")
    w.block.counters[C_RETRIES] += 1
    return exchange_connect(w, d)


cdef bint exchange_abort(Worker *w, Connection *d, uint32_t cause) noexcept nogil:
    """Ends both sides in the middle of a message; whoever got a part of it sees a reset."""
    cdef Connection *u = peer_of(w, d)
    w.block.counters[cause] += 1
    if not d.flags & F_ANSWERED:
        d.status = 0
    request_ended(w, d)
    reset_on_close(d)
    if u != NULL:
        reset_on_close(u)
    pair_close(w, d)
    return False


cdef bint exchange_run(Worker *w, Connection *d) noexcept nogil:
    cdef Connection *u = peer_of(w, d)
    cdef int rc
    if d.flags & F_GONE:
        return exchange_abort(w, d, C_CLOSE_DOWNSTREAM_RESET)
    if u.state == ST_CONNECTING:
        rc = upstream_connected(w, u)
        if rc <= 0:
            return False if rc == 0 else exchange_connect_failed(w, d)
    if not d.flags & (F_SENT | F_REQUEST_BROKEN):
        rc = request_forward(w, d, u)
        if rc != PUMP_WAIT:
            return rc == PUMP_DONE
    while True:
        if u.state == ST_HEAD:
            rc = response_read(w, d, u)
            if rc != PUMP_DONE:
                return rc == PUMP_EOF
        rc = pump(w, u, d)
        if rc == PUMP_DONE and u.flags & F_INTERIM:
            u.flags &= ~<uint32_t> (F_INTERIM | F_DONE)
            u.state = ST_HEAD
            u.scanned = 0
            continue
        if rc == PUMP_DONE:
            return exchange_finish(w, d, u)
        if rc == PUMP_WAIT:
            timer_set(w, d, w.settings[SET_IDLE_MS])
            return False
        if rc == PUMP_BAD:
            w.block.counters[C_REJECTS + u.status - HTTP_REJECT] += 1
        return exchange_abort(w, d, C_CLOSE_DOWNSTREAM_RESET if rc == PUMP_SINK_ERROR else C_CLOSE_UPSTREAM)


cdef int request_forward(Worker *w, Connection *d, Connection *u) noexcept nogil:
    """Moves the request on. PUMP_WAIT: go on with the response; otherwise the exchange ended or starts anew: PUMP_DONE
    when the downstream can go on, PUMP_EOF when it can't."""
    cdef const Service *service
    cdef int rc = pump(w, d, u)
    if d.streak:
        d.flags |= F_COMMITTED
    if rc == PUMP_DONE:
        d.flags |= F_SENT
        if d.start == d.end and not d.flags & F_KEPT:
            buffer_drop(w, d)
        service = table_by_sid(&w.shm, d.sid, d.sid_gen)
        timer_set(w, d, service.request_ms if service != NULL and service.request_ms else w.settings[SET_REQUEST_MS])
        return PUMP_WAIT
    if rc == PUMP_WAIT:
        timer_set(w, d, w.settings[SET_IDLE_MS])
        return PUMP_WAIT
    if rc == PUMP_SINK_ERROR:
        if d.streak == 0:
            return PUMP_DONE if exchange_lost(w, d, u) else PUMP_EOF
        # The server stopped reading. It may have answered before: its response decides.
        d.flags |= F_REQUEST_BROKEN
        u.flags |= F_READABLE | F_CLOSE
        return PUMP_WAIT
    if rc == PUMP_BAD and u.state == ST_HEAD:
        upstream_drop(w, d)
        return PUMP_DONE if refuse(w, d, d.status) else PUMP_EOF
    if rc == PUMP_BAD:
        w.block.counters[C_REJECTS + d.status - HTTP_REJECT] += 1
    exchange_abort(w, d, C_CLOSE_DOWNSTREAM_EOF if rc == PUMP_EOF else C_CLOSE_DOWNSTREAM_RESET)
    return PUMP_EOF


# ---------------------------------------------------------------------------------------------------------- response

cdef int response_read(Worker *w, Connection *d, Connection *u) noexcept nogil:
    """Reads until a response head is complete. PUMP_DONE: it is, and ready to be pumped. PUMP_EOF: the exchange ended
    or starts anew and the downstream can go on. PUMP_WAIT: waiting, or closed."""
    cdef uint32_t head_length = 0
    cdef int outcome
    cdef ssize_t n
    while True:
        if u.start < u.end:
            outcome = http1_find_end(buffer_data(u.buffer) + u.start, u.end - u.start, w.settings[SET_HEAD_BYTES],
                                     &u.scanned, &head_length)
            if outcome == HTTP_OK:
                return response_start(w, d, u, head_length)
            if outcome >= HTTP_REJECT:
                return response_refused(w, d, u, outcome)
        if not u.flags & F_READABLE:
            if u.start == u.end:
                buffer_drop(w, u)
            return PUMP_WAIT
        outcome = room_for_head(w, u)
        if outcome <= 0:
            return PUMP_WAIT if outcome == 0 else response_refused(w, d, u, REJECT_HEAD_LONG)
        n = fill_buffer(w, u)
        if n == 0 or (n < 0 and u.flags & F_READABLE):
            return PUMP_EOF if exchange_lost(w, d, u) else PUMP_WAIT


cdef int response_refused(Worker *w, Connection *d, Connection *u, int reason) noexcept nogil:
    cdef Text what
    what.length = 0
    w.block.counters[C_REJECTS + reason - HTTP_REJECT] += 1
    text_say(&what, b"the server's response was refused: ")
    text_say(&what, http1_reason_text(reason))
    text_add(&what, b"\0", 1)
    upstream_drop(w, d)
    return PUMP_EOF if fail(w, d, 502, what.bytes) else PUMP_WAIT


cdef int response_start(Worker *w, Connection *d, Connection *u, uint32_t head_length) noexcept nogil:
    """A whole response head is at u.start."""
    cdef HttpHead head
    cdef uint8_t *p = buffer_data(u.buffer) + u.start
    cdef const char *field = NULL
    cdef uint32_t field_length = 0
    cdef int32_t shift
    cdef int outcome = http1_parse_response(p, head_length, w.settings[SET_HEADERS], d.method, &head)
    if outcome != HTTP_OK:
        return response_refused(w, d, u, outcome)
    if d.flags & F_KEPT:
        if head.flags & HEAD_NOT_SENT and d.direction == OUTBOUND and exchange_elsewhere(w, d, u, &head):
            return PUMP_EOF
        d.flags &= ~<uint32_t> F_KEPT
        if d.start == d.end:
            buffer_drop(w, d)
    if head.status == 101:
        if not d.request_flags & HEAD_UPGRADE or not head.flags & HEAD_UPGRADE or not d.flags & F_SENT:
            return response_refused(w, d, u, REJECT_SWITCH)
        field = b"Connection: Upgrade\r\n"
        field_length = 21
    elif head.status < 200:
        u.flags |= F_INTERIM
    else:
        if d.minor == 0 and head.body == BODY_CHUNKED:      # RFC 9112 6.1: its reader would not understand it
            return response_refused(w, d, u, REJECT_CODING_VERSION)
        if (head.flags & HEAD_CLOSE or d.minor == 0 or head.body == BODY_UNTIL_CLOSE
                or (head.minor == 0 and not head.flags & HEAD_KEEP_ALIVE)):
            u.flags |= F_CLOSE
        if head.body == BODY_UNTIL_CLOSE or not d.flags & F_SENT or w.draining:
            d.flags |= F_CLOSE
        if d.flags & F_CLOSE:
            field = b"Connection: close\r\n"
            field_length = 19
        elif d.minor == 0:
            field = b"Connection: keep-alive\r\n"
            field_length = 24
    u.body = head.body
    u.remaining = head.content_length
    u.chunk_phase = 0
    u.chunk_digits = 0
    u.chunk_trailer = 0
    u.streak = 0
    if head.minor == 0:
        p[7] = c'1'             # the version is ours (RFC 9110 2.5)
    shift = edit_head(p, &head, field, field_length)
    u.start += shift
    u.ready = head_length - shift
    u.state = ST_BODY
    if head.status == 101:
        return exchange_upgrade(w, d, u)
    outcome = release_body(w, u)    # so that one send takes head and body
    if outcome:
        return response_refused(w, d, u, outcome)
    if head.status >= 200:
        d.status = head.status
        d.flags |= F_ANSWERED
    elif d.minor == 0:                  # RFC 9110 15.2: a 1.0 client knows no interim responses
        u.start += u.ready
        u.ready = 0
    return PUMP_DONE


cdef bint exchange_elsewhere(Worker *w, Connection *d, Connection *u, const HttpHead *head) noexcept nogil:
    """The provider's sidecar answered that it sent nothing of the request to a server, so another endpoint may have it.
    False when there is none: the response is then the caller's.

    The endpoint's address is not held to have failed: other services may be behind the same sidecar.
    """
    cdef Service *service = table_by_sid(&w.shm, d.sid, d.sid_gen)
    cdef uint64_t length = head.length + (head.content_length if head.body == BODY_LENGTH else 0)
    cdef int why
    endpoint_tried(d.tried, &d.tried_count, u.address)
    if service == NULL or upstream_pick(w, d, service, True, &why) == NULL:
        return False
    upstream_release(w, u, d.flags & F_SENT and head.body <= BODY_LENGTH and length == u.end - u.start
                     and head.minor == 1 and not head.flags & HEAD_CLOSE)
    request_rewind(w, d)
    w.block.counters[C_RETRIES] += 1
    return True


cdef int exchange_upgrade(Worker *w, Connection *d, Connection *u) noexcept nogil:
    """Both sides agreed (RFC 9110 7.8): from here on it is an opaque relay, bytes already read included."""
    d.status = 101
    request_ended(w, d)
    d.kind = CONN_TCP_DOWN
    u.kind = CONN_TCP_UP
    d.body = u.body = BODY_UNTIL_CLOSE
    d.streak = u.streak = 0
    d.flags &= F_SOCKET
    u.flags &= F_SOCKET | F_COUNTED
    relay_run(w, d)
    return PUMP_WAIT


cdef bint exchange_finish(Worker *w, Connection *d, Connection *u) noexcept nogil:
    """The response is forwarded."""
    cdef bint sent = d.flags & F_SENT
    request_ended(w, d)
    d.peer = NONE
    upstream_release(w, u, sent and u.start == u.end)
    if not sent or d.flags & F_CLOSE:
        w.block.counters[C_CLOSE_DRAIN if w.draining else C_CLOSE_DONE] += 1
        linger_close(w, d)
        return False
    return request_next(w, d)
