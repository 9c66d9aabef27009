# The master's side of the routing table: free lists, quarantines, the index of addresses, and the rules of change. All
# of it is private memory; table.pyx says how its changes reach the readers.

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

cdef enum:
    CLASS_SHIFT = 48            # a retired record is noted as offset | class << 48
    RECLAIM_STEPS = 256         # quarantined items looked at by an update, beside twice those that the last one retired
    ADDRESS_KEY = 19            # bytes at the start of an Address that identify it: ip, port, family

_PUT_KEYS = frozenset(
    ("op", "direction", "service", "protocol", "balance", "hash_header", *SERVICE_FLAGS, "request_ms", "endpoints"))
_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")


class TableFull(Exception):
    """An update would exceed a limit of the table; nothing of its batch was applied."""


cdef int queue_reserve(Queue *queue, size_t more) except -1:
    """Makes room for `more` pushes."""
    cdef size_t length = queue.end - queue.start, capacity = queue.capacity
    cdef uint64_t *items
    if queue.end + more <= capacity:
        return 0
    while capacity < 2 * (length + more):
        capacity = 2 * capacity if capacity else 64
    items = <uint64_t *> malloc(capacity * sizeof(uint64_t))
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
    return (<uint64_t> 64 + 16 * (size_class & 3)) << (size_class >> 2)


cdef uint32_t class_for(uint64_t length) noexcept nogil:
    cdef uint32_t size_class = 0
    while class_bytes(size_class) < length:
        size_class += 1
    return size_class


