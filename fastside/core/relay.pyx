# Moving bytes from one connection to its peer: message bodies and opaque streams alike. What may be forwarded is marked
# by src.ready (bytes from src.start on); how far the message goes is src.body with src.remaining or the chunk state.
# Small amounts are copied through a buffer. When a connection has moved SET_SPLICE_BYTES of one message or stream, the
# rest goes through a pipe without being copied to user space.

cdef enum:                      # what pump returns
    PUMP_WAIT                   # nothing to do until one side becomes ready
    PUMP_DONE                   # the message is complete and forwarded
    PUMP_EOF                    # src ended before the message did
    PUMP_SOURCE_ERROR
    PUMP_SINK_ERROR
    PUMP_BAD                    # bytes outside the message's framing; src.status holds the HttpReason


cdef int release_body(Worker *w, Connection *src) noexcept nogil:
    """Marks what src's buffer holds of the message beyond src.ready as ready. 0, or the reason of a refusal."""
    cdef uint32_t at = src.start + src.ready, available = src.end - at, used = 0
    cdef ChunkState chunks
    cdef int outcome
    if src.body == BODY_FRAMES:
        return release_frames(w, src)
    if src.body == BODY_NONE:
        src.flags |= F_DONE
    elif src.body == BODY_UNTIL_CLOSE:
        src.ready += available
    elif src.body == BODY_LENGTH:
        if available >= src.remaining:
            available = <uint32_t> src.remaining
            src.flags |= F_DONE
        src.remaining -= available
        src.ready += available
    elif available:
        chunks.remaining = src.remaining
        chunks.trailer_bytes = src.chunk_trailer
        chunks.phase = src.chunk_phase
        chunks.digits = src.chunk_digits
        outcome = http1_scan_chunks(&chunks, buffer_data(src.buffer) + at, available, &used)
        src.remaining = chunks.remaining
        src.chunk_trailer = chunks.trailer_bytes
        src.chunk_phase = chunks.phase
        src.chunk_digits = chunks.digits
        if outcome >= HTTP_REJECT:
            return outcome
        src.ready += used
        if outcome == HTTP_OK:
            src.flags |= F_DONE
    return 0


cdef inline void count_moved(Worker *w, Connection *src, uint64_t n, uint32_t counter) noexcept nogil:
    src.streak += n
    src.bytes += n
    w.block.counters[counter] += n


cdef inline bint wants_splice(const Worker *w, const Connection *src) noexcept nogil:
    cdef uint32_t threshold = w.settings[SET_SPLICE_BYTES]
    if threshold == 0 or src.streak < threshold:
        return False
    if src.body == BODY_CHUNKED and src.chunk_phase != CHUNK_DATA:
        return False
    return src.body == BODY_UNTIL_CLOSE or src.remaining >= SMALL_BUFFER


cdef int fill_pipe(Worker *w, Connection *src) noexcept nogil:
    """Splices from src into its pipe, which is empty. 1: bytes came, 0: none now, -1: EOF, -2: error, -3: no pipe."""
    cdef size_t want = 1 << 20
    cdef ssize_t n
    if src.pipe == NULL:
        src.pipe = pipe_take(w)
        if src.pipe == NULL:
            return -3
    if src.body != BODY_UNTIL_CLOSE and src.remaining < want:
        want = <size_t> src.remaining
    n = splice(src.fd, NULL, src.pipe.writer, NULL, want, SPLICE_F_NONBLOCK | SPLICE_F_MOVE)
    if n > 0:
        src.pipe.held = <uint32_t> n
        if src.body != BODY_UNTIL_CLOSE:
            src.remaining -= n
            if src.remaining == 0 and src.body == BODY_LENGTH:
                src.flags |= F_DONE
        return 1
    if n == 0:
        return -1
    if errno == EAGAIN:         # the pipe was empty before: it is the socket that has nothing
        src.flags &= ~<uint32_t> F_READABLE
        return 0
    return -2


cdef int drain_pipe(Worker *w, Connection *src, Connection *dst) noexcept nogil:
    """Splices src's pipe into dst. 1: the pipe is empty, 0: dst is full, -1: error."""
    cdef ssize_t n
    while src.pipe.held:
        n = splice(src.pipe.reader, NULL, dst.fd, NULL, src.pipe.held, SPLICE_F_NONBLOCK | SPLICE_F_MOVE)
        if n < 0:
            if errno == EAGAIN:
                watch_writable(w, dst)
                return 0
            return -1
        src.pipe.held -= <uint32_t> n
        count_moved(w, src, n, C_BYTES_SPLICED)
    return 1


