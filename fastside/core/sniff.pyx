# What a connection speaks, told from its first bytes, and the host name in a TLS ClientHello.

cdef enum:
    MAX_METHOD = 32             # bytes; the longest registered method has 17
    MAX_CLIENT_HELLO = 65536    # bytes of the message without its header
    MAX_RECORD = 16384          # RFC 8446 5.1
    RECORD_HEADER = 5
    RECORD_HANDSHAKE = 22
    HANDSHAKE_HEADER = 4
    CLIENT_HELLO = 1
    EXTENSION_SERVER_NAME = 0


# -- the protocol ----------------------------------------------------------------------------------------------------

cdef int begins_with(const uint8_t *p, uint32_t n, const char *text, int found) noexcept nogil:
    """found if p[0:n] begins with text (lower case), in whatever case."""
    cdef uint32_t length = <uint32_t>strlen(text)
    if not same_name(p, text, n if n < length else length):
        return SNIFF_OPAQUE
    return found if n >= length else SNIFF_MORE


cdef int sniff_target(const uint8_t *p, uint32_t n, bint connect) noexcept nogil:
    """The beginning of a request-target (RFC 9112 3.2). Without it any line of text that starts with a word in upper
    case would be HTTP: SSH, SMTP and SIP have such lines."""
    cdef int outcome
    if n == 0:
        return SNIFF_MORE
    if connect:
        return SNIFF_HTTP1 if fs_class[p[0]] & IS_REG_NAME or p[0] == c"[" else SNIFF_OPAQUE
    if p[0] == c"/" or p[0] == c"*":
        return SNIFF_HTTP1
    outcome = begins_with(p, n, b"http://", SNIFF_HTTP1)
    return begins_with(p, n, b"https://", SNIFF_HTTP1) if outcome == SNIFF_OPAQUE else outcome


cdef int sniff_http(const uint8_t *p, uint32_t n) noexcept nogil:
    """A method and SP, or the connection preface of HTTP/2 (RFC 9113 3.4), which begins like them."""
    cdef const char *preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    cdef uint32_t length = 24
    cdef uint32_t at = 0
    if memcmp(p, preface, n if n < length else length) == 0:
        return SNIFF_HTTP2 if n >= length else SNIFF_MORE
    while at < n and at <= MAX_METHOD and fs_class[p[at]] & IS_TOKEN:
        at += 1
    if at > MAX_METHOD:
        return SNIFF_OPAQUE
    if at == n:
        return SNIFF_MORE
    if p[at] != c" ":
        return SNIFF_OPAQUE
    return sniff_target(p + at + 1, n - at - 1, method_of(p, at) == METHOD_CONNECT)


cdef int sniff_bolt(const uint8_t *p, uint32_t n) noexcept nogil:
    """From the type byte on: the type, and the command code, which is the type's own or the heartbeat's 0."""
    if n == 0:
        return SNIFF_MORE
    if p[0] > 2:
        return SNIFF_OPAQUE
    if n == 1:
        return SNIFF_MORE
    if p[1] != 0:
        return SNIFF_OPAQUE
    if n == 2:
        return SNIFF_MORE
    return SNIFF_BOLT if p[2] == 0 or p[2] == (2 if p[0] == 0 else 1) else SNIFF_OPAQUE


cdef int sniff_bolt2(const uint8_t *p, uint32_t n) noexcept nogil:
    if n == 1:
        return SNIFF_MORE
    return sniff_bolt(p + 2, n - 2) if p[1] == 1 or p[1] == 2 else SNIFF_OPAQUE


cdef int sniff_tls(const uint8_t *p, uint32_t n) noexcept nogil:
    """The header of a handshake record (RFC 8446 5.1) and the type of its message."""
    cdef uint32_t length
    if n == 1:
        return SNIFF_MORE
    if p[1] != 3 or (n > 2 and p[2] > 4):
        return SNIFF_OPAQUE
    if n > 3:
        length = <uint32_t>p[3] << 8
        if length > MAX_RECORD:
            return SNIFF_OPAQUE
        if n > 4:
            length |= p[4]
            if length == 0 or length > MAX_RECORD:
                return SNIFF_OPAQUE
            if n > RECORD_HEADER:
                return SNIFF_TLS if p[RECORD_HEADER] == CLIENT_HELLO else SNIFF_OPAQUE
    return SNIFF_MORE


