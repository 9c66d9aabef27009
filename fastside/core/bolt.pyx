# SOFARPC's Bolt, versions 1 and 2. A frame is a fixed header, a class name, a header block of strings, and content that
# is not looked at. Version 2 has two more bytes in the fixed header and may have a CRC-32 after the content.
#
# sofa-bolt reads the lengths as signed numbers and adds them up in 32 bits. What it would count differently is refused
# here: frames of several callers share a connection, and one caller's must not change where another's begins.

cdef enum:                      # the type byte
    TYPE_RESPONSE = 0
    TYPE_REQUEST = 1
    TYPE_ONEWAY = 2

cdef enum:                      # the command code
    COMMAND_HEARTBEAT = 0
    COMMAND_REQUEST = 1
    COMMAND_RESPONSE = 2

cdef enum:                      # statuses that the sidecar itself answers with (sofa-bolt: ResponseStatus)
    BOLT_SUCCESS = 0
    STATUS_SERVER_THREADPOOL_BUSY = 4
    STATUS_NO_PROCESSOR = 6
    STATUS_TIMEOUT = 7
    STATUS_CONNECTION_CLOSED = 16

cdef enum:
    MAX_SHORT = 0x7FFF
    CODEC_HESSIAN2 = 1
    NULL_LENGTH = 0xFFFFFFFFU   # of a string
    CRC_BYTES = 4


# -- reading ---------------------------------------------------------------------------------------------------------

cdef inline uint32_t fixed_length(uint8_t version, bint response) noexcept nogil:
    return (20 if response else 22) + 2 * (version - 1)


cdef inline uint32_t fixed_length_of(const Frame *f) noexcept nogil:
    return fixed_length(f.version, f.kind == FRAME_RESPONSE or f.kind == FRAME_PONG)


cdef int bolt_frame(const uint8_t *p, uint32_t n, Frame *f) noexcept nogil:
    cdef uint32_t fixed
    cdef uint32_t class_length
    cdef uint32_t header_length
    cdef uint8_t extra          # version 2 has its own version before the type, and a switch after the codec
    cdef uint8_t type
    cdef uint16_t command
    memset(f, 0, sizeof(Frame))
    if n == 0:
        return FRAME_MORE
    if p[0] != 1 and p[0] != 2:
        return BAD_MAGIC
    f.protocol = PROTOCOL_BOLT
    f.version = p[0]
    extra = p[0] - 1
    if n < 2 + extra:
        return FRAME_MORE
    if extra:
        if p[1] != 1 and p[1] != 2:
            return BAD_VERSION
        f.command = p[1]
    type = p[1 + extra]
    if type > TYPE_ONEWAY:
        return BAD_KIND
    fixed = fixed_length(f.version, type == TYPE_RESPONSE)
    if n < fixed:
        return FRAME_MORE
    command = load_be16(p + 2 + extra)
    f.id = load_be32(p + 5 + extra)
    f.serialization = p[9 + extra]
    if f.command == 2 and p[11] & 1:
        f.flags = FRAME_CRC
    if type == TYPE_RESPONSE:
        f.status = load_be16(p + 10 + 2 * extra)
        f.kind = FRAME_PONG if command == COMMAND_HEARTBEAT else FRAME_RESPONSE
    else:
        f.timeout_ms = <int32_t>load_be32(p + 10 + 2 * extra)
        f.kind = (FRAME_PING if command == COMMAND_HEARTBEAT else
                  FRAME_REQUEST if type == TYPE_REQUEST else FRAME_ONEWAY)
    if command != COMMAND_HEARTBEAT and command != (COMMAND_RESPONSE if type == TYPE_RESPONSE else COMMAND_REQUEST):
        return BAD_KIND
    class_length = load_be16(p + fixed - 8)
    header_length = load_be16(p + fixed - 6)
    if class_length > MAX_SHORT or header_length > MAX_SHORT:
        return BAD_LENGTH
    f.front = fixed + class_length + header_length
    f.length = <uint64_t>f.front + load_be32(p + fixed - 4)
    if command == COMMAND_HEARTBEAT and f.length > fixed:
        return BAD_LENGTH
    if f.flags & FRAME_CRC:
        f.length += CRC_BYTES
    if f.length > <uint64_t>FRAME_MAX:
        return BAD_LENGTH
    if f.front > FRONT_MAX:
        return BAD_FRONT_LONG
    return FRAME_OK


cdef inline bint next_string(const uint8_t *p, uint32_t end, uint32_t *at, uint32_t *length) noexcept nogil:
    """Moves *at behind the string at p[*at:end]. *length is NULL_LENGTH for the null string, which has no bytes."""
    if end - at[0] < 4:
        return False
    length[0] = load_be32(p + at[0])
    at[0] += 4
    if length[0] != NULL_LENGTH:
        if length[0] > end - at[0]:
            return False
        at[0] += length[0]
    return True


