# libFuzzer target over every function of core/http1.pyx: whatever the bytes, nothing outside them is read, and what the
# functions say fits together. Runs without a Python interpreter.
#
# Input: one byte for what to do, one for where to split, then the message.

include "target.pxi"
include "core/http1.pyx"

cdef enum:
    MAX_HEADERS = 64            # more than MAX_CUTS
    MAX_HEAD = 2000


cdef void check_text(const uint8_t *p, uint32_t length, Span span) noexcept nogil:
    """The span is inside p[0:length], without control characters, and without spaces at its ends."""
    cdef uint32_t i
    check(span.start <= length and span.length <= length - span.start)
    for i in range(span.start, span.start + span.length):
        check(p[i] == 9 or (p[i] >= 32 and p[i] != 127))
    if span.length:
        check(p[span.start] > 32 and p[span.start + span.length - 1] > 32)


cdef void check_head(const uint8_t *p, uint32_t length, HttpHead *head) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t at = 0
    cdef Span cut
    check(head.length == length and head.minor <= 1 and head.cut_count <= MAX_CUTS)
    check(head.content_length <= <uint64_t>0x7fffffffffffffff)
    check(head.body <= BODY_UNTIL_CLOSE and (head.body == BODY_LENGTH) <= (head.content_length > 0))
    check(head.flags < 32)
    check_text(p, length, head.target)
    check_text(p, length, head.host)
    check_text(p, length, head.service)
    for i in range(head.cut_count):
        cut = head.cuts[i]
        check(cut.start >= at and cut.start <= length and cut.length <= length - cut.start)
        at = cut.start + cut.length
        check(cut.length >= 4 and at <= length - 2 and p[cut.start - 1] == LF)
        check(memchr(p + cut.start, LF, cut.length) == p + at - 1 and p[at - 2] == CR)


cdef uint32_t without_cuts(const uint8_t *p, HttpHead *head, uint8_t *out) noexcept nogil:
    cdef uint32_t i
    cdef uint32_t at = 0
    cdef uint32_t n = 0
    for i in range(head.cut_count):
        memcpy(out + n, p + at, head.cuts[i].start - at)
        n += head.cuts[i].start - at
        at = head.cuts[i].start + head.cuts[i].length
    memcpy(out + n, p + at, head.length - at)
    return n + head.length - at


cdef void check_same(const uint8_t *p, Span a, const uint8_t *q, Span b) noexcept nogil:
    check(a.length == b.length and memcmp(p + a.start, q + b.start, a.length) == 0)


cdef void check_forwarded(const uint8_t *p, HttpHead *head, bint response) noexcept nogil:
    """Without the cut lines the head says the same, and has nothing left to cut."""
    cdef HttpHead again
    cdef uint8_t *forwarded = <uint8_t *>malloc(head.length)
    cdef uint32_t length = without_cuts(p, head, forwarded)
    cdef int outcome
    if response:
        outcome = http1_parse_response(forwarded, length, MAX_HEADERS, METHOD_GET, &again)
    else:
        outcome = http1_parse_request(forwarded, length, MAX_HEADERS, b"x-a", 3, &again)
    if head.status == 101:
        check(outcome == REJECT_SWITCH)     # the caller puts Connection: Upgrade back
    else:
        check(outcome == HTTP_OK)
        check_head(forwarded, length, &again)
        check(again.method == head.method and again.minor == head.minor and again.status == head.status)
        check(again.body == head.body and again.content_length == head.content_length)
        check(again.flags == head.flags & HEAD_EXPECT_CONTINUE)
        check(head.flags & HEAD_UPGRADE or again.cut_count == 0)
        check_same(p, head.target, forwarded, again.target)
        check_same(p, head.host, forwarded, again.host)
        check_same(p, head.service, forwarded, again.service)
    free(forwarded)


