# The master's side of the routing table: private memory, not shared.

cdef enum:
    SIZE_CLASSES = 72           # of records: 64 bytes to more than the largest one, four steps per doubling

cdef struct Queue:              # of 64-bit items; used as a stack or first in, first out
    uint64_t *items
    size_t start
    size_t end
    size_t capacity

cdef struct Change:             # one put or delete of a batch
    Service *record             # written aside, or NULL to delete
    const uint8_t *key          # memory of the update's own str
    uint32_t key_len
    uint8_t direction
    bint superseded             # a later update of the batch is about the same service

cdef class Writer:
    cdef Shm shm
    cdef Queue[SIZE_CLASSES] free_records
    cdef Queue retired_records  # pairs: offset | class << 48, tag
    cdef Queue free_sids
    cdef Queue retired_sids     # pairs: sid, tag
    cdef Queue free_slots       # of statistics
    cdef Queue free_addresses
    cdef Queue retired_addresses  # pairs: number, tag
    cdef size_t retired_lately  # items retired since the last look at the quarantines
    cdef uint64_t free_bytes
    cdef uint64_t retired_bytes
    cdef uint32_t next_slot     # slots ever handed out
    cdef uint32_t next_address  # addresses ever handed out
    cdef uint32_t *sid_gens
    cdef uint32_t *sid_slots
    cdef uint32_t *references   # of each address, by endpoints of linked and of prepared records
    cdef uint64_t *waiting      # tag of the address's entry in retired_addresses that counts, or 0
    cdef uint32_t *index        # addresses by hash, open addressing: number + 1, or 0
    cdef uint32_t index_mask
    cdef uint32_t indexed
    cdef uint32_t settings_class
    cdef set loops              # keys of the sidecar's own listeners
    # the batch under way
    cdef Change *changes
    cdef size_t change_count
    cdef size_t reference_count  # taken by its records
    cdef uint64_t arena_mark    # arena_used before it
    cdef uint64_t new_settings  # offset, or 0
    cdef uint32_t new_settings_class
    cdef set new_loops

    cdef int start(self, const Shm *shm) except -1
    cdef uint64_t allocate(self, uint64_t length, uint32_t *size_class) except 0
    cdef void retire(self, uint64_t offset, uint32_t size_class) noexcept
    cdef void retire_service(self, const Service *record) noexcept
    cdef bint is_unreachable(self, uint64_t tag, uint64_t oldest) noexcept
    cdef size_t reclaim(self, size_t steps) except? 0xFFFFFFFF
    cdef Address *address_at(self, uint32_t number) noexcept
    cdef uint32_t index_home(self, const Address *address) noexcept
    cdef uint32_t index_slot(self, const Address *address) noexcept
    cdef int index_grow(self) except -1
    cdef void index_remove(self, uint32_t number) noexcept
    cdef uint32_t take_reference(self, const Address *wanted) except? 0xFFFFFFFF
    cdef void drop_reference(self, uint32_t number) noexcept
    cdef void mark_loop(self, bytes key, uint8_t flags) noexcept
    cdef int apply(self, list updates) except -1
    cdef int prepare(self, list updates) except -1
    cdef object prepare_change(self, dict update, bint put)
    cdef int prepare_record(self, dict update, Change *change) except -1
    cdef int prepare_endpoints(self, object items, Service *record) except -1
    cdef int prepare_settings(self, dict values) except -1
    cdef void give_back(self, uint64_t offset, uint32_t size_class) noexcept
    cdef void roll_back(self) noexcept
    cdef void commit(self) noexcept
    cdef void publish(self, const Change *change) noexcept
    cdef void link(self, Service *record, uint64_t *link) noexcept
    cdef uint64_t *sid_cell(self, uint32_t sid) noexcept
    cdef void assign_sid(self, Service *record) noexcept
    cdef void assign_slot(self, Service *record) noexcept
