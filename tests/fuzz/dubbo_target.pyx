# libFuzzer target over core/dubbo_body.pyx and core/dubbo.pyx: whatever the bytes, nothing outside them is read, and
# what the functions say fits together. Runs without a Python interpreter.
#
# Input: one byte whose lowest bit says whether the length of the body is made right, eight bytes of a new id, then a
# frame, which may end early.

include "target.pxi"
include "core/frame.pyx"
include "core/dubbo_body.pyx"
include "core/dubbo.pyx"

ctypedef int (*Reader)(const uint8_t *p, uint32_t n, Frame *f) noexcept nogil


cdef void check_span(const Frame *f, uint32_t n, Span name) noexcept nogil:
    if name.length:
        check(name.length <= MAX_KEY and name.start > DUBBO_HEAD)
        check(name.start <= n and name.length <= n - name.start)
        check(name.start + name.length <= f.front)


cdef void check_read(Reader read, const uint8_t *p, uint32_t n, Frame *f) noexcept nogil:
    """Names are where they may be, and a byte less is too few or makes no difference."""
    cdef Frame shorter = f[0]
    cdef int early
    cdef int outcome = read(p, n, f)
    check(outcome != FRAME_MORE or n < f.front)
    if outcome == FRAME_OK:
        check_span(f, n, f.service)
        check_span(f, n, f.service_version)
        check_span(f, n, f.method)
        check_span(f, n, f.group)
    else:
        check(outcome == FRAME_MORE or outcome == BAD_FRONT or outcome == BAD_FRONT_LONG or outcome == BAD_NAME)
        check(outcome != BAD_FRONT_LONG or f.front == FRONT_MAX)
    if n > DUBBO_HEAD:
        early = read(p, n - 1, &shorter)
        check(early == FRAME_MORE or early == outcome)


cdef void check_own(const uint8_t *out, uint32_t n, uint64_t id, uint8_t kind, uint16_t status) noexcept nogil:
    cdef Frame own
    check(n <= FRAME_OWN and dubbo_frame(out, n, &own) == FRAME_OK)
    check(own.kind == kind and own.length == n and own.id == id and own.status == status)


cdef void check_error(const uint8_t *p, uint32_t n, const Frame *f, uint16_t failure) noexcept nogil:
    """With the frame itself as its text: one string, in a serialization that can be read."""
    cdef uint8_t *out = <uint8_t *>malloc(FRAME_OWN)
    cdef uint32_t length = dubbo_error(out, f, failure, p, n)
    cdef Frame own
    cdef Walk w
    cdef Span text
    check_own(out, length, f.id, FRAME_RESPONSE, dubbo_status_for(failure))
    check(dubbo_frame(out, length, &own) == FRAME_OK and walk_start(&w, out, length, &own))
    text = walk_item_text(&w)
    check(w.outcome == FRAME_OK and w.at == length)
    check(text.length == (n if n < DUBBO_TEXT else DUBBO_TEXT))
    free(out)


cdef void fuzz_frame(uint8_t *p, uint32_t n, uint64_t id) noexcept nogil:
    cdef Frame f
    cdef Frame again
    cdef uint8_t out[FRAME_OWN]
    cdef int outcome = dubbo_frame(p, n, &f)
    cdef int early
    if n:
        early = dubbo_frame(p, n - 1, &again)
        check(early == FRAME_MORE or early == outcome)
    if outcome == FRAME_MORE:
        check(n < DUBBO_HEAD or n < f.length)
        return
    if outcome != FRAME_OK:
        check(outcome == BAD_MAGIC or outcome == BAD_LENGTH)
        return
    check(f.front <= FRONT_MAX and f.front <= f.length and f.length <= <uint64_t>FRAME_MAX)
    check(f.kind <= FRAME_WRITABLE and dubbo_status_slot(f.status) < DUBBO_STATUS_SLOTS)
    if f.kind <= FRAME_ONEWAY:
        check_read(dubbo_route, p, n, &f)
        check_read(dubbo_group, p, n, &f)
        check_error(p, n, &f, id % (FAIL_LOOP + 1))
    if f.kind == FRAME_PING and n >= f.length:
        check_own(out, dubbo_pong(out, &f, p + DUBBO_HEAD, <uint32_t>f.length - DUBBO_HEAD), f.id, FRAME_PONG, 20)
    dubbo_set_id(p, id)
    check(dubbo_frame(p, n, &again) == FRAME_OK and again.id == id and again.kind == f.kind)
    check_own(out, dubbo_ping(out, id), id, FRAME_PING, 0)
    check_own(out, dubbo_readonly(out), 0, FRAME_READONLY, 0)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) noexcept nogil:
    cdef uint8_t *p
    cdef uint32_t n
    if size < 9:
        return 0
    n = <uint32_t>size - 9
    p = copy_of(data + 9, n)
    if data[0] & 1 and n >= DUBBO_HEAD:
        store_be32(p + 12, n - DUBBO_HEAD)
    fuzz_frame(p, n, load_be64(data + 1))
    free(p)
    return 0
