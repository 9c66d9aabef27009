# The shared routing table: one writer (the master), readers in every process, no locks.
#
# Publication. A record is written aside, then one link is stored with release: the predecessor's `next` or the bucket.
# A reader that follows the link (acquire) sees the whole record. A record never changes afterwards, but for `next`.
#
# Reclamation. A worker publishes the epoch that it has seen before it follows links, and ~0 when it follows none. The
# writer unlinks a record, notes the current epoch as its tag, and advances the epoch after the batch. The record's bytes
# are used again when every worker shows ~0 or an epoch above the tag. Why that is enough:
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
# Everything that the writer alone needs (free lists, quarantines, the index of addresses) is private memory.

import fcntl as _fcntl
import os as _os

from libc.stdlib cimport calloc, free, malloc
from libc.string cimport strlen
from cpython.list cimport PyList_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_CheckExact
from cpython.unicode cimport PyUnicode_Check

cdef extern from "Python.h":
    PyObject **PySequence_Fast_ITEMS(object sequence)
    Py_ssize_t PySequence_Fast_GET_SIZE(object sequence)
    long PyLong_AsLongAndOverflow(object number, int *overflow) except? -1
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef extern from "<arpa/inet.h>" nogil:
    int inet_pton(int family, const char *text, void *address)
    const char *inet_ntop(int family, const void *address, char *text, socklen_t size)

cdef enum:
    PAGE = 4096
    SIZE_CLASSES = 72           # 64 bytes to more than the largest record, four steps per doubling
    CLASS_SHIFT = 48            # a retired record is noted as offset | class << 48
    RECLAIM_STEPS = 256         # quarantined items looked at by an update, beside those of its own size
    ADDRESS_KEY = 19            # bytes at the start of an Address that identify it: ip, port, family

cdef uint64_t TABLE_MAGIC = 0x3130454C42415446  # "FTABLE01"
cdef uint64_t STATE_MAGIC = 0x3130455441545346  # "FSTATE01"
cdef uint64_t ASLEEP = ~<uint64_t>0             # epoch_seen of a worker that follows no link

DIRECTIONS = ("outbound", "inbound")
PROTOCOLS = ("http", "tcp")
BALANCES = ("round_robin", "least_request", "hash_source", "hash_header")
WORKER_STATES = ("down", "starting", "ready", "draining", "done")
_PUT_KEYS = frozenset(
    ("op", "direction", "service", "protocol", "balance", "hash_header", "retry", "request_ms", "endpoints"))
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")


class TableFull(Exception):
    """An update would exceed a limit of the table; nothing of its batch was applied."""


# --- readers --------------------------------------------------------------------------------------------------------

cdef inline WorkerBlock *block_of(const Shm *shm, uint32_t slot) noexcept nogil:
    return <WorkerBlock *>(shm.state + shm.live.blocks) + slot


cdef inline uint64_t service_hash(const Shm *shm, uint8_t direction, const uint8_t *key, uint32_t key_len) noexcept nogil:
    return hash_bytes(key, key_len, shm.head.hash_seed ^ direction)


cdef inline uint64_t *bucket_of(const Shm *shm, uint64_t hash) noexcept nogil:
    return <uint64_t *>(shm.table + shm.head.buckets) + (hash & shm.head.bucket_mask)


cdef inline bint is_called(const Service *service, uint64_t hash, uint8_t direction, const uint8_t *key,
                           uint32_t key_len) noexcept nogil:
    return (service.hash == hash and service.direction == direction and service.key_len == key_len
            and memcmp(service.text, key, key_len) == 0)


cdef Service *table_find(const Shm *shm, uint8_t direction, const uint8_t *key, uint32_t key_len) noexcept nogil:
    cdef uint64_t hash = service_hash(shm, direction, key, key_len)
    cdef uint64_t offset = fs_load_acquire_u64(bucket_of(shm, hash))
    cdef Service *service
    while offset:
        service = <Service *>(shm.table + offset)
        if is_called(service, hash, direction, key, key_len):
            return service
        offset = fs_load_acquire_u64(&service.next)
    return NULL


cdef Service *table_by_sid(const Shm *shm, uint32_t sid, uint32_t gen) noexcept nogil:
    cdef uint64_t offset = fs_load_acquire_u64(<uint64_t *>(shm.table + shm.head.sids) + sid)
    cdef Service *service = <Service *>(shm.table + offset)
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
            or copy.service.direction > INBOUND or copy.service.protocol > PROTOCOL_TCP
            or copy.service.policy > HASH_HEADER or not inside(shm, offset, sizeof(Service) + text_len)):
        return DAMAGED
    memcpy(copy.text, (<Service *>(shm.table + offset)).text, text_len)
    return FOUND


cdef int copy_endpoints(const Shm *shm, Snapshot *copy) noexcept nogil:
    cdef uint32_t i, count = copy.service.endpoint_count, total = 0
    cdef uint64_t maglev_bytes = copy.service.maglev_size * sizeof(uint16_t)
    if (count > MAX_ENDPOINTS or copy.service.sid >= shm.head.max_services
            or not inside(shm, copy.service.endpoints, count * sizeof(Endpoint))
            or maglev_bytes and not inside(shm, copy.service.maglev, maglev_bytes)):
        return DAMAGED
    copy.endpoints = <Endpoint *>malloc(count * sizeof(Endpoint) + maglev_bytes + 1)
    copy.addresses = <Address *>malloc(count * sizeof(Address) + 1)
    if copy.endpoints == NULL or copy.addresses == NULL:
        return NO_MEMORY
    memcpy(copy.endpoints, shm.table + copy.service.endpoints, count * sizeof(Endpoint))
    memcpy(&copy.endpoints[count], shm.table + copy.service.maglev, maglev_bytes)
    fs_fence()
    for i in range(count):
        if copy.endpoints[i].address >= shm.head.max_addresses or copy.endpoints[i].cumulative_weight <= total:
            return DAMAGED
        total = copy.endpoints[i].cumulative_weight
        copy.addresses[i] = (<Address *>(shm.table + shm.head.addresses))[copy.endpoints[i].address]
        if copy.addresses[i].gen != copy.endpoints[i].gen:
            return DAMAGED
    for i in range(copy.service.maglev_size):
        if (<uint16_t *>&copy.endpoints[count])[i] >= count:
            return DAMAGED
    # As balance_pick is to see it: with the copy in place of the region.
    copy.service.endpoints = 0
    copy.service.maglev = count * sizeof(Endpoint)
    return FOUND if total == copy.service.total_weight else DAMAGED


