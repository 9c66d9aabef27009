# Counters of a worker: one fixed block in shared memory, written by its worker alone, read by control.

cdef enum:                      # indices into WorkerBlock.counters, in the order of COUNTER_NAMES (stats.pyx)
    C_ACCEPTED
    C_HANDED_OVER               # connections given to a sibling
    C_TAKEN_OVER                # connections received from a sibling
    C_REQUESTS
    C_UPSTREAM_CONNECTS
    C_UPSTREAM_REUSES
    C_UPSTREAM_CONNECT_FAILURES
    C_UPSTREAM_STALE            # pooled connections that the server closed
    C_RETRIES
    C_ROUTE_MISSES
    C_NO_ENDPOINTS
    C_LOOPS
    C_TIMEOUT_CONNECT
    C_TIMEOUT_HEADER
    C_TIMEOUT_REQUEST
    C_TIMEOUT_KEEPALIVE
    C_TIMEOUT_IDLE
    C_TIMEOUT_HALF_CLOSE
    C_CLOSE_DONE                # downstream connections, by what ended them
    C_CLOSE_DOWNSTREAM_EOF
    C_CLOSE_DOWNSTREAM_RESET
    C_CLOSE_UPSTREAM
    C_CLOSE_TIMEOUT
    C_CLOSE_REFUSED             # after an error response of our own
    C_CLOSE_DRAIN
    C_BYTES_COPIED
    C_BYTES_SPLICED
    C_BUFFER_WAITS
    C_ACCEPT_PAUSES
    C_HEARTBEATS                # answered here
    C_OVERLOADS                 # calls refused since something was full
    C_LATE_RESPONSES            # for calls whose caller has gone or got a timeout
    C_BATCHES                   # sends of multiplexed output
    C_COUNTERS                  # what precedes are counters, what follows are gauges
    G_DOWNSTREAMS = C_COUNTERS
    G_UPSTREAMS
    G_POOLED
    G_BUFFERS
    G_PIPES
    G_CALLS                     # multiplexed, under way
    C_STATISTICS
    C_REJECTS = 160             # counters[C_REJECTS + i]: requests or responses refused for HttpReason HTTP_REJECT + i
    C_FRAME_REASONS = 224       # counters[C_FRAME_REASONS + i]: frames refused for FrameReason FRAME_BAD + i
