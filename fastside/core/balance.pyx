# Choice of an endpoint: weighted round robin, least request, consistent hash; and the ejection of failing addresses.

cdef extern from *:
    """
    /* Odd constants without structure: the fractions of the golden ratio and of the square roots of 2 and 3. */
    #define FS_MIX_1 0x9E3779B97F4A7C15ULL
    #define FS_MIX_2 0x6A09E667F3BCC909ULL
    #define FS_MIX_3 0xBB67AE8584CAA73BULL
    /* Both halves of a 128-bit product, folded: every input bit reaches every output bit. */
    static inline uint64_t fs_fold(uint64_t a, uint64_t b)
    {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    """
    const uint64_t MIX_1 "FS_MIX_1"
    const uint64_t MIX_2 "FS_MIX_2"
    const uint64_t MIX_3 "FS_MIX_3"
    uint64_t fs_fold(uint64_t a, uint64_t b) nogil

cdef enum:
    REDRAWS = 16                # draws that may hit an unusable endpoint before all are looked at in order
    MAX_DOUBLINGS = 5           # an ejection lasts at most 2**5 times the configured time
    MAGLEV_SMALL = 8191         # primes
    MAGLEV_LARGE = 65521


cdef uint64_t hash_bytes(const uint8_t *p, uint32_t length, uint64_t seed) noexcept nogil:
    cdef uint64_t word = 0
    cdef uint64_t h = seed ^ fs_fold(length ^ MIX_1, MIX_2)
    if length < 8:
        memcpy(&word, p, length)
        return fs_fold(fs_fold(h ^ word, MIX_2) ^ MIX_3, MIX_1)
    while length > 8:
        h = fs_fold(h ^ load_8(p), MIX_1)
        p += 8
        length -= 8
    h = fs_fold(h ^ load_8(p + length - 8), MIX_2)      # the last eight, some of them once more
    return fs_fold(h ^ MIX_3, MIX_1)


cdef inline uint64_t next_random(Balance *local) noexcept nogil:
    cdef uint64_t x = local.random
    x ^= x << 13
    x ^= x >> 7
    x ^= x << 17
    local.random = x
    return x


cdef inline const Endpoint *endpoints_of(const Shm *shm, const Service *service) noexcept nogil:
    return <const Endpoint *> (shm.table + service.endpoints)


cdef inline AddressState *state_of(const Shm *shm, uint32_t address) noexcept nogil:
    return <AddressState *> (shm.state + shm.live.address_states) + address


cdef inline uint32_t weight_of(const Endpoint *endpoints, uint32_t index) noexcept nogil:
    if index == 0:
        return endpoints[0].cumulative_weight
    return endpoints[index].cumulative_weight - endpoints[index - 1].cumulative_weight


cdef uint32_t at_position(const Endpoint *endpoints, uint32_t count, uint32_t position) noexcept nogil:
    # The first endpoint whose cumulative weight is above position; position < total weight, so there is one.
    cdef uint32_t low = 0, high = count - 1, middle
    while low < high:
        middle = (low + high) >> 1
        if endpoints[middle].cumulative_weight > position:
            high = middle
        else:
            low = middle + 1
    return low


cdef uint64_t inflight_of(const Shm *shm, uint32_t address) noexcept nogil:
    # Over all workers: each writes its own row.
    cdef const uint32_t *cell = <const uint32_t *> (shm.state + shm.live.inflight) + address
    cdef uint64_t total = 0
    for _ in range(shm.live.workers):
        total += fs_load_relaxed_u32(cell)
        cell += shm.live.max_addresses
    return total


cdef inline bint usable(const Shm *shm, const Endpoint *endpoint, uint64_t now_ms, const uint32_t *tried,
                        uint32_t tried_count, bint panic) noexcept nogil:
    cdef uint32_t i
    for i in range(tried_count):
        if tried[i] == endpoint.address:
            return False
    return panic or fs_load_relaxed_u64(&state_of(shm, endpoint.address).ejected_until_ms) <= now_ms