cdef int bolt_route(const uint8_t *p, uint32_t n, Frame *f) noexcept nogil:
    # Numbers and no Span for each string: this is the longest loop over a request.
    cdef uint32_t at
    cdef uint32_t end = f.front
    cdef uint32_t key_length
    cdef uint32_t length
    cdef const uint8_t *key
    cdef Span target
    if n < end:
        return FRAME_MORE
    memset(&target, 0, sizeof(target))
    at = end - load_be16(p + fixed_length_of(f) - 6)
    # Every pair, as the order is a hash map's; of equal keys the last counts, as it does for the Java server.
    while at < end:
        key = p + at + 4
        if not next_string(p, end, &at, &key_length) or not next_string(p, end, &at, &length):
            return BAD_FRONT
        if length == NULL_LENGTH:
            continue
        if key_length == 7 and memcmp(key, b"service", 7) == 0:
            f.service.start = at - length
            f.service.length = length
        elif key_length == 24 and memcmp(key, b"sofa_head_target_service", 24) == 0:
            target.start = at - length
            target.length = length
        elif key_length == 21 and memcmp(key, b"sofa_head_method_name", 21) == 0:
            f.method.start = at - length
            f.method.length = length
    if f.service.length == 0:
        f.service = target
    if not is_name(p, f.service) or not is_name(p, f.method):
        return BAD_NAME
    return FRAME_OK


# -- the id, and what it does to the CRC -----------------------------------------------------------------------------
#
# CRC-32 (reflected, polynomial 0xEDB88320) is the message as a polynomial over GF(2), modulo that polynomial: bit 31 of
# a number here is the coefficient of x^0. It is linear but for constants, so a change of four bytes changes the CRC by
# the CRC of that change followed by zeros, that is, times x to the power of the bits from the change's start.

cdef enum:
    POLYNOMIAL = 0xEDB88320U
    X_TO_0 = 0x80000000U
    X_TO_8 = 0x00800000U


cdef inline uint32_t times_x(uint32_t a) noexcept nogil:
    return (a >> 1) ^ (POLYNOMIAL if a & 1 else 0)


cdef uint32_t multiply(uint32_t a, uint32_t b) noexcept nogil:
    cdef uint32_t product = 0
    while a:
        if a & X_TO_0:
            product ^= b
        a <<= 1
        b = times_x(b)
    return product


cdef uint32_t x_to_bytes(uint64_t n) noexcept nogil:
    """x^(8n), in O(log n)."""
    cdef uint32_t power = X_TO_0
    cdef uint32_t square = X_TO_8
    while n:
        if n & 1:
            power = multiply(power, square)
        square = multiply(square, square)
        n >>= 1
    return power


cdef uint32_t crc_32(const uint8_t *p, uint32_t n) noexcept nogil:
    """Bit by bit: only for the few bytes of a frame of the sidecar's own."""
    cdef uint32_t crc = 0xFFFFFFFFU
    cdef uint32_t i
    cdef uint32_t _bit
    for i in range(n):
        crc ^= p[i]
        for _bit in range(8):
            crc = times_x(crc)
    return ~crc


cdef uint32_t bolt_set_id(uint8_t *p, const Frame *f, uint32_t id) noexcept nogil:
    cdef uint32_t at = 4 + f.version
    cdef uint32_t change
    cdef uint8_t bytes[4]
    change = id ^ load_be32(p + at)
    store_be32(p + at, id)
    if not f.flags & FRAME_CRC or change == 0:
        return 0
    store_be32(bytes, change)
    memcpy(&change, bytes, 4)           # the first byte on the wire is the lowest
    return multiply(le32toh(change), x_to_bytes(f.length - CRC_BYTES - at))


# -- writing ---------------------------------------------------------------------------------------------------------

cdef uint32_t write_frame(uint8_t *out, const Frame *f, uint8_t type, uint16_t command, uint16_t status) noexcept nogil:
    """A frame without class, header block and content, with version, id and codec of *f, and a CRC if that has one.
    status is a response's."""
    cdef uint32_t extra = f.version - 1
    cdef uint32_t n = fixed_length(f.version, type == TYPE_RESPONSE)
    memset(out, 0, n)
    out[0] = f.version
    if extra:
        out[1] = f.command
        out[11] = f.flags & FRAME_CRC
    out[1 + extra] = type
    store_be16(out + 2 + extra, command)
    out[4 + extra] = 1                  # version of the command: there is but one
    store_be32(out + 5 + extra, <uint32_t>f.id)
    out[9 + extra] = f.serialization
    if type == TYPE_RESPONSE:
        store_be16(out + 10 + 2 * extra, status)
    else:
        store_be32(out + 10 + 2 * extra, <uint32_t>f.timeout_ms)
    if f.flags & FRAME_CRC:
        store_be32(out + n, crc_32(out, n))
        n += CRC_BYTES
    return n


