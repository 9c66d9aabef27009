# HTTP/1.1 message framing (RFC 9112) and the few fields that a forwarder must understand (RFC 9110).
#
# The bytes of an accepted head are forwarded as they came, less the hop-by-hop lines. So whatever two parsers could
# read differently is refused here and never repaired: the next parser sees the same bytes that this one judged.
#
# Every scan over a head relies on one thing: the head ends in CRLF CRLF, which parse_* check first. CR belongs to none
# of the byte classes, so a loop that goes on while bytes are of a class stops inside the head without counting.

from libc.string cimport strlen

cdef extern from *:
    """
    #define FS_ALPHA(c) (((c) >= 'a' && (c) <= 'z') || ((c) >= 'A' && (c) <= 'Z'))
    #define FS_DIGIT(c) ((c) >= '0' && (c) <= '9')
    #define FS_HEX(c) (FS_DIGIT(c) || ((c) >= 'a' && (c) <= 'f') || ((c) >= 'A' && (c) <= 'F'))
    #define FS_MARK(c) ((c) == '!' || (c) == '$' || (c) == '&' || (c) == '\\'' || (c) == '*' || (c) == '+')
    /* RFC 9110 5.6.2: tchar */
    #define FS_TOKEN(c) (FS_ALPHA(c) || FS_DIGIT(c) || (FS_MARK(c)) || (c) == '#' || (c) == '%' || (c) == '-' || \\
                         (c) == '.' || (c) == '^' || (c) == '_' || (c) == '`' || (c) == '|' || (c) == '~')
    /* RFC 3986 3.2.2: reg-name without pct-encoded, that is unreserved and sub-delims */
    #define FS_REG_NAME(c) (FS_ALPHA(c) || FS_DIGIT(c) || (FS_MARK(c)) || (c) == '-' || (c) == '.' || (c) == '_' || \\
                            (c) == '~' || (c) == '(' || (c) == ')' || (c) == ',' || (c) == ';' || (c) == '=')
    /* RFC 9110 5.5: VCHAR, obs-text, SP, HTAB */
    #define FS_FIELD(c) ((c) == 9 || ((c) >= 32 && (c) != 127))
    #define FS_VISIBLE(c) ((c) > 32 && (c) < 127)
    #define FS_C1(c) (FS_TOKEN(c) * 1 | FS_REG_NAME(c) * 2 | FS_FIELD(c) * 4 | FS_VISIBLE(c) * 8 | FS_HEX(c) * 16 | \\
                      FS_DIGIT(c) * 32 | ((c) == 32 || (c) == 9) * 64)
    #define FS_C4(c) FS_C1(c), FS_C1(c + 1), FS_C1(c + 2), FS_C1(c + 3)
    #define FS_C16(c) FS_C4(c), FS_C4(c + 4), FS_C4(c + 8), FS_C4(c + 12)
    #define FS_C64(c) FS_C16(c), FS_C16(c + 16), FS_C16(c + 32), FS_C16(c + 48)
    static const unsigned char fs_class[256] = {FS_C64(0), FS_C64(64), FS_C64(128), FS_C64(192)};

    /* Fields for every recipient, or that say where a message ends or goes: Connection must not name them
       (RFC 9110 7.6.1). */
    static const char *const fs_protected[] = {
        "authorization", "cache-control", "content-encoding", "content-length", "content-range", "content-type",
        "cookie", "expect", "forwarded", "host", "set-cookie", "trailer", "transfer-encoding", "via", 0};

    /* Fields that say where a message ends or goes, or that are for one connection: none of them may come in a trailer
       (RFC 9110 6.5.1). At most 8: the scanner keeps a bit for each. */
    #define FS_FORBIDDEN 8
    static const char *const fs_forbidden[FS_FORBIDDEN] = {
        "connection", "content-length", "host", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"};

    static const struct { const char *text; short status; } fs_reasons[] = {
        {"bad method", 400},
        {"bad request target", 400},
        {"request target form not allowed with this method", 400},
        {"bad authority in the request target", 400},
        {"bad http version", 400},
        {"http version not supported", 505},
        {"bad status code", 400},
        {"bad reason phrase", 400},
        {"start line too long", 414},
        {"head too long", 431},
        {"head does not end in one empty line", 400},
        {"carriage return without line feed", 400},
        {"line feed without carriage return", 400},
        {"control character in a field", 400},
        {"space before the first field", 400},
        {"folded field line", 400},
        {"empty field name", 400},
        {"bad character in a field name", 400},
        {"space between field name and colon", 400},
        {"field line without a colon", 400},
        {"too many fields", 431},
        {"no host", 400},
        {"more than one host", 400},
        {"bad host", 400},
        {"host differs from the request target", 400},
        {"more than one service header", 400},
        {"empty service header", 400},
        {"both content-length and transfer-encoding", 400},
        {"more than one content-length", 400},
        {"bad content-length", 400},
        {"content-length too large", 413},
        {"content-length with a status that has no content", 400},
        {"transfer-encoding is not exactly chunked", 501},
        {"more than one transfer-encoding", 400},
        {"transfer-encoding in http/1.0", 400},
        {"transfer-encoding with a status that has no content", 400},
        {"bad connection field", 400},
        {"too many connection options", 400},
        {"connection names a field that must be forwarded", 400},
        {"too many hop-by-hop fields", 431},
        {"switching protocols without connection: upgrade and upgrade", 400},
        {"bad chunk size", 400},
        {"chunk size too large", 413},
        {"bad chunk extension", 400},
        {"chunk extension too long", 400},
        {"chunk data not followed by an empty line end", 400},
        {"bad trailer field", 400},
        {"field not allowed in a trailer", 400},
        {"trailer too long", 431},
    };
    #define FS_REASONS ((int)(sizeof fs_reasons / sizeof fs_reasons[0]))
    """
    const uint8_t fs_class[256]
    const char *fs_protected[]
    const char *fs_forbidden[]
    int FS_FORBIDDEN
    int FS_REASONS
    cdef struct FsReason "":
        const char *text
        int status
    const FsReason fs_reasons[]

