# Responses that the sidecar gives itself: refusals and failures, each with a body that says what happened.

from libc.stdio cimport snprintf
from libc.string cimport strlen

cdef extern from *:
    """
    static inline const char *fs_status_text(int status)
    {
        switch (status) {
        case 400: return "Bad Request";
        case 404: return "Not Found";
        case 408: return "Request Timeout";
        case 413: return "Content Too Large";
        case 414: return "URI Too Long";
        case 431: return "Request Header Fields Too Large";
        case 501: return "Not Implemented";
        case 502: return "Bad Gateway";
        case 503: return "Service Unavailable";
        case 504: return "Gateway Timeout";
        case 505: return "HTTP Version Not Supported";
        case 508: return "Loop Detected";
        default: return "Error";
        }
    }
    """
    const char *fs_status_text(int status) nogil


cdef struct Text:
    uint32_t length
    char bytes[1536]


cdef void text_add(Text *text, const char *bytes, uint32_t length) noexcept nogil:
    """Appends; what does not fit is left out."""
    if length > sizeof(text.bytes) - text.length:
        length = <uint32_t> sizeof(text.bytes) - text.length
    memcpy(text.bytes + text.length, bytes, length)
    text.length += length


cdef inline Service *service_of_sid(const Shm *shm, uint32_t sid) noexcept nogil:
    cdef const uint64_t *sids = <const uint64_t *> (shm.table + shm.head.sids)
    cdef uint64_t offset = fs_load_acquire_u64(sids + sid)
    return NULL if offset == 0 else <Service *> (shm.table + offset)


cdef void text_say(Text *text, const char *words) noexcept nogil:
    text_add(text, words, <uint32_t> strlen(words))


cdef bint respond(Worker *w, Connection *d, int status, const Text *body) noexcept nogil:
    """Answers the request under way. The connection goes on only if the whole request was read and nobody asked for its
    end. False when d was closed.

    An inbound listener says when nothing of the request was sent to a server: the caller's sidecar may then send it to
    another endpoint. It says so by a connection option, which is for the neighbour alone (RFC 9110 7.6.1).
    """
    cdef char head[256]
    cdef int head_length
    cdef uint32_t body_length = 0 if d.method == METHOD_HEAD else body.length
    cdef bint end = d.flags & F_CLOSE or not d.flags & F_DONE or w.draining
    cdef bint not_sent = d.direction == INBOUND and not d.flags & F_COMMITTED
    cdef ssize_t sent
    head_length = snprintf(
        head, sizeof(head),
        "HTTP/1.1 %d %s\r\nServer: fastside\r\n%s%s"
        "Content-Type: text/plain; charset=utf-8\r\nContent-Length: %u\r\n\r\n",
        status, fs_status_text(status),
        <const char *> b"Connection: close\r\n" if end else
        <const char *> (b"Connection: keep-alive\r\n" if d.minor == 0 else b""),
        <const char *> (b"Connection: Fastside-Not-Sent\r\n" if not_sent else b""), body.length)
    d.status = status
    request_ended(w, d)
    sent = send(d.fd, head, head_length, MSG_NOSIGNAL | MSG_DONTWAIT | (MSG_MORE if body_length else 0))
    if sent == head_length and body_length:
        sent = send(d.fd, body.bytes, body_length, MSG_NOSIGNAL | MSG_DONTWAIT)
    if sent < 0 or end:
        w.block.counters[C_CLOSE_REFUSED] += 1
        linger_close(w, d)
        return False
    d.start += d.ready          # what is left of this request belongs to no other
    d.ready = 0
    pipe_drop(w, d)
    return request_next(w, d)


cdef bint refuse(Worker *w, Connection *d, int reason) noexcept nogil:
    """The parser's refusal of a request. Never resynchronised: the connection ends."""
    cdef Text body
    body.length = 0
    w.block.counters[C_REJECTS + reason - HTTP_REJECT] += 1
    text_say(&body, b"fastside refused this request: ")
    text_say(&body, http1_reason_text(reason))
    text_say(&body, b"\n")
    d.flags |= F_CLOSE
    return respond(w, d, http1_status_for(reason), &body)


cdef bint fail(Worker *w, Connection *d, int status, const char *what) noexcept nogil:
    """A failure on the way to the service."""
    cdef Text body
    cdef const Service *service = table_by_sid(&w.shm, d.sid, d.sid_gen)
    body.length = 0
    text_say(&body, b"fastside: ")
    if service != NULL:
        text_say(&body, b"service '")
        text_add(&body, <const char *> service.text, service.key_len)
        text_say(&body, b"': ")
    text_say(&body, what)
    text_say(&body, b"\n")
    return respond(w, d, status, &body)


cdef bint unknown_service(Worker *w, Connection *d, const uint8_t *key, uint32_t length) noexcept nogil:
    """404 that names the service asked for and the first of those that are known."""
    cdef Text body
    cdef Service *service
    cdef uint32_t sid, shown = 0
    body.length = 0
    w.block.counters[C_ROUTE_MISSES] += 1
    text_say(&body, b"fastside: service '")
    text_add(&body, <const char *> key, length)
    if d.direction == INBOUND:
        text_say(&body, b"' is not published here.\nPublished here:")
    else:
        text_say(&body, b"' is not subscribed here.\nSubscribed here:")
    for sid in range(min(w.shm.head.sid_limit, <uint32_t> 4096)):     # a bound on the work that a wrong name costs
        service = service_of_sid(&w.shm, sid)
        if service == NULL or service.direction != d.direction:
            continue
        text_say(&body, b" " if shown == 0 else b", ")
        text_add(&body, <const char *> service.text, service.key_len)
        shown += 1
        if shown == 10:
            text_say(&body, b", ...")
            break
    if shown == 0:
        text_say(&body, b" nothing yet")
    text_say(&body, b".\nTo change that: ")
    text_say(&body, b"fastside publish " if d.direction == INBOUND else b"fastside subscribe ")
    text_add(&body, <const char *> key, length)
    text_say(&body, b" --port PORT\n" if d.direction == INBOUND else b"\n")
    return respond(w, d, 404, &body)
