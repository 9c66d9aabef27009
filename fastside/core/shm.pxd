# Two shared memory regions, each one memfd, mapped by the master before it forks.
#
#   table: written by the master alone, read-only everywhere else (workers mprotect it). Services, endpoints, addresses,
#          settings. Every link is an offset from the start of the region; 0 means "none".
#   state: written by the workers, each in its own cells, and read by everybody. Heartbeats, counters, in-flight counts,
#          histograms, connection slabs. Only `connections` and AddressState are written by several processes (atomics).
#
# Both are sparse: a page costs memory when it is first touched.

cdef enum:
    MAX_WORKERS = 64
    MAX_ENDPOINTS = 65535       # of one service
    NONE = 0xFFFFFFFF           # no index
    OUTBOUND = 0                # direction of a listener and of a service record
    INBOUND = 1
    ROUND_ROBIN = 0             # balancing policies
    LEAST_REQUEST = 1
    HASH_SOURCE = 2             # Maglev over the downstream's address
    HASH_HEADER = 3             # Maglev over a request header
    SERVICE_RETRY = 1           # flags of a service: an idempotent request may be sent again after a reset
    SERVICE_SINGLE = 2          # inbound: every service of its protocol is at one and the same address
    SERVICE_GROUPED = 4         # Dubbo: the service exists with a group too (group/interface[:version])
    ADDRESS_LOOP = 1            # flags of an address: it is one of this sidecar's own listeners

cdef enum:                      # indices into the settings array, in the order of SETTINGS (settings.pyx)
    SET_CONNECT_MS
    SET_HEADER_MS
    SET_REQUEST_MS
    SET_KEEPALIVE_MS
    SET_IDLE_MS
    SET_HALF_CLOSE_MS
    SET_POOL_IDLE_MS
    SET_POOL_SIZE               # idle connections kept per address and worker
    SET_HEAD_BYTES
    SET_HEADERS
    SET_ATTEMPTS
    SET_SPLICE_BYTES            # observed bytes after which a stream is spliced; 0 = never
    SET_EJECT_FAILURES          # consecutive connect failures before an address is left out; 0 = never
    SET_EJECT_MS
    SET_BUFFERS                 # buffers of one worker, in use at most
    SETTINGS_COUNT

cdef struct TableHeader:
    uint64_t magic
    uint64_t size
    uint64_t version            # stored with release after each applied batch
    uint64_t epoch              # of reclamation, see table.pyx
    uint64_t applied_ns         # CLOCK_REALTIME of the last applied batch
    uint64_t settings           # offset of uint32_t[SETTINGS_COUNT]
    uint64_t hash_seed
    uint64_t buckets            # offset of uint64_t[bucket_mask + 1]: heads of chains of Service
    uint64_t sids               # offset of uint64_t[max_services]: sid -> Service
    uint64_t addresses          # offset of Address[max_addresses]
    uint64_t arena              # offset of the first record
    uint64_t arena_used         # bytes of the arena handed out so far
    uint32_t bucket_mask
    uint32_t max_services
    uint32_t max_addresses
    uint32_t services
    uint32_t endpoints
    uint32_t sid_limit          # sids ever handed out: bound of a scan

cdef struct Address:            # interned ip:port, shared by all services that name it
    uint8_t ip[16]              # IPv4 in the first four bytes
    uint16_t port               # network order
    uint8_t family              # 4 or 6
    uint8_t flags
    uint32_t gen                # changes when the index gets another address
    uint32_t _reserved[2]

cdef struct Endpoint:
    uint32_t address            # index into addresses
    uint32_t gen
    uint32_t cumulative_weight  # own weight plus those of all endpoints before it
    uint32_t flags

cdef struct Service:            # immutable once published; replaced as a whole
    uint64_t next               # in the bucket's chain; the one field that changes in place
    uint64_t hash
    uint64_t endpoints          # offsets from the start of the region
    uint64_t maglev             # offset of uint16_t[maglev_size], or 0
    uint32_t size_class
    uint32_t sid                # stable for the life of (direction, key)
    uint32_t sid_gen
    uint32_t stat_slot          # 0 = "other"
    uint32_t endpoint_count
    uint32_t total_weight
    uint32_t stride             # coprime to total_weight, near total_weight / phi; 0 = all weights equal
    uint32_t maglev_size
    uint32_t request_ms         # 0 = the setting
    uint8_t direction
    uint8_t protocol
    uint8_t policy
    uint8_t flags
    uint16_t key_len
    uint16_t hash_header_len
    uint8_t text[0]             # key, then the lower-case name of the hash header

cdef struct StateHeader:
    uint64_t magic
    uint64_t size
    uint32_t workers
    uint32_t max_connections    # per worker
    uint32_t max_addresses
    uint32_t stat_slots
    uint64_t blocks             # offset of WorkerBlock[MAX_WORKERS]
    uint64_t address_states     # offset of AddressState[max_addresses]
    uint64_t inflight           # offset of uint32_t[workers][max_addresses]
    uint64_t service_stats      # offset of ServiceStats[workers][stat_slots]
    uint64_t connections        # offset of Connection[workers][max_connections]
    uint32_t slot_owner[64]     # which worker accepts from a slot's listeners; written by the master

cdef enum:                      # WorkerBlock.state
    WORKER_DOWN = 0
    WORKER_STARTING = 1
    WORKER_READY = 2
    WORKER_DRAINING = 3
    WORKER_DONE = 4

cdef enum:
    COUNTERS = 256

cdef struct WorkerBlock:
    uint64_t epoch_seen         # ~0 while the worker sleeps or is down
    uint64_t applied_version    # table version at the start of the last loop turn
    uint64_t heartbeat_ns       # CLOCK_MONOTONIC of the last loop turn
    uint32_t pid
    uint32_t state
    uint32_t listeners_version  # last listener change that took effect
    uint32_t connections        # downstream connections, those under way in a hand-over included
    uint64_t counters[256]
    uint64_t _reserved[3]       # to whole cache lines: neighbours do not disturb each other

cdef struct AddressState:
    uint64_t ejected_until_ms   # CLOCK_MONOTONIC
    uint32_t failures           # consecutive
    uint32_t _reserved

cdef enum:
    HISTOGRAM_BUCKETS = 192     # log-linear, 8 per octave from 8 us; see stats.pyx

cdef struct ServiceStats:
    uint64_t responses[6]       # by class of status; [0]: no response could be given
    uint64_t statuses[16]       # of a protocol with statuses of its own, by its codec's *_status_slot
    uint64_t bytes_received     # from downstream
    uint64_t bytes_sent
    uint64_t duration_us
    uint64_t histogram[192]

cdef struct Shm:                # where this process mapped the regions
    uint8_t *table
    uint8_t *state
    TableHeader *head
    StateHeader *live

cdef Service *table_find(const Shm *shm, uint8_t direction, const uint8_t *key, uint32_t key_len) noexcept nogil
cdef Service *table_by_sid(const Shm *shm, uint32_t sid, uint32_t gen) noexcept nogil
cdef void epoch_enter(const Shm *shm, uint32_t slot) noexcept nogil
cdef void epoch_leave(const Shm *shm, uint32_t slot) noexcept nogil

cdef class Table:
    cdef Shm shm
    cdef readonly int table_fd
    cdef readonly int state_fd
    cdef uint64_t table_mapped
    cdef uint64_t state_mapped
    cdef object _writer         # the master's Writer (table.pyx), else None
    cdef uint32_t *explain_cursors  # round robin's positions of explain_pick
    cdef uint64_t explain_random
    cdef int check_slot(self, uint32_t slot) except -1
