# Multiplexed protocols (Bolt, Dubbo 2): each request is routed by itself, and the callers of all downstream connections
# share one upstream connection per address, on which requests have ids of our own (calls.pyx).
#
# A frame of up to FRAME_WHOLE bytes is taken as a whole and copied to the output queue of where it goes (batch.pyx).
# A longer one is streamed: pump moves it from its connection into the other. A long request has an upstream connection
# to itself until it is sent, so it holds nobody up but those behind it on its own connection; while a long response
# passes, new calls avoid its upstream connection.
#
# Nothing here closes a connection other than the one being run. What breaks another one dooms it, and it is closed when
# its turn comes.

cdef enum:
    FRAME_WHOLE = FRONT_MAX
    MUX_IDLE_MS = 60000         # how long an upstream connection without calls is kept
    MUX_PING_MS = 3000          # how long one may be silent that was asked for a sign of life
    MUX_STALL_MS = 1000         # how long a full upstream connection may take nothing before calls to it fail
    MUX_ABANDONED = 1024        # calls without an answer, above which an upstream connection gets no new ones
    STREAM_TRAILER = 1          # Connection.chunk_phase while a frame is streamed: its CRC is still to come
    STREAM_LAST = 2             # ... only its CRC is


# ------------------------------------------------------------------------------------------------------------- codecs

cdef inline int frame_head(uint8_t protocol, const uint8_t *p, uint32_t n, Frame *f) noexcept nogil:
    return bolt_frame(p, n, f) if protocol == PROTOCOL_BOLT else dubbo_frame(p, n, f)


cdef inline int frame_route(const uint8_t *p, uint32_t n, Frame *f) noexcept nogil:
    return bolt_route(p, n, f) if f.protocol == PROTOCOL_BOLT else dubbo_route(p, n, f)


cdef inline uint32_t frame_set_id(uint8_t *p, const Frame *f, uint64_t id) noexcept nogil:
    """Returns what is to be XORed onto the trailer."""
    if f.protocol == PROTOCOL_BOLT:
        return bolt_set_id(p, f, <uint32_t> id)
    dubbo_set_id(p, id)
    return 0


cdef inline uint32_t frame_pong(uint8_t *out, const uint8_t *p, const Frame *f) noexcept nogil:
    if f.protocol == PROTOCOL_BOLT:
        return bolt_pong(out, f)
    return dubbo_pong(out, f, p + DUBBO_HEAD, <uint32_t> f.length - DUBBO_HEAD)


cdef inline uint32_t frame_ping(uint8_t *out, const Connection *u) noexcept nogil:
    return bolt_ping(out, u.version, CALL_NO_ID) if u.protocol == PROTOCOL_BOLT else dubbo_ping(out, CALL_NO_ID)


cdef inline uint32_t frame_status_slot(const Frame *f) noexcept nogil:
    return bolt_status_slot(f.status) if f.protocol == PROTOCOL_BOLT else dubbo_status_slot(f.status)


cdef inline bint frame_succeeded(const Frame *f) noexcept nogil:
    return f.status == (BOLT_SUCCESS if f.protocol == PROTOCOL_BOLT else DUBBO_OK)


cdef inline void xor_trailer(uint8_t *trailer, uint32_t patch) noexcept nogil:
    trailer[0] ^= patch >> 24
    trailer[1] ^= (patch >> 16) & 255
    trailer[2] ^= (patch >> 8) & 255
    trailer[3] ^= patch & 255


cdef void frame_copy(uint8_t *to, const uint8_t *p, const Frame *f, uint64_t id) noexcept nogil:
    """Copies a whole frame and gives it another id."""
    cdef uint32_t length = <uint32_t> f.length, patch
    memcpy(to, p, length)
    patch = frame_set_id(to, f, id)
    if patch:
        xor_trailer(to + length - 4, patch)


# ----------------------------------------------------------------------------------------------------------- run, end

cdef void frames_run(Worker *w, Connection *c) noexcept nogil:
    """Goes on with a multiplexed connection, up- or downstream, after its readiness changed."""
    cdef Mux *m = mux_of(w, c)
    cdef int rc
    if c.flags & F_DOOMED or (c.flags & F_GONE and c.kind == CONN_FRAME_DOWN):
        frames_close(w, c, C_CLOSE_DOWNSTREAM_RESET)
        return
    if c.state == ST_CONNECTING:
        rc = upstream_connected(w, c)
        if rc <= 0:
            if rc < 0:
                mux_connect_failed(w, c)
            return
    if m.source != NONE:
        run_later(w, w.connections + m.source)
    if m.queued:
        out_dirty(w, c)
    frames_read(w, c)


cdef void doom(Worker *w, Connection *c) noexcept nogil:
    c.flags |= F_DOOMED
    run_later(w, c)