cdef void fuzz_parse(const uint8_t *data, uint32_t length, bint response) noexcept nogil:
    """data is taken for one whole head, which it need not be."""
    cdef HttpHead head
    cdef uint8_t *p = copy_of(data, length)
    cdef int outcome
    if response:
        outcome = http1_parse_response(p, length, MAX_HEADERS, METHOD_GET, &head)
    else:
        outcome = http1_parse_request(p, length, MAX_HEADERS, b"x-a", 3, &head)
    if outcome == HTTP_OK:
        check_head(p, length, &head)
        check_text(p, length, http1_field(p, length, b"connection", 10))
        check(http1_field(p, length, b"", 0).length == 0)
        if not response:
            check_same(p, head.service, p, http1_field(p, length, b"x-a", 3))
        check_forwarded(p, &head, response)
        if response:
            check(http1_parse_response(p, length, MAX_HEADERS, METHOD_HEAD, &head) == HTTP_OK)
            check(head.body == BODY_NONE)
    else:
        check(outcome > HTTP_REJECT - 1 and outcome < REJECT_END)
        check(http1_reason_text(outcome)[0] != 0)
        check(http1_status_for(outcome) >= 400 and http1_status_for(outcome) <= 505)
    free(p)


cdef void fuzz_head(const uint8_t *data, uint32_t length, uint32_t split, bint response) noexcept nogil:
    cdef uint32_t scanned = 0
    cdef uint32_t head_length = 0
    cdef uint32_t split_scanned = 0
    cdef uint32_t split_head_length = 0
    cdef uint32_t i
    cdef int outcome
    cdef int split_outcome
    cdef uint32_t skipped = http1_skip_empty(data, length)
    check(skipped <= length and skipped % 2 == 0)
    data += skipped
    length -= skipped
    outcome = http1_find_end(data, length, MAX_HEAD, &scanned, &head_length)
    check(scanned <= length and scanned <= MAX_HEAD)
    if split > length:
        split = length
    split_outcome = http1_find_end(data, split, MAX_HEAD, &split_scanned, &split_head_length)
    if split_outcome == HTTP_NEED_MORE:
        split_outcome = http1_find_end(data, length, MAX_HEAD, &split_scanned, &split_head_length)
    check(split_outcome == outcome and split_head_length == head_length)
    if outcome == HTTP_OK:
        check(head_length >= 4 and head_length <= length and head_length <= MAX_HEAD)
        for i in range(4, head_length):
            check(memcmp(data + i - 4, b"\r\n\r\n", 4) != 0)
        check(memcmp(data + head_length - 4, b"\r\n\r\n", 4) == 0)
        fuzz_parse(data, head_length, response)
    else:
        check(outcome == HTTP_NEED_MORE or (outcome >= HTTP_REJECT and outcome < REJECT_END))


cdef void fuzz_chunks(const uint8_t *data, uint32_t length, uint32_t step) noexcept nogil:
    """All at once, and in steps."""
    cdef ChunkState state
    cdef ChunkState stepped
    cdef uint32_t consumed = 0
    cdef uint32_t part = 0
    cdef uint32_t at = 0
    cdef uint32_t n
    cdef uint8_t *p = copy_of(data, length)
    cdef int outcome
    cdef int step_outcome = HTTP_NEED_MORE
    memset(&state, 0, sizeof(state))
    memset(&stepped, 0, sizeof(stepped))
    outcome = http1_scan_chunks(&state, p, length, &consumed)
    check(consumed <= length and state.remaining <= <uint64_t>0x7fffffffffffffff)
    check(outcome != HTTP_NEED_MORE or consumed == length)
    check((outcome == HTTP_OK) == (state.phase == CHUNK_DONE))
    free(p)
    while at < length and step_outcome == HTTP_NEED_MORE:
        n = length - at if length - at < step else step
        if stepped.phase == CHUNK_DATA and 0 < stepped.remaining < n:
            n = <uint32_t>stepped.remaining     # plain data that is moved unseen
            stepped.remaining = 0
            at += n
            continue
        p = copy_of(data + at, n)
        step_outcome = http1_scan_chunks(&stepped, p, n, &part)
        free(p)
        check(part <= n and (step_outcome != HTTP_NEED_MORE or part == n))
        at += part
    check(step_outcome == outcome and at == consumed)
    if outcome == HTTP_OK:
        check(http1_scan_chunks(&state, data, length, &consumed) == HTTP_OK and consumed == 0)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) noexcept nogil:
    cdef uint32_t length
    if size < 2:
        return 0
    length = <uint32_t>size - 2
    if data[0] % 4 == 0:
        fuzz_head(data + 2, length, data[1], False)
    elif data[0] % 4 == 1:
        fuzz_head(data + 2, length, data[1], True)
    elif data[0] % 4 == 2:
        fuzz_chunks(data + 2, length, data[1] % 16 + 1)
    else:
        fuzz_parse(data + 2, length, data[1] & 1)
    return 0