cdef enum:                      # bits of fs_class
    IS_TOKEN = 1
    IS_REG_NAME = 2
    IS_FIELD = 4
    IS_VISIBLE = 8
    IS_HEX = 16
    IS_DIGIT = 32
    IS_SPACE = 64

cdef enum:
    CR = 13
    LF = 10
    MAX_OPTIONS = 16            # connection options besides the well-known: each costs a look at every line
    MAX_EXTENSION = 256         # bytes of the extensions of one chunk
    MAX_TRAILER = 8192          # bytes of a trailer section

cdef struct HeadFields:             # what the fields of one head said, besides HttpHead
    Span host                   # the whole value
    Span options[16]            # connection options besides the well-known
    const uint8_t *service_header
    uint32_t service_header_length
    uint32_t upgrade_cuts       # bit i: cuts[i] is an Upgrade line
    uint8_t option_count
    uint32_t host_count
    bint has_length
    bint has_coding
    bint wants_upgrade          # Connection: upgrade
    bint bad_upgrade            # an Upgrade that must not be forwarded


# -- bytes -----------------------------------------------------------------------------------------------------------

cdef inline uint8_t lower_byte(uint8_t c) noexcept nogil:
    return c | <uint8_t>((<uint8_t>(c - 65) < 26) << 5)


cdef inline bint same_name(const uint8_t *p, const char *name, uint32_t length) noexcept nogil:
    """p[0:length] is name (lower case), whatever its case."""
    cdef uint32_t i
    for i in range(length):
        if lower_byte(p[i]) != <uint8_t>name[i]:
            return False
    return True


cdef bint same_nocase(const uint8_t *a, const uint8_t *b, uint32_t length) noexcept nogil:
    cdef uint32_t i
    for i in range(length):
        if lower_byte(a[i]) != lower_byte(b[i]):
            return False
    return True


cdef inline bint same_text(const uint8_t *p, uint32_t length, const char *name) noexcept nogil:
    return length == strlen(name) and same_name(p, name, length)


cdef inline const uint8_t *skip_class(const uint8_t *p, uint8_t cls) noexcept nogil:
    while fs_class[p[0]] & cls:
        p += 1
    return p


