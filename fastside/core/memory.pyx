# Buffers and pipes: taken while bytes are in flight, given back as soon as they are not. Both are bounded per worker.

from libc.stdlib cimport free, malloc


cdef inline uint8_t *buffer_data(Buffer *buffer) noexcept nogil:
    return <uint8_t *> buffer + sizeof(Buffer)


cdef inline uint32_t buffer_units(uint32_t size) noexcept nogil:
    return size // SMALL_BUFFER


cdef inline uint32_t buffer_share(const Worker *w, uint8_t what) noexcept nogil:
    """How many units may be in use when one is taken for WAIT_* what. A stream whose reader stands still keeps its
    buffer, so streams leave a quarter for heads: however many there are, other requests are served."""
    cdef uint32_t all = w.settings[SET_BUFFERS]
    return all - all // 4 if what == WAIT_STREAM else all


cdef Buffer *buffer_take(Worker *w, uint32_t size, uint32_t share) noexcept nogil:
    """A free buffer of SMALL_BUFFER or LARGE_BUFFER bytes, or NULL when with it more than share units were in use."""
    cdef Buffer *buffer
    if w.buffers_used + buffer_units(size) > share:
        return NULL
    if size == SMALL_BUFFER and w.small != NULL:
        buffer = w.small
        w.small = buffer.next
        w.small_free -= 1
    elif size == LARGE_BUFFER and w.large != NULL:
        buffer = w.large
        w.large = buffer.next
        w.large_free -= 1
    else:
        buffer = <Buffer *> malloc(sizeof(Buffer) + size)
        if buffer == NULL:
            return NULL
        buffer.size = size
    w.buffers_used += buffer_units(size)
    w.block.counters[G_BUFFERS] = w.buffers_used
    return buffer


cdef void buffer_give(Worker *w, Buffer *buffer) noexcept nogil:
    w.buffers_used -= buffer_units(buffer.size)
    w.block.counters[G_BUFFERS] = w.buffers_used
    if buffer.size == SMALL_BUFFER and w.small_free < KEEP_SMALL:
        buffer.next = w.small
        w.small = buffer
        w.small_free += 1
    elif buffer.size == LARGE_BUFFER and w.large_free < KEEP_LARGE:
        buffer.next = w.large
        w.large = buffer
        w.large_free += 1
    else:
        free(buffer)


cdef Pipe *pipe_take(Worker *w) noexcept nogil:
    """An empty pipe, or NULL: the caller copies instead."""
    cdef Pipe *pipe
    cdef int ends[2]
    if w.pipes != NULL:
        pipe = w.pipes
        w.pipes = pipe.next
        w.pipes_free -= 1
    else:
        if w.pipes_used >= MAX_PIPES:
            return NULL
        pipe = <Pipe *> malloc(sizeof(Pipe))
        if pipe == NULL:
            return NULL
        if pipe2(ends, O_NONBLOCK | O_CLOEXEC) < 0:
            free(pipe)
            return NULL
        pipe.reader = ends[0]
        pipe.writer = ends[1]
        pipe.held = 0
        # Refused above the user's pipe-user-pages-soft: the default size is then good enough.
        fcntl(pipe.writer, F_SETPIPE_SZ, <int> PIPE_BYTES)
    w.pipes_used += 1
    w.block.counters[G_PIPES] = w.pipes_used
    return pipe


cdef void pipe_give(Worker *w, Pipe *pipe) noexcept nogil:
    w.pipes_used -= 1
    w.block.counters[G_PIPES] = w.pipes_used
    if pipe.held == 0 and w.pipes_free < KEEP_PIPES:
        pipe.next = w.pipes
        w.pipes = pipe
        w.pipes_free += 1
        return
    close(pipe.reader)          # bytes left inside belong to a stream that is gone: never to the next one
    close(pipe.writer)
    free(pipe)