cdef inline uint32_t draw(Balance *local, const Service *service, const Endpoint *endpoints, const uint16_t *maglev,
                          uint64_t hash, uint32_t attempt) noexcept nogil:
    # The policy's next candidate. A second attempt goes on in the policy's own order, so that the load of an endpoint
    # that is left out spreads over all others and does not fall on its neighbour.
    cdef uint32_t count = service.endpoint_count
    cdef uint64_t cursor
    if service.policy == ROUND_ROBIN:
        cursor = local.cursors[service.sid]
        local.cursors[service.sid] = <uint32_t> (cursor + 1)
        cursor += <uint32_t> fs_fold(service.hash ^ local.seed, MIX_1)
        if service.stride == 0:
            return <uint32_t> (cursor % count)
        # stride is coprime to the total weight: every run of total_weight draws visits each position once, and as the
        # stride is near the golden section of the total, the visits of one endpoint lie well apart.
        cursor = cursor % service.total_weight * service.stride % service.total_weight
        return at_position(endpoints, count, <uint32_t> cursor)
    if service.policy == LEAST_REQUEST:
        if service.stride == 0:
            return <uint32_t> ((next_random(local) >> 32) * count >> 32)
        return at_position(endpoints, count, <uint32_t> ((next_random(local) >> 32) * service.total_weight >> 32))
    if service.maglev_size == 0:
        return 0
    return maglev[(hash + attempt) % service.maglev_size]


cdef uint32_t pick_usable(const Shm *shm, Balance *local, const Service *service, uint64_t hash, uint64_t now_ms,
                          const uint32_t *tried, uint32_t tried_count, uint32_t except_index,
                          bint panic) noexcept nogil:
    cdef const Endpoint *endpoints = endpoints_of(shm, service)
    cdef const uint16_t *maglev = <const uint16_t *> (shm.table + service.maglev)
    cdef uint32_t count = service.endpoint_count, index = 0, attempt
    # Taking turns, a whole round finds every endpoint.
    cdef uint32_t attempts = count if service.policy == ROUND_ROBIN and service.stride == 0 else <uint32_t> REDRAWS
    for attempt in range(attempts):
        index = draw(local, service, endpoints, maglev, hash, attempt)
        if index != except_index and usable(shm, &endpoints[index], now_ms, tried, tried_count, panic):
            return index
    for _ in range(count):
        if index != except_index and usable(shm, &endpoints[index], now_ms, tried, tried_count, panic):
            return index
        index += 1
        if index == count:
            index = 0
    if service.policy == ROUND_ROBIN:
        # Nothing was taken: a fixed number of turns lost at each call could skip the same endpoint for ever.
        local.cursors[service.sid] -= attempts
    return NONE


cdef const Endpoint *balance_pick(const Shm *shm, Balance *local, const Service *service, uint64_t hash,
                                  uint64_t now_ms, const uint32_t *tried, uint32_t tried_count) noexcept nogil:
    cdef const Endpoint *endpoints = endpoints_of(shm, service)
    cdef uint32_t index, other
    cdef bint panic = False
    if service.endpoint_count == 0:
        return NULL
    if service.endpoint_count == 1 and usable(shm, endpoints, now_ms, tried, tried_count, False):
        return endpoints
    index = pick_usable(shm, local, service, hash, now_ms, tried, tried_count, NONE, panic)
    if index == NONE:
        # Every endpoint is ejected: a wrong guess about all of them is likelier than that none is left.
        panic = True
        index = pick_usable(shm, local, service, hash, now_ms, tried, tried_count, NONE, panic)
        if index == NONE:
            return NULL
    if service.policy == LEAST_REQUEST and service.endpoint_count > 1:
        # Two candidates, drawn by weight; the one with fewer requests under way per weight is taken. With equal weights
        # they are distinct. With unequal ones they may be the same: then the shares at low load follow the weights.
        other = pick_usable(shm, local, service, hash, now_ms, tried, tried_count,
                            index if service.stride == 0 else NONE, panic)
        if other != NONE and other != index and (
                inflight_of(shm, endpoints[other].address) * weight_of(endpoints, index)
                < inflight_of(shm, endpoints[index].address) * weight_of(endpoints, other)):
            index = other
    return &endpoints[index]


cdef void address_failed(const Shm *shm, uint32_t address, uint64_t now_ms, uint32_t max_failures,
                         uint32_t eject_ms) noexcept nogil:
    cdef AddressState *state = state_of(shm, address)
    cdef uint32_t failures
    # Attempts that were under way when the address was ejected tell nothing new.
    if max_failures == 0 or fs_load_relaxed_u64(&state.ejected_until_ms) > now_ms:
        return
    failures = fs_add_u32(&state.failures, 1) + 1
    if failures >= max_failures:
        fs_store_relaxed_u64(&state.ejected_until_ms,
                             now_ms + (<uint64_t> eject_ms << min(failures - max_failures, <uint32_t> MAX_DOUBLINGS)))


cdef void address_eject(const Shm *shm, uint32_t address, uint64_t now_ms, uint32_t ms) noexcept nogil:
    """Leaves the address out for a while because it asked for that."""
    cdef AddressState *state = state_of(shm, address)
    fs_store_relaxed_u32(&state.failures, 1)        # address_ok looks at it
    fs_store_relaxed_u64(&state.ejected_until_ms, now_ms + ms)


