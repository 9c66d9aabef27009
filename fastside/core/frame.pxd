# One message of a multiplexed protocol (Bolt, Dubbo 2) as its codec sees it. Codecs are pure functions over a byte
# span: they fill a Frame, patch an id in place, or write a small frame of the sidecar's own; no allocation, no I/O, no
# state.

cdef enum:                      # outcome of the functions below; values >= FRAME_BAD name the reason of a refusal
    FRAME_MORE = 0              # more bytes are needed
    FRAME_OK = 1
    FRAME_BAD = 16

cdef enum FrameReason:          # why a frame was refused, after which its connection ends; texts are in frame.pyx
    BAD_MAGIC = 16              # not this protocol at all
    BAD_VERSION
    BAD_KIND                    # unknown type, command code or combination of flags
    BAD_LENGTH                  # a length is negative, overflows or exceeds FRAME_MAX
    BAD_FRONT_LONG              # what routing needs is longer than FRONT_MAX
    BAD_FRONT                   # the part that routing reads is not well formed
    BAD_NAME                    # service, version, method or group is longer than a key may be, or not text
    BAD_END

cdef enum:
    FRAME_HEAD = 24             # bytes that always suffice for a frame's fixed header
    FRONT_MAX = 65536           # fixed header and everything routing reads
    FRAME_MAX = 0x7FFFFFFF      # both protocols carry signed 32-bit lengths
    FRAME_OWN = 640             # no frame that the sidecar makes itself is longer

cdef enum FrameKind:
    FRAME_REQUEST               # wants a response
    FRAME_ONEWAY                # never answered, not even by an error
    FRAME_RESPONSE
    FRAME_PING                  # heartbeat that wants an answer
    FRAME_PONG
    FRAME_NOTICE                # an event that is neither answered nor acted upon
    FRAME_READONLY              # Dubbo: the sender takes no new calls
    FRAME_WRITABLE              # Dubbo: it does again

cdef enum FrameFailure:         # what a call may fail of on its way; each protocol has a status for it
    FAIL_NO_SERVICE             # nothing of that name is known
    FAIL_NO_ENDPOINT
    FAIL_CONNECT                # no endpoint accepted a connection; nothing was sent
    FAIL_CLOSED                 # the connection ended after the call was sent
    FAIL_TIMEOUT
    FAIL_OVERLOAD
    FAIL_LOOP                   # the endpoint is one of this sidecar's own listeners

cdef enum:                      # Frame.flags
    FRAME_CRC = 1               # Bolt: a CRC-32 trailer over everything before it

cdef struct Frame:
    uint64_t length             # of the whole frame, any trailer included
    uint64_t id                 # as on the wire, zero-extended
    uint32_t front              # bytes that *_route needs, counted from the frame's start, where the header tells it
    int32_t timeout_ms          # the caller's; <= 0: none given
    uint8_t kind                # FRAME_*
    uint8_t protocol            # PROTOCOL_BOLT or PROTOCOL_DUBBO
    uint8_t version             # Bolt: 1 or 2, the protocol code; Dubbo: 0
    uint8_t serialization
    uint16_t status             # responses
    uint8_t flags
    uint8_t command             # Bolt: the version byte(s) that a response must repeat
    # from *_route; counted from the frame's start, length 0 = absent
    Span service
    Span service_version        # Dubbo
    Span method
    Span group                  # Dubbo, by dubbo_group
