# The shared routing table: one writer (the master), readers in every process, no locks.
#
# Publication. A record is written aside, then one link is stored with release: the predecessor's `next` or the bucket.
# A reader that follows the link (acquire) sees the whole record. A record never changes afterwards, but for `next`.
#
# Reclamation. A worker publishes the epoch that it has seen before it follows links, and ~0 when it follows none. The
# writer unlinks a record, notes the current epoch as its tag, and advances the epoch after the batch. The record's
# bytes are used again when every worker shows ~0 or an epoch above the tag. Why that is enough:
#
#   * A worker that shows an epoch above the tag loaded it (acquire) after the writer stored it (release), that is after
#     the unlinking: it cannot find the record any more.
#   * A worker that shows ~0 while the writer looks, and then enters, has a full fence between its store of epoch_seen
#     and its first load of a link; the writer has one between the unlinking and its look. So either the writer sees
#     the worker's epoch or the worker sees the record unlinked.
#   * epoch_enter need not check that the epoch stood still between its load and its store: a worker that shows an old
#     epoch only keeps records longer than needed.
#   * `next` of an unlinked record is never written again. A reader that stands on an unlinked record R follows what was
#     R's successor when R was unlinked, which the reader's epoch does not exceed: were that successor S unlinked since,
#     its tag is at least the reader's epoch, and S is kept as well. By induction over the walk, every record that a
#     reader reaches was linked at some moment after it entered, and so is kept until it leaves.
#   * Readers without a cell (control, tests, a process that attached later) copy first and then check that the epoch
#     has not moved: bytes are used again only after the epoch that unlinked them has ended.
#
# What the writer alone needs is private memory: see writer.pyx.

import fcntl as _fcntl
import os as _os

from libc.stdlib cimport calloc, free, malloc

cdef extern from "<arpa/inet.h>" nogil:
    const char *inet_ntop(int family, const void *address, char *text, socklen_t size)

cdef enum:
    PAGE = 4096

cdef uint64_t TABLE_MAGIC = 0x3130454C42415446  # "FTABLE01"
cdef uint64_t STATE_MAGIC = 0x3130455441545346  # "FSTATE01"
cdef uint64_t ASLEEP = ~<uint64_t> 0             # epoch_seen of a worker that follows no link

DIRECTIONS = ("outbound", "inbound")
PROTOCOLS = ("http", "tcp", "bolt", "dubbo", "tls")
SERVICE_FLAGS = ("retry", "single", "grouped")  # in the order of their bits
BALANCES = ("round_robin", "least_request", "hash_source", "hash_header")
WORKER_STATES = ("down", "starting", "ready", "draining", "done")


# --- readers --------------------------------------------------------------------------------------------------------

cdef inline WorkerBlock *block_of(const Shm *shm, uint32_t slot) noexcept nogil:
    return <WorkerBlock *> (shm.state + shm.live.blocks) + slot


cdef inline uint64_t service_hash(const Shm *shm, uint8_t direction, const uint8_t *key,
                                  uint32_t key_len) noexcept nogil:
    return hash_bytes(key, key_len, shm.head.hash_seed ^ direction)


cdef inline uint64_t *bucket_of(const Shm *shm, uint64_t hash) noexcept nogil:
    return <uint64_t *> (shm.table + shm.head.buckets) + (hash & shm.head.bucket_mask)


cdef inline bint is_called(const Service *service, uint64_t hash, uint8_t direction, const uint8_t *key,
                           uint32_t key_len) noexcept nogil:
    return (service.hash == hash and service.direction == direction and service.key_len == key_len
            and memcmp(service.text, key, key_len) == 0)


cdef Service *table_find(const Shm *shm, uint8_t direction, const uint8_t *key, uint32_t key_len) noexcept nogil:
    cdef uint64_t hash = service_hash(shm, direction, key, key_len)
    cdef uint64_t offset = fs_load_acquire_u64(bucket_of(shm, hash))
    cdef Service *service
    while offset:
        service = <Service *> (shm.table + offset)
        if is_called(service, hash, direction, key, key_len):
            return service
        offset = fs_load_acquire_u64(&service.next)
    return NULL


