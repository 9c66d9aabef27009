# What every target uses: a broken invariant aborts, and a copy of exactly its size lets AddressSanitizer see a read or
# a write past its end.

from libc.stdlib cimport abort, free, malloc

include "core/bytes.pyx"


cdef void check(bint holds) noexcept nogil:
    if not holds:
        abort()


cdef uint8_t *copy_of(const uint8_t *p, size_t length) noexcept nogil:
    cdef uint8_t *copy = <uint8_t *>malloc(length)
    memcpy(copy, p, length)
    return copy
