# libFuzzer target over core/bolt.pyx: whatever the bytes, nothing outside them is read, and what the functions say fits
# together. Runs without a Python interpreter.
#
# Input: four bytes of a new id, then a frame, which may end early.

include "target.pxi"
include "core/frame.pyx"
include "core/bolt.pyx"


cdef void check_own(const uint8_t *out, uint32_t n, const Frame *f, uint8_t kind) noexcept nogil:
    """A frame that the sidecar makes is one that it accepts, and matches the frame that it answers."""
    cdef Frame own
    check(n <= FRAME_OWN and bolt_frame(out, n, &own) == FRAME_OK)
    check(own.kind == kind and own.length == n and own.id == f.id and own.version == f.version)
    check(own.command == f.command and own.serialization == f.serialization and own.flags == f.flags)
    if f.flags & FRAME_CRC:
        check(crc_32(out, n - CRC_BYTES) == load_be32(out + n - CRC_BYTES))


cdef void check_name(const uint8_t *p, const Frame *f, Span name) noexcept nogil:
    check(name.length <= MAX_KEY)
    check(name.start <= f.front and name.length <= f.front - name.start)
    check(name.length == 0 or name.start >= fixed_length_of(f) + 8)


cdef void check_id(const uint8_t *p, uint32_t n, Frame *f, uint32_t id) noexcept nogil:
    """The id is replaced and nothing else, and the CRC moves as that of the whole frame does."""
    cdef Frame again
    cdef uint8_t *copy = copy_of(p, n)
    cdef uint32_t correction = bolt_set_id(copy, f, id)
    check(bolt_frame(copy, n, &again) == FRAME_OK and again.id == id)
    if f.flags & FRAME_CRC and f.length <= n:
        n = <uint32_t>f.length - CRC_BYTES
        check(crc_32(copy, n) ^ crc_32(p, n) == correction)
    check(bolt_set_id(copy, &again, <uint32_t>f.id) == correction)
    check(memcmp(copy, p, n) == 0)
    free(copy)


cdef void fuzz_frame(const uint8_t *p, uint32_t n, uint32_t id) noexcept nogil:
    cdef Frame f
    cdef Frame shorter
    cdef uint8_t out[FRAME_OWN]
    cdef int outcome = bolt_frame(p, n, &f)
    cdef int early
    if n:
        early = bolt_frame(p, n - 1, &shorter)
        check(early == FRAME_MORE or early == outcome)
    if outcome == FRAME_MORE:
        check(n < FRAME_HEAD)
        return
    if outcome != FRAME_OK:
        check(outcome >= FRAME_BAD and outcome < BAD_END and frame_reason_text(outcome)[0] != 0)
        return
    check(f.front <= FRONT_MAX and f.front <= f.length and f.length <= <uint64_t>FRAME_MAX and f.kind <= FRAME_PONG)
    check(bolt_status_slot(f.status) < BOLT_STATUS_SLOTS)
    check_id(p, n, &f, id)
    if f.kind == FRAME_PING:
        check_own(out, bolt_pong(out, &f), &f, FRAME_PONG)
    if f.kind == FRAME_REQUEST:
        check_own(out, bolt_error(out, &f, id % (FAIL_LOOP + 1)), &f, FRAME_RESPONSE)
    outcome = bolt_route(p, n, &f)
    check((outcome == FRAME_MORE) == (n < f.front))
    if outcome == FRAME_OK:
        check_name(p, &f, f.service)
        check_name(p, &f, f.method)
    else:
        check(outcome == FRAME_MORE or outcome == BAD_FRONT or outcome == BAD_NAME)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) noexcept nogil:
    cdef uint8_t *p
    if size < 4:
        return 0
    p = copy_of(data + 4, size - 4)
    fuzz_frame(p, <uint32_t>size - 4, load_be32(data))
    free(p)
    return 0