cdef int sniff(const uint8_t *p, uint32_t n) noexcept nogil:
    if n == 0:
        return SNIFF_MORE
    if c"A" <= p[0] <= c"Z":
        return sniff_http(p, n)
    if p[0] == 1:
        return sniff_bolt(p + 1, n - 1)
    if p[0] == 2:
        return sniff_bolt2(p, n)
    if p[0] == RECORD_HANDSHAKE:
        return sniff_tls(p, n)
    if p[0] == 0xda:
        if n == 1:
            return SNIFF_MORE
        return SNIFF_DUBBO if p[1] == 0xbb else SNIFF_OPAQUE
    return SNIFF_OPAQUE


# -- the server name of a ClientHello --------------------------------------------------------------------------------

cdef struct Hello:              # goes over a ClientHello that is whole and in good records, without the record headers
    const uint8_t *p
    uint32_t record             # bytes left of the record that p is in
    uint32_t left               # bytes left of the innermost vector
    bint bad                    # a length did not fit into its container


cdef uint32_t record_length(const uint8_t *header) noexcept nogil:
    return <uint32_t>header[3] << 8 | header[4]


cdef int find_client_hello(const uint8_t *p, uint32_t n, Hello *hello) noexcept nogil:
    """Checks that one whole ClientHello (RFC 8446 4) is here and ends where a record ends (5.1)."""
    cdef uint32_t at = 0        # in p
    cdef uint32_t seen = 0      # bytes of the message in the records before
    cdef uint32_t header = 0    # its first bytes: type and length
    cdef uint32_t need, size, here, i
    while True:
        if n - at < RECORD_HEADER:
            return TLS_MORE
        size = record_length(p + at)
        if p[at] != RECORD_HANDSHAKE or p[at + 1] != 3 or p[at + 2] > 4 or size == 0 or size > MAX_RECORD:
            return TLS_BAD
        at += RECORD_HEADER
        here = n - at if n - at < size else size
        for i in range(here):
            if seen + i >= HANDSHAKE_HEADER:
                break
            header = header << 8 | p[at + i]
        if seen + here >= HANDSHAKE_HEADER:
            if header >> 24 != CLIENT_HELLO or header & 0xffffff > MAX_CLIENT_HELLO:
                return TLS_BAD
            need = HANDSHAKE_HEADER + (header & 0xffffff)
            if seen + size > need:
                return TLS_BAD
            if seen + here == need:
                break
        if here < size:
            return TLS_MORE
        seen += size
        at += size
    hello.p = p + RECORD_HEADER
    hello.record = record_length(p)
    hello.left = need
    hello.bad = False
    skip_bytes(hello, HANDSHAKE_HEADER)
    return TLS_OK


cdef void skip_bytes(Hello *hello, uint32_t count) noexcept nogil:
    if count > hello.left:
        hello.bad = True
        count = hello.left
    hello.left -= count
    while count > hello.record:
        count -= hello.record
        hello.p += hello.record
        hello.record = record_length(hello.p)
        hello.p += RECORD_HEADER
    hello.p += count
    hello.record -= count


cdef uint32_t take_number(Hello *hello, int size) noexcept nogil:
    """The next size bytes, big-endian."""
    cdef uint32_t value = 0
    for _ in range(size):
        if hello.left == 0:
            hello.bad = True
            return 0
        skip_bytes(hello, 1)
        value = value << 8 | (hello.p - 1)[0]
    return value


cdef uint32_t take_length(Hello *hello, int size, uint32_t least, uint32_t most) noexcept nogil:
    """The length of a vector, written in size bytes; it must fit into what is left."""
    cdef uint32_t length = take_number(hello, size)
    if length < least or length > most or length > hello.left:
        hello.bad = True
        return 0
    return length


