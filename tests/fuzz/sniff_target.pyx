# libFuzzer target over core/sniff.pyx.
#
# Input: one byte for what to do, then the bytes. 0: they are a connection's first. 1: they are a ClientHello without
# its header, which is put into records; the next byte says of what size.

include "target.pxi"
include "core/http1.pyx"
include "core/sniff.pyx"


cdef void fuzz_protocol(const uint8_t *data, uint32_t length) noexcept nogil:
    """What was told stays told, however much more comes."""
    cdef int told = SNIFF_MORE
    cdef int before
    cdef uint32_t n
    cdef uint8_t *p
    for n in range((length if length < 64 else 64) + 1):
        p = copy_of(data, n)
        before = told
        told = sniff(p, n)
        free(p)
        check(told >= SNIFF_MORE and told <= SNIFF_OPAQUE and (before == SNIFF_MORE or told == before))


cdef int fuzz_name(const uint8_t *data, uint32_t length, uint8_t *name, uint8_t *name_length) noexcept nogil:
    cdef uint8_t *p = copy_of(data, length)
    cdef uint32_t i
    cdef int outcome = tls_server_name(p, length, name, name_length)
    free(p)
    if outcome == TLS_OK:
        for i in range(name_length[0]):
            check(fs_class[name[i]] & IS_TOKEN)
        check(sniff(data, length) == SNIFF_TLS)
    else:
        check(outcome == TLS_MORE or outcome == TLS_BAD)
    return outcome


cdef uint32_t into_records(const uint8_t *message, uint32_t length, uint32_t size, uint8_t *out) noexcept nogil:
    cdef uint32_t at = 0
    cdef uint32_t n = 0
    cdef uint32_t part
    while at < length:
        part = length - at if length - at < size else size
        memcpy(out + n, b"\x16\x03\x01", 3)
        out[n + 3] = <uint8_t>(part >> 8)
        out[n + 4] = <uint8_t>part
        memcpy(out + n + 5, message + at, part)
        n += 5 + part
        at += part
    return n


cdef void fuzz_hello(const uint8_t *data, uint32_t length, uint32_t size) noexcept nogil:
    """No split into records changes the outcome, and nothing is said before the last byte."""
    cdef uint8_t name[255]
    cdef uint8_t split_name[255]
    cdef uint8_t name_length = 0
    cdef uint8_t split_length = 0
    cdef uint8_t *message = <uint8_t *>malloc(length + 4)
    cdef uint8_t *out = <uint8_t *>malloc(6 * (length + 4))
    cdef int outcome
    cdef uint32_t n
    message[0] = CLIENT_HELLO
    message[1] = 0
    message[2] = <uint8_t>(length >> 8)
    message[3] = <uint8_t>length
    memcpy(message + 4, data, length)
    n = into_records(message, length + 4, MAX_RECORD, out)
    outcome = fuzz_name(out, n, name, &name_length)
    check(outcome != TLS_MORE)
    n = into_records(message, length + 4, size, out)
    check(fuzz_name(out, n - 1, split_name, &split_length) == TLS_MORE)
    check(fuzz_name(out, n, split_name, &split_length) == outcome)
    check(name_length == split_length and memcmp(name, split_name, name_length) == 0)
    free(out)
    free(message)


cdef public int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) noexcept nogil:
    cdef uint8_t name[255]
    cdef uint8_t length = 0
    if size < 2:
        return 0
    if data[0] & 1:
        fuzz_hello(data + 2, <uint32_t>size - 2, data[1] + 1)
    else:
        fuzz_protocol(data + 1, <uint32_t>size - 1)
        fuzz_name(data + 1, <uint32_t>size - 1, name, &length)
    return 0