cdef void frames_close(Worker *w, Connection *c, uint32_t cause) noexcept nogil:
    """Closes c, which is being run. Its calls are answered by an error, or nobody waits for them any more."""
    cdef Mux *m = mux_of(w, c)
    cdef Call *call
    if c.kind == CONN_FRAME_DOWN:
        w.block.counters[cause] += 1
        while m.calls != NONE:
            call = w.calls + m.calls
            call_leave(w, call)
            if call.upstream == NONE:
                call_end(w, call)
    else:
        shared_remove(w, c)
        while m.calls != NONE:
            call = w.calls + m.calls
            if call.downstream != NONE:
                call_fail(w, call, FAIL_CLOSED)
            call_end(w, call)
    if c.state == ST_BODY and c.peer != NONE:           # its frame is broken in the middle, and so is where it went
        w.mux[c.peer].source = NONE
        reset_on_close(w.connections + c.peer)
        doom(w, w.connections + c.peer)
    if m.source != NONE:
        stream_orphan(w, w.connections + m.source)
    wait_for_room_over(w, c)
    waiters_wake(w, m)
    out_clean(w, c)
    buffers_give(w, out_detach(m))
    connection_close(w, c)


cdef void frames_finish(Worker *w, Connection *d, uint32_t cause) noexcept nogil:
    """Closes a downstream connection that owes nothing, so that what it sent last arrives."""
    wait_for_room_over(w, d)
    out_clean(w, d)
    w.block.counters[cause] += 1
    d.flags |= F_DONE
    linger_close(w, d)


cdef bint frames_owes(const Worker *w, const Connection *d) noexcept nogil:
    cdef const Mux *m = w.mux + index_of(w, d)
    return m.outstanding or m.queued or m.source != NONE or d.state == ST_BODY


cdef void frames_refuse(Worker *w, Connection *c, int reason) noexcept nogil:
    """A frame that cannot be read ends its connection: where the next one begins is unknown."""
    w.block.counters[C_FRAME_REASONS + reason - FRAME_BAD] += 1
    frames_close(w, c, C_CLOSE_REFUSED)


cdef void frames_ended(Worker *w, Connection *c, ssize_t n) noexcept nogil:
    """recv gave n <= 0. A caller that ended its side still gets what it asked for."""
    if n == 0 and c.kind == CONN_FRAME_DOWN and c.state != ST_BODY and frames_owes(w, c):
        c.flags |= F_CLOSE
        return
    frames_close(w, c, C_CLOSE_DOWNSTREAM_EOF if n == 0 else C_CLOSE_DOWNSTREAM_RESET)


cdef void frames_expired(Worker *w, Connection *c) noexcept nogil:
    """c's deadline passed."""
    cdef Mux *m = mux_of(w, c)
    if c.state == ST_CONNECTING:
        w.block.counters[C_TIMEOUT_CONNECT] += 1
        mux_connect_failed(w, c)
    elif c.state == ST_BODY and c.peer != NONE and not w.connections[c.peer].flags & F_WRITABLE:
        reset_on_close(w.connections + c.peer)
        doom(w, w.connections + c.peer)
    elif not c.flags & F_WRITABLE and (m.queued or m.source != NONE):       # it does not read, and holds others up
        w.block.counters[C_TIMEOUT_IDLE] += 1
        reset_on_close(c)
        frames_close(w, c, C_CLOSE_TIMEOUT)
    elif m.waits_for != NONE:
        if c.kind == CONN_FRAME_DOWN:   # for a server that may have stalled: looks again
            wait_for_room_over(w, c)
            run_later(w, c)
    elif c.state == ST_BODY or c.start < c.end:
        w.block.counters[C_TIMEOUT_HEADER] += 1
        frames_close(w, c, C_CLOSE_TIMEOUT)
    elif c.kind == CONN_FRAME_UP:
        if m.pinged_ms and m.heard_ms < m.pinged_ms:
            address_failed(&w.shm, c.address, w.now_ms, w.settings[SET_EJECT_FAILURES], w.settings[SET_EJECT_MS])
            frames_close(w, c, 0)
        elif m.outstanding == 0 and m.source == NONE:
            frames_close(w, c, 0)
        else:
            m.pinged_ms = 0
    elif frames_owes(w, c):
        frames_rest(w, c)
    elif w.draining:
        frames_finish(w, c, C_CLOSE_DRAIN)
    else:
        w.block.counters[C_TIMEOUT_IDLE] += 1
        frames_finish(w, c, C_CLOSE_TIMEOUT)


cdef void frames_rest(Worker *w, Connection *c) noexcept nogil:
    """Sets the time until c must do something again."""
    cdef Mux *m = mux_of(w, c)
    if not c.flags & F_WRITABLE and (m.queued or m.source != NONE):
        return                  # out_flush and stream_run set it at each progress
    if c.start < c.end or c.state == ST_BODY:
        if not c.flags & F_HEAD_TIMED:
            c.flags |= F_HEAD_TIMED
            timer_set(w, c, w.settings[SET_HEADER_MS])
        return
    c.flags &= ~<uint32_t> F_HEAD_TIMED
    if c.kind == CONN_FRAME_DOWN:
        timer_set(w, c, DRAIN_IDLE_MS if w.draining else w.settings[SET_IDLE_MS])
    elif not m.pinged_ms:
        timer_set(w, c, MUX_IDLE_MS if m.outstanding == 0 else 0)


cdef void frames_accepted(Worker *w, Connection *d, uint8_t protocol) noexcept nogil:
    """d is known to speak that protocol."""
    d.kind = CONN_FRAME_DOWN
    d.protocol = protocol
    mux_start(w, d)
    frames_rest(w, d)


