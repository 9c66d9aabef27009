/* Numbers in network order, as Bolt's frames have them. */
#ifndef BENCH_BYTES_H
#define BENCH_BYTES_H

#include <arpa/inet.h>
#include <stdint.h>
#include <string.h>

static inline uint32_t be32(const char *p)
{
    uint32_t x;

    memcpy(&x, p, 4);
    return ntohl(x);
}

static inline uint16_t be16(const char *p)
{
    uint16_t x;

    memcpy(&x, p, 2);
    return ntohs(x);
}

#endif
