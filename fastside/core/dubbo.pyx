# Dubbo 2. A frame is a header of 16 bytes and a body in one of several serializations. The body of a call is a row of
# values: protocol version, service, service version, method, descriptors of the parameters, the arguments, and a map
# of attachments.

cdef enum:
    DUBBO_REQUEST = 0x80        # the flags, and the serialization in the low bits of the same byte
    DUBBO_TWO_WAY = 0x40
    DUBBO_EVENT = 0x20
    DUBBO_SERIALIZATION = 0x1f
    DUBBO_TEXT = 600            # bytes of the text of an error

cdef enum:                      # Dubbo: Response
    DUBBO_OK = 20
    DUBBO_SERVER_TIMEOUT = 31
    DUBBO_CHANNEL_INACTIVE = 35
    DUBBO_SERVICE_NOT_FOUND = 60
    DUBBO_SERVER_ERROR = 80
    DUBBO_THREADPOOL_EXHAUSTED = 100


# -- the fixed header ------------------------------------------------------------------------------------------------

cdef int dubbo_frame(const uint8_t *p, uint32_t n, Frame *f) noexcept nogil:
    cdef uint32_t body
    memset(f, 0, sizeof(Frame))
    if (n > 0 and p[0] != 0xda) or (n > 1 and p[1] != 0xbb):
        return BAD_MAGIC
    if n < DUBBO_HEAD:
        return FRAME_MORE
    body = load_be32(p + 12)
    if body > FRAME_MAX - DUBBO_HEAD:
        return BAD_LENGTH
    f.protocol = PROTOCOL_DUBBO
    f.id = load_be64(p + 4)
    f.length = DUBBO_HEAD + body
    f.front = min(DUBBO_HEAD + body, <uint32_t>FRONT_MAX)
    f.serialization = p[2] & DUBBO_SERIALIZATION
    if p[2] & DUBBO_REQUEST == 0:
        f.status = p[3]
        f.kind = FRAME_PONG if p[2] & DUBBO_EVENT else FRAME_RESPONSE
    elif p[2] & DUBBO_EVENT:
        return event_kind(p, n, f)
    else:
        f.kind = FRAME_REQUEST if p[2] & DUBBO_TWO_WAY else FRAME_ONEWAY
    return FRAME_OK


cdef int event_kind(const uint8_t *p, uint32_t n, Frame *f) noexcept nogil:
    """An event says nothing (a heartbeat), or the text "R" or "W"."""
    cdef const char *before = b"\x01"
    cdef uint32_t size = 1
    f.kind = FRAME_PING if p[2] & DUBBO_TWO_WAY and f.length <= DUBBO_HEAD + DUBBO_EVENT_MAX else FRAME_NOTICE
    if f.serialization == FASTJSON2:
        before = b"\x00\x00\x00\x02\x4a"
        size = 5
    elif f.serialization != HESSIAN2:
        return FRAME_OK
    if f.length != DUBBO_HEAD + size + 1:
        return FRAME_OK
    if n < f.length:
        return FRAME_MORE
    if memcmp(p + DUBBO_HEAD, before, size) == 0:
        if p[DUBBO_HEAD + size] == c"R":
            f.kind = FRAME_READONLY
        elif p[DUBBO_HEAD + size] == c"W":
            f.kind = FRAME_WRITABLE
    return FRAME_OK


cdef void dubbo_set_id(uint8_t *p, uint64_t id) noexcept nogil:
    store_be64(p + 4, id)


# -- routing ---------------------------------------------------------------------------------------------------------

cdef int dubbo_route(const uint8_t *p, uint32_t n, Frame *f) noexcept nogil:
    cdef Walk w
    if not walk_start(&w, p, n, f):
        return FRAME_OK
    walk_item_text(&w)              # the protocol's version
    f.service = walk_as_name(&w, walk_item_text(&w))
    f.service_version = walk_as_name(&w, walk_item_text(&w))
    f.method = walk_as_name(&w, walk_item_text(&w))
    if f.service_version.length == 5 and memcmp(p + f.service_version.start, b"0.0.0", 5) == 0:
        f.service_version.length = 0        # how Dubbo says "none"
    return walk_outcome(&w, f)


cdef int32_t count_parameters(const uint8_t *p, Span descriptor) noexcept nogil:
    """Of a JVM method's parameter descriptors (JVMS 4.3.2), or -1."""
    cdef uint32_t at = descriptor.start
    cdef uint32_t end = descriptor.start + descriptor.length
    cdef const uint8_t *semicolon
    cdef int32_t count = 0
    while at < end:
        if p[at] == c"L":
            semicolon = <const uint8_t *>memchr(p + at, c";", end - at)
            if semicolon == NULL:
                return -1
            at = <uint32_t>(semicolon - p)
        elif p[at] != c"[" and memchr(b"BCDFIJSZ", p[at], 8) == NULL:
            return -1
        if p[at] != c"[":
            count += 1
        elif at + 1 == end:
            return -1
        at += 1
    return count


