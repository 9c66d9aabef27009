# What one worker holds: its view of shared memory, its epoll set, pools, timers and lists. One per process.

cdef enum:
    EVENTS = 256                # epoll events taken per loop turn
    MAX_LISTENERS = 64
    WHEEL_SLOTS = 512
    TICK_MS = 128
    HEADROOM = 64               # free bytes before a message, for a field inserted after its first line
    SMALL_BUFFER = 16384
    LARGE_BUFFER = 131072
    KEEP_SMALL = 256            # free buffers and pipes kept for the next use
    KEEP_LARGE = 16
    KEEP_PIPES = 32
    MAX_PIPES = 512
    PIPE_BYTES = 262144
    PUMP_BUDGET = 524288        # bytes one connection may move before others get their turn
    ACCEPT_BURST = 64
    DRAIN_IDLE_MS = 1000        # a draining worker waits so long for the next request, to say close in its response

cdef enum:                      # upper half of epoll's data: a connection's generation, below these, or
    TAG_FIRST = 0xFFFFFF00
    TAG_ALIVE = 0xFFFFFFFD
    TAG_INBOX = 0xFFFFFFFE
    TAG_LISTENER = 0xFFFFFFFF

cdef enum:                      # Connection.kind
    CONN_FREE = 0
    CONN_HTTP_DOWN
    CONN_HTTP_UP
    CONN_TCP_DOWN
    CONN_TCP_UP
    CONN_LINGER                 # answered and shut; reading what the peer still sends, so that no RST eats the answer
    CONN_FRAME_DOWN             # a multiplexed protocol, see mux.pyx
    CONN_FRAME_UP
    CONN_NEW_DOWN               # what it speaks is not known yet, see greet.pyx
    CONN_TLS_DOWN               # its ClientHello comes in
    CONN_KINDS

cdef enum:                      # Connection.state
    ST_HEAD = 0                 # downstream: idle, or a request head comes in. upstream: waiting for a response head
    ST_BODY                     # downstream: exchange under way. upstream: response body under way
    ST_CONNECTING               # upstream
    ST_POOLED                   # upstream, idle

cdef enum:                      # Connection.flags
    F_READABLE = 1              # edge-triggered readiness, cleared by EAGAIN or a short read
    F_WRITABLE = 2
    F_RDHUP = 4                 # the peer's FIN was announced: read on until 0
    F_GONE = 8                  # reset, or both directions closed
    F_WATCH_OUT = 16            # registered for EPOLLOUT
    F_DONE = 32                 # the message this side sends is complete (it may not all be forwarded yet)
    F_SENT = 64                 # ... and forwarded. Opaque: FIN passed on
    F_QUEUED = 128              # on the run queue
    F_CLOSE = 512               # downstream: close after this response. upstream: not reusable
    F_COMMITTED = 1024          # downstream: a byte of the request may have reached a server
    F_ANSWERED = 2048           # downstream: a byte of the final response was forwarded
    F_INTERIM = 4096            # upstream: the head under way is a 1xx
    F_KEPT = 8192               # downstream: all that came of the request is still in the buffer
    F_REQUEST_BROKEN = 16384    # downstream: the server stopped reading; only its response is awaited
    F_TIMED = 32768             # linked into the timer wheel
    F_COUNTED = 65536           # upstream: counted as in flight at its address
    F_REUSED = 131072           # upstream: it carried an earlier request
    F_HEAD_TIMED = 262144       # downstream: the header timeout runs
    F_DIRTY = 524288            # multiplexed: its output queue is to be sent at the end of this loop turn
    F_DOOMED = 1048576          # multiplexed: to be closed as soon as nothing is done on its behalf
    F_APART = 2097152           # multiplexed downstream: its frames are not passed through unread (again)
    F_SOCKET = F_READABLE | F_WRITABLE | F_RDHUP | F_GONE | F_WATCH_OUT | F_TIMED | F_QUEUED    # outlive a message

cdef enum:                      # Connection.waits
    WAIT_NOTHING = 0
    WAIT_HEAD                   # for a small buffer for a head
    WAIT_LARGE_HEAD             # for a large one
    WAIT_STREAM                 # for a small buffer for a body or an opaque stream
    WAIT_LISTS

