# The codec of SOFARPC's Bolt, versions 1 and 2 (sofa-bolt: RpcProtocol, RpcProtocolV2 and their decoders).

cdef enum:
    BOLT_STATUS_SLOTS = 14      # one for each status that sofa-bolt knows, and one for all others

# Reads the fixed header at p[0:n]: every field of *f but those of bolt_route. FRAME_MORE, FRAME_OK or a reason.
cdef int bolt_frame(const uint8_t *p, uint32_t n, Frame *f) noexcept nogil
# f.service and f.method, from the header block; FRAME_MORE while n < f.front. A request without them is FRAME_OK.
cdef int bolt_route(const uint8_t *p, uint32_t n, Frame *f) noexcept nogil
# Puts an id into the frame whose fixed header is at p and was read into *f. Returns what must be XORed onto the CRC
# trailer's number, 0 where there is none; content is not looked at.
cdef uint32_t bolt_set_id(uint8_t *p, const Frame *f, uint32_t id) noexcept nogil
# These write a whole frame and return its length, which is at most FRAME_OWN.
cdef uint32_t bolt_error(uint8_t *out, const Frame *request, uint16_t failure) noexcept nogil
cdef uint32_t bolt_pong(uint8_t *out, const Frame *ping) noexcept nogil
cdef uint32_t bolt_ping(uint8_t *out, uint8_t version, uint32_t id) noexcept nogil
# Index of a response's status into counters, below BOLT_STATUS_SLOTS; BOLT_STATUSES has the names.
cdef uint32_t bolt_status_slot(uint16_t status) noexcept nogil