cdef int dubbo_group(const uint8_t *p, uint32_t n, Frame *f) noexcept nogil:
    cdef Walk w
    cdef Span descriptor
    cdef int32_t count
    cdef int32_t _
    if not walk_start(&w, p, n, f):
        return FRAME_OK
    for _ in range(4):              # the protocol's version, and what dubbo_route reads
        walk_item_text(&w)
    descriptor = walk_item_text(&w)
    if w.outcome != FRAME_OK:
        return walk_outcome(&w, f)
    count = count_parameters(p, descriptor)
    if count < 0:
        return BAD_FRONT
    if w.json:
        for _ in range(count):
            walk_over(&w, walk_be32(&w))
        walk_into_item(&w)
    else:
        walk_values(&w, count)
    walk_attachments(&w, f)
    return walk_outcome(&w, f)


# -- writing ---------------------------------------------------------------------------------------------------------

cdef uint32_t write_dubbo(uint8_t *out, uint8_t flags, uint8_t status, uint64_t id, uint32_t body) noexcept nogil:
    out[0] = 0xda
    out[1] = 0xbb
    out[2] = flags
    out[3] = status
    store_be64(out + 4, id)
    store_be32(out + 12, body)
    return DUBBO_HEAD + body


cdef uint8_t dubbo_status_for(uint16_t failure) noexcept nogil:
    """Java reports a timeout as a TimeoutException; the others as a RemotingException, and retries if it may."""
    if failure == FAIL_TIMEOUT:
        return DUBBO_SERVER_TIMEOUT
    if failure == FAIL_OVERLOAD:
        return DUBBO_THREADPOOL_EXHAUSTED
    if failure == FAIL_CLOSED:
        return DUBBO_CHANNEL_INACTIVE
    if failure == FAIL_NO_SERVICE or failure == FAIL_LOOP:
        return DUBBO_SERVICE_NOT_FOUND
    return DUBBO_SERVER_ERROR


cdef uint32_t hessian_text_head(uint8_t *out, uint32_t length) noexcept nogil:
    """The start of a string of up to 1023 characters; returns its bytes."""
    if length <= 31:
        out[0] = <uint8_t>length
        return 1
    store_be16(out, <uint16_t>(0x3000 + length))
    return 2


cdef uint32_t jsonb_text_head(uint8_t *out, uint32_t length) noexcept nogil:
    """The start of an ASCII string of up to 2047 characters; returns its bytes."""
    if length <= 47:
        out[0] = <uint8_t>(0x49 + length)
        return 1
    out[0] = 0x79
    store_be16(out + 1, <uint16_t>(0x3800 + length))
    return 3


cdef uint32_t dubbo_error(uint8_t *out, const Frame *request, uint16_t failure, const uint8_t *text,
                          uint32_t text_length) noexcept nogil:
    cdef bint json = request.serialization == FASTJSON2
    cdef uint32_t length = min(text_length, <uint32_t>DUBBO_TEXT)
    cdef uint32_t at = DUBBO_HEAD
    cdef uint32_t i
    if json:
        at += 4
        at += jsonb_text_head(out + at, length)
        store_be32(out + DUBBO_HEAD, at + length - DUBBO_HEAD - 4)
    else:
        at += hessian_text_head(out + at, length)
    for i in range(length):
        out[at + i] = text[i] if 32 <= text[i] <= 126 else c"?"
    return write_dubbo(out, FASTJSON2 if json else HESSIAN2, dubbo_status_for(failure), request.id,
                       at + length - DUBBO_HEAD)


cdef uint32_t dubbo_pong(uint8_t *out, const Frame *ping, const uint8_t *body, uint32_t n) noexcept nogil:
    memcpy(out + DUBBO_HEAD, body, n)
    return write_dubbo(out, DUBBO_EVENT | ping.serialization, DUBBO_OK, ping.id, n)


cdef uint32_t dubbo_ping(uint8_t *out, uint64_t id) noexcept nogil:
    out[DUBBO_HEAD] = c"N"
    return write_dubbo(out, DUBBO_REQUEST | DUBBO_TWO_WAY | DUBBO_EVENT | HESSIAN2, 0, id, 1)


cdef uint32_t dubbo_readonly(uint8_t *out) noexcept nogil:
    memcpy(out + DUBBO_HEAD, b"\x01R", 2)
    return write_dubbo(out, DUBBO_REQUEST | DUBBO_EVENT | HESSIAN2, 0, 0, 2)