cdef struct WaitList:
    uint32_t head
    uint32_t tail

cdef struct Listener:
    int32_t fd[64]              # by slot, -1 = none
    bint watched[64]
    bint closing                # removed
    uint32_t open               # connections accepted here and not closed yet
    uint32_t id
    uint8_t used
    uint8_t direction
    uint8_t protocol
    uint8_t service_length
    uint8_t header_length
    uint8_t service[255]
    uint8_t header[255]

cdef struct PoolHead:
    uint32_t first              # index + 1, 0 = empty
    uint32_t count

cdef struct Mux:                # what a multiplexed connection has besides: by its index, private to the worker
    Buffer *first               # output queue: whole frames, none divided between two buffers
    Buffer *last
    uint32_t queued             # bytes in it
    uint32_t before             # of these, bytes that precede the frame that `source` streams
    bint bulky                  # the last read filled its buffer
    uint32_t source             # connection that streams a long frame into this one (its `peer` is this one), or NONE
    uint32_t calls              # first of its calls
    uint32_t outstanding        # number of them
    uint32_t abandoned          # upstream: of these, calls whose caller has gone or got a timeout
    uint32_t dirty_next
    uint32_t waits_for          # connection whose output queue must shrink before the next frame can be taken, or NONE
    uint32_t waiters            # first of those that wait so for this one
    uint32_t next_waiter
    uint32_t shared_next        # upstream: list of the connections to one address
    uint32_t shared_previous
    uint64_t moved_ms           # when bytes of the queue last left, or it began to fill
    uint64_t heard_ms           # upstream: when bytes last came
    uint64_t pinged_ms          # upstream: when it was asked for a sign of life; 0 = it was not

cdef struct Call:               # a request under way, by its index in its id on the upstream connection
    uint64_t caller_id
    uint64_t begun_us
    uint64_t deadline_ms
    uint32_t downstream         # NONE: nobody waits for the response any more
    uint32_t upstream           # NONE: not in use
    uint32_t down_next
    uint32_t down_previous
    uint32_t up_next
    uint32_t up_previous
    uint32_t timer_next
    uint32_t timer_previous
    uint32_t timer_slot         # NONE: not in the wheel
    uint32_t round              # changes with each use
    uint32_t sid
    uint32_t sid_gen
    uint32_t tried[3]
    uint8_t tried_count
    uint8_t version             # of its frame, for a response of our own
    uint8_t serialization
    uint8_t flags
    uint8_t command

cdef struct Worker:
    Shm shm
    uint32_t slot
    WorkerBlock *block
    WorkerBlock *blocks
    const uint32_t *settings
    uint32_t *inflight          # this worker's cells, by address
    AddressState *address_states
    const Address *addresses
    Connection *connections
    uint32_t max_connections
    uint32_t fresh              # connections below this index were used before
    uint32_t free_head
    uint32_t live               # connections in use
    uint32_t downstreams
    PoolHead *pool              # by address
    Mux *mux                    # by connection
    PoolHead *shared            # multiplexed upstream connections, by address
    uint32_t dirty              # first of the connections whose output queue is to be sent
    Call *calls
    uint32_t calls_fresh        # calls below this index were used before
    uint32_t free_call
    uint32_t calls_timed
    uint32_t call_wheel[512]
    uint64_t call_tick
    Balance balance
    int epoll
    int inbox
    int wake
    int alive
    int outboxes[64]
    Listener listeners[64]
    bint exclusive
    bint hand_over
    bint accepting              # false while short of connections or descriptors
    bint draining
    bint stop
    uint64_t now_ms
    uint64_t now_us
    uint64_t accept_again_ms
    uint32_t wheel[512]
    uint64_t wheel_used[8]      # bitmap of non-empty slots
    uint64_t wheel_tick         # next tick to look at
    uint32_t run_head
    uint32_t run_tail
    uint32_t run_count
    WaitList waiting[4]         # connections that wait for a buffer, by WAIT_*
    uint32_t waiters
    Buffer *small
    Buffer *large
    Pipe *pipes
    uint32_t small_free
    uint32_t large_free
    uint32_t pipes_free
    uint32_t buffers_used       # in units of SMALL_BUFFER
    uint32_t pipes_used