cdef int copy_service(const Shm *shm, uint8_t direction, const uint8_t *key, uint32_t key_len,
                      Snapshot *copy) noexcept nogil:
    cdef uint64_t hash = service_hash(shm, direction, key, key_len)
    cdef uint64_t offset = fs_load_acquire_u64(bucket_of(shm, hash))
    cdef uint32_t step
    cdef int result
    for step in range(shm.head.max_services + 1):
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
        offset = fs_load_acquire_u64(<uint64_t *>(shm.table + shm.head.sids) + sid)
        result = copy_head(shm, offset, copy) if offset else ABSENT
        fs_fence()
        if fs_load_acquire_u64(&shm.head.epoch) == epoch:
            return result


cdef object address_text(const Address *address):
    cdef char text[64]
    inet_ntop(AF_INET if address.family == 4 else AF_INET6, address.ip, text, sizeof(text))
    return (<bytes>text).decode("ascii")


cdef str endpoint_text(const Address *address):
    text = address_text(address)
    return f"[{text}]:{ntohs(address.port)}" if address.family == 6 else f"{text}:{ntohs(address.port)}"


cdef uint64_t monotonic_ms() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t>now.tv_sec * 1000 + <uint64_t>now.tv_nsec // 1000000


cdef int check_result(int result, object direction, object name) except -1:
    if result == DAMAGED:
        raise ValueError(f"{direction} {name!r}: the table is damaged")
    if result == NO_MEMORY:
        raise MemoryError()
    return 0


cdef int direction_of(object direction) except -1:
    if direction not in DIRECTIONS:
        raise ValueError(f"direction: {direction!r} is unknown; use one of {', '.join(DIRECTIONS)}")
    return DIRECTIONS.index(direction)


# --- the writer's private memory ------------------------------------------------------------------------------------

cdef struct Queue:              # of 64-bit items, in private memory; used as a stack or first in, first out
    uint64_t *items
    size_t start
    size_t end
    size_t capacity


cdef int queue_reserve(Queue *queue, size_t more) except -1:
    """Makes room for `more` pushes."""
    cdef size_t length = queue.end - queue.start, capacity = queue.capacity
    cdef uint64_t *items
    if queue.end + more <= capacity:
        return 0
    while capacity < 2 * (length + more):
        capacity = 2 * capacity if capacity else 64
    items = <uint64_t *>malloc(capacity * sizeof(uint64_t))
    if items == NULL:
        raise MemoryError()
    if length:
        memcpy(items, queue.items + queue.start, length * sizeof(uint64_t))
    free(queue.items)
    queue.items = items
    queue.capacity = capacity
    queue.start = 0
    queue.end = length
    return 0


cdef inline void queue_push(Queue *queue, uint64_t item) noexcept:
    # There is room: see queue_reserve.
    queue.items[queue.end] = item
    queue.end += 1


cdef inline size_t queue_length(const Queue *queue) noexcept:
    return queue.end - queue.start


cdef inline uint64_t queue_pop(Queue *queue) noexcept:
    queue.end -= 1
    return queue.items[queue.end]


cdef inline uint64_t queue_shift(Queue *queue) noexcept:
    queue.start += 1
    return queue.items[queue.start - 1]


cdef inline uint64_t class_bytes(uint32_t size_class) noexcept nogil:
    return (<uint64_t>64 + 16 * (size_class & 3)) << (size_class >> 2)


cdef uint32_t class_for(uint64_t length) noexcept nogil:
    cdef uint32_t size_class = 0
    while class_bytes(size_class) < length:
        size_class += 1
    return size_class


cdef struct Change:             # one put or delete of a batch
    Service *record             # written aside, or NULL to delete
    const uint8_t *key          # memory of the update's own str
    uint32_t key_len
    uint8_t direction
    bint superseded             # a later update of the batch is about the same service