cdef inline const uint8_t *skip_value(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """The first byte from p on that cannot be in a field value; eight at a time while none is suspicious."""
    while end - p >= 8 and not has_control(load_8(p)):     # a tab is allowed, but not frequent
        p += 8
    return skip_class(p, IS_FIELD)


cdef inline Span span_of(const uint8_t *base, const uint8_t *start, const uint8_t *end) noexcept nogil:
    cdef Span span
    span.start = <uint32_t>(start - base)
    span.length = <uint32_t>(end - start)
    return span


# -- the end of a head -----------------------------------------------------------------------------------------------

cdef int http1_find_end(const uint8_t *p, uint32_t length, uint32_t max_length, uint32_t *scanned,
                        uint32_t *head_length) noexcept nogil:
    cdef uint32_t limit = length if length < max_length else max_length
    cdef uint32_t at
    cdef const uint8_t *found
    while scanned[0] < limit:
        found = <const uint8_t *>memchr(p + scanned[0], LF, limit - scanned[0])
        if found == NULL:
            scanned[0] = limit
            break
        at = <uint32_t>(found - p)
        if at == 0 or p[at - 1] != CR:
            return REJECT_BARE_LF
        scanned[0] = at + 1
        if at >= 3 and p[at - 2] == LF:     # and the CR before that was seen with its LF
            head_length[0] = at + 1
            return HTTP_OK
    if length >= max_length:
        return REJECT_HEAD_LONG if memchr(p, LF, max_length) != NULL else REJECT_START_LINE_LONG
    return HTTP_NEED_MORE


cdef uint32_t http1_skip_empty(const uint8_t *p, uint32_t length) noexcept nogil:
    cdef uint32_t n = 0
    while length - n >= 2 and p[n] == CR and p[n + 1] == LF:
        n += 2
    return n


cdef inline bint is_whole(const uint8_t *p, uint32_t length) noexcept nogil:
    return length >= 4 and memcmp(p + length - 4, b"\r\n\r\n", 4) == 0


# -- values ----------------------------------------------------------------------------------------------------------

cdef int parse_length(const uint8_t *p, const uint8_t *end, uint64_t *value) noexcept nogil:
    """Content-Length = 1*DIGIT (RFC 9110 8.6); at most 2^63 - 1 and 19 digits, since others count in signed numbers
    and bound the digits."""
    cdef const uint8_t *start = p
    cdef uint64_t n = 0
    while p < end and fs_class[p[0]] & IS_DIGIT:
        if p - start == 19:
            return REJECT_LENGTH_OVERFLOW
        n = n * 10 + (p[0] - 48)    # 19 digits fit
        p += 1
    if p == start or p < end:
        return REJECT_LENGTH
    if n > <uint64_t>0x7fffffffffffffff:
        return REJECT_LENGTH_OVERFLOW
    value[0] = n
    return HTTP_OK


cdef bint is_ipv4(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """IPv4address (RFC 3986 3.2.2): four decimal octets without leading zeros."""
    cdef uint32_t parts = 0, value
    cdef const uint8_t *start
    while True:
        start = p
        value = 0
        while p < end and p - start < 3 and fs_class[p[0]] & IS_DIGIT:
            value = value * 10 + (p[0] - 48)
            p += 1
        if p == start or value > 255 or (start[0] == c"0" and p - start > 1):
            return False
        parts += 1
        if parts == 4:
            return p == end
        if p == end or p[0] != c".":
            return False
        p += 1


cdef bint is_ipv6(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """IPv6address (RFC 3986 3.2.2): eight groups, or fewer with one "::"; the last two may be an IPv4address."""
    cdef uint32_t groups = 0
    cdef bint shortened = False
    cdef const uint8_t *start
    if end - p >= 2 and p[0] == c":" and p[1] == c":":
        shortened = True
        p += 2
    while p < end:
        start = p
        while p < end and p - start < 4 and fs_class[p[0]] & IS_HEX:
            p += 1
        if p < end and p[0] == c".":
            if not is_ipv4(start, end):
                return False
            groups += 2
            break
        if p == start:
            return False
        groups += 1
        if p == end:
            break
        if p[0] != c":":
            return False
        p += 1
        if p == end:
            return False
        if p[0] == c":":
            if shortened:
                return False
            shortened = True
            p += 1
    return groups <= 7 if shortened else groups == 8


cdef bint parse_authority(const uint8_t *p, const uint8_t *end, const uint8_t **host_end) noexcept nogil:
    """uri-host [ ":" port ] (RFC 9110 7.2) with a host that is not empty. *host_end is where the uri-host ends."""
    cdef const uint8_t *start = p
    cdef uint32_t port = 0
    if p < end and p[0] == c"[":
        while p < end and p[0] != c"]":
            p += 1
        if p == end or not is_ipv6(start + 1, p):
            return False
        p += 1
    else:
        while p < end:
            if fs_class[p[0]] & IS_REG_NAME:
                p += 1
            elif p[0] == c"%" and end - p >= 3 and fs_class[p[1]] & IS_HEX and fs_class[p[2]] & IS_HEX:
                p += 3
            else:
                break
    if p == start:
        return False
    host_end[0] = p
    if p == end:
        return True
    if p[0] != c":" or end - p > 6:
        return False
    p += 1
    while p < end:
        if not fs_class[p[0]] & IS_DIGIT:
            return False
        port = port * 10 + (p[0] - 48)
        p += 1
    return port <= 65535


cdef int parse_connection(const uint8_t *base, const uint8_t *p, const uint8_t *end, HttpHead *out,
                          HeadFields *fields) noexcept nogil:
    """Connection = #token (RFC 9110 7.6.1). Options that are not well-known name fields to cut."""
    cdef const uint8_t *start
    cdef uint32_t n
    cdef uint32_t i
    while True:
        while p < end and (p[0] == c"," or fs_class[p[0]] & IS_SPACE):
            p += 1
        if p == end:
            return HTTP_OK
        start = p
        p = skip_class(p, IS_TOKEN)
        n = <uint32_t>(p - start)
        if n == 0:
            return REJECT_CONNECTION
        while p < end and fs_class[p[0]] & IS_SPACE:
            p += 1
        if p < end and p[0] != c",":
            return REJECT_CONNECTION
        if n == 10 and same_name(start, b"keep-alive", 10):
            out.flags |= HEAD_KEEP_ALIVE
        elif n == 5 and same_name(start, b"close", 5):
            out.flags |= HEAD_CLOSE
        elif n == 7 and same_name(start, b"upgrade", 7):
            fields.wants_upgrade = True
        elif n == 2 and same_name(start, b"te", 2):
            pass                # cut in any case, as are the fields of the other well-known options
        else:
            if n == 17 and same_name(start, b"fastside-not-sent", 17):
                out.flags |= HEAD_NOT_SENT
            i = 0
            while fs_protected[i] != NULL:
                if same_text(start, n, fs_protected[i]):
                    return REJECT_CONNECTION_PROTECTED
                i += 1
            if n == fields.service_header_length and same_name(start, <const char *>fields.service_header, n):
                return REJECT_CONNECTION_PROTECTED
            if fields.option_count == MAX_OPTIONS:
                return REJECT_CONNECTION_OPTIONS
            fields.options[fields.option_count] = span_of(base, start, start + n)
            fields.option_count += 1


cdef bint is_upgrade(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """Upgrade = 1#( token [ "/" token ] ) (RFC 9110 7.8), and not to h2c: that is between two neighbours, takes
    HTTP2-Settings along in Connection, and RFC 9113 3.1 has given it up. A server may ignore any Upgrade."""
    cdef const uint8_t *start
    cdef bint found = False
    while True:
        while p < end and (p[0] == c"," or fs_class[p[0]] & IS_SPACE):
            p += 1
        if p == end:
            return found
        start = p
        p = skip_class(p, IS_TOKEN)
        if p == start or (p - start == 3 and same_name(start, b"h2c", 3)):
            return False
        if p < end and p[0] == c"/":
            start = p + 1
            p = skip_class(start, IS_TOKEN)
            if p == start:
                return False
        while p < end and fs_class[p[0]] & IS_SPACE:
            p += 1
        if p < end and p[0] != c",":
            return False
        found = True


# -- the fields ------------------------------------------------------------------------------------------------------

cdef int bad_field_line(const uint8_t *line, const uint8_t *p) noexcept nogil:
    """Why the field line does not start with a name and a colon; p is the first byte that is not of the name."""
    if fs_class[line[0]] & IS_SPACE:
        return REJECT_LEADING_SPACE
    if p[0] == c":":
        return REJECT_EMPTY_NAME
    if p[0] == CR:
        return REJECT_NO_COLON if p[1] == LF else REJECT_BARE_CR
    if fs_class[p[0]] & IS_SPACE:
        p = skip_class(p, IS_SPACE)
        return REJECT_SPACE_BEFORE_COLON if p[0] == c":" else REJECT_NAME
    return REJECT_NAME


cdef bint is_plain(const uint8_t *colon, const uint8_t *value, const uint8_t *stop,
                   const uint8_t *line_end) noexcept nogil:
    """Nothing but spaces before the value, nothing after it: a tab or trailing space is where parsers of the framing
    fields have disagreed."""
    return stop + 2 == line_end and memchr(colon, c"\t", value - colon) == NULL


cdef int parse_fields(const uint8_t *base, const uint8_t *p, const uint8_t *end, uint32_t max_headers, HttpHead *out,
                      HeadFields *fields) noexcept nogil:
    """All field lines from p on, and the empty line at the end."""
    cdef uint32_t count = 0
    cdef uint32_t n
    cdef int outcome
    cdef bint hop_by_hop
    cdef const uint8_t *line
    cdef const uint8_t *colon
    cdef const uint8_t *value
    cdef const uint8_t *stop
    while p[0] != CR:
        line = p
        colon = skip_class(line, IS_TOKEN)
        n = <uint32_t>(colon - line)
        if n == 0 or colon[0] != c":":
            return bad_field_line(line, colon)
        count += 1
        if count > max_headers:
            return REJECT_HEADERS
        value = skip_class(colon + 1, IS_SPACE)
        stop = p = skip_value(value, end)
        if p[0] != CR:
            return REJECT_BARE_LF if p[0] == LF else REJECT_CONTROL
        if p[1] != LF:
            return REJECT_BARE_CR
        p += 2
        if fs_class[p[0]] & IS_SPACE:
            return REJECT_OBS_FOLD
        while stop > value and fs_class[(stop - 1)[0]] & IS_SPACE:
            stop -= 1

        hop_by_hop = False
        if n == fields.service_header_length and same_name(line, <const char *>fields.service_header, n):
            if out.service.length:
                return REJECT_SERVICE_SEVERAL
            if value == stop:
                return REJECT_SERVICE_EMPTY
            out.service = span_of(base, value, stop)
        if n == 4:
            if same_name(line, b"host", 4):
                fields.host_count += 1
                fields.host = span_of(base, value, stop)
        elif n == 10:
            if same_name(line, b"connection", 10):
                outcome = parse_connection(base, value, stop, out, fields)
                if outcome != HTTP_OK:
                    return outcome
                hop_by_hop = True
            else:
                hop_by_hop = same_name(line, b"keep-alive", 10)
        elif n == 14:
            if same_name(line, b"content-length", 14):
                if fields.has_length:
                    return REJECT_LENGTH_SEVERAL
                if not is_plain(colon, value, stop, p):
                    return REJECT_LENGTH
                fields.has_length = True
                outcome = parse_length(value, stop, &out.content_length)
                if outcome != HTTP_OK:
                    return outcome
        elif n == 17:
            if same_name(line, b"transfer-encoding", 17):
                if fields.has_coding:
                    return REJECT_CODING_SEVERAL
                if stop - value != 7 or not same_name(value, b"chunked", 7) or not is_plain(colon, value, stop, p):
                    return REJECT_CODING
                fields.has_coding = True
        elif n == 6:
            if same_name(line, b"expect", 6) and stop - value == 12 and same_name(value, b"100-continue", 12):
                out.flags |= HEAD_EXPECT_CONTINUE
        elif n == 7:
            if same_name(line, b"upgrade", 7):
                hop_by_hop = True
                fields.bad_upgrade |= not is_upgrade(value, stop)
        elif n == 2:
            hop_by_hop = same_name(line, b"te", 2)
        elif n == 16:
            hop_by_hop = same_name(line, b"proxy-connection", 16)
        if hop_by_hop:
            if out.cut_count == MAX_CUTS:
                return REJECT_CUTS
            if n == 7:
                fields.upgrade_cuts |= <uint32_t>1 << out.cut_count
            out.cuts[out.cut_count] = span_of(base, line, p)
            out.cut_count += 1
    if p[1] != LF:
        return REJECT_BARE_CR
    if p + 2 != end:
        return REJECT_HEAD_BROKEN
    if fields.has_coding and fields.has_length:
        return REJECT_LENGTH_AND_CODING
    if fields.has_coding and out.minor == 0:
        return REJECT_CODING_VERSION
    return HTTP_OK


cdef void settle_upgrade(HttpHead *out, const HeadFields *fields) noexcept nogil:
    """Takes the Upgrade lines out of the cuts when the upgrade may be passed on (RFC 9110 7.8): asked for in
    Connection, of HTTP/1.1, and without content, so that it is plain where the new protocol starts."""
    cdef uint32_t i
    cdef uint32_t kept = 0
    if (not fields.wants_upgrade or fields.upgrade_cuts == 0 or fields.bad_upgrade or out.minor == 0
            or out.body != BODY_NONE):
        return
    out.flags |= HEAD_UPGRADE
    for i in range(out.cut_count):
        if not fields.upgrade_cuts >> i & 1:
            out.cuts[kept] = out.cuts[i]
            kept += 1
    out.cut_count = <uint16_t>kept


cdef int cut_options(const uint8_t *base, const uint8_t *p, const uint8_t *end, HttpHead *out,
                     const HeadFields *fields) noexcept nogil:
    """Cuts the lines that Connection names; p is the first field line. The cuts stay in order."""
    cdef const uint8_t *line
    cdef uint32_t n
    cdef uint32_t i
    cdef uint32_t k = 0         # cuts before this line
    while p[0] != CR:
        line = p
        n = <uint32_t>(skip_class(p, IS_TOKEN) - p)
        p = <const uint8_t *>memchr(p, LF, end - p) + 1
        if k < out.cut_count and out.cuts[k].start == <uint32_t>(line - base):
            k += 1
            continue
        for i in range(fields.option_count):
            if n == fields.options[i].length and same_nocase(line, base + fields.options[i].start, n):
                if out.cut_count == MAX_CUTS:
                    return REJECT_CUTS
                memmove(&out.cuts[k + 1], &out.cuts[k], (out.cut_count - k) * sizeof(Span))
                out.cuts[k] = span_of(base, line, p)
                out.cut_count += 1
                k += 1
                break
    return HTTP_OK


cdef void clear_head(HttpHead *out, HeadFields *fields, uint32_t length) noexcept nogil:
    memset(fields, 0, sizeof(HeadFields))
    memset(out, 0, sizeof(HttpHead) - sizeof(out.cuts))
    out.length = length


# -- requests --------------------------------------------------------------------------------------------------------

cdef uint8_t method_of(const uint8_t *p, uint32_t length) noexcept nogil:
    """Methods are case-sensitive (RFC 9110 9.1)."""
    if length == 3:
        if memcmp(p, b"GET", 3) == 0:
            return METHOD_GET
        if memcmp(p, b"PUT", 3) == 0:
            return METHOD_PUT
    elif length == 4:
        if memcmp(p, b"POST", 4) == 0:
            return METHOD_POST
        if memcmp(p, b"HEAD", 4) == 0:
            return METHOD_HEAD
    elif length == 5:
        if memcmp(p, b"PATCH", 5) == 0:
            return METHOD_PATCH
        if memcmp(p, b"TRACE", 5) == 0:
            return METHOD_TRACE
    elif length == 6:
        if memcmp(p, b"DELETE", 6) == 0:
            return METHOD_DELETE
    elif length == 7:
        if memcmp(p, b"OPTIONS", 7) == 0:
            return METHOD_OPTIONS
        if memcmp(p, b"CONNECT", 7) == 0:
            return METHOD_CONNECT
    return METHOD_OTHER


cdef int parse_version(const uint8_t *p, const uint8_t *end, uint8_t *minor) noexcept nogil:
    """HTTP-version (RFC 9112 2.3) in the first 8 bytes."""
    if end - p < 8 or memcmp(p, b"HTTP/", 5) != 0:
        return REJECT_VERSION
    if not (fs_class[p[5]] & IS_DIGIT and p[6] == c"." and fs_class[p[7]] & IS_DIGIT):
        return REJECT_VERSION
    if p[5] != c"1" or p[7] > c"1":
        return REJECT_VERSION_UNSUPPORTED
    minor[0] = p[7] - 48
    return HTTP_OK


cdef int check_target(const uint8_t *base, HttpHead *out, const HeadFields *fields) noexcept nogil:
    """The form of the request-target (RFC 9112 3.2), and Host (RFC 9110 7.2)."""
    cdef const uint8_t *target = base + out.target.start
    cdef const uint8_t *end = target + out.target.length
    cdef const uint8_t *authority = NULL
    cdef const uint8_t *authority_end = NULL
    cdef const uint8_t *host = base + fields.host.start
    cdef const uint8_t *host_end = NULL
    if out.method == METHOD_CONNECT:
        authority, authority_end = target, end
        if not parse_authority(authority, authority_end, &host_end):
            return REJECT_AUTHORITY
        if end - host_end < 2:              # no port
            return REJECT_AUTHORITY
    elif target[0] == c"/":
        pass
    elif target[0] == c"*" and out.target.length == 1:
        if out.method != METHOD_OPTIONS:
            return REJECT_TARGET_FORM
    else:
        if out.target.length > 7 and same_name(target, b"http://", 7):
            authority = target + 7
        elif out.target.length > 8 and same_name(target, b"https://", 8):
            authority = target + 8
        else:
            return REJECT_TARGET
        authority_end = authority
        while authority_end < end and not (authority_end[0] == c"/" or authority_end[0] == c"?"
                                           or authority_end[0] == c"#"):
            authority_end += 1
        if not parse_authority(authority, authority_end, &host_end):
            return REJECT_AUTHORITY
    if authority != NULL:
        out.host = span_of(base, authority, host_end)
    if fields.host_count == 0:
        return HTTP_OK if out.minor == 0 else REJECT_HOST_MISSING
    if fields.host_count > 1:
        return REJECT_HOST_SEVERAL
    if authority != NULL:
        if fields.host.length != authority_end - authority or not same_nocase(host, authority, fields.host.length):
            return REJECT_HOST_DIFFERS
    elif fields.host.length:                # an empty one is allowed: the target has no authority
        if not parse_authority(host, host + fields.host.length, &host_end):
            return REJECT_HOST
        out.host = span_of(base, host, host_end)
    return HTTP_OK


cdef int http1_parse_request(const uint8_t *p, uint32_t length, uint32_t max_headers, const uint8_t *service_header,
                             uint32_t service_header_length, HttpHead *out) noexcept nogil:
    cdef const uint8_t *base = p
    cdef const uint8_t *end = p + length
    cdef const uint8_t *start
    cdef const uint8_t *first
    cdef HeadFields fields
    cdef int outcome
    clear_head(out, &fields, length)
    if not is_whole(p, length):
        return REJECT_HEAD_BROKEN
    fields.service_header = service_header
    fields.service_header_length = service_header_length

    p = skip_class(p, IS_TOKEN)
    if p == base or p[0] != c" ":
        return REJECT_METHOD
    out.method = method_of(base, <uint32_t>(p - base))
    start = p + 1
    p = skip_class(start, IS_VISIBLE)
    out.target = span_of(base, start, p)
    if p == start:
        return REJECT_TARGET
    if p[0] != c" ":
        return REJECT_VERSION if p[0] == CR and p[1] == LF else REJECT_TARGET
    p += 1
    outcome = parse_version(p, end, &out.minor)
    if outcome != HTTP_OK:
        return outcome
    p += 8
    if p[0] != CR or p[1] != LF:
        return REJECT_VERSION
    first = p + 2

    outcome = parse_fields(base, first, end, max_headers, out, &fields)
    if outcome == HTTP_OK:
        outcome = check_target(base, out, &fields)
    if outcome != HTTP_OK:
        return outcome
    if fields.has_coding:
        out.body = BODY_CHUNKED
    elif out.content_length:
        out.body = BODY_LENGTH
    if out.minor == 0:
        out.flags &= ~HEAD_EXPECT_CONTINUE  # RFC 9110 10.1.1: must be ignored
    if fields.upgrade_cuts:
        settle_upgrade(out, &fields)
    if fields.option_count:
        return cut_options(base, first, end, out, &fields)
    return HTTP_OK


# -- responses -------------------------------------------------------------------------------------------------------

cdef int http1_parse_response(const uint8_t *p, uint32_t length, uint32_t max_headers, uint8_t request_method,
                              HttpHead *out) noexcept nogil:
    cdef const uint8_t *base = p
    cdef const uint8_t *end = p + length
    cdef const uint8_t *first
    cdef HeadFields fields
    cdef int outcome
    clear_head(out, &fields, length)
    if not is_whole(p, length):
        return REJECT_HEAD_BROKEN
    outcome = parse_version(p, end, &out.minor)
    if outcome != HTTP_OK:
        return outcome
    p += 8
    if p[0] != c" ":
        return REJECT_VERSION
    if end - p < 5 or not (fs_class[p[1]] & IS_DIGIT and fs_class[p[2]] & IS_DIGIT and fs_class[p[3]] & IS_DIGIT):
        return REJECT_STATUS
    out.status = (p[1] - 48) * 100 + (p[2] - 48) * 10 + (p[3] - 48)
    if out.status < 100 or out.status > 599:
        return REJECT_STATUS
    p += 4
    if p[0] != c" ":            # asked for even before an empty reason-phrase (RFC 9112 4)
        return REJECT_STATUS
    p = skip_value(p + 1, end)
    if p[0] != CR or p[1] != LF:
        return REJECT_BARE_CR if p[0] == CR else REJECT_REASON_PHRASE
    first = p + 2

    outcome = parse_fields(base, first, end, max_headers, out, &fields)
    if outcome != HTTP_OK:
        return outcome
    # Message body length, RFC 9112 6.3
    if out.status < 200 or out.status == 204:
        if fields.has_coding:
            return REJECT_CODING_STATUS
        if out.content_length:
            return REJECT_LENGTH_WITHOUT_CONTENT
    elif request_method == METHOD_HEAD or out.status == 304:
        pass
    elif fields.has_coding:
        out.body = BODY_CHUNKED
    elif not fields.has_length:
        out.body = BODY_UNTIL_CLOSE
    elif out.content_length:
        out.body = BODY_LENGTH
    if out.status == 101:
        settle_upgrade(out, &fields)
        if not out.flags & HEAD_UPGRADE:
            return REJECT_SWITCH
    if fields.option_count:
        return cut_options(base, first, end, out, &fields)
    return HTTP_OK


cdef Span http1_field(const uint8_t *p, uint32_t length, const uint8_t *name, uint32_t name_length) noexcept nogil:
    cdef const uint8_t *base = p
    cdef const uint8_t *end = p + length
    cdef const uint8_t *value
    cdef Span none
    none.start = none.length = 0
    while True:
        p = <const uint8_t *>memchr(p, LF, end - p) + 1
        if p[0] == CR:          # the empty line that every accepted head ends with
            return none
        if <size_t>(end - p) > name_length and p[name_length] == c":" and same_name(p, <const char *>name, name_length):
            value = skip_class(p + name_length + 1, IS_SPACE)
            p = skip_value(value, end)
            while p > value and fs_class[(p - 1)[0]] & IS_SPACE:
                p -= 1
            return span_of(base, value, p)


# -- chunked bodies --------------------------------------------------------------------------------------------------

cdef enum:                      # phases besides those in http1.pxd
    CHUNK_SIZE_LF = 3
    CHUNK_NAME_START            # of an extension
    CHUNK_NAME
    CHUNK_VALUE_START
    CHUNK_VALUE
    CHUNK_QUOTED
    CHUNK_ESCAPED
    CHUNK_QUOTED_END
    CHUNK_DATA_CR
    CHUNK_DATA_LF
    TRAILER_START
    TRAILER_OTHER_NAME          # a name that is none of the forbidden
    TRAILER_VALUE
    TRAILER_LF
    TRAILER_END
    TRAILER_NAME = 32           # plus the bytes of the name so far; digits: which forbidden names it may still become


cdef int after_extension(ChunkState *state, uint8_t c) noexcept nogil:
    """What may follow a chunk's size, an extension's name or its value. RFC 9112 7.1.1 lets a recipient see white space
    here, but nobody may send it, and what is accepted here is sent on as it came."""
    if c == c";":
        state.phase = CHUNK_NAME_START
    elif c == CR:
        state.phase = CHUNK_SIZE_LF
    else:
        return REJECT_CHUNK_EXTENSION
    return HTTP_OK


cdef int in_size_line(ChunkState *state, uint8_t c) noexcept nogil:
    """One byte of chunk-size [ chunk-ext ] CRLF (RFC 9112 7.1)."""
    cdef uint8_t cls = fs_class[c]
    if state.phase == CHUNK_SIZE:
        if cls & IS_HEX:
            # At most 2^63 - 1, since others count in signed numbers.
            if state.digits == 16 or state.remaining > <uint64_t>0x7ffffffffffffff:
                return REJECT_CHUNK_OVERFLOW
            state.remaining = state.remaining << 4 | (c - 48 if cls & IS_DIGIT else lower_byte(c) - 87)
            state.digits += 1
            return HTTP_OK
        if state.digits == 0 or not (c == c";" or c == CR):
            return REJECT_CHUNK_SIZE
        return after_extension(state, c)
    if state.phase == CHUNK_SIZE_LF:
        if c != LF:
            return REJECT_BARE_CR
        state.phase = CHUNK_DATA if state.remaining else TRAILER_START
        state.digits = 0
        state.trailer_bytes = 0
        return HTTP_OK
    state.trailer_bytes += 1
    if state.trailer_bytes > MAX_EXTENSION:
        return REJECT_CHUNK_EXTENSION_LONG
    if state.phase == CHUNK_NAME_START:
        if not cls & IS_TOKEN:
            return REJECT_CHUNK_EXTENSION
        state.phase = CHUNK_NAME
    elif state.phase == CHUNK_NAME:
        if c == c"=":
            state.phase = CHUNK_VALUE_START
        elif not cls & IS_TOKEN:
            return after_extension(state, c)
    elif state.phase == CHUNK_VALUE_START:
        if c == c'"':
            state.phase = CHUNK_QUOTED
        elif cls & IS_TOKEN:
            state.phase = CHUNK_VALUE
        else:
            return REJECT_CHUNK_EXTENSION
    elif state.phase == CHUNK_VALUE:
        if not cls & IS_TOKEN:
            return after_extension(state, c)
    elif state.phase == CHUNK_QUOTED:
        if c == c'"':
            state.phase = CHUNK_QUOTED_END
        elif c == c"\\":
            state.phase = CHUNK_ESCAPED
        elif not cls & IS_FIELD:
            return REJECT_CHUNK_EXTENSION
    elif state.phase == CHUNK_ESCAPED:
        if not cls & IS_FIELD:
            return REJECT_CHUNK_EXTENSION
        state.phase = CHUNK_QUOTED
    else:                       # CHUNK_QUOTED_END
        return after_extension(state, c)
    return HTTP_OK


cdef int in_trailer_name(ChunkState *state, uint8_t c) noexcept nogil:
    """One byte of a trailer's name or the colon after it; a forbidden name is found without keeping its bytes."""
    cdef uint32_t at = state.phase - TRAILER_NAME
    cdef uint32_t i
    cdef size_t length
    cdef uint8_t left = 0
    if c == c":":
        if at == 0:
            return REJECT_TRAILER
        for i in range(<uint32_t>FS_FORBIDDEN):
            if state.digits >> i & 1 and strlen(fs_forbidden[i]) == at:
                return REJECT_TRAILER_FIELD
        state.phase = TRAILER_VALUE
        return HTTP_OK
    if not fs_class[c] & IS_TOKEN:
        return REJECT_TRAILER
    for i in range(<uint32_t>FS_FORBIDDEN):
        length = strlen(fs_forbidden[i])
        if state.digits >> i & 1 and at < length and <uint8_t>fs_forbidden[i][at] == lower_byte(c):
            left |= <uint8_t>(1 << i)
    state.digits = left
    state.phase = <uint8_t>(state.phase + 1) if left else TRAILER_OTHER_NAME
    return HTTP_OK


cdef int in_trailer(ChunkState *state, uint8_t c) noexcept nogil:
    """One byte of the trailer section, *( field-line CRLF ) CRLF (RFC 9112 7.1.2)."""
    state.trailer_bytes += 1
    if state.trailer_bytes > MAX_TRAILER:
        return REJECT_TRAILER_LONG
    if state.phase >= TRAILER_NAME:
        return in_trailer_name(state, c)
    if state.phase == TRAILER_START:
        if c == CR:
            state.phase = TRAILER_END
            return HTTP_OK
        state.phase = TRAILER_NAME
        state.digits = 0xff
        return in_trailer_name(state, c)
    if state.phase == TRAILER_OTHER_NAME:
        if c == c":":
            state.phase = TRAILER_VALUE
        elif not fs_class[c] & IS_TOKEN:
            return REJECT_TRAILER
    elif state.phase == TRAILER_VALUE:
        if c == CR:
            state.phase = TRAILER_LF
        elif not fs_class[c] & IS_FIELD:
            return REJECT_BARE_LF if c == LF else REJECT_TRAILER
    elif c != LF:
        return REJECT_BARE_CR
    else:
        state.phase = TRAILER_START if state.phase == TRAILER_LF else CHUNK_DONE
    return HTTP_OK


cdef int http1_scan_chunks(ChunkState *state, const uint8_t *p, uint32_t length, uint32_t *consumed) noexcept nogil:
    cdef uint32_t at = 0
    cdef int outcome = HTTP_OK
    while state.phase != CHUNK_DONE:
        if state.phase == CHUNK_DATA:
            if state.remaining > length - at:
                state.remaining -= length - at
                at = length
            else:
                at += <uint32_t>state.remaining
                state.remaining = 0
                state.phase = CHUNK_DATA_CR
        if at == length:
            consumed[0] = at
            return HTTP_NEED_MORE
        if state.phase == CHUNK_DATA_CR:
            outcome = HTTP_OK if p[at] == CR else REJECT_CHUNK_END
            state.phase = CHUNK_DATA_LF
        elif state.phase == CHUNK_DATA_LF:
            outcome = HTTP_OK if p[at] == LF else REJECT_CHUNK_END
            state.phase = CHUNK_SIZE
        elif state.phase < TRAILER_START:
            outcome = in_size_line(state, p[at])
        else:
            outcome = in_trailer(state, p[at])
        if outcome != HTTP_OK:
            consumed[0] = at
            return outcome
        at += 1
    consumed[0] = at
    return HTTP_OK


# -- reasons ---------------------------------------------------------------------------------------------------------

cdef const char *http1_reason_text(int reason) noexcept nogil:
    if reason < HTTP_REJECT or reason >= REJECT_END:
        return b""
    return fs_reasons[reason - HTTP_REJECT].text


cdef int http1_status_for(int reason) noexcept nogil:
    if reason < HTTP_REJECT or reason >= REJECT_END:
        return 400
    return fs_reasons[reason - HTTP_REJECT].status


assert FS_REASONS == REJECT_END - HTTP_REJECT
REJECT_REASONS = tuple([http1_reason_text(reason).decode() for reason in range(HTTP_REJECT, REJECT_END)])


# -- for tests and `fastside explain` --------------------------------------------------------------------------------

cdef dict _outcome(int outcome):
    if outcome == HTTP_NEED_MORE:
        return {"need_more": True}
    return {"reject": http1_reason_text(outcome).decode(), "status": http1_status_for(outcome)}


cdef dict _head(const uint8_t *p, const HttpHead *head):
    names = (("close", HEAD_CLOSE), ("keep-alive", HEAD_KEEP_ALIVE), ("upgrade", HEAD_UPGRADE),
             ("expect-continue", HEAD_EXPECT_CONTINUE), ("not-sent", HEAD_NOT_SENT))
    return {
        "length": head.length,
        "version": f"HTTP/1.{head.minor}",
        "body": ("none", "length", "chunked", "until-close")[head.body],
        "content_length": head.content_length,
        "flags": [name for name, bit in names if head.flags & bit],
        "cuts": [_text(p, head.cuts[i]) for i in range(head.cut_count)],
    }


cdef str _text(const uint8_t *p, Span span):
    return (<const char *>p)[span.start:span.start + span.length].decode("latin-1")


def find_end(data: bytes, max_length: int = 65536, splits: tuple[int, ...] = ()) -> dict:
    """Looks for the end of a head in data[:n] for each n of splits, then in all of data.

    Returns {"length": bytes of the head}, {"need_more": True} or {"reject": reason, "status": status to answer with}.
    """
    cdef const uint8_t *p = data
    cdef uint32_t scanned = 0
    cdef uint32_t length = 0
    cdef int outcome
    for n in (*splits, len(data)):
        if not 0 <= n <= len(data):
            raise ValueError(f"split at {n} is outside the data")
        outcome = http1_find_end(p, n, max_length, &scanned, &length)
        if outcome != HTTP_NEED_MORE:
            break
    return {"length": length} if outcome == HTTP_OK else _outcome(outcome)


def parse_request(data: bytes, service_header: bytes = b"", max_headers: int = 200, max_length: int = 65536) -> dict:
    """Parses the first request head in data (RFC 9112); empty lines before it are skipped.

    service_header is the name of the header that names the service, b"" for none; max_length is in bytes.
    Returns a dict with method, target, host, service, version, body, content_length, flags, cuts (the lines that are
    not forwarded) and length (bytes of data up to the end of the head); or {"need_more": True}; or {"reject": one of
    REJECT_REASONS, "status": status to answer with}.
    """
    cdef const uint8_t *p = data
    cdef bytes name = service_header.lower()
    cdef uint32_t skipped = http1_skip_empty(p, len(data))
    cdef uint32_t scanned = 0
    cdef uint32_t length = 0
    cdef HttpHead head
    cdef int outcome
    p += skipped
    outcome = http1_find_end(p, len(data) - skipped, max_length, &scanned, &length)
    if outcome == HTTP_OK:
        outcome = http1_parse_request(p, length, max_headers, name, len(name), &head)
    if outcome != HTTP_OK:
        return _outcome(outcome)
    return {
        "method": data[skipped:data.index(b" ", skipped)].decode("ascii"),
        "target": _text(p, head.target),
        "host": _text(p, head.host),
        "service": _text(p, head.service),
        **_head(p, &head),
        "length": skipped + length,
    }


def parse_response(data: bytes, method: str = "GET", max_headers: int = 200, max_length: int = 65536) -> dict:
    """Parses the first response head in data (RFC 9112), the answer to a request of that method.

    Returns like parse_request, with status in place of method, target, host and service.
    """
    cdef const uint8_t *p = data
    cdef bytes request = method.encode()
    cdef uint32_t scanned = 0
    cdef uint32_t length = 0
    cdef HttpHead head
    cdef int outcome = http1_find_end(p, len(data), max_length, &scanned, &length)
    if outcome == HTTP_OK:
        outcome = http1_parse_response(p, length, max_headers, method_of(request, len(request)), &head)
    if outcome != HTTP_OK:
        return _outcome(outcome)
    return {"status": head.status, **_head(p, &head)}


def scan_chunks(*pieces: bytes) -> dict:
    """Goes over a chunked body that comes in pieces.

    Returns {"length": bytes up to the end of the message}, {"need_more": True, "remaining": plain data bytes that come
    next} or {"reject": reason, "status": status to answer with}.
    """
    cdef ChunkState state
    cdef uint32_t consumed = 0
    cdef const uint8_t *p
    cdef int outcome = HTTP_NEED_MORE
    memset(&state, 0, sizeof(state))
    length = 0
    for piece in pieces:
        p = piece
        outcome = http1_scan_chunks(&state, p, len(piece), &consumed)
        length += consumed
        if outcome != HTTP_NEED_MORE:
            break
    if outcome == HTTP_OK:
        return {"length": length}
    if outcome == HTTP_NEED_MORE:
        return {"need_more": True, "remaining": state.remaining if state.phase == CHUNK_DATA else 0}
    return _outcome(outcome)
