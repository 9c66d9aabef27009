# Choice of an endpoint.

cdef struct Balance:            # a worker's private part
    uint32_t *cursors           # [max_services], by sid: position of round robin
    uint64_t random             # xorshift state, never 0
    uint64_t seed               # of the positions where round robin starts: not all workers begin at the first endpoint

# The endpoint that policy gives for this call, or NULL when none is left. Endpoints whose address is in tried[0:count]
# are left out; ejected ones too, unless all that remain are ejected. `hash` is used by the consistent-hash policies.
# Sets *address to the index into the table's addresses. ADDRESS_LOOP endpoints are returned like others: the caller
# refuses them.
cdef const Endpoint *balance_pick(const Shm *shm, Balance *local, const Service *service, uint64_t hash,
                                  uint64_t now_ms, const uint32_t *tried, uint32_t tried_count) noexcept nogil
cdef uint64_t hash_bytes(const uint8_t *p, uint32_t length, uint64_t seed) noexcept nogil
# A connect to `address` failed / succeeded: consecutive failures and ejection, shared by all workers.
cdef void address_failed(const Shm *shm, uint32_t address, uint64_t now_ms, uint32_t max_failures,
                         uint32_t eject_ms) noexcept nogil
cdef void address_ok(const Shm *shm, uint32_t address) noexcept nogil
