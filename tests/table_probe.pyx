"""What the tests of the table and the balancing need from the inside: readers as a worker is one, and broken writers.

Built by table_support.py against the same declarations as the extension itself.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset
from posix.unistd cimport usleep

from fastside._core cimport (
    OUTBOUND, Address, Balance, Endpoint, Service, Shm, Table, Writer, address_failed, address_ok, balance_pick,
    epoch_enter, epoch_leave, hash_bytes, htons, table_by_sid, table_find,
)


cdef class BrokenWriter(Writer):
    cdef bint no_grace
    cdef bint link_first
    cdef uint64_t linked

    cdef bint is_unreachable(self, uint64_t tag, uint64_t oldest) noexcept:
        return self.no_grace or tag < oldest

    cdef void link(self, Service *record, uint64_t *link) noexcept:
        # The compiler and the processor may do this to a writer without release stores: the links come first.
        cdef uint64_t length = record.endpoints - (<uint8_t *> record - self.shm.table)
        cdef uint64_t size = length + record.endpoint_count * sizeof(Endpoint)
        cdef uint8_t *complete
        if not self.link_first:
            Writer.link(self, record, link)
            return
        complete = <uint8_t *> malloc(size)
        memcpy(complete, record, size)
        memset(<uint8_t *> record + length, 0, size - length)
        Writer.link(self, record, link)
        self.linked += 1
        if self.linked % 64 == 0:
            usleep(20)  # as if preempted here
        memcpy(record, complete, size)
        free(complete)


def break_writer(Table table, *, bint no_grace=False, bint link_first=False):
    """Gives a table that nothing was applied to a writer without grace period, or one that links before it writes."""
    cdef BrokenWriter writer = BrokenWriter()
    assert table.version == 0
    writer.no_grace = no_grace
    writer.link_first = link_first
    writer.start(&table.shm)
    table._writer = writer


def stress_update(uint32_t number, uint32_t version):
    """The update whose record check_record accepts: every part of it follows from its number and version."""
    return {
        "op": "put", "direction": "outbound", "service": f"service-{number}", "protocol": "http",
        "balance": "round_robin", "retry": False, "single": False, "grouped": False, "request_ms": version,
        "endpoints": [[f"10.{number}.{version >> 8 & 255}.{version & 255}", 1000 + i, 1 + (i + version) % 5]
                      for i in range(version % 9)],
    }


cdef enum:
    WRONG_KEY = 1
    WRONG_COUNT
    WRONG_ADDRESS
    REUSED_ADDRESS
    WRONG_WEIGHT
    LOST
    OUT_OF_BOUNDS
    WRONG_SID

PROBLEMS = ("", "another service", "wrong number of endpoints", "address of another record", "address was reused",
            "wrong weights", "service not found", "endpoints out of bounds", "another service by its sid")


cdef int check_record(const Shm *shm, const Service *service, uint32_t number, const char *key,
                      uint32_t key_len) noexcept nogil:
    cdef uint32_t version = service.request_ms, count = version % 9, total = 0, i
    cdef const Endpoint *endpoint
    cdef const Address *address
    if service.key_len != key_len or memcmp(service.text, key, key_len):
        return WRONG_KEY
    if service.endpoint_count != count:
        return WRONG_COUNT
    if service.endpoints > shm.head.size - count * sizeof(Endpoint):
        return OUT_OF_BOUNDS
    for i in range(count):
        endpoint = <const Endpoint *> (shm.table + service.endpoints) + i
        if endpoint.address >= shm.head.max_addresses:
            return OUT_OF_BOUNDS
        address = <const Address *> (shm.table + shm.head.addresses) + endpoint.address
        if address.gen != endpoint.gen:
            return REUSED_ADDRESS
        if (address.family != 4 or address.ip[0] != 10 or address.ip[1] != number
                or address.ip[2] != version >> 8 & 255 or address.ip[3] != version & 255
                or address.port != htons(<uint16_t> (1000 + i))):
            return WRONG_ADDRESS
        total += 1 + (i + version) % 5
        if endpoint.cumulative_weight != total:
            return WRONG_WEIGHT
    return 0 if service.total_weight == total else WRONG_WEIGHT


def read_until(Table table, uint32_t slot, uint32_t services, uint32_t permanent, uint8_t[::1] stop, *,
               bint announce=True):
    """Reads like a worker until stop[0] or the first problem. Returns the number of reads and the problem, "" if none.

    Services below `permanent` must always be found. announce: publishes the epoch, as a worker must.
    """
    cdef Shm shm = table.shm
    cdef const Service *service
    cdef const Service *again
    cdef char[64][24] keys
    cdef uint32_t[64] lengths
    cdef uint64_t reads = 0
    cdef uint32_t number, sid, gen
    cdef int problem = 0
    assert services <= 64
    for number in range(services):
        key = b"service-%d" % number
        lengths[number] = len(key)
        memcpy(keys[number], <const char *> key, len(key))
    number = 0
    with nogil:
        while not stop[0] and not problem:
            number = (number + 1) % services
            if announce:
                epoch_enter(&shm, slot)
            service = table_find(&shm, OUTBOUND, <const uint8_t *> keys[number], lengths[number])
            if service != NULL:
                problem = check_record(&shm, service, number, keys[number], lengths[number])
                sid = service.sid
                gen = service.sid_gen
                if reads % 64 == 0:
                    usleep(50)  # as if preempted: many updates pass while this reader stands on its record
                if not problem:
                    problem = check_record(&shm, service, number, keys[number], lengths[number])
                if not problem:
                    again = table_by_sid(&shm, sid, gen)
                    if again != NULL:
                        problem = check_record(&shm, again, number, keys[number], lengths[number])
                        if problem == WRONG_KEY:
                            problem = WRONG_SID
            elif number < permanent:
                problem = LOST
            if announce:
                epoch_leave(&shm, slot)
            reads += 1
    return reads, PROBLEMS[problem]


cdef class Picker:
    """Picks endpoints as a worker does, from a table that nobody changes meanwhile."""

    cdef Table table
    cdef Balance balance

    def __init__(self, Table table, uint64_t seed=0):
        self.table = table
        self.balance.cursors = <uint32_t *> calloc(table.shm.head.max_services, sizeof(uint32_t))
        self.balance.random = 0x123456789ABCDEF
        self.balance.seed = seed

    def __dealloc__(self):
        free(self.balance.cursors)

    cdef const Service *find(self, str service) except NULL:
        cdef bytes key = service.encode()
        cdef const Service *found = table_find(&self.table.shm, OUTBOUND, <const uint8_t *> key, len(key))
        if found == NULL:
            raise KeyError(service)
        return found

    cdef uint32_t address(self, str service, uint32_t index) except? 0xFFFFFFFF:
        return (<const Endpoint *> (self.table.shm.table + self.find(service).endpoints))[index].address

    def pick(self, str service, uint64_t hash=0, uint64_t now_ms=1, tried=()):
        """Position in the service's list of endpoints, or None. tried: positions that are left out."""
        cdef const Service *found = self.find(service)
        cdef const Endpoint *endpoint
        cdef uint32_t[8] addresses
        cdef uint32_t i
        for i, index in enumerate(tried):
            addresses[i] = self.address(service, index)
        endpoint = balance_pick(&self.table.shm, &self.balance, found, hash, now_ms, addresses, len(tried))
        if endpoint == NULL:
            return None
        return endpoint - <const Endpoint *> (self.table.shm.table + found.endpoints)

    def failed(self, str service, uint32_t index, uint64_t now_ms, uint32_t max_failures, uint32_t eject_ms):
        address_failed(&self.table.shm, self.address(service, index), now_ms, max_failures, eject_ms)

    def succeeded(self, str service, uint32_t index):
        address_ok(&self.table.shm, self.address(service, index))

    def set_inflight(self, uint32_t slot, str service, uint32_t index, uint32_t value):
        cdef Shm *shm = &self.table.shm
        cdef uint32_t *row = <uint32_t *> (shm.state + shm.live.inflight) + slot * shm.live.max_addresses
        row[self.address(service, index)] = value

    def sid_of(self, str service):
        """Number and generation of a service."""
        cdef const Service *found = self.find(service)
        return found.sid, found.sid_gen

    def address_of(self, str service, uint32_t index):
        """Number and generation of an endpoint's address."""
        cdef const Endpoint *endpoint = <const Endpoint *> (self.table.shm.table + self.find(service).endpoints) + index
        return endpoint.address, endpoint.gen


def has_sid(Table table, uint32_t sid, uint32_t gen):
    return table_by_sid(&table.shm, sid, gen) != NULL


def enter(Table table, uint32_t slot):
    epoch_enter(&table.shm, slot)


def leave(Table table, uint32_t slot):
    epoch_leave(&table.shm, slot)


def hash_of(bytes data, uint64_t seed=0):
    return hash_bytes(<const uint8_t *> data, len(data), seed)