cdef Service *table_by_sid(const Shm *shm, uint32_t sid, uint32_t gen) noexcept nogil:
    cdef uint64_t offset = fs_load_acquire_u64(<uint64_t *> (shm.table + shm.head.sids) + sid)
    cdef Service *service = <Service *> (shm.table + offset)
    if offset == 0 or service.sid_gen != gen:
        return NULL
    return service


cdef void epoch_enter(const Shm *shm, uint32_t slot) noexcept nogil:
    fs_store_relaxed_u64(&block_of(shm, slot).epoch_seen, fs_load_acquire_u64(&shm.head.epoch))
    fs_fence()


cdef void epoch_leave(const Shm *shm, uint32_t slot) noexcept nogil:
    fs_store_release_u64(&block_of(shm, slot).epoch_seen, ASLEEP)


# --- reading with bounds: by processes without an epoch of their own, of regions that may be damaged ----------------

cdef enum:
    FOUND = 1
    ABSENT = 0
    DAMAGED = -1
    NO_MEMORY = -2

cdef struct Snapshot:           # a copy of one record
    Service service
    uint8_t text[512]
    Endpoint *endpoints         # followed by the Maglev table
    Address *addresses


cdef void snapshot_drop(Snapshot *copy) noexcept nogil:
    free(copy.endpoints)
    free(copy.addresses)
    copy.endpoints = NULL
    copy.addresses = NULL


cdef inline bint inside(const Shm *shm, uint64_t offset, uint64_t length) noexcept nogil:
    cdef uint64_t size = shm.head.size
    return offset >= sizeof(TableHeader) and offset % 8 == 0 and length <= size and offset <= size - length


cdef int copy_head(const Shm *shm, uint64_t offset, Snapshot *copy) noexcept nogil:
    cdef uint32_t text_len
    if not inside(shm, offset, sizeof(Service)):
        return DAMAGED
    memcpy(&copy.service, shm.table + offset, sizeof(Service))
    fs_fence()  # only the copy is looked at from here on: the original may change meanwhile
    text_len = copy.service.key_len + copy.service.hash_header_len
    if (copy.service.key_len == 0 or copy.service.key_len > MAX_KEY or copy.service.hash_header_len > MAX_KEY
            or copy.service.direction > INBOUND or copy.service.protocol > PROTOCOL_TLS
            or copy.service.policy > HASH_HEADER or not inside(shm, offset, sizeof(Service) + text_len)):
        return DAMAGED
    memcpy(copy.text, (<Service *> (shm.table + offset)).text, text_len)
    return FOUND


cdef int copy_endpoints(const Shm *shm, Snapshot *copy) noexcept nogil:
    cdef uint32_t i, count = copy.service.endpoint_count, total = 0
    cdef uint64_t maglev_bytes = copy.service.maglev_size * sizeof(uint16_t)
    if (count > MAX_ENDPOINTS or copy.service.sid >= shm.head.max_services
            or not inside(shm, copy.service.endpoints, count * sizeof(Endpoint))
            or maglev_bytes and not inside(shm, copy.service.maglev, maglev_bytes)):
        return DAMAGED
    copy.endpoints = <Endpoint *> malloc(count * sizeof(Endpoint) + maglev_bytes + 1)
    copy.addresses = <Address *> malloc(count * sizeof(Address) + 1)
    if copy.endpoints == NULL or copy.addresses == NULL:
        return NO_MEMORY
    memcpy(copy.endpoints, shm.table + copy.service.endpoints, count * sizeof(Endpoint))
    if maglev_bytes:
        memcpy(&copy.endpoints[count], shm.table + copy.service.maglev, maglev_bytes)
    fs_fence()
    for i in range(count):
        if copy.endpoints[i].address >= shm.head.max_addresses or copy.endpoints[i].cumulative_weight <= total:
            return DAMAGED
        total = copy.endpoints[i].cumulative_weight
        copy.addresses[i] = (<Address *> (shm.table + shm.head.addresses))[copy.endpoints[i].address]
        if copy.addresses[i].gen != copy.endpoints[i].gen:
            return DAMAGED
    for i in range(copy.service.maglev_size):
        if (<uint16_t *> &copy.endpoints[count])[i] >= count:
            return DAMAGED
    # As balance_pick is to see it: with the copy in place of the region.
    copy.service.endpoints = 0
    copy.service.maglev = count * sizeof(Endpoint)
    return FOUND if total == copy.service.total_weight else DAMAGED