cdef void take_server_name(Hello *hello, uint8_t *name, uint8_t *length) noexcept nogil:
    """ServerNameList of one host_name: other types of names were never defined, and two of one type are not allowed."""
    cdef uint32_t i, size
    cdef uint8_t c
    if take_length(hello, 2, 1, 0xffff) != hello.left or take_number(hello, 1) != 0:
        hello.bad = True
        return
    size = take_length(hello, 2, 1, MAX_SERVER_NAME)
    for i in range(size):
        c = <uint8_t>take_number(hello, 1)
        if not (c"a" <= lower_byte(c) <= c"z" or fs_class[c] & IS_DIGIT or c == c"-" or c == c"." or c == c"_"):
            hello.bad = True
            return
        name[i] = c
    length[0] = <uint8_t>size


cdef void take_extensions(Hello *hello, uint8_t *name, uint8_t *length) noexcept nogil:
    cdef uint64_t seen[1024]    # a bit for each type: no two extensions of one type (RFC 8446 4.2)
    cdef uint32_t kind, size, rest
    memset(seen, 0, sizeof(seen))
    if take_length(hello, 2, 0, 0xffff) != hello.left:
        hello.bad = True
    while hello.left and not hello.bad:
        kind = take_number(hello, 2)
        size = take_length(hello, 2, 0, 0xffff)
        if seen[kind >> 6] >> (kind & 63) & 1:
            hello.bad = True
        seen[kind >> 6] |= <uint64_t>1 << (kind & 63)
        if kind == EXTENSION_SERVER_NAME:
            rest = hello.left - size
            hello.left = size
            take_server_name(hello, name, length)
            if hello.left:
                hello.bad = True
            hello.left = rest
        else:
            skip_bytes(hello, size)


cdef int tls_server_name(const uint8_t *p, uint32_t n, uint8_t *name, uint8_t *length) noexcept nogil:
    cdef Hello hello
    cdef uint32_t size
    cdef int outcome = find_client_hello(p, n, &hello)
    if outcome != TLS_OK:
        return outcome
    length[0] = 0
    if take_number(&hello, 1) != 3:                     # legacy_version
        return TLS_BAD
    skip_bytes(&hello, 1 + 32)                          # the version's second byte, random
    skip_bytes(&hello, take_length(&hello, 1, 0, 32))   # legacy_session_id
    size = take_length(&hello, 2, 2, 0xfffe)            # cipher_suites
    if size & 1:
        return TLS_BAD
    skip_bytes(&hello, size)
    skip_bytes(&hello, take_length(&hello, 1, 1, 255))  # legacy_compression_methods
    if hello.left:                                      # before TLS 1.3 there may be no extensions at all
        take_extensions(&hello, name, length)
    return TLS_BAD if hello.bad else TLS_OK


# -- for tests and `fastside explain` --------------------------------------------------------------------------------

SNIFF_NAMES = ("more", "http1", "http2", "bolt", "dubbo", "tls", "opaque")
assert len(SNIFF_NAMES) == SNIFF_OPAQUE + 1


def sniff_protocol(data: bytes) -> str:
    """What a connection that begins with data speaks: one of SNIFF_NAMES, "more" while data is too short to tell."""
    return SNIFF_NAMES[sniff(data, len(data))]


def server_name(data: bytes) -> str | None:
    """The server name in the TLS ClientHello (RFC 8446 4.1.2, RFC 6066 3) that data begins with, "" if it has none.

    None while the ClientHello is not whole. Raises ValueError if it is malformed.
    """
    cdef uint8_t name[MAX_SERVER_NAME]
    cdef uint8_t length
    cdef int outcome = tls_server_name(data, len(data), name, &length)
    if outcome == TLS_BAD:
        raise ValueError("not a well-formed ClientHello")
    return (<const char *>name)[:length].decode("ascii") if outcome == TLS_OK else None
