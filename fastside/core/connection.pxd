# One socket of the data path. Connections live in the state region, so that control can list them without asking a
# worker; all of them belong to one worker, which alone writes them.

cdef struct Buffer:             # from a worker's pool; data at the struct's end
    Buffer *next
    uint32_t size
    uint32_t start              # on an output queue: bytes before it were sent
    uint32_t end                # ... and bytes from it on are free

cdef struct Pipe:
    Pipe *next
    int reader
    int writer
    uint32_t held               # bytes inside

cdef struct Connection:
    # where it is
    int32_t fd
    uint32_t gen                # goes into epoll's data: an event of an earlier use is recognised
    uint8_t kind                # CONN_*
    uint8_t state
    uint8_t listener            # index, downstream only
    uint8_t direction
    uint32_t flags
    uint32_t peer               # the other side of the exchange, or NONE
    # lists: free, pool, buffer waiters (one at a time), the timer wheel and the run queue
    uint32_t next
    uint32_t previous
    uint32_t timer_next
    uint32_t timer_previous
    uint32_t timer_slot
    uint64_t timer_at           # tick of the slot it is linked into
    uint32_t run_next
    uint64_t deadline           # ms, CLOCK_MONOTONIC; 0 = none
    uint64_t since              # ms: accept or connect
    # what this side is sending
    Buffer *buffer
    Pipe *pipe
    uint32_t start              # first byte not yet forwarded
    uint32_t end
    uint32_t ready              # bytes from start that may be forwarded
    uint32_t scanned            # of an incomplete head
    uint64_t remaining          # of a body of known length
    uint64_t streak             # bytes of the body or stream moved so far: decides about splice
    uint64_t bytes              # moved in all
    uint32_t chunk_trailer
    uint8_t chunk_phase
    uint8_t chunk_digits
    uint8_t body                # BODY_*
    uint8_t method
    # the request under way (downstream) or the address (upstream)
    uint64_t request_us
    uint64_t hash               # for consistent hashing
    uint32_t address
    uint32_t address_gen
    uint32_t sid
    uint32_t sid_gen
    uint32_t tried[3]
    uint8_t tried_count
    uint8_t minor
    uint16_t status
    uint16_t peer_port          # of the downstream, network order
    uint8_t peer_family
    uint8_t request_flags
    uint8_t peer_ip[16]
    uint8_t waits               # WAIT_*: on which list for a buffer
    uint8_t protocol            # PROTOCOL_* of a multiplexed connection
    uint8_t version             # ... and what its codec says of it