cdef int copy_service(const Shm *shm, uint8_t direction, const uint8_t *key, uint32_t key_len,
                      Snapshot *copy) noexcept nogil:
    cdef uint64_t hash = service_hash(shm, direction, key, key_len)
    cdef uint64_t offset = fs_load_acquire_u64(bucket_of(shm, hash))
    cdef int result
    for _ in range(shm.head.max_services + 1):
        if offset == 0:
            return ABSENT
        result = copy_head(shm, offset, copy)
        if result != FOUND:
            return result
        if (copy.service.hash == hash and copy.service.direction == direction and copy.service.key_len == key_len
                and memcmp(copy.text, key, key_len) == 0):
            return copy_endpoints(shm, copy)
        offset = copy.service.next
    return DAMAGED  # a circle


cdef int read_service(const Shm *shm, uint8_t direction, const uint8_t *key, uint32_t key_len,
                      Snapshot *copy) noexcept nogil:
    cdef uint64_t epoch
    cdef int result
    while True:
        epoch = fs_load_acquire_u64(&shm.head.epoch)
        result = copy_service(shm, direction, key, key_len, copy)
        fs_fence()
        if fs_load_acquire_u64(&shm.head.epoch) == epoch:
            return result
        snapshot_drop(copy)


cdef int read_sid(const Shm *shm, uint32_t sid, Snapshot *copy) noexcept nogil:
    cdef uint64_t epoch, offset
    cdef int result
    while True:
        epoch = fs_load_acquire_u64(&shm.head.epoch)
        offset = fs_load_acquire_u64(<uint64_t *> (shm.table + shm.head.sids) + sid)
        result = copy_head(shm, offset, copy) if offset else ABSENT
        fs_fence()
        if fs_load_acquire_u64(&shm.head.epoch) == epoch:
            return result


cdef object address_text(const Address *address):
    cdef char text[64]
    inet_ntop(AF_INET if address.family == 4 else AF_INET6, address.ip, text, sizeof(text))
    return (<bytes> text).decode("ascii")


cdef str endpoint_text(const Address *address):
    text = address_text(address)
    return f"[{text}]:{ntohs(address.port)}" if address.family == 6 else f"{text}:{ntohs(address.port)}"


cdef uint64_t monotonic_ms() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t> now.tv_sec * 1000 + <uint64_t> now.tv_nsec // 1000000


cdef int check_result(int result, object direction, object name) except -1:
    if result == DAMAGED:
        raise ValueError(f"{direction} {name!r}: the table is damaged")
    if result == NO_MEMORY:
        raise MemoryError()
    return 0


cdef dict flag_names(uint8_t flags):
    return {name: bool(flags >> bit & 1) for bit, name in enumerate(SERVICE_FLAGS)}


cdef int direction_of(object direction) except -1:
    if direction not in DIRECTIONS:
        raise ValueError(f"direction: {direction!r} is unknown; use one of {', '.join(DIRECTIONS)}")
    return DIRECTIONS.index(direction)


# --- the regions ----------------------------------------------------------------------------------------------------

cdef inline uint64_t page_up(uint64_t length) noexcept nogil:
    return (length + PAGE - 1) & ~<uint64_t> (PAGE - 1)


