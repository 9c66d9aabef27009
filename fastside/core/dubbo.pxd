# The codec of Dubbo 2 (Dubbo: ExchangeCodec, DubboCodec), and as much of Hessian 2 and of fastjson2's JSONB as it takes
# to find names in a call's body.

cdef enum:
    DUBBO_HEAD = 16             # bytes of the fixed header
    HESSIAN2 = 2                # the serializations that can be read
    FASTJSON2 = 23
    DUBBO_STATUS_SLOTS = 13     # one for each status that Dubbo knows, and one for all others
    DUBBO_EVENT_MAX = 64        # bytes of the body of an event that wants an answer, which repeats that body

# Reads the fixed header at p[0:n], of an event that may say "read-only" the body too: every field of *f but those of
# dubbo_route and dubbo_group. FRAME_MORE, FRAME_OK or a reason. f.front is where routing must have ended: the frame's
# end, or FRONT_MAX. A FRAME_PING has at most DUBBO_EVENT_MAX bytes of body; Dubbo itself refuses to read longer events.
cdef int dubbo_frame(const uint8_t *p, uint32_t n, Frame *f) noexcept nogil
# Of a request or one-way call, whose header was read into *f: f.service, f.service_version and f.method from the front
# of the body, of which few hundred bytes are needed. FRAME_MORE, FRAME_OK or a reason. Without a service is also
# FRAME_OK, and so is a body in a serialization other than Hessian 2 and fastjson2, of which nothing is read.
cdef int dubbo_route(const uint8_t *p, uint32_t n, Frame *f) noexcept nogil
# Likewise: f.group, and f.timeout_ms, from the attachments, which come after the arguments. BAD_FRONT_LONG if they do
# not end within FRONT_MAX. Goes over the whole body anew each time.
cdef int dubbo_group(const uint8_t *p, uint32_t n, Frame *f) noexcept nogil
cdef void dubbo_set_id(uint8_t *p, uint64_t id) noexcept nogil
# These write a whole frame and return its length, which is at most FRAME_OWN.
# text is ASCII and is cut after 600 bytes. It is what the caller's exception says.
cdef uint32_t dubbo_error(uint8_t *out, const Frame *request, uint16_t failure, const uint8_t *text,
                          uint32_t text_length) noexcept nogil
# body[0:n] is the ping's, at most DUBBO_EVENT_MAX bytes.
cdef uint32_t dubbo_pong(uint8_t *out, const Frame *ping, const uint8_t *body, uint32_t n) noexcept nogil
cdef uint32_t dubbo_ping(uint8_t *out, uint64_t id) noexcept nogil
# Tells the peer to start no new calls on this connection.
cdef uint32_t dubbo_readonly(uint8_t *out) noexcept nogil
# Index of a response's status into counters, below DUBBO_STATUS_SLOTS; DUBBO_STATUSES has the names.
cdef uint32_t dubbo_status_slot(uint16_t status) noexcept nogil
