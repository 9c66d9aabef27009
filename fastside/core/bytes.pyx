# Bytes in memory: numbers in network order, and eight characters at a time.

cdef extern from "<endian.h>" nogil:
    uint16_t be16toh(uint16_t x)
    uint16_t htobe16(uint16_t x)
    uint32_t be32toh(uint32_t x)
    uint32_t htobe32(uint32_t x)
    uint64_t be64toh(uint64_t x)
    uint64_t htobe64(uint64_t x)
    uint32_t le32toh(uint32_t x)


cdef inline uint16_t load_be16(const uint8_t *p) noexcept nogil:
    cdef uint16_t x
    memcpy(&x, p, 2)
    return be16toh(x)


cdef inline uint32_t load_be32(const uint8_t *p) noexcept nogil:
    cdef uint32_t x
    memcpy(&x, p, 4)
    return be32toh(x)


cdef inline uint64_t load_be64(const uint8_t *p) noexcept nogil:
    cdef uint64_t x
    memcpy(&x, p, 8)
    return be64toh(x)


cdef inline void store_be16(uint8_t *p, uint16_t x) noexcept nogil:
    x = htobe16(x)
    memcpy(p, &x, 2)


cdef inline void store_be32(uint8_t *p, uint32_t x) noexcept nogil:
    x = htobe32(x)
    memcpy(p, &x, 4)


cdef inline void store_be64(uint8_t *p, uint64_t x) noexcept nogil:
    x = htobe64(x)
    memcpy(p, &x, 8)


cdef inline uint64_t load_8(const uint8_t *p) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, p, 8)
    return word


cdef inline void store_8(uint8_t *p, uint64_t word) noexcept nogil:
    memcpy(p, &word, 8)


cdef inline uint64_t eight(uint8_t c) noexcept nogil:
    return <uint64_t>0x0101010101010101 * c


cdef inline bint has_control(uint64_t word) noexcept nogil:
    """One of the eight bytes is below 0x20 or 0x7f."""
    cdef uint64_t delete = word ^ eight(0x7f)
    return (((word - eight(0x20)) & ~word) | ((delete - eight(1)) & ~delete)) & eight(0x80) != 0


cdef inline uint64_t lower_8(uint64_t word) noexcept nogil:
    """The eight bytes with A to Z in lower case."""
    cdef uint64_t low = word & eight(0x7f)
    cdef uint64_t upper = (low + eight(0x80 - c"A")) & ~(low + eight(0x7f - c"Z")) & ~word & eight(0x80)
    return word | (upper >> 2)