cdef inline int flush_ready(Worker *w, Connection *src, Connection *dst) noexcept nogil:
    """Sends the ready bytes of src's buffer to dst. 1: all sent, 0: dst is full, -1: error."""
    cdef ssize_t n
    while src.ready:
        n = send(dst.fd, buffer_data(src.buffer) + src.start, src.ready, MSG_NOSIGNAL | MSG_DONTWAIT)
        if n < 0:
            if errno == EAGAIN:
                watch_writable(w, dst)
                return 0
            return -1
        src.start += <uint32_t> n
        src.ready -= <uint32_t> n
        count_moved(w, src, n, C_BYTES_COPIED)
    return 1


cdef inline ssize_t fill_buffer(Worker *w, Connection *src) noexcept nogil:
    """Reads into src's buffer, which has room behind src.end. recv's result; a short read clears F_READABLE, since with
    edge-triggered epoll whatever comes later gives a new event."""
    cdef uint32_t room = src.buffer.size - src.end
    cdef ssize_t n = recv(src.fd, buffer_data(src.buffer) + src.end, room, MSG_DONTWAIT)
    if n > 0:
        src.end += <uint32_t> n
        if <uint32_t> n < room and not src.flags & (F_RDHUP | F_GONE):
            src.flags &= ~<uint32_t> F_READABLE
    elif n < 0 and errno == EAGAIN:
        src.flags &= ~<uint32_t> F_READABLE
    return n