cdef void *map_region(int fd, uint64_t length, int protection) except NULL:
    cdef void *region = mmap(NULL, length, protection, MAP_SHARED | MAP_NORESERVE, fd, 0)
    if region == MAP_FAILED:
        raise OSError(errno, f"mapping {length} bytes of shared memory: {_os.strerror(errno)}")
    return region


cdef object make_region(str name, uint64_t length):
    fd = _os.memfd_create(name, _os.MFD_CLOEXEC | _os.MFD_ALLOW_SEALING)
    _os.ftruncate(fd, length)
    # Its size is fixed: nobody who maps it can be hit by SIGBUS.
    _fcntl.fcntl(fd, _fcntl.F_ADD_SEALS, _fcntl.F_SEAL_SHRINK | _fcntl.F_SEAL_GROW | _fcntl.F_SEAL_SEAL)
    return fd


cdef void clear_range(uint8_t *region, uint64_t start, uint64_t length) noexcept nogil:
    """Zeroes part of a shared region and gives its whole pages back."""
    cdef uint64_t first = page_up(start), last = (start + length) & ~<uint64_t> (PAGE - 1)
    if first >= last or madvise(region + first, last - first, MADV_REMOVE) != 0:
        memset(region + start, 0, length)
        return
    memset(region + start, 0, first - start)
    memset(region + last, 0, start + length - last)


cdef Writer writer_of(Table table):
    if table._writer is None:
        raise RuntimeError("this process maps the table for reading only; the master is its writer")
    return <Writer> table._writer