# -- statuses --------------------------------------------------------------------------------------------------------

cdef extern from *:
    """
    /* Dubbo: Response. The place of a status is its slot. */
    static const struct { unsigned char status; const char *name; } fs_dubbo_statuses[] = {
        {20, "OK"}, {25, "SERIALIZATION_ERROR"}, {30, "CLIENT_TIMEOUT"}, {31, "SERVER_TIMEOUT"},
        {35, "CHANNEL_INACTIVE"}, {40, "BAD_REQUEST"}, {50, "BAD_RESPONSE"}, {60, "SERVICE_NOT_FOUND"},
        {70, "SERVICE_ERROR"}, {80, "SERVER_ERROR"}, {90, "CLIENT_ERROR"}, {100, "SERVER_THREADPOOL_EXHAUSTED"},
        {0, "OTHER"},
    };
    #define FS_DUBBO_STATUSES ((int)(sizeof fs_dubbo_statuses / sizeof fs_dubbo_statuses[0]))
    """
    cdef struct FsDubboStatus "":
        uint8_t status
        const char *name
    const FsDubboStatus fs_dubbo_statuses[]
    int FS_DUBBO_STATUSES


cdef uint32_t dubbo_status_slot(uint16_t status) noexcept nogil:
    cdef uint32_t slot = 0
    while slot < DUBBO_STATUS_SLOTS - 1 and fs_dubbo_statuses[slot].status != status:
        slot += 1
    return slot


assert FS_DUBBO_STATUSES == DUBBO_STATUS_SLOTS
DUBBO_STATUSES = tuple([fs_dubbo_statuses[slot].name.decode() for slot in range(DUBBO_STATUS_SLOTS)])


# -- for tests and `fastside explain` --------------------------------------------------------------------------------

def parse_dubbo(data: bytes, group: bool = True) -> dict:
    """Parses the Dubbo frame that data begins with, of a request or one-way call also what it is routed by.

    Arguments and attachments are gone over only with group, else they need not be there. Returns {"need_more": True};
    {"reject": one of FRAME_REASONS}; or protocol ("dubbo"), kind (one of FRAME_KINDS), id, length and front (bytes),
    serialization, timeout_ms and status (or None), service, version, method and group (or "").
    """
    cdef const uint8_t *p = data
    cdef Frame f
    cdef int outcome = dubbo_frame(p, len(data), &f)
    if outcome == FRAME_OK and f.kind <= FRAME_ONEWAY:
        outcome = dubbo_route(p, len(data), &f)
        if outcome == FRAME_OK and group:
            outcome = dubbo_group(p, len(data), &f)
    return _frame(outcome, p, &f)


def dubbo_with_id(data: bytes, id: int) -> bytes:
    """The frame with another id, 0 to 2**64 - 1. Raises ValueError unless data is one frame."""
    cdef bytearray copy = bytearray(data)
    _whole_dubbo_frame(data)
    dubbo_set_id(copy, id)
    return bytes(copy)


def dubbo_answer(data: bytes, failure: str = "", text: bytes = b"") -> bytes:
    """What the sidecar itself answers to a request that failed (failure: one of FRAME_FAILURES), or to a heartbeat.

    Raises ValueError unless data is one frame, a heartbeat if there is no failure, and failure a known one.
    """
    cdef uint8_t out[FRAME_OWN]
    cdef const uint8_t *p = data
    cdef Frame f = _whole_dubbo_frame(data)
    cdef uint32_t n
    if failure:
        n = dubbo_error(out, &f, FRAME_FAILURES.index(failure), text, len(text))
    elif f.kind != FRAME_PING:
        raise ValueError("not a heartbeat")
    else:
        n = dubbo_pong(out, &f, p + DUBBO_HEAD, len(data) - DUBBO_HEAD)
    return (<const char *>out)[:n]


def dubbo_heartbeat(id: int) -> bytes:
    """A heartbeat as the sidecar sends it."""
    cdef uint8_t out[FRAME_OWN]
    cdef uint32_t n = dubbo_ping(out, id)
    return (<const char *>out)[:n]


def dubbo_goodbye() -> bytes:
    """The event by which the sidecar asks for no new calls."""
    cdef uint8_t out[FRAME_OWN]
    cdef uint32_t n = dubbo_readonly(out)
    return (<const char *>out)[:n]


def dubbo_status_name(status: int) -> str:
    """The one of DUBBO_STATUSES that a response's status is counted as."""
    return DUBBO_STATUSES[dubbo_status_slot(status)]


cdef Frame _whole_dubbo_frame(bytes data):
    cdef Frame f
    if dubbo_frame(data, len(data), &f) != FRAME_OK or f.length != len(data):
        raise ValueError("not one whole frame")
    return f