cdef void address_ok(const Shm *shm, uint32_t address) noexcept nogil:
    cdef AddressState *state = state_of(shm, address)
    # Looked at first: the usual case must not take the cache line from the other workers.
    if fs_load_relaxed_u32(&state.failures):
        fs_store_relaxed_u32(&state.failures, 0)
        fs_store_relaxed_u64(&state.ejected_until_ms, 0)


# --- built by the master when a record is written -------------------------------------------------------------------

cdef uint32_t largest_quotient(uint32_t a, uint32_t b) noexcept nogil:
    """Of the continued fraction of a / b; 0 when a and b have a common divisor."""
    cdef uint32_t largest = 0
    while b:
        largest = max(largest, a // b)
        a, b = b, a % b
    return largest if a == 1 else 0


cdef uint32_t stride_for(uint32_t total) noexcept nogil:
    """A stride coprime to the total of the weights, whose multiples spread evenly over it.

    By the three-distance theorem they do so the better, the smaller the quotients of the continued fraction of
    total / stride are. The golden section has the smallest, so the neighbours of total / phi are compared.
    """
    cdef uint32_t golden = <uint32_t> (total * 0.6180339887498949), reach = min(total // 6, <uint32_t> 32)
    cdef uint32_t best = 1, least = NONE, stride, quotient
    for stride in range(golden - reach, golden + reach + 2):
        quotient = largest_quotient(total, stride)
        if 0 < quotient < least:
            best = stride
            least = quotient
    return best


cdef uint32_t maglev_size_for(uint32_t count) noexcept nogil:
    # As few sizes as possible: in a table of another size every key moves. The shares of 400 endpoints are then within
    # 5 % of each other, those of fewer closer.
    if count < 2:
        return 0
    return MAGLEV_SMALL if count <= 400 else MAGLEV_LARGE


cdef struct Turn:               # one endpoint while a Maglev table is filled
    uint64_t identity           # hash of ip and port: orders the endpoints the same way in every sidecar
    uint32_t taken              # entries so far
    uint32_t weight
    uint32_t position           # next entry of its own preference list
    uint32_t skip
    uint32_t index


cdef inline bint before(const Turn *a, const Turn *b) noexcept nogil:
    # Whose turn comes first: the smaller share so far, measured by weight.
    cdef uint64_t left = <uint64_t> (a.taken + 1) * b.weight, right = <uint64_t> (b.taken + 1) * a.weight
    if left != right:
        return left < right
    if a.identity != b.identity:
        return a.identity < b.identity
    return a.index < b.index


cdef void sift_down(Turn *heap, uint32_t count, uint32_t at) noexcept nogil:
    cdef Turn moving = heap[at]
    cdef uint32_t child
    while True:
        child = 2 * at + 1
        if child >= count:
            break
        if child + 1 < count and before(&heap[child + 1], &heap[child]):
            child += 1
        if not before(&heap[child], &moving):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = moving


cdef bint maglev_fill(const Address *addresses, const Endpoint *endpoints, uint32_t count, uint16_t *entries,
                      uint32_t size) noexcept nogil:
    """Fills a Maglev table (Eisenbud et al., NSDI 2016, section 3.4) in O(size * log(count)). False: no memory.

    Weights decide how often an endpoint has its turn. Nothing in it depends on the order of the endpoints or on this
    process: all sidecars that know the same endpoints send the same hash to the same one.
    """
    cdef Turn *heap = <Turn *> malloc(count * sizeof(Turn))
    cdef uint8_t *full = <uint8_t *> calloc(size, 1)
    cdef uint32_t i
    cdef bint done = heap != NULL and full != NULL
    if done:
        for i in range(count):
            heap[i].identity = hash_bytes(addresses[endpoints[i].address].ip, ADDRESS_KEY, 0)
            heap[i].taken = 0
            heap[i].weight = weight_of(endpoints, i)
            heap[i].position = <uint32_t> (heap[i].identity % size)
            heap[i].skip = <uint32_t> (fs_fold(heap[i].identity, MIX_3) % (size - 1)) + 1
            heap[i].index = i
        for i in range(count // 2, 0, -1):
            sift_down(heap, count, i - 1)
        for _ in range(size):
            while full[heap[0].position]:
                heap[0].position = (heap[0].position + heap[0].skip) % size
            full[heap[0].position] = 1
            entries[heap[0].position] = <uint16_t> heap[0].index
            heap[0].taken += 1
            sift_down(heap, count, 0)
    free(heap)
    free(full)
    return done
