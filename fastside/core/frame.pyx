# What the codecs of the multiplexed protocols share: numbers and names on the wire, and a Frame for Python.

cdef extern from *:
    """
    static const char *const fs_frame_reasons[] = {
        "not this protocol",
        "unknown protocol version",
        "unknown kind of frame",
        "bad length",
        "front of the frame too long",
        "bad front of the frame",
        "bad name",
    };
    #define FS_FRAME_REASONS ((int)(sizeof fs_frame_reasons / sizeof fs_frame_reasons[0]))
    """
    const char *fs_frame_reasons[]
    int FS_FRAME_REASONS


cdef inline bint is_name(const uint8_t *p, Span span) noexcept nogil:
    """The span is short enough for a key and has no control characters; bytes of other alphabets are let through."""
    cdef uint32_t i = span.start
    cdef uint32_t end = span.start + span.length
    if span.length > MAX_KEY:
        return False
    if span.length >= 8:
        while end - i > 8:
            if has_control(load_8(p + i)):
                return False
            i += 8
        return not has_control(load_8(p + end - 8))
    while i < end:
        if p[i] < 32 or p[i] == 127:
            return False
        i += 1
    return True


cdef const char *frame_reason_text(int reason) noexcept nogil:
    if reason < FRAME_BAD or reason >= BAD_END:
        return b""
    return fs_frame_reasons[reason - FRAME_BAD]


assert FS_FRAME_REASONS == BAD_END - FRAME_BAD
FRAME_REASONS = tuple([frame_reason_text(reason).decode() for reason in range(FRAME_BAD, BAD_END)])
FRAME_KINDS = ("request", "one-way", "response", "heartbeat", "heartbeat answer", "notice", "read-only", "writable")
assert len(FRAME_KINDS) == FRAME_WRITABLE + 1
FRAME_FAILURES = ("no service", "no endpoint", "connect", "closed", "timeout", "overload", "loop")
assert len(FRAME_FAILURES) == FAIL_LOOP + 1


# -- for tests and `fastside explain` --------------------------------------------------------------------------------

cdef dict _frame(int outcome, const uint8_t *p, const Frame *f):
    """What a codec's parse function returns to Python: {"need_more": True}, {"reject": one of FRAME_REASONS}, or the
    frame, with "" for names that it does not have and None for a status or timeout that it does not have."""
    if outcome == FRAME_MORE:
        return {"need_more": True}
    if outcome != FRAME_OK:
        return {"reject": frame_reason_text(outcome).decode()}
    return {
        "protocol": "bolt" if f.protocol == PROTOCOL_BOLT else "dubbo",
        "protocol_version": f.version,
        "kind": FRAME_KINDS[f.kind],
        "id": f.id,
        "length": f.length,
        "front": f.front,
        "serialization": f.serialization,
        "timeout_ms": f.timeout_ms if f.timeout_ms > 0 else None,
        "status": f.status if f.kind == FRAME_RESPONSE else None,
        "crc": bool(f.flags & FRAME_CRC),
        "service": _name(p, f.service),
        "version": _name(p, f.service_version),
        "method": _name(p, f.method),
        "group": _name(p, f.group),
    }


cdef str _name(const uint8_t *p, Span span):
    return (<const char *>p)[span.start:span.start + span.length].decode("utf-8", "replace")
