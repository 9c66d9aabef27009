# Frames for an application that serves everything alone (SERVICE_SINGLE) pass through as an opaque stream, with the ids
# that their caller gave them. Of each only the header is looked at, to know where frames begin and how many requests
# are not answered yet: so the passage can be ended without losing one, when another application comes or the worker
# drains. From then on each request is routed by itself (mux.pyx).

cdef void passage_start(Worker *w, Connection *d, const Service *service) noexcept nogil:
    """d's next frame, which is at d.start, and those behind it go straight to the application."""
    out_clean(w, d)
    d.remaining = 0
    relay_to(w, d, service)


cdef inline bint is_passage(const Connection *d) noexcept nogil:
    return d.body == BODY_FRAMES


cdef int release_frames(Worker *w, Connection *src) noexcept nogil:
    """Marks what src's buffer holds beyond src.ready as ready, up to a header that is not whole, or the first request
    after the passage has ended. 0, or the reason of a refusal."""
    cdef bint down = is_downstream(src)
    cdef Connection *d = src if down else peer_of(w, src)
    cdef Mux *m = mux_of(w, d)
    cdef uint32_t at, available
    cdef Frame f
    cdef int outcome
    while True:
        at = src.start + src.ready
        available = src.end - at
        if src.remaining == 0:
            outcome = frame_head(d.protocol, buffer_data(src.buffer) + at, available, &f)
            if outcome != FRAME_OK:
                return 0 if outcome == FRAME_MORE or src.ready else outcome     # what precedes it may pass
            if f.kind == FRAME_REQUEST and down:
                if d.flags & F_CLOSE:
                    return 0
                m.outstanding += 1
            elif f.kind == FRAME_RESPONSE and not down and m.outstanding:
                m.outstanding -= 1
            src.remaining = f.length
        if available > src.remaining:
            available = <uint32_t> src.remaining
        src.ready += available
        src.remaining -= available
        if src.remaining:
            return 0


cdef bint passage_over(Worker *w, Connection *d) noexcept nogil:
    """Whether the passage must end and can: no frame is half-way and no request unanswered."""
    cdef const Connection *u = peer_of(w, d)
    cdef const Service *service
    if not d.flags & F_CLOSE:
        service = table_by_sid(&w.shm, d.sid, d.sid_gen)
        if service != NULL and service.flags & SERVICE_SINGLE and not w.draining:
            return False
        d.flags |= F_CLOSE
    return (mux_of(w, d).outstanding == 0 and at_boundary(d) and at_boundary(u) and u.start == u.end
            and not (d.flags | u.flags) & F_SENT)


cdef inline bint at_boundary(const Connection *c) noexcept nogil:
    return c.remaining == 0 and c.ready == 0 and (c.pipe == NULL or c.pipe.held == 0)


cdef void passage_end(Worker *w, Connection *d) noexcept nogil:
    """From here on d's frames are looked at."""
    upstream_drop(w, d)
    pipe_drop(w, d)
    d.flags = (d.flags & F_SOCKET) | F_APART
    d.body = BODY_NONE
    d.streak = 0
    frames_accepted(w, d, d.protocol)
    if w.draining:
        frames_drain(w, d)
    frames_run(w, d)