cdef class Table:
    """The routing table and the workers' state in two shared memory regions (memfd).

    The process that makes it (the master) is its only writer. Processes forked from it share the regions and call
    seal(). Others map the two descriptors with Table.attach.

    max_services, max_addresses: numbers of records. table_bytes: size of the whole table region. max_connections: per
    worker. stat_slots: services with statistics of their own, one more for all others. Raises ValueError for limits
    that cannot work together, OSError without memory.
    """

    def __init__(self, uint32_t max_services, uint32_t max_addresses, uint64_t table_bytes, uint32_t workers,
                 uint32_t max_connections, uint32_t stat_slots):
        cdef uint64_t buckets = 64
        cdef TableHeader head
        cdef StateHeader live
        cdef Writer writer
        cdef uint32_t i
        for name, value, high in (("max_services", max_services, 1 << 24), ("max_addresses", max_addresses, 1 << 28),
                                  ("workers", workers, MAX_WORKERS), ("max_connections", max_connections, 1 << 24),
                                  ("stat_slots", stat_slots, 1 << 20)):
            number_of(value, name, 1, high)
        while buckets < max_services:
            buckets *= 2
        memset(&head, 0, sizeof(head))
        head.magic = TABLE_MAGIC
        head.size = page_up(table_bytes)
        head.epoch = 1
        head.hash_seed = int.from_bytes(_os.urandom(8), "little")
        head.buckets = PAGE
        head.bucket_mask = buckets - 1
        head.sids = head.buckets + page_up(buckets * sizeof(uint64_t))
        head.addresses = head.sids + page_up(max_services * sizeof(uint64_t))
        head.arena = head.addresses + page_up(max_addresses * sizeof(Address))
        head.max_services = max_services
        head.max_addresses = max_addresses
        if head.arena + PAGE > head.size or head.size >> CLASS_SHIFT:
            raise ValueError(
                f"table_bytes {table_bytes} is out of range: {max_services} services and {max_addresses} addresses "
                f"take {head.arena} bytes before the first record; use {head.arena + PAGE}.."
                f"{(<uint64_t> 1 << CLASS_SHIFT) - 1}")
        memset(&live, 0, sizeof(live))
        live.magic = STATE_MAGIC
        live.workers = workers
        live.max_connections = max_connections
        live.max_addresses = max_addresses
        live.stat_slots = stat_slots
        live.blocks = PAGE
        live.address_states = live.blocks + page_up(MAX_WORKERS * sizeof(WorkerBlock))
        live.inflight = live.address_states + page_up(max_addresses * sizeof(AddressState))
        live.service_stats = live.inflight + page_up(<uint64_t> workers * max_addresses * sizeof(uint32_t))
        live.connections = live.service_stats + page_up(<uint64_t> workers * stat_slots * sizeof(ServiceStats))
        live.size = live.connections + page_up(<uint64_t> workers * max_connections * sizeof(Connection))
        self.table_fd = make_region("fastside-table", head.size)
        self.state_fd = make_region("fastside-state", live.size)
        self.shm.table = <uint8_t *> map_region(self.table_fd, head.size, PROT_READ | PROT_WRITE)
        self.shm.head = <TableHeader *> self.shm.table
        self.table_mapped = head.size
        self.shm.head[0] = head
        self.shm.state = <uint8_t *> map_region(self.state_fd, live.size, PROT_READ | PROT_WRITE)
        self.shm.live = <StateHeader *> self.shm.state
        self.state_mapped = live.size
        self.shm.live[0] = live
        for i in range(<uint32_t> MAX_WORKERS):
            block_of(&self.shm, i).epoch_seen = ASLEEP
        writer = Writer()
        writer.start(&self.shm)
        self._writer = writer

    def __cinit__(self, *args, **kwargs):
        self.table_fd = -1
        self.state_fd = -1

    def __dealloc__(self):
        if self.shm.table != NULL:
            munmap(self.shm.table, self.table_mapped)
        if self.shm.state != NULL:
            munmap(self.shm.state, self.state_mapped)
        if self.table_fd >= 0:
            close(self.table_fd)
        if self.state_fd >= 0:
            close(self.state_fd)
        free(self.explain_cursors)

    @staticmethod
    def attach(int table_fd, int state_fd) -> Table:
        """Maps the regions of another process, alive or dead, for reading.

        The descriptors are duplicated. Raises ValueError when they do not hold a table, OSError when they cannot be
        mapped.
        """
        cdef Table table = Table.__new__(Table)
        cdef TableHeader *head
        cdef StateHeader *live
        cdef uint64_t size
        table.table_fd = _os.dup(table_fd)
        table.state_fd = _os.dup(state_fd)
        size = _os.fstat(table_fd).st_size
        if size < PAGE:
            raise ValueError(f"descriptor {table_fd} holds {size} bytes: not a routing table")
        table.shm.table = <uint8_t *> map_region(table.table_fd, size, PROT_READ)
        table.table_mapped = size
        head = table.shm.head = <TableHeader *> table.shm.table
        if (head.magic != TABLE_MAGIC or head.size != size or head.bucket_mask & (head.bucket_mask + 1)
                or not in_order(PAGE, head.buckets, (<uint64_t> head.bucket_mask + 1) * sizeof(uint64_t), head.sids)
                or not in_order(head.buckets, head.sids, head.max_services * sizeof(uint64_t), head.addresses)
                or not in_order(head.sids, head.addresses, head.max_addresses * sizeof(Address), head.arena)
                or not in_order(head.addresses, head.arena, head.arena_used, size)
                or not inside(&table.shm, head.settings, SETTINGS_COUNT * sizeof(uint32_t))):
            raise ValueError(f"descriptor {table_fd}: the routing table is of another version or damaged")
        size = _os.fstat(state_fd).st_size
        if size < PAGE:
            raise ValueError(f"descriptor {state_fd} holds {size} bytes: not the workers' state")
        table.shm.state = <uint8_t *> map_region(table.state_fd, size, PROT_READ)
        table.state_mapped = size
        live = table.shm.live = <StateHeader *> table.shm.state
        if (live.magic != STATE_MAGIC or live.size != size or live.workers == 0 or live.workers > MAX_WORKERS
                or live.max_addresses != head.max_addresses
                or not in_order(PAGE, live.blocks, MAX_WORKERS * sizeof(WorkerBlock), live.address_states)
                or not in_order(live.blocks, live.address_states, live.max_addresses * sizeof(AddressState),
                                live.inflight)
                or not in_order(live.address_states, live.inflight,
                                <uint64_t> live.workers * live.max_addresses * sizeof(uint32_t), live.service_stats)
                or not in_order(live.inflight, live.service_stats,
                                <uint64_t> live.workers * live.stat_slots * sizeof(ServiceStats), live.connections)
                or not in_order(live.service_stats, live.connections,
                                <uint64_t> live.workers * live.max_connections * sizeof(Connection), size)):
            raise ValueError(f"descriptor {state_fd}: the workers' state is of another version or damaged")
        return table

    def seal(self) -> None:
        """Makes the table read-only in this process. The master's private memory is freed here."""
        self._writer = None
        if mprotect(self.shm.table, self.table_mapped, PROT_READ) != 0:
            raise OSError(errno, f"sealing the table: {_os.strerror(errno)}")

    # writing

    def apply(self, object updates) -> int:
        """Applies a batch, all of it or nothing. Returns the new version.

        An update is a dict: {"op": "put", "direction", "service", "protocol", "balance", "hash_header" (needed for
        hash_header balancing), "retry", "single", "grouped", "request_ms", "endpoints": [[ip, port, weight], ...]}
        makes or replaces a service, {"op": "del", "direction", "service"} removes one (also when it is not there),
        {"op": "settings", "values": {name: number}} changes some settings, {"op": "listeners", "addresses":
        [[ip, port], ...]} names the sidecar's own listeners. Of two updates of one service in a batch the later counts.

        Raises ValueError for a bad update and TableFull when a limit does not allow the batch.
        """
        if type(updates) is not list:
            raise ValueError(f"updates: {type(updates).__name__} given; a list is needed")
        writer_of(self).apply(updates)
        return self.version

    def reclaim(self) -> int:
        """Frees what no worker can still be reading. Returns the number of records freed."""
        return writer_of(self).reclaim(<size_t> -1)

    def set_slot_owner(self, uint32_t slot, uint32_t worker) -> None:
        """Lets `worker` accept from the listener sockets of `slot`."""
        writer_of(self)
        self.check_slot(slot)
        self.check_slot(worker)
        fs_store_release_u32(&self.shm.live.slot_owner[slot], worker)

    def reset_worker(self, uint32_t slot) -> None:
        """Clears what a dead worker left: its block but for the counters, its requests under way, its connections."""
        cdef StateHeader *live = self.shm.live
        cdef WorkerBlock *block
        writer_of(self)
        self.check_slot(slot)
        block = block_of(&self.shm, slot)
        block.applied_version = 0
        block.heartbeat_ns = 0
        block.pid = 0
        block.state = WORKER_DOWN
        block.listeners_version = 0
        block.connections = 0
        clear_range(self.shm.state, live.inflight + <uint64_t> slot * live.max_addresses * sizeof(uint32_t),
                    live.max_addresses * sizeof(uint32_t))
        clear_range(self.shm.state, live.connections + <uint64_t> slot * live.max_connections * sizeof(Connection),
                    live.max_connections * sizeof(Connection))
        fs_store_release_u64(&block.epoch_seen, ASLEEP)

    # reading

    cdef int check_slot(self, uint32_t slot) except -1:
        if slot >= self.shm.live.workers:
            raise IndexError(f"worker {slot} of {self.shm.live.workers}")
        return 0

    @property
    def version(self) -> int:
        """Number of batches applied so far."""
        return fs_load_acquire_u64(&self.shm.head.version)

    @property
    def epoch(self) -> int:
        """The current epoch of reclamation."""
        return fs_load_acquire_u64(&self.shm.head.epoch)

    @property
    def applied_ns(self) -> int:
        """When the last batch was applied: nanoseconds, CLOCK_REALTIME; 0 = never."""
        return fs_load_relaxed_u64(&self.shm.head.applied_ns)

    @property
    def workers(self) -> int:
        """Number of worker slots."""
        return self.shm.live.workers

    def lookup(self, direction: str, service: str) -> dict | None:
        """A service as an update that would make it (without "op"), with its sid and stat_slot; None if unknown.

        Raises ValueError when the table is damaged.
        """
        cdef bytes key = service.encode()
        cdef Snapshot copy
        cdef Endpoint *endpoint
        cdef uint32_t i, below = 0
        cdef int result
        cdef uint8_t side = direction_of(direction)
        if not 1 <= len(key) <= MAX_KEY:
            return None
        memset(&copy, 0, sizeof(copy))
        try:
            result = read_service(&self.shm, side, <const uint8_t *> key, len(key), &copy)
            check_result(result, direction, service)
            if result == ABSENT:
                return None
            endpoints = []
            for i in range(copy.service.endpoint_count):
                endpoint = &copy.endpoints[i]
                endpoints.append([address_text(&copy.addresses[i]), ntohs(copy.addresses[i].port),
                                  endpoint.cumulative_weight - below])
                below = endpoint.cumulative_weight
            found = {
                "direction": direction, "service": service, "protocol": PROTOCOLS[copy.service.protocol],
                "balance": BALANCES[copy.service.policy], **flag_names(copy.service.flags),
                "request_ms": copy.service.request_ms, "endpoints": endpoints, "sid": copy.service.sid,
                "stat_slot": copy.service.stat_slot,
            }
            if copy.service.policy == HASH_HEADER:
                found["hash_header"] = (<const char *> copy.text)[
                    copy.service.key_len:copy.service.key_len + copy.service.hash_header_len].decode()
            return found
        finally:
            snapshot_drop(&copy)

    def services(self, direction: str) -> list[str]:
        """Names of all services of a direction, in no order. Raises ValueError when the table is damaged.

        What changes meanwhile may be there or not; every other service is.
        """
        cdef Snapshot copy
        cdef uint32_t sid
        cdef int result
        cdef uint8_t side = direction_of(direction)
        cdef dict names = {}  # a service that comes back under another number during the scan counts once
        memset(&copy, 0, sizeof(copy))
        for sid in range(min(self.shm.head.sid_limit, self.shm.head.max_services)):
            result = read_sid(&self.shm, sid, &copy)
            check_result(result, direction, f"number {sid}")
            if result == FOUND and copy.service.direction == side:
                names[(<const char *> copy.text)[:copy.service.key_len].decode("utf-8", "replace")] = None
        return list(names)

    def settings(self) -> dict[str, int]:
        """The settings in force. Raises ValueError when the table is damaged."""
        cdef uint32_t[SETTINGS_COUNT] values
        cdef uint64_t epoch, offset
        while True:
            epoch = fs_load_acquire_u64(&self.shm.head.epoch)
            offset = fs_load_acquire_u64(&self.shm.head.settings)
            if not inside(&self.shm, offset, sizeof(values)):
                raise ValueError("settings: the table is damaged")
            memcpy(values, self.shm.table + offset, sizeof(values))
            fs_fence()
            if fs_load_acquire_u64(&self.shm.head.epoch) == epoch:
                break
        return {name: values[i] for i, name in enumerate(SETTINGS)}

    def explain_pick(self, direction: str, service: str, uint64_t hash=0) -> list[dict]:
        """What the balancing looks at: one dict per endpoint, in the table's order; [] for an unknown service.

        hash: of the header or source address, for the consistent-hash policies. "chosen" marks the endpoint that the
        policy would give now; for round robin and least request this process has a position of its own, as each worker
        has. "failures": connects in a row that failed, as far as they count for ejection. "ejected_for_ms" is 0 for an
        endpoint that takes part. "loop": it is one of the sidecar's own listeners.
        Raises ValueError when the table is damaged.
        """
        cdef bytes key = service.encode()
        cdef Snapshot copy
        cdef Balance balance
        cdef Shm shm = self.shm
        cdef const Endpoint *chosen
        cdef Address *address
        cdef AddressState *state
        cdef uint64_t now_ms, until
        cdef uint32_t i
        cdef int result
        cdef uint8_t side = direction_of(direction)
        cdef list explained = []
        if not 1 <= len(key) <= MAX_KEY:
            return explained
        if self.explain_cursors == NULL:
            self.explain_cursors = <uint32_t *> calloc(shm.head.max_services, sizeof(uint32_t))
            self.explain_random = int.from_bytes(_os.urandom(8), "little") | 1
            if self.explain_cursors == NULL:
                raise MemoryError()
        memset(&copy, 0, sizeof(copy))
        try:
            result = read_service(&shm, side, <const uint8_t *> key, len(key), &copy)
            check_result(result, direction, service)
            if result == ABSENT or copy.service.endpoint_count == 0:
                return explained
            now_ms = monotonic_ms()
            shm.table = <uint8_t *> copy.endpoints
            balance.cursors = self.explain_cursors
            balance.random = self.explain_random
            balance.seed = 0
            chosen = balance_pick(&shm, &balance, &copy.service, hash, now_ms, NULL, 0)
            self.explain_random = balance.random
            for i in range(copy.service.endpoint_count):
                address = &copy.addresses[i]
                state = state_of(&shm, copy.endpoints[i].address)
                until = fs_load_relaxed_u64(&state.ejected_until_ms)
                explained.append({
                    "address": endpoint_text(address), "weight": weight_of(copy.endpoints, i),
                    "inflight": inflight_of(&shm, copy.endpoints[i].address),
                    "failures": fs_load_relaxed_u32(&state.failures),
                    "ejected_for_ms": until - now_ms if until > now_ms else 0,
                    "loop": bool(address.flags & ADDRESS_LOOP), "chosen": &copy.endpoints[i] == chosen,
                })
            return explained
        finally:
            snapshot_drop(&copy)

    def worker(self, uint32_t slot) -> dict:
        """What the worker of a slot says about itself: pid, state, applied_version, listeners_version, heartbeat_ns
        (CLOCK_MONOTONIC), connections (downstream), asleep (it waits for events)."""
        cdef WorkerBlock *block
        self.check_slot(slot)
        block = block_of(&self.shm, slot)
        return {
            "pid": fs_load_relaxed_u32(&block.pid),
            "state": WORKER_STATES[min(fs_load_acquire_u32(&block.state), <uint32_t> WORKER_DONE)],
            "applied_version": fs_load_acquire_u64(&block.applied_version),
            "listeners_version": fs_load_acquire_u32(&block.listeners_version),
            "heartbeat_ns": fs_load_relaxed_u64(&block.heartbeat_ns),
            "connections": fs_load_relaxed_u32(&block.connections),
            "asleep": fs_load_acquire_u64(&block.epoch_seen) == ASLEEP,
        }

    def memory(self) -> dict[str, int]:
        """Sizes in bytes and numbers of things: what is in use, and the limits. In the master also what is free or
        waits for readers to leave."""
        cdef TableHeader *head = self.shm.head
        cdef Writer writer
        sizes = {
            "table_bytes": head.size, "table_resident": _os.fstat(self.table_fd).st_blocks * 512,
            "state_bytes": self.shm.live.size, "state_resident": _os.fstat(self.state_fd).st_blocks * 512,
            "arena_bytes": head.size - head.arena, "arena_used": head.arena_used,
            "services": head.services, "max_services": head.max_services,
            "endpoints": head.endpoints, "max_addresses": head.max_addresses,
        }
        if self._writer is not None:
            writer = <Writer> self._writer
            sizes["arena_free"] = writer.free_bytes
            sizes["arena_retired"] = writer.retired_bytes
            sizes["addresses"] = writer.indexed
        return sizes


cdef bint in_order(uint64_t after, uint64_t offset, uint64_t length, uint64_t before) noexcept nogil:
    """An array at `offset` lies behind `after` and ends at or before `before`; no sum overflows."""
    return after <= offset and offset % 8 == 0 and offset <= before and length <= before - offset