cdef bint take_copy_buffer(Worker *w, Connection *src) noexcept nogil:
    """An empty buffer for a stream: a large one when the stream proved bulky, is not spliced and memory is plenty."""
    cdef uint32_t share = buffer_share(w, WAIT_STREAM)
    cdef bint bulky = src.streak >= LARGE_BUFFER
    if src.buffer != NULL and (w.buffers_used > share or (bulky and src.buffer.size == SMALL_BUFFER)):
        buffer_drop(w, src)             # perhaps a head's, which may take more than the streams' share
    if src.buffer == NULL:
        if bulky:
            src.buffer = buffer_take(w, LARGE_BUFFER, w.settings[SET_BUFFERS] // 4)
        if src.buffer == NULL:
            src.buffer = buffer_take(w, SMALL_BUFFER, share)
        if src.buffer == NULL:
            wait_for_buffer(w, src, WAIT_STREAM)
            return False
    src.start = src.end = HEADROOM
    wait_over(w, src)
    return True


cdef inline bint is_stream(const Connection *src) noexcept nogil:
    """Whether its end is the connection's."""
    return src.body == BODY_UNTIL_CLOSE or src.body == BODY_FRAMES


cdef int pump(Worker *w, Connection *src, Connection *dst) noexcept nogil:
    """Moves what it can of src's message to dst; returns PUMP_*."""
    cdef int64_t budget = PUMP_BUDGET
    cdef uint64_t before = src.bytes
    cdef int rc
    cdef ssize_t n
    while True:
        if src.pipe != NULL and src.pipe.held:
            if not dst.flags & F_WRITABLE:
                return PUMP_WAIT
            rc = drain_pipe(w, src, dst)
            if rc <= 0:
                return PUMP_WAIT if rc == 0 else PUMP_SINK_ERROR
        if src.ready:
            if not dst.flags & F_WRITABLE:
                return PUMP_WAIT
            rc = flush_ready(w, src, dst)
            if rc <= 0:
                return PUMP_WAIT if rc == 0 else PUMP_SINK_ERROR
        if src.flags & F_DONE:
            pipe_drop(w, src)
            return PUMP_DONE
        if src.start < src.end or src.body == BODY_NONE:
            rc = release_body(w, src)
            if rc:
                src.status = rc
                return PUMP_BAD
            if src.ready or src.flags & F_DONE:
                continue
            if src.body == BODY_FRAMES and src.flags & F_CLOSE:     # the passage ends before this frame
                return PUMP_WAIT
        if not src.flags & F_READABLE:
            if src.start == src.end and not src.flags & F_KEPT:
                buffer_drop(w, src)
            pipe_drop(w, src)
            return PUMP_WAIT
        if budget - <int64_t> (src.bytes - before) <= 0:
            run_later(w, src)
            return PUMP_WAIT
        if src.flags & F_KEPT and src.end == src.buffer.size:
            src.flags &= ~<uint32_t> F_KEPT
        if src.flags & F_KEPT:
            pass                # more of it comes behind what was sent
        elif wants_splice(w, src):
            rc = fill_pipe(w, src)
            if rc == 0:
                continue
            if rc == 1:
                buffer_drop(w, src)
                wait_over(w, src)
                continue
            if rc == -2:
                return PUMP_SOURCE_ERROR
            if rc == -1:
                if not is_stream(src):
                    return PUMP_EOF
                src.flags |= F_DONE
                continue
        if src.start < src.end:             # the first bytes of a frame's header
            if room_for_head(w, src) <= 0:
                return PUMP_WAIT
        elif not src.flags & F_KEPT and not take_copy_buffer(w, src):
            return PUMP_WAIT
        n = fill_buffer(w, src)
        if n == 0:
            if not is_stream(src):
                return PUMP_EOF
            src.flags |= F_DONE
        elif n < 0 and src.flags & F_READABLE:
            return PUMP_SOURCE_ERROR


# ------------------------------------------------------------------------------------------------------ opaque relay

cdef int relay_direction(Worker *w, Connection *src, Connection *dst) noexcept nogil:
    """One direction of an opaque relay; a FIN is passed on as a FIN. False when the relay is broken."""
    cdef int rc
    if src.flags & F_SENT:
        return True
    rc = pump(w, src, dst)
    if rc == PUMP_DONE:
        src.flags |= F_SENT
        buffer_drop(w, src)
        pipe_drop(w, src)
        shutdown(dst.fd, SHUT_WR)       # fails only when dst is gone, and then the other direction finds out
        return True
    return rc == PUMP_WAIT


cdef inline bint relay_reset(const Connection *c, const Connection *peer) noexcept nogil:
    """c ended its side and was reset since. Nothing is read from it any more that could tell."""
    return c.flags & F_SENT and c.flags & F_GONE and not peer.flags & F_SENT


cdef void relay_run(Worker *w, Connection *d) noexcept nogil:
    cdef Connection *u = peer_of(w, d)
    if u == NULL:
        return
    if u.state == ST_CONNECTING:
        relay_connecting(w, d, u)
        return
    if not relay_direction(w, d, u) or not relay_direction(w, u, d) or relay_reset(d, u) or relay_reset(u, d):
        w.block.counters[C_CLOSE_DOWNSTREAM_RESET] += 1
        reset_on_close(d)
        reset_on_close(u)
        relay_end(w, d)
        return
    if is_passage(d) and passage_over(w, d):
        passage_end(w, d)
        return
    if d.flags & F_SENT and u.flags & F_SENT:
        w.block.counters[C_CLOSE_DONE] += 1
        relay_end(w, d)
    elif (d.flags | u.flags) & F_SENT:
        timer_set(w, d, w.settings[SET_HALF_CLOSE_MS])
    else:
        timer_set(w, d, w.settings[SET_IDLE_MS])


cdef void relay_end(Worker *w, Connection *d) noexcept nogil:
    cdef Connection *u = peer_of(w, d)
    cdef ServiceStats *stats = stats_for(w, d.sid, d.sid_gen)
    stats.bytes_received += d.streak
    stats.bytes_sent += 0 if u == NULL else u.streak
    if d.status != 101:         # an upgraded exchange was counted as what it began as
        stats.responses[0 if u == NULL or u.state == ST_CONNECTING else 2] += 1
    pair_close(w, d)


cdef void relay_connecting(Worker *w, Connection *d, Connection *u) noexcept nogil:
    cdef int rc = upstream_connected(w, u)
    if rc > 0:
        relay_run(w, d)
    elif d.flags & F_GONE:
        w.block.counters[C_CLOSE_DOWNSTREAM_RESET] += 1
        relay_end(w, d)
    elif rc < 0:
        relay_retry(w, d)


cdef void relay_retry(Worker *w, Connection *d) noexcept nogil:
    """The connect failed: another endpoint, or a reset, so that the caller sees what it would see without a sidecar."""
    cdef uint32_t address = w.connections[d.peer].address
    upstream_drop(w, d)
    connect_failed(w, d, address)
    w.block.counters[C_RETRIES] += 1
    relay_connect(w, d)


cdef bint relay_pick(Worker *w, Connection *d, int *why) noexcept nogil:
    """Begins to connect to an endpoint of d's service; False as upstream_pick."""
    cdef Service *service = table_by_sid(&w.shm, d.sid, d.sid_gen)
    cdef Connection *u = NULL
    if service != NULL:
        u = upstream_pick(w, d, service, False, why)
    if u == NULL:
        return False
    u.protocol = d.protocol
    d.body = u.body = BODY_FRAMES if d.protocol else BODY_UNTIL_CLOSE
    return True


cdef void relay_connect(Worker *w, Connection *d) noexcept nogil:
    cdef int why = 503
    if not relay_pick(w, d, &why):
        if d.protocol:
            passage_end(w, d)           # which tells the caller in a frame
            return
        if why == 508:
            w.block.counters[C_LOOPS] += 1
        elif why == 503:
            w.block.counters[C_NO_ENDPOINTS] += 1
        w.block.counters[C_CLOSE_UPSTREAM] += 1
        reset_on_close(d)
        relay_end(w, d)


cdef void relay_to(Worker *w, Connection *d, const Service *service) noexcept nogil:
    """Makes d an opaque stream to the service; what is in its buffer goes first."""
    d.kind = CONN_TCP_DOWN
    relay_service(d, service)
    relay_connect(w, d)


cdef void relay_service(Connection *d, const Service *service) noexcept nogil:
    d.sid = service.sid
    d.sid_gen = service.sid_gen
    if service.policy == HASH_SOURCE or service.policy == HASH_HEADER:
        d.hash = hash_bytes(d.peer_ip, 16, 0)