cdef uint32_t bolt_error(uint8_t *out, const Frame *request, uint16_t failure) noexcept nogil:
    cdef uint16_t status = STATUS_NO_PROCESSOR
    if failure == FAIL_CONNECT or failure == FAIL_CLOSED:
        status = STATUS_CONNECTION_CLOSED
    elif failure == FAIL_TIMEOUT:
        status = STATUS_TIMEOUT
    elif failure == FAIL_OVERLOAD:
        status = STATUS_SERVER_THREADPOOL_BUSY
    return write_frame(out, request, TYPE_RESPONSE, COMMAND_RESPONSE, status)


cdef uint32_t bolt_pong(uint8_t *out, const Frame *ping) noexcept nogil:
    return write_frame(out, ping, TYPE_RESPONSE, COMMAND_HEARTBEAT, 0)


cdef uint32_t bolt_ping(uint8_t *out, uint8_t version, uint32_t id) noexcept nogil:
    cdef Frame f
    memset(&f, 0, sizeof(f))
    f.version = version
    f.command = 1
    f.id = id
    f.serialization = CODEC_HESSIAN2
    f.timeout_ms = -1
    return write_frame(out, &f, TYPE_REQUEST, COMMAND_HEARTBEAT, 0)


cdef uint32_t bolt_status_slot(uint16_t status) noexcept nogil:
    if status <= 9:
        return status
    if 16 <= status <= 18:
        return status - 6
    return BOLT_STATUS_SLOTS - 1


BOLT_STATUSES = (
    "SUCCESS", "ERROR", "SERVER_EXCEPTION", "UNKNOWN", "SERVER_THREADPOOL_BUSY", "ERROR_COMM", "NO_PROCESSOR",
    "TIMEOUT", "CLIENT_SEND_ERROR", "CODEC_EXCEPTION",
    "CONNECTION_CLOSED", "SERVER_SERIAL_EXCEPTION", "SERVER_DESERIAL_EXCEPTION",
    "OTHER",
)
assert len(BOLT_STATUSES) == BOLT_STATUS_SLOTS


# -- for tests and `fastside explain` --------------------------------------------------------------------------------

def parse_bolt(data: bytes) -> dict:
    """Parses the Bolt frame that data begins with, of a request or one-way call also what it is routed by.

    Content need not be there. Returns {"need_more": True}; {"reject": one of FRAME_REASONS}; or protocol ("bolt"),
    protocol_version (1 or 2), kind (one of FRAME_KINDS), id, length (bytes of the whole frame), front (bytes up to the
    content), serialization, timeout_ms and status (or None), crc, service and method (or "").
    """
    cdef const uint8_t *p = data
    cdef Frame f
    cdef int outcome = bolt_frame(p, len(data), &f)
    if outcome == FRAME_OK and f.kind <= FRAME_ONEWAY:
        outcome = bolt_route(p, len(data), &f)
    return _frame(outcome, p, &f)


def bolt_with_id(data: bytes, id: int) -> bytes:
    """The frame with another id and, if it has a CRC, that corrected. Raises ValueError unless data is one frame."""
    cdef bytearray copy = bytearray(data)
    cdef uint8_t *p = copy
    cdef Frame f = _whole_frame(data)
    cdef uint32_t correction = bolt_set_id(p, &f, id)
    if f.flags & FRAME_CRC:
        p += f.length - CRC_BYTES
        store_be32(p, load_be32(p) ^ correction)
    return bytes(copy)


def bolt_answer(data: bytes, failure: str = "") -> bytes:
    """What the sidecar itself answers to a request that failed (failure: one of FRAME_FAILURES), or to a heartbeat.

    Raises ValueError unless data is one frame and failure a known one.
    """
    cdef uint8_t out[FRAME_OWN]
    cdef Frame f = _whole_frame(data)
    cdef uint32_t n
    if failure:
        n = bolt_error(out, &f, FRAME_FAILURES.index(failure))
    else:
        n = bolt_pong(out, &f)
    return (<const char *>out)[:n]


def bolt_heartbeat(version: int, id: int) -> bytes:
    """A heartbeat as the sidecar sends it, in Bolt's version 1 or 2."""
    cdef uint8_t out[FRAME_OWN]
    cdef uint32_t n = bolt_ping(out, version, id)
    return (<const char *>out)[:n]


cdef Frame _whole_frame(bytes data):
    cdef Frame f
    if bolt_frame(data, len(data), &f) != FRAME_OK or f.length != len(data):
        raise ValueError("not one whole frame")
    return f
