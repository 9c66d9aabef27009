# HTTP/1.1 framing (RFC 9112): pure functions over a byte span. They look at bytes and fill plain structs; no
# allocation, no I/O, no state outside their arguments.

cdef enum:                      # outcome of every parser below; values >= HTTP_REJECT name the reason of a refusal
    HTTP_NEED_MORE = 0
    HTTP_OK = 1
    HTTP_REJECT = 16

cdef enum HttpReason:           # why a message was refused; texts and statuses are in http1.pyx, in this order
    REJECT_METHOD = 16
    REJECT_TARGET
    REJECT_TARGET_FORM
    REJECT_AUTHORITY
    REJECT_VERSION
    REJECT_VERSION_UNSUPPORTED
    REJECT_STATUS
    REJECT_REASON_PHRASE
    REJECT_START_LINE_LONG
    REJECT_HEAD_LONG
    REJECT_HEAD_BROKEN
    REJECT_BARE_CR
    REJECT_BARE_LF
    REJECT_CONTROL
    REJECT_LEADING_SPACE
    REJECT_OBS_FOLD
    REJECT_EMPTY_NAME
    REJECT_NAME
    REJECT_SPACE_BEFORE_COLON
    REJECT_NO_COLON
    REJECT_HEADERS
    REJECT_HOST_MISSING
    REJECT_HOST_SEVERAL
    REJECT_HOST
    REJECT_HOST_DIFFERS
    REJECT_SERVICE_SEVERAL
    REJECT_SERVICE_EMPTY
    REJECT_LENGTH_AND_CODING
    REJECT_LENGTH_SEVERAL
    REJECT_LENGTH
    REJECT_LENGTH_OVERFLOW
    REJECT_LENGTH_WITHOUT_CONTENT
    REJECT_CODING
    REJECT_CODING_SEVERAL
    REJECT_CODING_VERSION
    REJECT_CODING_STATUS
    REJECT_CONNECTION
    REJECT_CONNECTION_OPTIONS
    REJECT_CONNECTION_PROTECTED
    REJECT_CUTS
    REJECT_SWITCH
    REJECT_CHUNK_SIZE
    REJECT_CHUNK_OVERFLOW
    REJECT_CHUNK_EXTENSION
    REJECT_CHUNK_EXTENSION_LONG
    REJECT_CHUNK_END
    REJECT_TRAILER
    REJECT_TRAILER_FIELD
    REJECT_TRAILER_LONG
    REJECT_END                  # one past the last

cdef enum:                      # HttpHead.body
    BODY_NONE = 0
    BODY_LENGTH = 1
    BODY_CHUNKED = 2
    BODY_UNTIL_CLOSE = 3        # responses, and opaque streams
    BODY_FRAMES = 4             # a stream of frames, see passage.pyx

cdef enum:                      # HttpHead.method
    METHOD_OTHER = 0
    METHOD_GET
    METHOD_HEAD
    METHOD_POST
    METHOD_PUT
    METHOD_DELETE
    METHOD_OPTIONS
    METHOD_TRACE
    METHOD_PATCH
    METHOD_CONNECT

cdef enum:                      # HttpHead.flags
    HEAD_CLOSE = 1              # Connection: close
    HEAD_KEEP_ALIVE = 2         # Connection: keep-alive (matters for HTTP/1.0)
    HEAD_UPGRADE = 4            # the Upgrade lines are to be forwarded: see http1.pyx, settle_upgrade
    HEAD_EXPECT_CONTINUE = 8
    HEAD_NOT_SENT = 16          # Connection: fastside-not-sent, see respond.pyx

cdef enum:
    MAX_CUTS = 32

cdef enum:                      # ChunkState.phase
    CHUNK_SIZE = 0
    CHUNK_DATA = 1
    CHUNK_DONE = 2              # the others are http1.pyx's own

cdef struct HttpHead:
    uint32_t length             # bytes of the head, the final empty line included
    uint8_t minor               # 0 or 1
    uint8_t method
    uint16_t status             # responses
    uint8_t body
    uint8_t flags
    uint16_t cut_count
    uint64_t content_length     # with BODY_LENGTH, where it is never 0; else as the field said, for HEAD and 304
    Span target                 # request-target as received
    Span host                   # uri-host of Host (or of the absolute form) without the port; IPv6 keeps its brackets
    Span service                # value of the configured service header, or length 0
    Span cuts[32]               # whole lines, CRLF included, in order: hop-by-hop fields that must not be forwarded

cdef struct ChunkState:
    uint64_t remaining          # in phase CHUNK_DATA: data bytes left in the current chunk; before: its size so far
    uint32_t trailer_bytes      # of the current chunk's extensions or of the trailer section so far, bounded
    uint8_t phase               # 0 at the start of a body
    uint8_t digits              # of the chunk size; in a trailer's name, which forbidden names it may still become

# Looks for the end of a head in p[0:length], going on from *scanned (0 at first, then kept by the caller). Refuses bare
# LF and a head longer than max_length as soon as it is seen. *head_length is set with HTTP_OK.
# Empty lines before a request line are not its business: see http1_skip_empty.
cdef int http1_find_end(const uint8_t *p, uint32_t length, uint32_t max_length, uint32_t *scanned,
                        uint32_t *head_length) noexcept nogil
# Bytes of leading CRLF pairs at p (RFC 9112 2.2: a server should ignore at least one before a request line).
cdef uint32_t http1_skip_empty(const uint8_t *p, uint32_t length) noexcept nogil
# p[0:length] is one whole head as found by http1_find_end. service_header: lower-case name or NULL.
cdef int http1_parse_request(const uint8_t *p, uint32_t length, uint32_t max_headers, const uint8_t *service_header,
                             uint32_t service_header_length, HttpHead *out) noexcept nogil
# request_method decides about the body (HEAD).
cdef int http1_parse_response(const uint8_t *p, uint32_t length, uint32_t max_headers, uint8_t request_method,
                              HttpHead *out) noexcept nogil
# Value of the first field called name (lower case) in a head that was accepted before; length 0 = absent or empty.
cdef Span http1_field(const uint8_t *p, uint32_t length, const uint8_t *name, uint32_t name_length) noexcept nogil
# Goes over body bytes of a chunked message. *consumed: bytes of p that belong to the message. HTTP_OK: the message ends
# there. HTTP_NEED_MORE: all of p was consumed; in phase CHUNK_DATA state.remaining bytes of plain data come next, which
# the caller may also move by itself, counting remaining down.
cdef int http1_scan_chunks(ChunkState *state, const uint8_t *p, uint32_t length, uint32_t *consumed) noexcept nogil
# What to tell the peer about a refusal: a short lower-case text, and the status of a response to a refused request.
cdef const char *http1_reason_text(int reason) noexcept nogil
cdef int http1_status_for(int reason) noexcept nogil