cdef class Writer:
    """The master's side of the table: its private memory and the rules of change."""

    cdef Shm shm
    cdef Queue[SIZE_CLASSES] free_records
    cdef Queue retired_records              # pairs: offset | class << 48, tag
    cdef Queue free_sids
    cdef Queue retired_sids                 # pairs: sid, tag
    cdef Queue free_slots                   # stat slots
    cdef Queue free_addresses
    cdef Queue retired_addresses            # pairs: number, tag
    cdef uint64_t free_bytes
    cdef uint64_t retired_bytes
    cdef uint32_t next_slot                 # stat slots ever handed out
    cdef uint32_t next_address              # addresses ever handed out
    cdef uint32_t *sid_gens
    cdef uint32_t *sid_slots
    cdef uint32_t *references               # of each address, by endpoints of linked and of prepared records
    cdef uint64_t *waiting                  # tag of the address's entry in retired_addresses that counts, or 0
    cdef uint32_t *index                    # addresses by hash, open addressing: number + 1, or 0
    cdef uint32_t index_mask
    cdef uint32_t indexed
    cdef uint32_t settings_class
    cdef set loops                          # keys of the sidecar's own listeners
    # the batch under way
    cdef Change *changes
    cdef size_t change_count
    cdef uint64_t arena_mark                # arena_used before the batch
    cdef uint64_t new_settings              # offset, or 0
    cdef uint32_t new_settings_class
    cdef set new_loops
    # see Table._break
    cdef bint no_grace
    cdef bint link_first

    cdef int start(self, const Shm *shm) except -1:
        cdef uint32_t size_class = 0
        self.shm = shm[0]
        self.loops = set()
        self.next_slot = 1
        self.index_mask = 1023
        self.sid_gens = <uint32_t *>calloc(shm.head.max_services, sizeof(uint32_t))
        self.sid_slots = <uint32_t *>calloc(shm.head.max_services, sizeof(uint32_t))
        self.references = <uint32_t *>calloc(shm.head.max_addresses, sizeof(uint32_t))
        self.waiting = <uint64_t *>calloc(shm.head.max_addresses, sizeof(uint64_t))
        self.index = <uint32_t *>calloc(self.index_mask + 1, sizeof(uint32_t))
        if (self.sid_gens == NULL or self.sid_slots == NULL or self.references == NULL or self.waiting == NULL
                or self.index == NULL):
            raise MemoryError()
        self.shm.head.settings = self.allocate(SETTINGS_COUNT * sizeof(uint32_t), &size_class)
        self.settings_class = size_class
        return 0

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(SIZE_CLASSES):
            free(self.free_records[i].items)
        free(self.retired_records.items)
        free(self.free_sids.items)
        free(self.retired_sids.items)
        free(self.free_slots.items)
        free(self.free_addresses.items)
        free(self.retired_addresses.items)
        free(self.sid_gens)
        free(self.sid_slots)
        free(self.references)
        free(self.waiting)
        free(self.index)

    # records

    cdef uint64_t allocate(self, uint64_t length, uint32_t *size_class) except 0:
        """Offset of at least `length` bytes that no reader can see, preferably of a record of the same size class."""
        cdef TableHeader *head = self.shm.head
        cdef uint32_t smallest = class_for(length), fit
        cdef uint64_t offset
        for fit in range(smallest, SIZE_CLASSES):
            if queue_length(&self.free_records[fit]):
                offset = queue_pop(&self.free_records[fit])
                self.free_bytes -= class_bytes(fit)
                size_class[0] = fit
                return offset
            if fit == smallest and head.arena + head.arena_used + class_bytes(fit) <= head.size:
                offset = head.arena + head.arena_used
                head.arena_used += class_bytes(fit)
                size_class[0] = fit
                return offset
        raise TableFull(
            f"a record of {length} bytes does not fit into the table: of {head.size - head.arena} bytes, "
            f"{head.arena_used} are handed out, {self.free_bytes} of these are free in other sizes, and "
            f"{self.retired_bytes} wait until no worker reads them; raise limits.table_bytes")

    cdef void retire(self, uint64_t offset, uint32_t size_class) noexcept:
        queue_push(&self.retired_records, offset | <uint64_t>size_class << CLASS_SHIFT)
        queue_push(&self.retired_records, self.shm.head.epoch)
        self.retired_bytes += class_bytes(size_class)

    cdef void retire_service(self, const Service *record) noexcept:
        cdef const Endpoint *endpoints = endpoints_of(&self.shm, record)
        cdef uint32_t i
        for i in range(record.endpoint_count):
            self.drop_reference(endpoints[i].address)
        self.retire(<const uint8_t *>record - self.shm.table, record.size_class)

    cdef size_t reclaim(self, size_t steps) except? 0xFFFFFFFF:
        """Takes back what no worker can reach any more, in at most about `steps` steps. Returns the records freed."""
        cdef uint64_t oldest = ASLEEP, item, tag
        cdef uint32_t i, size_class
        cdef size_t freed = 0
        fs_fence()  # between the unlinking and the look at the workers: see the top
        for i in range(self.shm.live.workers):
            oldest = min(oldest, fs_load_acquire_u64(&block_of(&self.shm, i).epoch_seen))
        if self.no_grace:
            oldest = ASLEEP
        while freed < steps and queue_length(&self.retired_records):
            item = self.retired_records.items[self.retired_records.start]
            if self.retired_records.items[self.retired_records.start + 1] >= oldest:
                break
            size_class = <uint32_t>(item >> CLASS_SHIFT)
            queue_reserve(&self.free_records[size_class], 1)
            queue_push(&self.free_records[size_class], item & ((<uint64_t>1 << CLASS_SHIFT) - 1))
            self.retired_records.start += 2
            self.retired_bytes -= class_bytes(size_class)
            self.free_bytes += class_bytes(size_class)
            freed += 1
        for _ in range(min(steps, queue_length(&self.retired_sids) // 2)):
            item = self.retired_sids.items[self.retired_sids.start]
            if self.retired_sids.items[self.retired_sids.start + 1] >= oldest:
                break
            queue_reserve(&self.free_sids, 1)
            queue_reserve(&self.free_slots, 1)
            queue_push(&self.free_sids, item)
            if self.sid_slots[item]:
                queue_push(&self.free_slots, self.sid_slots[item])
                self.sid_slots[item] = 0
            self.retired_sids.start += 2
        queue_reserve(&self.retired_addresses, queue_length(&self.retired_addresses))
        queue_reserve(&self.free_addresses, queue_length(&self.retired_addresses) // 2)
        for _ in range(min(steps, queue_length(&self.retired_addresses) // 2)):
            item = queue_shift(&self.retired_addresses)
            tag = queue_shift(&self.retired_addresses)
            if self.references[item] or self.waiting[item] != tag:
                continue  # in use again, or a later entry counts
            if tag >= oldest or inflight_of(&self.shm, <uint32_t>item):
                queue_push(&self.retired_addresses, item)
                queue_push(&self.retired_addresses, tag)
                continue
            self.waiting[item] = 0
            self.index_remove(<uint32_t>item)
            queue_push(&self.free_addresses, item)
        return freed

    # addresses

    cdef inline Address *address_at(self, uint32_t number) noexcept:
        return <Address *>(self.shm.table + self.shm.head.addresses) + number

    cdef inline uint32_t index_home(self, const Address *address) noexcept:
        return <uint32_t>hash_bytes(address.ip, ADDRESS_KEY, self.shm.head.hash_seed) & self.index_mask

    cdef uint32_t index_slot(self, const Address *address) noexcept:
        """Where the address is in the index, or the empty place where it belongs."""
        cdef uint32_t slot = self.index_home(address)
        while self.index[slot] and memcmp(self.address_at(self.index[slot] - 1).ip, address.ip, ADDRESS_KEY):
            slot = (slot + 1) & self.index_mask
        return slot

    cdef int index_grow(self) except -1:
        cdef uint32_t *old = self.index
        cdef uint32_t old_mask = self.index_mask, i
        cdef uint32_t *fresh = <uint32_t *>calloc(2 * (<size_t>old_mask + 1), sizeof(uint32_t))
        if fresh == NULL:
            raise MemoryError()
        self.index = fresh
        self.index_mask = 2 * old_mask + 1
        for i in range(old_mask + 1):
            if old[i]:
                self.index[self.index_slot(self.address_at(old[i] - 1))] = old[i]
        free(old)
        return 0

    cdef void index_remove(self, uint32_t number) noexcept:
        # What stands behind the gap moves up unless its home lies between the gap and itself.
        cdef uint32_t gap = self.index_slot(self.address_at(number)), slot = gap, home
        while True:
            slot = (slot + 1) & self.index_mask
            if self.index[slot] == 0:
                break
            home = self.index_home(self.address_at(self.index[slot] - 1))
            if (slot - home) & self.index_mask >= (slot - gap) & self.index_mask:
                self.index[gap] = self.index[slot]
                gap = slot
        self.index[gap] = 0
        self.indexed -= 1

    cdef uint32_t take_reference(self, const Address *wanted) except? NONE:
        """Number of an address, which is given one at need; counts one more user."""
        cdef uint32_t slot, number
        cdef Address *address
        if 2 * self.indexed > self.index_mask:
            self.index_grow()
        slot = self.index_slot(wanted)
        if self.index[slot]:
            number = self.index[slot] - 1
            self.waiting[number] = 0
            self.references[number] += 1
            return number
        if queue_length(&self.free_addresses):
            number = <uint32_t>queue_shift(&self.free_addresses)
        elif self.next_address < self.shm.head.max_addresses:
            number = self.next_address
            self.next_address += 1
        else:
            raise TableFull(
                f"addresses: all {self.shm.head.max_addresses} are in use or wait until no worker uses them; raise "
                f"limits.addresses")
        memset(state_of(&self.shm, number), 0, sizeof(AddressState))
        address = self.address_at(number)
        memcpy(address.ip, wanted.ip, ADDRESS_KEY)
        address.flags = ADDRESS_LOOP if self.loops and address_key(wanted) in self.loops else 0
        address.gen += 1
        self.index[slot] = number + 1
        self.indexed += 1
        self.references[number] = 1
        return number

    cdef void drop_reference(self, uint32_t number) noexcept:
        self.references[number] -= 1
        if self.references[number] == 0:
            self.waiting[number] = self.shm.head.epoch
            queue_push(&self.retired_addresses, number)
            queue_push(&self.retired_addresses, self.shm.head.epoch)

    cdef void mark_loop(self, bytes key, uint8_t flags) noexcept:
        cdef Address address
        cdef uint32_t slot
        memcpy(address.ip, <const uint8_t *>key, ADDRESS_KEY)
        slot = self.index_slot(&address)
        if self.index[slot]:
            self.address_at(self.index[slot] - 1).flags = flags

    # a batch

    def apply(self, list updates not None) -> int:
        """See Table.apply."""
        cdef TableHeader *head = self.shm.head
        self.reclaim(RECLAIM_STEPS + 2 * <size_t>len(updates))
        self.changes = <Change *>malloc(len(updates) * sizeof(Change) + 1)
        if self.changes == NULL:
            raise MemoryError()
        self.change_count = 0
        self.arena_mark = head.arena_used
        self.new_settings = 0
        self.new_loops = None
        try:
            try:
                self.prepare(updates)
            except TableFull:
                self.roll_back()
                if self.reclaim(<size_t>-1) == 0:
                    raise
                self.arena_mark = head.arena_used
                self.prepare(updates)
            self.commit()
        except BaseException:
            self.roll_back()
            raise
        finally:
            free(self.changes)
            self.changes = NULL
        return head.version

    cdef int prepare(self, list updates) except -1:
        """Writes all records of the batch aside. What can fail happens here."""
        cdef TableHeader *head = self.shm.head
        cdef dict plan = {}
        cdef dict values = {}
        cdef Change *change
        cdef Service *existing
        cdef size_t i, endpoints = 0
        cdef uint64_t added = 0, free_sids
        for i, update in enumerate(updates):
            if type(update) is not dict:
                raise ValueError(f"updates[{i}]: {type(update).__name__} given; a map with the key 'op' is needed")
            op = update.get("op")
            try:
                if op == "put" or op == "del":
                    key = self.prepare_change(update, op == "put")
                    if key in plan:
                        self.changes[<size_t>plan[key]].superseded = True
                    plan[key] = self.change_count - 1
                elif op == "settings":
                    values.update(settings_of(update))
                elif op == "listeners":
                    self.new_loops = loops_of(update)
                else:
                    raise ValueError(f"op: {op!r} is unknown; use put, del, settings or listeners")
            except ValueError as error:
                raise ValueError(f"updates[{i}]: {error}") from None
        if values:
            self.prepare_settings(values)
        for i in range(self.change_count):
            change = &self.changes[i]
            if change.record:
                endpoints += change.record.endpoint_count
            if change.superseded:
                continue
            existing = table_find(&self.shm, change.direction, change.key, change.key_len)
            if existing:
                endpoints += existing.endpoint_count
            elif change.record:
                added += 1
        free_sids = queue_length(&self.free_sids) + head.max_services - head.sid_limit
        if added > free_sids:
            raise TableFull(
                f"services: {added} more do not fit: of {head.max_services}, {head.services} are in use and "
                f"{queue_length(&self.retired_sids) // 2} wait until no worker reads them; raise limits.services")
        queue_reserve(&self.retired_records, 2 * self.change_count + 2)
        queue_reserve(&self.retired_sids, 2 * self.change_count)
        queue_reserve(&self.retired_addresses, 2 * endpoints)
        return 0

    cdef object prepare_change(self, dict update, bint put):
        """Fills the next Change. Returns what it is about, as a key of the plan."""
        cdef Change *change = &self.changes[self.change_count]
        cdef Py_ssize_t length = 0
        cdef object name = update.get("service")
        cdef object direction = update.get("direction")
        if not put and len(update) != 3:
            refuse_unknown(update, ("op", "direction", "service"))
        change.direction = direction_of(direction)
        if not PyUnicode_Check(name):
            raise ValueError(f"{direction}: service: a name is missing")
        change.key = <const uint8_t *>PyUnicode_AsUTF8AndSize(name, &length)
        if length < 1 or length > MAX_KEY:
            raise ValueError(f"{direction} {name!r}: a service name has 1 to {MAX_KEY} bytes, not {length}")
        change.key_len = length
        change.superseded = False
        change.record = NULL
        if put:
            try:
                self.prepare_record(update, change)
            except ValueError as error:
                raise ValueError(f"{direction} {name!r}: {error}") from None
        else:
            self.change_count += 1
        return direction, name

    cdef int prepare_record(self, dict update, Change *change) except -1:
        cdef object endpoints = update.get("endpoints")
        cdef object retry = update.get("retry")
        cdef uint8_t protocol = choice(update, "protocol", PROTOCOLS)
        cdef uint8_t policy = choice(update, "balance", BALANCES)
        cdef uint32_t request_ms = number_of(update.get("request_ms"), "request_ms", 0, 0x7FFFFFFF)
        cdef bytes header = b""
        cdef uint32_t count, size_class = 0, maglev_size = 0
        cdef uint64_t endpoints_at, maglev_at, offset
        cdef Service *record
        if type(retry) is not bool:
            raise ValueError(f"retry: {retry!r} given; use true or false")
        if not PyList_CheckExact(endpoints) and not PyTuple_CheckExact(endpoints):
            raise ValueError("endpoints: a list of [ip, port, weight] is needed")
        if len(endpoints) > MAX_ENDPOINTS:
            raise ValueError(f"endpoints: {len(endpoints)} given; a service has at most {MAX_ENDPOINTS}")
        count = len(endpoints)
        if policy == HASH_HEADER:
            header = header_name(update.get("hash_header"))
        if len(update) != (9 if "hash_header" in update else 8):
            refuse_unknown(update, _PUT_KEYS)
        if policy == HASH_SOURCE or policy == HASH_HEADER:
            maglev_size = maglev_size_for(count)
        endpoints_at = (sizeof(Service) + change.key_len + <uint32_t>len(header) + 7) & ~<uint64_t>7
        maglev_at = endpoints_at + count * sizeof(Endpoint)
        offset = self.allocate(maglev_at + maglev_size * sizeof(uint16_t), &size_class)
        record = <Service *>(self.shm.table + offset)
        memset(record, 0, sizeof(Service))
        record.size_class = size_class
        record.hash = service_hash(&self.shm, change.direction, change.key, change.key_len)
        record.endpoints = offset + endpoints_at
        record.request_ms = request_ms
        record.direction = change.direction
        record.protocol = protocol
        record.policy = policy
        record.flags = SERVICE_RETRY if retry else 0
        record.key_len = change.key_len
        record.hash_header_len = len(header)
        memcpy(record.text, change.key, change.key_len)
        memcpy(record.text + change.key_len, <const uint8_t *>header, len(header))
        change.record = record
        self.change_count += 1  # from here on a roll-back knows the record
        self.prepare_endpoints(endpoints, record)
        if maglev_size:
            record.maglev = offset + maglev_at
            record.maglev_size = maglev_size
            if not maglev_fill(self.address_at(0), endpoints_of(&self.shm, record), count,
                               <uint16_t *>(self.shm.table + record.maglev), maglev_size):
                raise MemoryError()
        return 0

    cdef int prepare_endpoints(self, object items, Service *record) except -1:
        cdef Endpoint *endpoints = <Endpoint *>endpoints_of(&self.shm, record)
        cdef Address address
        cdef uint64_t total = 0
        cdef uint32_t i, weight = 0, first = 0
        cdef bint equal = True
        queue_reserve(&self.retired_addresses, 2 * <size_t>len(items))
        for i in range(<uint32_t>len(items)):
            try:
                parse_endpoint(<object>PySequence_Fast_ITEMS(items)[i], &address, &weight)
            except ValueError as error:
                raise ValueError(f"endpoints[{i}]: {error}") from None
            total += weight
            if total >= 0x80000000:
                raise ValueError(f"endpoints[{i}]: the weights add up to {total}; they must stay below {1 << 31}")
            if i == 0:
                first = weight
            elif weight != first:
                equal = False
            endpoints[i].address = self.take_reference(&address)
            endpoints[i].gen = self.address_at(endpoints[i].address).gen
            endpoints[i].cumulative_weight = <uint32_t>total
            endpoints[i].flags = 0
            record.endpoint_count = i + 1
        record.total_weight = <uint32_t>total
        if not equal:
            record.stride = stride_for(record.total_weight)
        return 0

    cdef int prepare_settings(self, dict values) except -1:
        cdef uint32_t *settings
        cdef uint32_t size_class = 0
        self.new_settings = self.allocate(SETTINGS_COUNT * sizeof(uint32_t), &size_class)
        self.new_settings_class = size_class
        settings = <uint32_t *>(self.shm.table + self.new_settings)
        memcpy(settings, self.shm.table + self.shm.head.settings, SETTINGS_COUNT * sizeof(uint32_t))
        for name, value in values.items():
            settings[<size_t>SETTINGS.index(name)] = value
        return 0

    cdef void give_back(self, uint64_t offset, uint32_t size_class) noexcept:
        """A record of a refused batch: no reader has seen it."""
        if offset < self.shm.head.arena + self.arena_mark:
            queue_push(&self.free_records[size_class], offset)  # has room: it came from there
            self.free_bytes += class_bytes(size_class)

    cdef void roll_back(self) noexcept:
        cdef TableHeader *head = self.shm.head
        cdef Service *record
        cdef uint32_t k
        cdef size_t i
        if self.new_settings:
            self.give_back(self.new_settings, self.new_settings_class)
            self.new_settings = 0
        for i in range(self.change_count):
            record = self.changes[i].record
            if record:
                for k in range(record.endpoint_count):
                    self.drop_reference(endpoints_of(&self.shm, record)[k].address)
                self.give_back(<uint8_t *>record - self.shm.table, record.size_class)
        head.arena_used = self.arena_mark
        self.change_count = 0
        # Addresses that only this batch named wait in the quarantine: let them out with the next look.
        fs_store_release_u64(&head.epoch, head.epoch + 1)

    cdef void commit(self) noexcept:
        cdef TableHeader *head = self.shm.head
        cdef Change *change
        cdef uint64_t old_settings
        cdef timespec now
        cdef size_t i
        if self.new_settings:
            old_settings = head.settings
            fs_store_release_u64(&head.settings, self.new_settings)
            self.retire(old_settings, self.settings_class)
            self.settings_class = self.new_settings_class
        for i in range(self.change_count):
            change = &self.changes[i]
            if change.superseded:
                if change.record:
                    self.retire_service(change.record)
            else:
                self.publish(change)
        if self.new_loops is not None:
            for key in self.loops - self.new_loops:
                self.mark_loop(key, 0)
            for key in self.new_loops - self.loops:
                self.mark_loop(key, ADDRESS_LOOP)
            self.loops = self.new_loops
        clock_gettime(CLOCK_REALTIME, &now)
        head.applied_ns = <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec
        fs_store_release_u64(&head.epoch, head.epoch + 1)
        fs_store_release_u64(&head.version, head.version + 1)

    cdef void publish(self, const Change *change) noexcept:
        cdef TableHeader *head = self.shm.head
        cdef Service *record = change.record
        cdef uint64_t hash = service_hash(&self.shm, change.direction, change.key, change.key_len)
        cdef uint64_t *link = bucket_of(&self.shm, hash)
        cdef Service *old = NULL
        while link[0]:
            old = <Service *>(self.shm.table + link[0])
            if is_called(old, hash, change.direction, change.key, change.key_len):
                break
            link = &old.next
            old = NULL
        if record:
            if old:
                record.next = old.next
                record.sid = old.sid
                record.sid_gen = old.sid_gen
            else:
                # A new service goes to the front: every reader on the chain still finds what it looks for.
                link = bucket_of(&self.shm, hash)
                record.next = link[0]
                self.assign_sid(record)
                head.services += 1
            self.assign_slot(record)
            head.endpoints += record.endpoint_count
            self.link(record, link)
        elif old:
            fs_store_release_u64(link, old.next)
            fs_store_release_u64(self.sid_cell(old.sid), 0)
            queue_push(&self.retired_sids, old.sid)
            queue_push(&self.retired_sids, head.epoch)
            head.services -= 1
        if old:
            head.endpoints -= old.endpoint_count
            self.retire_service(old)

    cdef inline uint64_t *sid_cell(self, uint32_t sid) noexcept:
        return <uint64_t *>(self.shm.table + self.shm.head.sids) + sid

    cdef void link(self, Service *record, uint64_t *link) noexcept:
        cdef uint64_t offset = <uint8_t *>record - self.shm.table
        cdef uint64_t length = class_bytes(record.size_class)
        cdef uint32_t sid = record.sid
        cdef uint8_t *aside
        if not self.link_first:
            fs_store_release_u64(link, offset)
            fs_store_release_u64(self.sid_cell(sid), offset)
            return
        # Only for the test that must fail: readers get the link before the endpoints are there.
        aside = <uint8_t *>malloc(length)
        memcpy(aside, record, length)
        memset(<uint8_t *>endpoints_of(&self.shm, record), 0, record.endpoint_count * sizeof(Endpoint))
        fs_store_release_u64(link, offset)
        fs_store_release_u64(self.sid_cell(sid), offset)
        memcpy(record, aside, length)
        free(aside)

    cdef void assign_sid(self, Service *record) noexcept:
        if queue_length(&self.free_sids):
            record.sid = <uint32_t>queue_shift(&self.free_sids)
        else:
            record.sid = self.shm.head.sid_limit
            self.shm.head.sid_limit += 1
        self.sid_gens[record.sid] += 1
        record.sid_gen = self.sid_gens[record.sid]

    cdef void assign_slot(self, Service *record) noexcept:
        cdef StateHeader *live = self.shm.live
        cdef uint32_t slot = self.sid_slots[record.sid], i
        if slot == 0 and (queue_length(&self.free_slots) or self.next_slot < live.stat_slots):
            if queue_length(&self.free_slots):
                slot = <uint32_t>queue_shift(&self.free_slots)
                for i in range(live.workers):
                    memset(<ServiceStats *>(self.shm.state + live.service_stats) + i * live.stat_slots + slot, 0,
                           sizeof(ServiceStats))
            else:
                slot = self.next_slot
                self.next_slot += 1
            self.sid_slots[record.sid] = slot
        record.stat_slot = slot


# --- values of updates ----------------------------------------------------------------------------------------------

cdef int refuse_unknown(dict update, object known) except -1:
    for name in update:
        if name not in known:
            raise ValueError(f"{name!r} is not a key of this update; known are {', '.join(sorted(known))}")
    return 0


cdef int choice(dict update, str name, tuple known) except -1:
    value = update.get(name)
    if value not in known:
        raise ValueError(f"{name}: {value!r} is unknown; use one of {', '.join(known)}")
    return known.index(value)


cdef long number_of(object value, object name, long low, long high) except -1:
    cdef int overflow = 0
    cdef long number = -1
    if not PyLong_CheckExact(value):
        raise ValueError(f"{name}: {value!r} given; a whole number from {low} to {high} is needed")
    number = PyLong_AsLongAndOverflow(value, &overflow)
    if overflow or number < low or number > high:
        raise ValueError(f"{name} {value} is out of range; use {low}..{high}")
    return number


cdef bytes header_name(object name):
    if not PyUnicode_Check(name) or not 1 <= len(name) <= MAX_KEY or not _TOKEN.issuperset(name.lower()):
        raise ValueError(f"hash_header: {name!r} is not a header name; hash_header balancing needs one")
    return name.lower().encode("ascii")


cdef int parse_address(object ip, object port, Address *address) except -1:
    cdef const char *text
    cdef Py_ssize_t length = 0
    if not PyUnicode_Check(ip):
        raise ValueError(f"ip: {ip!r} given; an IPv4 or IPv6 address as text is needed")
    text = PyUnicode_AsUTF8AndSize(ip, &length)
    memset(address, 0, sizeof(Address))
    if <Py_ssize_t>strlen(text) == length and inet_pton(AF_INET, text, address.ip) == 1:
        address.family = 4
    elif <Py_ssize_t>strlen(text) == length and inet_pton(AF_INET6, text, address.ip) == 1:
        address.family = 6
        if memcmp(address.ip, <const uint8_t *>b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0:
            # ::ffff:a.b.c.d is a.b.c.d: the same peer must not have two states.
            memmove(address.ip, address.ip + 12, 4)
            memset(address.ip + 4, 0, 12)
            address.family = 4
    else:
        raise ValueError(f"ip: {ip!r} is not an IPv4 or IPv6 address")
    address.port = htons(<uint16_t>number_of(port, "port", 1, 65535))
    return 0


cdef int parse_endpoint(object item, Address *address, uint32_t *weight) except -1:
    if not (PyList_CheckExact(item) or PyTuple_CheckExact(item)) or PySequence_Fast_GET_SIZE(item) != 3:
        raise ValueError(f"{item!r} given; [ip, port, weight] is needed")
    parse_address(<object>PySequence_Fast_ITEMS(item)[0], <object>PySequence_Fast_ITEMS(item)[1], address)
    weight[0] = <uint32_t>number_of(<object>PySequence_Fast_ITEMS(item)[2], "weight", 1, 65535)
    return 0


cdef bytes address_key(const Address *address):
    return (<const char *>address.ip)[:ADDRESS_KEY]


cdef dict settings_of(dict update):
    values = update.get("values")
    refuse_unknown(update, ("op", "values"))
    if type(values) is not dict:
        raise ValueError("settings: values: a map of names to numbers is needed")
    for name, value in values.items():
        if name not in SETTINGS:
            raise ValueError(f"settings: {name!r} is unknown; known are {', '.join(SETTINGS)}")
        number_of(value, name, 0, 0xFFFFFFFF)
    return values


cdef set loops_of(dict update):
    cdef Address address
    cdef set loops = set()
    addresses = update.get("addresses")
    refuse_unknown(update, ("op", "addresses"))
    if type(addresses) is not list:
        raise ValueError("listeners: addresses: a list of [ip, port] is needed")
    for i, item in enumerate(addresses):
        if type(item) not in (list, tuple) or len(item) != 2:
            raise ValueError(f"listeners: addresses[{i}]: {item!r} given; [ip, port] is needed")
        try:
            parse_address(item[0], item[1], &address)
        except ValueError as error:
            raise ValueError(f"listeners: addresses[{i}]: {error}") from None
        loops.add(address_key(&address))
    return loops


# --- the regions ----------------------------------------------------------------------------------------------------

cdef inline uint64_t page_up(uint64_t length) noexcept nogil:
    return (length + PAGE - 1) & ~<uint64_t>(PAGE - 1)


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
    cdef uint64_t first = page_up(start), last = (start + length) & ~<uint64_t>(PAGE - 1)
    if first >= last or madvise(region + first, last - first, MADV_REMOVE) != 0:
        memset(region + start, 0, length)
        return
    memset(region + start, 0, first - start)
    memset(region + last, 0, start + length - last)


cdef Writer writer_of(Table table):
    if table._writer is None:
        raise RuntimeError("this process maps the table for reading only; the master is its writer")
    return <Writer>table._writer


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
        cdef uint64_t buckets = 64, offset, state_bytes
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
                f"take {head.arena} bytes before the first record; use {head.arena + PAGE}..{(<uint64_t>1 << CLASS_SHIFT) - 1}")
        memset(&live, 0, sizeof(live))
        live.magic = STATE_MAGIC
        live.workers = workers
        live.max_connections = max_connections
        live.max_addresses = max_addresses
        live.stat_slots = stat_slots
        live.blocks = PAGE
        live.address_states = live.blocks + page_up(MAX_WORKERS * sizeof(WorkerBlock))
        live.inflight = live.address_states + page_up(max_addresses * sizeof(AddressState))
        live.service_stats = live.inflight + page_up(<uint64_t>workers * max_addresses * sizeof(uint32_t))
        live.connections = live.service_stats + page_up(<uint64_t>workers * stat_slots * sizeof(ServiceStats))
        live.size = live.connections + page_up(<uint64_t>workers * max_connections * sizeof(Connection))
        self.table_fd = make_region("fastside-table", head.size)
        self.state_fd = make_region("fastside-state", live.size)
        self.shm.table = <uint8_t *>map_region(self.table_fd, head.size, PROT_READ | PROT_WRITE)
        self.shm.head = <TableHeader *>self.shm.table
        self.table_mapped = head.size
        self.shm.head[0] = head
        self.shm.state = <uint8_t *>map_region(self.state_fd, live.size, PROT_READ | PROT_WRITE)
        self.shm.live = <StateHeader *>self.shm.state
        self.state_mapped = live.size
        self.shm.live[0] = live
        for i in range(MAX_WORKERS):
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
        table.shm.table = <uint8_t *>map_region(table.table_fd, size, PROT_READ)
        table.table_mapped = size
        head = table.shm.head = <TableHeader *>table.shm.table
        if (head.magic != TABLE_MAGIC or head.size != size or head.bucket_mask & (head.bucket_mask + 1)
                or not in_order(PAGE, head.buckets, (<uint64_t>head.bucket_mask + 1) * sizeof(uint64_t), head.sids)
                or not in_order(head.buckets, head.sids, head.max_services * sizeof(uint64_t), head.addresses)
                or not in_order(head.sids, head.addresses, head.max_addresses * sizeof(Address), head.arena)
                or not in_order(head.addresses, head.arena, head.arena_used, size)
                or not inside(&table.shm, head.settings, SETTINGS_COUNT * sizeof(uint32_t))):
            raise ValueError(f"descriptor {table_fd}: the routing table is of another version or damaged")
        size = _os.fstat(state_fd).st_size
        if size < PAGE:
            raise ValueError(f"descriptor {state_fd} holds {size} bytes: not the workers' state")
        table.shm.state = <uint8_t *>map_region(table.state_fd, size, PROT_READ)
        table.state_mapped = size
        live = table.shm.live = <StateHeader *>table.shm.state
        if (live.magic != STATE_MAGIC or live.size != size or live.workers == 0 or live.workers > MAX_WORKERS
                or live.max_addresses != head.max_addresses
                or not in_order(PAGE, live.blocks, MAX_WORKERS * sizeof(WorkerBlock), live.address_states)
                or not in_order(live.blocks, live.address_states, live.max_addresses * sizeof(AddressState),
                                live.inflight)
                or not in_order(live.address_states, live.inflight,
                                <uint64_t>live.workers * live.max_addresses * sizeof(uint32_t), live.service_stats)
                or not in_order(live.inflight, live.service_stats,
                                <uint64_t>live.workers * live.stat_slots * sizeof(ServiceStats), live.connections)
                or not in_order(live.service_stats, live.connections,
                                <uint64_t>live.workers * live.max_connections * sizeof(Connection), size)):
            raise ValueError(f"descriptor {state_fd}: the workers' state is of another version or damaged")
        return table

    def seal(self) -> None:
        """Makes the table read-only in this process. The master's private memory is freed here."""
        self._writer = None
        if mprotect(self.shm.table, self.table_mapped, PROT_READ) != 0:
            raise OSError(errno, f"sealing the table: {_os.strerror(errno)}")

    # writing

    def apply(self, updates: list) -> int:
        """Applies a batch, all of it or nothing. Returns the new version.

        An update is a dict: {"op": "put", "direction", "service", "protocol", "balance", "hash_header" (needed for
        hash_header balancing), "retry", "request_ms", "endpoints": [[ip, port, weight], ...]} makes or replaces a
        service, {"op": "del", "direction", "service"} removes one (also when it is not there),
        {"op": "settings", "values": {name: number}} changes some settings, {"op": "listeners", "addresses":
        [[ip, port], ...]} names the sidecar's own listeners. Of two updates of one service in a batch the later counts.

        Raises ValueError for a bad update and TableFull when a limit does not allow the batch.
        """
        if type(updates) is not list:
            raise ValueError(f"updates: {type(updates).__name__} given; a list is needed")
        return writer_of(self).apply(updates)

    def reclaim(self) -> int:
        """Frees what no worker can still be reading. Returns the number of records freed."""
        return writer_of(self).reclaim(<size_t>-1)

    def set_slot_owner(self, uint32_t slot, uint32_t worker) -> None:
        """Lets `worker` accept from the listener sockets of `slot`."""
        self.check_slot(slot)
        self.check_slot(worker)
        fs_store_release_u32(&self.shm.live.slot_owner[slot], worker)

    def reset_worker(self, uint32_t slot) -> None:
        """Clears what a dead worker left in its slot: its block but for the counters, requests under way, connections."""
        cdef StateHeader *live = self.shm.live
        cdef WorkerBlock *block
        self.check_slot(slot)
        block = block_of(&self.shm, slot)
        block.applied_version = 0
        block.heartbeat_ns = 0
        block.pid = 0
        block.state = WORKER_DOWN
        block.listeners_version = 0
        block.connections = 0
        clear_range(self.shm.state, live.inflight + <uint64_t>slot * live.max_addresses * sizeof(uint32_t),
                    live.max_addresses * sizeof(uint32_t))
        clear_range(self.shm.state, live.connections + <uint64_t>slot * live.max_connections * sizeof(Connection),
                    live.max_connections * sizeof(Connection))
        fs_store_release_u64(&block.epoch_seen, ASLEEP)

    def _break(self, *, bint no_grace=False, bint link_first=False) -> None:
        """For the stress test, which must fail then: frees retired records at once; links records before they are
        written."""
        cdef Writer writer = writer_of(self)
        writer.no_grace = no_grace
        writer.link_first = link_first

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
            result = read_service(&self.shm, side, <const uint8_t *>key, len(key), &copy)
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
                "balance": BALANCES[copy.service.policy], "retry": bool(copy.service.flags & SERVICE_RETRY),
                "request_ms": copy.service.request_ms, "endpoints": endpoints, "sid": copy.service.sid,
                "stat_slot": copy.service.stat_slot,
            }
            if copy.service.policy == HASH_HEADER:
                found["hash_header"] = (<const char *>copy.text)[
                    copy.service.key_len:copy.service.key_len + copy.service.hash_header_len].decode()
            return found
        finally:
            snapshot_drop(&copy)

    def services(self, direction: str) -> list[str]:
        """Names of all services of a direction, in no order. Raises ValueError when the table is damaged."""
        cdef Snapshot copy
        cdef uint32_t sid
        cdef int result
        cdef uint8_t side = direction_of(direction)
        names = []
        memset(&copy, 0, sizeof(copy))
        for sid in range(min(self.shm.head.sid_limit, self.shm.head.max_services)):
            result = read_sid(&self.shm, sid, &copy)
            check_result(result, direction, f"number {sid}")
            if result == FOUND and copy.service.direction == side:
                names.append((<const char *>copy.text)[:copy.service.key_len].decode("utf-8", "replace"))
        return names

    def settings(self) -> dict[str, int]:
        """The settings in force."""
        cdef uint32_t[SETTINGS_COUNT] values
        cdef uint64_t epoch
        while True:
            epoch = fs_load_acquire_u64(&self.shm.head.epoch)
            memcpy(values, self.shm.table + fs_load_acquire_u64(&self.shm.head.settings), sizeof(values))
            fs_fence()
            if fs_load_acquire_u64(&self.shm.head.epoch) == epoch:
                break
        return {name: values[i] for i, name in enumerate(SETTINGS)}

    def explain_pick(self, direction: str, service: str, uint64_t hash=0) -> list[dict]:
        """What the balancing looks at: one dict per endpoint, in the table's order; [] for an unknown service.

        hash: of the header or source address, for the consistent-hash policies. "chosen" marks the endpoint that the
        policy would give now; for round robin and least request this process has a position of its own, as each worker
        has. "ejected_for_ms" is 0 for an endpoint that takes part. "loop": it is one of the sidecar's own listeners.
        Raises ValueError when the table is damaged.
        """
        cdef bytes key = service.encode()
        cdef Snapshot copy
        cdef Balance balance
        cdef Shm shm = self.shm
        cdef const Endpoint *chosen
        cdef Address *address
        cdef uint64_t now_ms, until
        cdef uint32_t i
        cdef int result
        cdef uint8_t side = direction_of(direction)
        cdef list explained = []
        if not 1 <= len(key) <= MAX_KEY:
            return explained
        if self.explain_cursors == NULL:
            self.explain_cursors = <uint32_t *>calloc(shm.head.max_services, sizeof(uint32_t))
            self.explain_random = int.from_bytes(_os.urandom(8), "little") | 1
            if self.explain_cursors == NULL:
                raise MemoryError()
        memset(&copy, 0, sizeof(copy))
        try:
            result = read_service(&shm, side, <const uint8_t *>key, len(key), &copy)
            check_result(result, direction, service)
            if result == ABSENT or copy.service.endpoint_count == 0:
                return explained
            now_ms = monotonic_ms()
            shm.table = <uint8_t *>copy.endpoints
            balance.cursors = self.explain_cursors
            balance.random = self.explain_random
            balance.seed = 0
            chosen = balance_pick(&shm, &balance, &copy.service, hash, now_ms, NULL, 0)
            self.explain_random = balance.random
            for i in range(copy.service.endpoint_count):
                address = &copy.addresses[i]
                until = fs_load_relaxed_u64(&state_of(&shm, copy.endpoints[i].address).ejected_until_ms)
                explained.append({
                    "address": endpoint_text(address), "weight": weight_of(copy.endpoints, i),
                    "inflight": inflight_of(&shm, copy.endpoints[i].address),
                    "ejected_for_ms": until - now_ms if until > now_ms else 0,
                    "loop": bool(address.flags & ADDRESS_LOOP), "chosen": &copy.endpoints[i] == chosen,
                })
            return explained
        finally:
            snapshot_drop(&copy)

    def worker(self, uint32_t slot) -> dict:
        """What the worker of a slot says about itself: pid, state, applied_version, listeners_version, heartbeat_ns
        (CLOCK_MONOTONIC), connections (downstream)."""
        cdef WorkerBlock *block
        self.check_slot(slot)
        block = block_of(&self.shm, slot)
        return {
            "pid": fs_load_relaxed_u32(&block.pid),
            "state": WORKER_STATES[min(fs_load_acquire_u32(&block.state), <uint32_t>WORKER_DONE)],
            "applied_version": fs_load_acquire_u64(&block.applied_version),
            "listeners_version": fs_load_acquire_u32(&block.listeners_version),
            "heartbeat_ns": fs_load_relaxed_u64(&block.heartbeat_ns),
            "connections": fs_load_relaxed_u32(&block.connections),
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
            writer = <Writer>self._writer
            sizes["arena_free"] = writer.free_bytes
            sizes["arena_retired"] = writer.retired_bytes
            sizes["addresses"] = writer.indexed
        return sizes


cdef bint in_order(uint64_t after, uint64_t offset, uint64_t length, uint64_t before) noexcept nogil:
    """An array at `offset` lies behind `after` and ends at or before `before`; no sum overflows."""
    return after <= offset and offset % 8 == 0 and offset <= before and length <= before - offset
