/* Time, and a histogram of latencies. */
#ifndef BENCH_LATENCY_H
#define BENCH_LATENCY_H

#include <stdint.h>
#include <time.h>

enum { SUB_BITS = 6, SUBS = 1 << SUB_BITS, BUCKETS = 64 * SUBS };

struct histogram {
    uint64_t count, sum_ns, max_ns, buckets[BUCKETS];
};

static uint64_t now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static uint64_t own_cpu_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}

/* Log-linear: 64 buckets per power of two, so a figure read back is at most 1.6 % off. */
static int bucket_of(uint64_t ns)
{
    int shift = ns < SUBS ? 0 : 63 - __builtin_clzll(ns) - SUB_BITS;

    return shift * SUBS + (int)(ns >> shift);
}

static uint64_t bucket_floor(int bucket)
{
    int shift = bucket < 2 * SUBS ? 0 : bucket / SUBS - 1;

    return (uint64_t)(bucket - shift * SUBS) << shift;
}

static void record(struct histogram *h, uint64_t ns)
{
    h->count++;
    h->sum_ns += ns;
    h->buckets[bucket_of(ns)]++;
    if (ns > h->max_ns)
        h->max_ns = ns;
}

static double mean_us(const struct histogram *h)
{
    return h->count ? h->sum_ns / 1e3 / h->count : 0.0;
}

static double quantile_us(const struct histogram *h, double q)
{
    uint64_t rank = (uint64_t)(q * h->count), seen = 0;

    for (int i = 0; i < BUCKETS; i++)
        if ((seen += h->buckets[i]) > rank)
            return bucket_floor(i) / 1e3;
    return h->max_ns / 1e3;
}

#endif
