# Output of multiplexed connections. What becomes ready for a connection within one loop turn is queued and leaves in
# one send at the turn's end; a frame is never divided between two buffers of a queue.

cdef enum:
    OUT_HIGH = 1 << 20          # bytes queued, above which nothing more is taken in for a connection
    OUT_LOW = 1 << 18           # ... until no more than these are left
    OUT_BUFFERS = 64            # sent at once


cdef uint8_t *out_room(Worker *w, Connection *c, uint32_t length, uint8_t what) noexcept nogil:
    """Where the next frame for c, of up to length bytes, is to be written; NULL without a buffer for WAIT_* what."""
    cdef Mux *m = mux_of(w, c)
    cdef Buffer *last = m.last
    if last == NULL or last.size - last.end < length:
        last = buffer_take(w, SMALL_BUFFER if length <= SMALL_BUFFER else LARGE_BUFFER, buffer_share(w, what))
        if last == NULL:
            return NULL
        last.start = last.end = 0
        last.next = NULL
        if m.last == NULL:
            m.first = last
        else:
            m.last.next = last
        m.last = last
    return buffer_data(last) + last.end


cdef inline void out_dirty(Worker *w, Connection *c) noexcept nogil:
    if not c.flags & F_DIRTY:
        c.flags |= F_DIRTY
        mux_of(w, c).dirty_next = w.dirty
        w.dirty = index_of(w, c)


cdef inline void out_add(Worker *w, Connection *c, uint32_t length) noexcept nogil:
    """A frame of length bytes was written where out_room said."""
    cdef Mux *m = mux_of(w, c)
    if m.queued == 0:
        m.moved_ms = w.now_ms
    m.last.end += length
    m.queued += length
    out_dirty(w, c)


cdef void out_clean(Worker *w, Connection *c) noexcept nogil:
    cdef uint32_t *at = &w.dirty
    if not c.flags & F_DIRTY:
        return
    while at[0] != index_of(w, c):
        at = &w.mux[at[0]].dirty_next
    at[0] = mux_of(w, c).dirty_next
    c.flags &= ~<uint32_t> F_DIRTY


cdef Buffer *out_detach(Mux *m) noexcept nogil:
    """Takes the whole queue away."""
    cdef Buffer *first = m.first
    m.first = m.last = NULL
    m.queued = m.before = 0
    return first


cdef void buffers_give(Worker *w, Buffer *first) noexcept nogil:
    cdef Buffer *next
    while first != NULL:
        next = first.next
        buffer_give(w, first)
        first = next


cdef void out_sent(Worker *w, Mux *m, uint32_t length) noexcept nogil:
    cdef Buffer *first
    cdef uint32_t n
    m.queued -= length
    m.moved_ms = w.now_ms
    if m.source != NONE:
        m.before -= length
    while True:
        first = m.first
        n = first.end - first.start if first.end - first.start < length else length
        first.start += n
        length -= n
        if first.start == first.end:
            m.first = first.next
            if m.first == NULL:
                m.last = NULL
            buffer_give(w, first)
        if length == 0:
            return


cdef bint out_flush(Worker *w, Connection *c) noexcept nogil:
    """Sends what may be sent. False: the connection is broken. While another connection streams a long frame into c,
    only what was queued before that frame may leave."""
    cdef Mux *m = mux_of(w, c)
    cdef iovec parts[OUT_BUFFERS]
    cdef msghdr message
    cdef Buffer *buffer
    cdef uint32_t left
    cdef size_t count
    cdef ssize_t n
    while c.flags & F_WRITABLE:
        left = m.queued if m.source == NONE else m.before
        if left == 0:
            return True
        count = 0
        buffer = m.first
        while left and count < OUT_BUFFERS:
            parts[count].iov_base = buffer_data(buffer) + buffer.start
            parts[count].iov_len = min(left, buffer.end - buffer.start)
            left -= <uint32_t> parts[count].iov_len
            count += 1
            buffer = buffer.next
        memset(&message, 0, sizeof(message))
        message.msg_iov = parts
        message.msg_iovlen = count
        n = sendmsg(c.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
        if n >= 0:
            w.block.counters[C_BATCHES] += 1
            w.block.counters[C_BYTES_COPIED] += n
            c.bytes += n
            out_sent(w, m, <uint32_t> n)
        elif errno == EAGAIN:
            watch_writable(w, c)
            timer_set(w, c, w.settings[SET_HEADER_MS])      # it must read on; see frames_expired
        else:
            return False
    return True