cdef void frames_drain(Worker *w, Connection *d) noexcept nogil:
    """The worker drains, and d ends at a quiet moment between two frames. Dubbo has a word for it; a caller's own
    sidecar does not say it: an application that knows no other provider than this would not call at all for a while."""
    cdef uint8_t *out
    if d.protocol == PROTOCOL_DUBBO and d.direction == INBOUND:
        out = out_room(w, d, FRAME_OWN, WAIT_HEAD)
        if out != NULL:
            out_add(w, d, dubbo_readonly(out))
    frames_rest(w, d)


# ----------------------------------------------------------------------------------------------------------- reading

cdef void frames_read(Worker *w, Connection *c) noexcept nogil:
    """Takes in frames until there are none, or c may not go on."""
    cdef Mux *m = mux_of(w, c)
    cdef bint down = c.kind == CONN_FRAME_DOWN
    cdef int64_t budget = PUMP_BUDGET
    cdef uint64_t needed
    cdef Frame f
    cdef ssize_t n
    cdef int outcome
    while True:
        if c.state == ST_BODY:
            if not stream_run(w, c):
                return
            continue
        if m.waits_for != NONE or (down and (m.queued > OUT_HIGH or c.flags & F_CLOSE)):
            return
        if c.start < c.end:
            outcome = frame_head(c.protocol, buffer_data(c.buffer) + c.start, c.end - c.start, &f)
            if outcome >= FRAME_BAD:
                frames_refuse(w, c, outcome)
                return
            if outcome == FRAME_OK:
                needed = f.length if f.length <= FRAME_WHOLE else (f.front if down else <uint32_t> FRAME_HEAD)
                if c.end - c.start >= needed:
                    c.flags &= ~<uint32_t> F_HEAD_TIMED
                    outcome = frame_from_caller(w, c, &f) if down else frame_from_server(w, c, &f)
                    if outcome >= FRAME_BAD:
                        frames_refuse(w, c, outcome)
                    if outcome != FRAME_OK:
                        return
                    continue
        if not c.flags & F_READABLE:
            if c.start == c.end:
                buffer_drop(w, c)
            frames_rest(w, c)
            return
        if budget <= 0:
            run_later(w, c)
            return
        if m.bulky:
            widen(w, c)
        if room_for_head(w, c) <= 0:        # waits for a buffer; FRAME_WHOLE fits the large one
            return
        n = fill_buffer(w, c)
        if n == 0 or (n < 0 and c.flags & F_READABLE):
            frames_ended(w, c, n)
            return
        if n > 0:
            budget -= n
            m.heard_ms = w.now_ms
        m.bulky = budget <= PUMP_BUDGET - (SMALL_BUFFER - HEADROOM)