cdef class Writer:
    """The master's side of the table: its private memory and the rules of change."""

    cdef int start(self, const Shm *shm) except -1:
        cdef uint32_t size_class = 0
        self.shm = shm[0]
        self.loops = set()
        self.next_slot = 1
        self.index_mask = 1023
        self.sid_gens = <uint32_t *> calloc(shm.head.max_services, sizeof(uint32_t))
        self.sid_slots = <uint32_t *> calloc(shm.head.max_services, sizeof(uint32_t))
        self.references = <uint32_t *> calloc(shm.head.max_addresses, sizeof(uint32_t))
        self.waiting = <uint64_t *> calloc(shm.head.max_addresses, sizeof(uint64_t))
        self.index = <uint32_t *> calloc(self.index_mask + 1, sizeof(uint32_t))
        if (self.sid_gens == NULL or self.sid_slots == NULL or self.references == NULL or self.waiting == NULL
                or self.index == NULL):
            raise MemoryError()
        self.shm.head.settings = self.allocate(SETTINGS_COUNT * sizeof(uint32_t), &size_class)
        self.settings_class = size_class
        return 0

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(<uint32_t> SIZE_CLASSES):
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
        for fit in range(smallest, <uint32_t> SIZE_CLASSES):
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
        queue_push(&self.retired_records, offset | <uint64_t> size_class << CLASS_SHIFT)
        queue_push(&self.retired_records, self.shm.head.epoch)
        self.retired_lately += 1
        self.retired_bytes += class_bytes(size_class)

    cdef void retire_service(self, const Service *record) noexcept:
        cdef const Endpoint *endpoints = endpoints_of(&self.shm, record)
        cdef uint32_t i
        for i in range(record.endpoint_count):
            self.drop_reference(endpoints[i].address)
        self.retire(<const uint8_t *> record - self.shm.table, record.size_class)

    cdef bint is_unreachable(self, uint64_t tag, uint64_t oldest) noexcept:
        """Whether what was unlinked in epoch `tag` is out of reach of workers that show `oldest` or a later epoch."""
        return tag < oldest

    cdef size_t reclaim(self, size_t steps) except? 0xFFFFFFFF:
        """Takes back what no worker can reach, with at most `steps` looks at each kind. Returns the records freed."""
        cdef uint64_t oldest = ASLEEP, item, tag
        cdef uint32_t i, size_class
        cdef size_t freed = 0, left
        fs_fence()  # between the unlinking and the look at the workers: see table.pyx
        for i in range(self.shm.live.workers):
            oldest = min(oldest, fs_load_acquire_u64(&block_of(&self.shm, i).epoch_seen))
        while freed < steps and queue_length(&self.retired_records):
            item = self.retired_records.items[self.retired_records.start]
            if not self.is_unreachable(self.retired_records.items[self.retired_records.start + 1], oldest):
                break
            size_class = <uint32_t> (item >> CLASS_SHIFT)
            queue_reserve(&self.free_records[size_class], 1)
            queue_push(&self.free_records[size_class], item & ((<uint64_t> 1 << CLASS_SHIFT) - 1))
            self.retired_records.start += 2
            self.retired_bytes -= class_bytes(size_class)
            self.free_bytes += class_bytes(size_class)
            freed += 1
        left = min(steps, queue_length(&self.retired_sids) // 2)
        queue_reserve(&self.free_sids, left)
        queue_reserve(&self.free_slots, left)
        while left and self.is_unreachable(self.retired_sids.items[self.retired_sids.start + 1], oldest):
            item = queue_shift(&self.retired_sids)
            queue_shift(&self.retired_sids)
            queue_push(&self.free_sids, item)
            if self.sid_slots[item]:
                queue_push(&self.free_slots, self.sid_slots[item])
                self.sid_slots[item] = 0
            left -= 1
        left = min(steps, queue_length(&self.retired_addresses) // 2)
        queue_reserve(&self.retired_addresses, 2 * left)
        queue_reserve(&self.free_addresses, left)
        while left:
            item = queue_shift(&self.retired_addresses)
            tag = queue_shift(&self.retired_addresses)
            left -= 1
            if self.waiting[item] != tag:
                continue  # in use again, or a later entry counts
            if not self.is_unreachable(tag, oldest) or inflight_of(&self.shm, <uint32_t> item):
                queue_push(&self.retired_addresses, item)
                queue_push(&self.retired_addresses, tag)
                continue
            self.waiting[item] = 0
            self.index_remove(<uint32_t> item)
            queue_push(&self.free_addresses, item)
        return freed

    # addresses

    cdef Address *address_at(self, uint32_t number) noexcept:
        return <Address *> (self.shm.table + self.shm.head.addresses) + number

    cdef uint32_t index_home(self, const Address *address) noexcept:
        return <uint32_t> hash_bytes(address.ip, ADDRESS_KEY, self.shm.head.hash_seed) & self.index_mask

    cdef uint32_t index_slot(self, const Address *address) noexcept:
        """Where the address is in the index, or the empty place where it belongs."""
        cdef uint32_t slot = self.index_home(address)
        while self.index[slot] and memcmp(self.address_at(self.index[slot] - 1).ip, address.ip, ADDRESS_KEY):
            slot = (slot + 1) & self.index_mask
        return slot

    cdef int index_grow(self) except -1:
        cdef uint32_t *old = self.index
        cdef uint32_t old_mask = self.index_mask, i
        cdef uint32_t *fresh = <uint32_t *> calloc(2 * (<size_t> old_mask + 1), sizeof(uint32_t))
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

    cdef uint32_t take_reference(self, const Address *wanted) except? 0xFFFFFFFF:
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
            number = <uint32_t> queue_shift(&self.free_addresses)
            memset(state_of(&self.shm, number), 0, sizeof(AddressState))
        elif self.next_address < self.shm.head.max_addresses:
            number = self.next_address
            self.next_address += 1
        else:
            raise TableFull(
                f"addresses: all {self.shm.head.max_addresses} are in use or wait until no worker uses them; raise "
                f"limits.addresses")
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
            self.retired_lately += 1
            self.waiting[number] = self.shm.head.epoch
            queue_push(&self.retired_addresses, number)
            queue_push(&self.retired_addresses, self.shm.head.epoch)

    cdef void mark_loop(self, bytes key, uint8_t flags) noexcept:
        cdef Address address
        cdef uint32_t slot
        memcpy(address.ip, <const uint8_t *> key, ADDRESS_KEY)
        slot = self.index_slot(&address)
        if self.index[slot]:
            self.address_at(self.index[slot] - 1).flags = flags

    # a batch

    cdef int apply(self, list updates) except -1:
        """See Table.apply."""
        cdef size_t steps = RECLAIM_STEPS + 2 * self.retired_lately
        self.retired_lately = 0
        self.reclaim(steps)
        self.changes = <Change *> malloc(len(updates) * sizeof(Change) + 1)
        if self.changes == NULL:
            raise MemoryError()
        try:
            try:
                self.prepare(updates)
            except TableFull:
                # The quarantines may hold what is missing.
                self.roll_back()
                self.reclaim(<size_t> -1)
                self.prepare(updates)
            self.commit()
        except BaseException:
            self.roll_back()
            raise
        finally:
            free(self.changes)
            self.changes = NULL
            self.change_count = 0
        return 0

    cdef int prepare(self, list updates) except -1:
        """Writes all records of the batch aside. What can fail happens here."""
        cdef TableHeader *head = self.shm.head
        cdef dict plan = {}
        cdef dict values = {}
        cdef Change *change
        cdef Service *existing
        cdef size_t i, dropped = 0
        cdef uint64_t added = 0, free_sids
        self.change_count = 0
        self.reference_count = 0
        self.arena_mark = head.arena_used
        self.new_settings = 0
        self.new_loops = None
        for i, update in enumerate(updates):
            if type(update) is not dict:
                raise ValueError(f"updates[{i}]: {type(update).__name__} given; a map with the key 'op' is needed")
            op = update.get("op")
            try:
                if op == "put" or op == "del":
                    key = self.prepare_change(update, op == "put")
                    if key in plan:
                        self.changes[<size_t> plan[key]].superseded = True
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
            if change.superseded:
                continue
            existing = table_find(&self.shm, change.direction, change.key, change.key_len)
            if existing:
                dropped += existing.endpoint_count
            elif change.record:
                added += 1
        free_sids = queue_length(&self.free_sids) + head.max_services - head.sid_limit
        if added > free_sids:
            raise TableFull(
                f"services: {added} more do not fit: of {head.max_services}, {head.services} are in use and "
                f"{queue_length(&self.retired_sids) // 2} wait until no worker reads them; raise limits.services")
        queue_reserve(&self.retired_records, 2 * self.change_count + 2)
        queue_reserve(&self.retired_sids, 2 * self.change_count)
        queue_reserve(&self.retired_addresses, 2 * (dropped + self.reference_count))
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
        change.key = <const uint8_t *> PyUnicode_AsUTF8AndSize(name, &length)
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
        cdef uint8_t protocol = choice(update, "protocol", PROTOCOLS)
        cdef uint8_t policy = choice(update, "balance", BALANCES)
        cdef uint8_t flags = flags_of(update)
        cdef uint32_t request_ms = number_of(update.get("request_ms"), "request_ms", 0, 0x7FFFFFFF)
        cdef bytes header = b""
        cdef uint32_t count, size_class = 0, maglev_size = 0
        cdef uint64_t endpoints_at, maglev_at, offset
        cdef Service *record
        if not PyList_CheckExact(endpoints) and not PyTuple_CheckExact(endpoints):
            raise ValueError("endpoints: a list of [ip, port, weight] is needed")
        if len(endpoints) > MAX_ENDPOINTS:
            raise ValueError(f"endpoints: {len(endpoints)} given; a service has at most {MAX_ENDPOINTS}")
        count = len(endpoints)
        if policy == HASH_HEADER:
            header = header_name(update.get("hash_header"))
        if len(update) != (11 if "hash_header" in update else 10):
            refuse_unknown(update, _PUT_KEYS)
        if policy == HASH_SOURCE or policy == HASH_HEADER:
            maglev_size = maglev_size_for(count)
        endpoints_at = (sizeof(Service) + change.key_len + <uint32_t> len(header) + 7) & ~<uint64_t> 7
        maglev_at = endpoints_at + count * sizeof(Endpoint)
        offset = self.allocate(maglev_at + maglev_size * sizeof(uint16_t), &size_class)
        record = <Service *> (self.shm.table + offset)
        memset(record, 0, sizeof(Service))
        record.size_class = size_class
        record.hash = service_hash(&self.shm, change.direction, change.key, change.key_len)
        record.endpoints = offset + endpoints_at
        record.request_ms = request_ms
        record.direction = change.direction
        record.protocol = protocol
        record.policy = policy
        record.flags = flags
        record.key_len = change.key_len
        record.hash_header_len = len(header)
        memcpy(record.text, change.key, change.key_len)
        memcpy(record.text + change.key_len, <const uint8_t *> header, len(header))
        change.record = record
        self.change_count += 1  # from here on a roll-back knows the record
        self.prepare_endpoints(endpoints, record)
        if maglev_size:
            record.maglev = offset + maglev_at
            record.maglev_size = maglev_size
            if not maglev_fill(self.address_at(0), endpoints_of(&self.shm, record), count,
                               <uint16_t *> (self.shm.table + record.maglev), maglev_size):
                raise MemoryError()
        return 0

    cdef int prepare_endpoints(self, object items, Service *record) except -1:
        cdef Endpoint *endpoints = <Endpoint *> endpoints_of(&self.shm, record)
        cdef Address address
        cdef uint64_t total = 0
        cdef uint32_t i, weight = 0, first = 0
        cdef bint equal = True
        # Enough for a roll-back of the whole batch.
        self.reference_count += len(items)
        queue_reserve(&self.retired_addresses, 2 * self.reference_count)
        for i in range(<uint32_t> len(items)):
            try:
                parse_endpoint(<object> PySequence_Fast_ITEMS(items)[i], &address, &weight)
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
            endpoints[i].cumulative_weight = <uint32_t> total
            endpoints[i].flags = 0
            record.endpoint_count = i + 1
        record.total_weight = <uint32_t> total
        if not equal:
            record.stride = stride_for(record.total_weight)
        return 0

    cdef int prepare_settings(self, dict values) except -1:
        cdef uint32_t *settings
        cdef uint32_t size_class = 0
        self.new_settings = self.allocate(SETTINGS_COUNT * sizeof(uint32_t), &size_class)
        self.new_settings_class = size_class
        settings = <uint32_t *> (self.shm.table + self.new_settings)
        memcpy(settings, self.shm.table + self.shm.head.settings, SETTINGS_COUNT * sizeof(uint32_t))
        for name, value in values.items():
            settings[<size_t> SETTINGS.index(name)] = value
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
                self.give_back(<uint8_t *> record - self.shm.table, record.size_class)
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
        head.applied_ns = <uint64_t> now.tv_sec * 1000000000 + <uint64_t> now.tv_nsec
        fs_store_release_u64(&head.epoch, head.epoch + 1)
        fs_store_release_u64(&head.version, head.version + 1)

    cdef void publish(self, const Change *change) noexcept:
        cdef TableHeader *head = self.shm.head
        cdef Service *record = change.record
        cdef uint64_t hash = service_hash(&self.shm, change.direction, change.key, change.key_len)
        cdef uint64_t *link = bucket_of(&self.shm, hash)
        cdef Service *old = NULL
        while link[0]:
            old = <Service *> (self.shm.table + link[0])
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

    cdef uint64_t *sid_cell(self, uint32_t sid) noexcept:
        return <uint64_t *> (self.shm.table + self.shm.head.sids) + sid

    cdef void link(self, Service *record, uint64_t *link) noexcept:
        """Publishes a record that is complete."""
        cdef uint64_t offset = <uint8_t *> record - self.shm.table
        fs_store_release_u64(link, offset)
        fs_store_release_u64(self.sid_cell(record.sid), offset)

    cdef void assign_sid(self, Service *record) noexcept:
        if queue_length(&self.free_sids):
            record.sid = <uint32_t> queue_shift(&self.free_sids)
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
                slot = <uint32_t> queue_shift(&self.free_slots)
                for i in range(live.workers):
                    memset(<ServiceStats *> (self.shm.state + live.service_stats) + i * live.stat_slots + slot, 0,
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


cdef int flags_of(dict update) except -1:
    cdef int flags = 0
    for bit, name in enumerate(SERVICE_FLAGS):
        value = update.get(name)
        if type(value) is not bool:
            raise ValueError(f"{name}: {value!r} given; use true or false")
        flags |= value << <int> bit
    return flags


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
    if <Py_ssize_t> strlen(text) == length and inet_pton(AF_INET, text, address.ip) == 1:
        address.family = 4
    elif <Py_ssize_t> strlen(text) == length and inet_pton(AF_INET6, text, address.ip) == 1:
        address.family = 6
        if memcmp(address.ip, <const uint8_t *> b"\0\0\0\0\0\0\0\0\0\0\xff\xff", 12) == 0:
            # ::ffff:a.b.c.d is a.b.c.d: the same peer must not have two states.
            memmove(address.ip, address.ip + 12, 4)
            memset(address.ip + 4, 0, 12)
            address.family = 4
    else:
        raise ValueError(f"ip: {ip!r} is not an IPv4 or IPv6 address")
    address.port = htons(<uint16_t> number_of(port, "port", 1, 65535))
    return 0


cdef int parse_endpoint(object item, Address *address, uint32_t *weight) except -1:
    if not (PyList_CheckExact(item) or PyTuple_CheckExact(item)) or PySequence_Fast_GET_SIZE(item) != 3:
        raise ValueError(f"{item!r} given; [ip, port, weight] is needed")
    parse_address(<object> PySequence_Fast_ITEMS(item)[0], <object> PySequence_Fast_ITEMS(item)[1], address)
    weight[0] = <uint32_t> number_of(<object> PySequence_Fast_ITEMS(item)[2], "weight", 1, 65535)
    return 0


cdef bytes address_key(const Address *address):
    return (<const char *> address.ip)[:ADDRESS_KEY]


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