cdef inline void widen(Worker *w, Connection *c) noexcept nogil:
    """A large buffer for c, which has much to read, if memory is plenty."""
    cdef Buffer *large
    cdef uint32_t held = c.end - c.start
    if c.buffer != NULL and c.buffer.size == LARGE_BUFFER:
        return
    large = buffer_take(w, LARGE_BUFFER, w.settings[SET_BUFFERS] // 4)
    if large != NULL:
        if held:
            memcpy(buffer_data(large) + HEADROOM, buffer_data(c.buffer) + c.start, held)
        buffer_drop(w, c)
        c.buffer = large
        c.start = HEADROOM
        c.end = HEADROOM + held


cdef inline int frame_skip(Connection *c, const Frame *f) noexcept nogil:
    if f.length <= FRAME_WHOLE:
        c.start += <uint32_t> f.length
    else:
        c.state = ST_BODY
        c.peer = NONE
        c.remaining = f.length
        c.ready = 0
        c.chunk_phase = 0
    return FRAME_OK


cdef int pong(Worker *w, Connection *c, const Frame *f) noexcept nogil:
    cdef uint8_t *out
    if f.length > FRAME_OWN:
        return BAD_LENGTH
    out = out_room(w, c, FRAME_OWN, WAIT_HEAD)
    w.block.counters[C_HEARTBEATS] += 1
    if out == NULL:
        doom(w, c)
    else:
        out_add(w, c, frame_pong(out, buffer_data(c.buffer) + c.start, f))
    return frame_skip(c, f)


# ---------------------------------------------------------------------------------------------------------- requests

cdef int frame_from_caller(Worker *w, Connection *d, Frame *f) noexcept nogil:
    """The next frame of a downstream connection. FRAME_OK: go on; FRAME_MORE: d waits or speaks otherwise from here on;
    else the reason to refuse it."""
    if f.kind == FRAME_REQUEST or f.kind == FRAME_ONEWAY:
        return call_start(w, d, f)
    if f.kind == FRAME_PING:
        return pong(w, d, f)
    if f.kind == FRAME_RESPONSE:
        return BAD_KIND
    return frame_skip(d, f)


cdef int add_key(uint8_t *key, uint32_t *length, const uint8_t *p, Span span) noexcept nogil:
    if length[0] + span.length > MAX_KEY:
        return False
    length[0] += lower_key(key + length[0], p, span)
    return True


cdef Service *service_named(Worker *w, const Connection *d, const uint8_t *p, uint32_t n, Frame *f, uint8_t *key,
                            uint32_t *length) noexcept nogil:
    """The service that a routed frame is for, and its key: Bolt's name as it is, Dubbo's [group/]service[:version]."""
    cdef Service *service
    cdef bint named, grouped, attached
    length[0] = 0
    named = add_key(key, length, p, f.service)
    if f.service_version.length:
        named = named and length[0] < MAX_KEY
        if named:
            key[length[0]] = c':'
            length[0] += 1
        named = named and add_key(key, length, p, f.service_version)
    if not named:
        return NULL
    service = table_find(&w.shm, d.direction, key, length[0])
    if f.protocol == PROTOCOL_DUBBO:
        # The attachments also say how long the caller waits. A one-way call is read to the end for its group alone.
        grouped = service == NULL or service.flags & SERVICE_GROUPED
        attached = (grouped or f.kind == FRAME_REQUEST) and dubbo_group(p, n, f) == FRAME_OK
        if grouped and attached and 0 < f.group.length < MAX_KEY - length[0]:
            memmove(key + f.group.length + 1, key, length[0])
            lower_key(key, p, f.group)
            key[f.group.length] = c'/'
            length[0] += f.group.length + 1
            service = table_find(&w.shm, d.direction, key, length[0])
    return service if service != NULL and service.protocol == f.protocol else NULL


cdef int call_start(Worker *w, Connection *d, Frame *f) noexcept nogil:
    cdef uint8_t key[MAX_KEY]
    cdef uint32_t key_length = 0, timeout_ms
    cdef uint8_t *p = buffer_data(d.buffer) + d.start
    cdef uint32_t n = d.end - d.start
    cdef const Service *service
    cdef Connection *u
    cdef Call *call = NULL
    cdef uint32_t tried[3]
    cdef uint8_t tried_count = 0
    cdef int failure = 0
    cdef int outcome = frame_route(p, n, f)
    if outcome != FRAME_OK:
        return outcome if outcome != FRAME_MORE else <int> BAD_FRONT
    service = service_named(w, d, p, n, f, key, &key_length)
    if service != NULL and service.flags & SERVICE_SINGLE and not w.draining and not d.flags & F_APART:
        if not frames_owes(w, d):
            passage_start(w, d, service)
            return FRAME_MORE
    if service == NULL:
        w.block.counters[C_ROUTE_MISSES] += 1
        return call_refuse(w, d, f, FAIL_NO_SERVICE, key, key_length)
    u = mux_place(w, service, d, f, tried, &tried_count, &failure)
    if u == NULL:
        return call_refuse(w, d, f, failure, service.text, service.key_len)
    if mux_of(w, u).queued > OUT_HIGH and f.length <= FRAME_WHOLE:
        if w.now_ms - mux_of(w, u).moved_ms >= MUX_STALL_MS:
            return call_refuse(w, d, f, FAIL_OVERLOAD, service.text, service.key_len)
        wait_for_room(w, d, u)
        timer_set(w, d, MUX_STALL_MS)
        return FRAME_MORE
    if f.kind == FRAME_REQUEST:
        call = call_new(w, d, f, service)
        if call == NULL:
            return call_refuse(w, d, f, FAIL_OVERLOAD, service.text, service.key_len)
    if not call_forward(w, d, u, f, CALL_NO_ID if call == NULL else call_id(w, call)):
        if call != NULL:
            call_end(w, call)
        return call_refuse(w, d, f, FAIL_OVERLOAD, service.text, service.key_len)
    w.block.counters[C_REQUESTS] += 1
    stats_for(w, service.sid, service.sid_gen).bytes_received += f.length
    if call != NULL:
        call.tried_count = tried_count
        memcpy(call.tried, tried, sizeof(tried))
        call_send(w, call, u)
        timeout_ms = service.request_ms if service.request_ms else w.settings[SET_REQUEST_MS]
        call_time(w, call, <uint32_t> f.timeout_ms if f.timeout_ms > 0 else timeout_ms)
    return FRAME_OK


cdef bint call_forward(Worker *w, Connection *d, Connection *u, const Frame *f, uint32_t id) noexcept nogil:
    """Queues the frame at d.start for u, or begins to stream it. False: there is no buffer."""
    cdef uint8_t *p = buffer_data(d.buffer) + d.start
    cdef uint8_t *to
    if f.length > FRAME_WHOLE:
        stream_start(w, d, u, f, frame_set_id(p, f, id))
        return True
    to = out_room(w, u, <uint32_t> f.length, WAIT_STREAM)
    if to == NULL:
        return False
    frame_copy(to, p, f, id)
    out_add(w, u, <uint32_t> f.length)
    d.start += <uint32_t> f.length
    return True


cdef int call_refuse(Worker *w, Connection *d, const Frame *f, int failure, const uint8_t *key,
                     uint32_t key_length) noexcept nogil:
    """Answers a request that goes nowhere, and leaves it out."""
    w.block.counters[C_REQUESTS] += 1
    if failure == FAIL_OVERLOAD:
        w.block.counters[C_OVERLOADS] += 1
    elif failure == FAIL_NO_ENDPOINT:
        w.block.counters[C_NO_ENDPOINTS] += 1
    elif failure == FAIL_LOOP:
        w.block.counters[C_LOOPS] += 1
    if f.kind == FRAME_REQUEST:
        answer(w, d, f, failure, key, key_length)
    return frame_skip(d, f)


cdef const char *failure_text(int failure) noexcept nogil:
    if failure == FAIL_NO_SERVICE:
        return b"no such service is known to this sidecar"
    if failure == FAIL_NO_ENDPOINT:
        return b"no endpoint is registered"
    if failure == FAIL_CONNECT:
        return b"no endpoint accepted a connection"
    if failure == FAIL_CLOSED:
        return b"the server closed the connection before it answered"
    if failure == FAIL_TIMEOUT:
        return b"the server did not answer in time"
    if failure == FAIL_LOOP:
        return b"the endpoint is one of this sidecar's own listeners; forwarding would loop"
    return b"this sidecar or the connection to the server is full"


cdef uint32_t answer(Worker *w, Connection *c, const Frame *request, int failure, const uint8_t *key,
                     uint32_t key_length) noexcept nogil:
    """Queues an error response to c; returns the slot of its status."""
    cdef uint8_t *out = out_room(w, c, FRAME_OWN, WAIT_HEAD)
    cdef uint32_t length
    cdef Text text
    cdef Frame own
    if out == NULL:
        doom(w, c)
        return 15
    if request.protocol == PROTOCOL_BOLT:
        length = bolt_error(out, request, <uint16_t> failure)
    else:
        text.length = 0
        text_say(&text, b"fastside: service '")
        text_add(&text, <const char *> key, key_length)
        text_say(&text, b"': ")
        text_say(&text, failure_text(failure))
        length = dubbo_error(out, request, <uint16_t> failure, <const uint8_t *> text.bytes, text.length)
    out_add(w, c, length)
    frame_head(request.protocol, out, length, &own)
    return frame_status_slot(&own)


# ------------------------------------------------------------------------------------------------------- calls' ends

cdef void call_count(Worker *w, const Call *call, uint32_t slot, bint success, uint64_t length) noexcept nogil:
    cdef ServiceStats *stats = stats_for(w, call.sid, call.sid_gen)
    cdef uint64_t us = w.now_us - call.begun_us
    stats.responses[2 if success else 5] += 1
    stats.statuses[slot] += 1
    stats.bytes_sent += length
    stats.duration_us += us
    stats.histogram[histogram_bucket(us)] += 1


cdef void call_fail(Worker *w, Call *call, int failure) noexcept nogil:
    """Answers the caller by an error. The call stays."""
    cdef Connection *d = w.connections + call.downstream
    cdef const Service *service = table_by_sid(&w.shm, call.sid, call.sid_gen)
    cdef Frame request
    memset(&request, 0, sizeof(request))
    request.id = call.caller_id
    request.kind = FRAME_REQUEST
    request.protocol = d.protocol
    request.version = call.version
    request.serialization = call.serialization
    request.flags = call.flags
    request.command = call.command
    call_count(w, call, answer(w, d, &request, failure, <const uint8_t *> b"" if service == NULL else service.text,
                               0 if service == NULL else service.key_len), False, 0)


cdef void call_expired(Worker *w, Call *call) noexcept nogil:
    cdef Connection *u = w.connections + call.upstream
    cdef Mux *m = w.mux + call.upstream
    cdef uint8_t *out
    w.block.counters[C_TIMEOUT_REQUEST] += 1
    call_fail(w, call, FAIL_TIMEOUT)
    call_leave(w, call)
    if m.abandoned > MUX_ABANDONED:
        u.flags |= F_CLOSE
        upstream_rest(w, u)
    if u.state != ST_CONNECTING and not m.pinged_ms and m.heard_ms * 1000 < call.begun_us:
        # Silent ever since: the host may be gone without a word, and every call to it would time out.
        out = out_room(w, u, FRAME_OWN, WAIT_HEAD)
        if out != NULL:
            out_add(w, u, frame_ping(out, u))
            m.pinged_ms = w.now_ms
            timer_set(w, u, MUX_PING_MS)


cdef void upstream_rest(Worker *w, Connection *u) noexcept nogil:
    """A call of u's has ended or was given up."""
    cdef Mux *m = mux_of(w, u)
    if u.flags & F_CLOSE and m.outstanding == m.abandoned and m.source == NONE and u.state != ST_BODY:
        doom(w, u)
    elif m.outstanding == 0 and not m.pinged_ms:
        timer_set(w, u, MUX_IDLE_MS)


# ---------------------------------------------------------------------------------------------------------- responses

cdef int frame_from_server(Worker *w, Connection *u, Frame *f) noexcept nogil:
    """The next frame of an upstream connection; results as of frame_from_caller."""
    if f.kind == FRAME_RESPONSE:
        return call_answered(w, u, f)
    if f.kind == FRAME_PING:
        return pong(w, u, f)
    if f.kind == FRAME_REQUEST:         # a server that calls back: nobody here could answer it
        answer(w, u, f, FAIL_NO_SERVICE, NULL, 0)
    elif f.kind == FRAME_READONLY:      # it shuts down: what it has under way it will still answer
        u.flags |= F_CLOSE
        address_eject(&w.shm, u.address, w.now_ms, w.settings[SET_EJECT_MS])
        upstream_rest(w, u)
    elif f.kind == FRAME_WRITABLE:
        u.flags &= ~<uint32_t> F_CLOSE
        address_ok(&w.shm, u.address)
    return frame_skip(u, f)


cdef int call_answered(Worker *w, Connection *u, const Frame *f) noexcept nogil:
    cdef uint8_t *p = buffer_data(u.buffer) + u.start
    cdef uint8_t *to
    cdef Call *call = call_find(w, u, f.id)
    cdef Connection *d
    cdef uint32_t patch
    if call == NULL or call.downstream == NONE or w.connections[call.downstream].flags & F_DOOMED:
        w.block.counters[C_LATE_RESPONSES] += 1
        if call != NULL:
            call_end(w, call)
            upstream_rest(w, u)
        return frame_skip(u, f)
    d = w.connections + call.downstream
    if f.length <= FRAME_WHOLE:
        to = NULL
        if mux_of(w, d).queued <= OUT_HIGH:
            # An empty queue may use the share of heads, so that a response never waits for a buffer alone.
            to = out_room(w, d, <uint32_t> f.length, WAIT_STREAM if mux_of(w, d).queued else WAIT_HEAD)
            if to == NULL and mux_of(w, d).queued == 0:
                doom(w, d)
        if to == NULL:
            wait_for_room(w, u, d)
            return FRAME_MORE
        frame_copy(to, p, f, call.caller_id)
        out_add(w, d, <uint32_t> f.length)
        u.start += <uint32_t> f.length
    else:
        if mux_of(w, d).source != NONE:
            wait_for_room(w, u, d)
            return FRAME_MORE
        patch = frame_set_id(p, f, call.caller_id)
        stream_start(w, u, d, f, patch)
    call_count(w, call, frame_status_slot(f), frame_succeeded(f), f.length)
    call_end(w, call)
    upstream_rest(w, u)
    return FRAME_OK


# -------------------------------------------------------------------------------------- waiting for room in a queue

cdef void wait_for_room(Worker *w, Connection *c, Connection *full) noexcept nogil:
    """c goes on when the queue of `full` has shrunk, or `full` is gone."""
    cdef Mux *m = mux_of(w, c)
    m.waits_for = index_of(w, full)
    m.next_waiter = mux_of(w, full).waiters
    mux_of(w, full).waiters = index_of(w, c)


cdef void wait_for_room_over(Worker *w, Connection *c) noexcept nogil:
    cdef Mux *m = mux_of(w, c)
    cdef uint32_t *at
    if m.waits_for == NONE:
        return
    at = &w.mux[m.waits_for].waiters
    while at[0] != index_of(w, c):
        at = &w.mux[at[0]].next_waiter
    at[0] = m.next_waiter
    m.waits_for = NONE


cdef void waiters_wake(Worker *w, Mux *m) noexcept nogil:
    cdef uint32_t at
    while m.waiters != NONE:
        at = m.waiters
        m.waiters = w.mux[at].next_waiter
        w.mux[at].waits_for = NONE
        w.connections[at].flags &= ~<uint32_t> F_HEAD_TIMED     # the time it had to wait is not its own
        run_later(w, w.connections + at)


cdef void flush_dirty(Worker *w) noexcept nogil:
    """The turn's end: everything queued leaves, one send per connection."""
    cdef Connection *c
    cdef Mux *m
    while w.dirty != NONE:
        c = w.connections + w.dirty
        m = w.mux + w.dirty
        w.dirty = m.dirty_next
        c.flags &= ~<uint32_t> F_DIRTY
        if c.state == ST_CONNECTING or c.flags & F_DOOMED:
            continue
        if not out_flush(w, c):
            doom(w, c)
            continue
        if m.queued == 0:
            frames_rest(w, c)
        if m.queued <= OUT_LOW and m.source == NONE:
            waiters_wake(w, m)
        if m.queued <= OUT_LOW and c.flags & F_READABLE:        # perhaps it was not read because of its queue
            run_later(w, c)
        if c.kind == CONN_FRAME_DOWN and c.flags & F_CLOSE and not frames_owes(w, c):
            frames_finish(w, c, C_CLOSE_DOWNSTREAM_EOF)


# ------------------------------------------------------------------------------------------------------- long frames

cdef void stream_start(Worker *w, Connection *from_, Connection *to, const Frame *f, uint32_t patch) noexcept nogil:
    """The frame at from_.start goes to `to` as its bytes come, behind what is queued there now."""
    cdef bint trailer = f.flags & FRAME_CRC
    from_.state = ST_BODY
    from_.peer = index_of(w, to)
    from_.body = BODY_LENGTH
    from_.remaining = f.length - 4 if trailer else f.length
    from_.ready = 0
    from_.streak = 0
    from_.flags &= ~<uint32_t> F_DONE
    from_.chunk_phase = STREAM_TRAILER if trailer else 0
    from_.chunk_trailer = patch
    mux_of(w, to).source = index_of(w, from_)
    mux_of(w, to).before = mux_of(w, to).queued


cdef bint stream_run(Worker *w, Connection *c) noexcept nogil:
    """Goes on with c's long frame. True: it is over. False: it waits, or c was closed."""
    cdef Connection *to
    cdef Mux *m
    cdef uint64_t moved = c.bytes
    cdef int rc
    if c.peer == NONE:
        return stream_discard(w, c)
    to = w.connections + c.peer
    m = w.mux + c.peer
    if to.state == ST_CONNECTING:
        return False
    if to.flags & F_DOOMED or (m.before and not out_flush(w, to)):
        rc = PUMP_SINK_ERROR
    elif m.before:
        return False
    elif c.chunk_phase == STREAM_LAST and c.remaining == 0 and c.ready == 0 and not c.flags & F_DONE:
        rc = stream_trailer(w, c)
    else:
        rc = pump(w, c, to)
    if rc == PUMP_DONE and c.chunk_phase == STREAM_TRAILER:
        c.flags &= ~<uint32_t> F_DONE
        c.chunk_phase = STREAM_LAST
        return stream_run(w, c)
    if rc == PUMP_DONE:
        c.flags &= ~<uint32_t> F_DONE
        c.state = ST_HEAD
        c.peer = m.source = NONE
        c.chunk_phase = 0
        out_dirty(w, to)
        if to.kind == CONN_FRAME_UP:
            upstream_rest(w, to)
        else:
            upstream_rest(w, c)
        return True
    if rc == PUMP_WAIT:
        if c.bytes != moved:
            c.flags &= ~<uint32_t> F_HEAD_TIMED
        frames_rest(w, c)
        return False
    if rc == PUMP_SINK_ERROR:
        m.source = NONE
        doom(w, to)
        stream_orphan(w, c)
        return False
    frames_close(w, c, C_CLOSE_DOWNSTREAM_EOF if rc == PUMP_EOF else C_CLOSE_DOWNSTREAM_RESET)
    return False


cdef int stream_trailer(Worker *w, Connection *c) noexcept nogil:
    """Waits for the whole CRC, which must change with the id. PUMP_*."""
    cdef ssize_t n
    while c.end - c.start < 4:
        if not c.flags & F_READABLE or room_for_head(w, c) <= 0:
            return PUMP_WAIT
        n = fill_buffer(w, c)
        if n == 0:
            return PUMP_EOF
        if n < 0 and c.flags & F_READABLE:
            return PUMP_SOURCE_ERROR
    xor_trailer(buffer_data(c.buffer) + c.start, c.chunk_trailer)
    c.remaining = 4
    return pump(w, c, w.connections + c.peer)


cdef void stream_orphan(Worker *w, Connection *c) noexcept nogil:
    """Where c's long frame went is gone: the rest is thrown away, so that what follows it can be served."""
    if c.chunk_phase == STREAM_TRAILER or (c.chunk_phase == STREAM_LAST and not c.remaining and not c.ready
                                           and not c.flags & F_DONE):
        c.remaining += 4
    c.remaining += c.ready
    c.ready = 0
    c.chunk_phase = 0
    c.peer = NONE
    c.flags &= ~<uint32_t> F_DONE
    pipe_drop(w, c)
    run_later(w, c)


cdef bint stream_discard(Worker *w, Connection *c) noexcept nogil:
    cdef uint64_t n = c.end - c.start
    cdef ssize_t got
    if n > c.remaining:
        n = c.remaining
    c.start += <uint32_t> n
    c.remaining -= n
    while c.remaining:
        if not c.flags & F_READABLE:
            buffer_drop(w, c)
            frames_rest(w, c)
            return False
        # MSG_TRUNC: tcp(7) throws the bytes away without copying them.
        got = recv(c.fd, NULL, <size_t> min(c.remaining, <uint64_t> 1 << 20), MSG_TRUNC | MSG_DONTWAIT)
        if got < 0 and errno == EAGAIN:
            c.flags &= ~<uint32_t> F_READABLE
        elif got <= 0:
            frames_ended(w, c, got)
            return False
        else:
            c.remaining -= <uint64_t> got
    c.state = ST_HEAD
    return True


# ----------------------------------------------------------------------------------------------- upstream connections

cdef Connection *shared_find(Worker *w, const Endpoint *endpoint, const Frame *f) noexcept nogil:
    """A connection to the endpoint that may have the frame, or NULL. A long one wants it for itself."""
    cdef uint32_t at = w.shared[endpoint.address].first
    cdef bint alone = f.length > FRAME_WHOLE
    cdef Connection *u
    cdef Mux *m
    while at:
        u = w.connections + (at - 1)
        m = mux_of(w, u)
        if (u.address_gen == endpoint.gen and u.protocol == f.protocol and u.version == f.version
                and not u.flags & (F_RDHUP | F_GONE | F_CLOSE | F_DOOMED)
                and m.source == NONE and u.state != ST_BODY and not (alone and (m.outstanding or m.queued))):
            return u
        at = m.shared_next + 1
    return NULL


cdef Connection *shared_connect(Worker *w, const Endpoint *endpoint, const Frame *f) noexcept nogil:
    cdef Connection *u = upstream_connect(w, endpoint.address, CONN_FRAME_UP)
    cdef PoolHead *head = w.shared + endpoint.address
    cdef Mux *m
    if u == NULL:
        return NULL
    u.protocol = f.protocol
    u.version = f.version
    m = mux_start(w, u)
    m.shared_next = head.first - 1
    if head.first:
        w.mux[m.shared_next].shared_previous = index_of(w, u)
    head.first = index_of(w, u) + 1
    head.count += 1
    return u


cdef void shared_remove(Worker *w, Connection *u) noexcept nogil:
    cdef Mux *m = mux_of(w, u)
    cdef PoolHead *head = w.shared + u.address
    if m.shared_previous != NONE:
        w.mux[m.shared_previous].shared_next = m.shared_next
    else:
        head.first = m.shared_next + 1
    if m.shared_next != NONE:
        w.mux[m.shared_next].shared_previous = m.shared_previous
    head.count -= 1


cdef Mux *mux_start(Worker *w, const Connection *c) noexcept nogil:
    cdef Mux *m = mux_of(w, c)
    memset(m, 0, sizeof(Mux))
    m.source = m.calls = m.waits_for = m.waiters = m.shared_next = m.shared_previous = NONE
    return m


cdef Connection *mux_place(Worker *w, const Service *service, const Connection *d, const Frame *f, uint32_t *tried,
                           uint8_t *tried_count, int *failure) noexcept nogil:
    """A connection, perhaps still connecting, to the endpoint that the service's policy gives; NULL when there is none,
    and then *failure tells why (FAIL_*)."""
    cdef uint64_t hash = hash_bytes(d.peer_ip, 16, 0) if service.policy >= HASH_SOURCE else 0
    cdef const Endpoint *endpoint
    cdef Connection *u
    while True:
        if tried_count[0] >= 3 or tried_count[0] >= w.settings[SET_ATTEMPTS]:
            failure[0] = FAIL_CONNECT
            return NULL
        endpoint = balance_pick(&w.shm, &w.balance, service, hash, w.now_ms, tried, tried_count[0])
        if endpoint == NULL:
            failure[0] = FAIL_CONNECT if tried_count[0] else FAIL_NO_ENDPOINT
            return NULL
        if w.addresses[endpoint.address].flags & ADDRESS_LOOP:
            failure[0] = FAIL_LOOP
            return NULL
        u = shared_find(w, endpoint, f)
        if u != NULL:
            w.block.counters[C_UPSTREAM_REUSES] += 1
            return u
        u = shared_connect(w, endpoint, f)
        if u != NULL:
            u.direction = d.direction
            u.sid = service.sid
            return u
        if errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
            failure[0] = FAIL_OVERLOAD
            return NULL
        endpoint_failed(w, endpoint.address)
        endpoint_tried(tried, tried_count, endpoint.address)


cdef void mux_connect_failed(Worker *w, Connection *u) noexcept nogil:
    """Nothing was sent to that endpoint: each request that waited for it goes to another."""
    cdef Mux *m = mux_of(w, u)
    cdef Buffer *queue = out_detach(m)
    cdef Buffer *buffer = queue
    cdef Connection *source = NULL if m.source == NONE else w.connections + m.source
    cdef uint32_t failed = u.address
    cdef Frame f
    cdef uint8_t *p
    endpoint_failed(w, failed)
    u.flags |= F_DOOMED
    m.source = NONE
    while buffer != NULL:
        while buffer.start < buffer.end:
            p = buffer_data(buffer) + buffer.start
            if frame_head(u.protocol, p, buffer.end - buffer.start, &f) != FRAME_OK:
                break
            call_again(w, u, p, &f, NULL, failed)
            buffer.start += <uint32_t> f.length
        buffer = buffer.next
    if source != NULL:
        p = buffer_data(source.buffer) + source.start
        source.state = ST_HEAD
        source.peer = NONE
        if frame_head(u.protocol, p, source.end - source.start, &f) == FRAME_OK:
            call_again(w, u, p, &f, source, failed)
            run_later(w, source)
    buffers_give(w, queue)
    frames_close(w, u, 0)


cdef void call_again(Worker *w, Connection *u, uint8_t *p, const Frame *f, Connection *source,
                     uint32_t failed) noexcept nogil:
    """Sends a request, which has its call's id already, to another endpoint. source: the downstream connection of a
    long one, of which nothing was forwarded yet. A one-way request has no call, and gets no second try."""
    cdef Call *call = call_find(w, u, f.id)
    cdef const Service *service
    cdef Connection *other = NULL
    cdef int failure = FAIL_CONNECT
    cdef uint8_t *to = NULL
    if call == NULL or call.downstream == NONE:
        if call != NULL:
            call_end(w, call)
        if source != NULL:
            frame_skip(source, f)
        return
    call_unsend(w, call)
    endpoint_tried(call.tried, &call.tried_count, failed)
    service = table_by_sid(&w.shm, call.sid, call.sid_gen)
    if service != NULL:
        w.block.counters[C_RETRIES] += 1
        other = mux_place(w, service, w.connections + call.downstream, f, call.tried, &call.tried_count, &failure)
    if other != NULL and source != NULL:
        stream_start(w, source, other, f, source.chunk_trailer)
        call_send(w, call, other)
        return
    if other != NULL and mux_of(w, other).queued <= OUT_HIGH:
        to = out_room(w, other, <uint32_t> f.length, WAIT_STREAM)
    if to != NULL:
        memcpy(to, p, <uint32_t> f.length)
        out_add(w, other, <uint32_t> f.length)
        call_send(w, call, other)
        return
    call_fail(w, call, failure if other == NULL else <int> FAIL_OVERLOAD)
    call_end(w, call)
    if source != NULL:
        frame_skip(source, f)
