# What a connection speaks, told from its first bytes: pure functions over a byte span.

cdef enum Sniff:                # in the order of sniff.pyx, SNIFF_NAMES
    SNIFF_MORE = 0              # cannot be told yet
    SNIFF_HTTP1
    SNIFF_HTTP2
    SNIFF_BOLT
    SNIFF_DUBBO
    SNIFF_TLS
    SNIFF_OPAQUE                # none of the above, whatever comes next

cdef enum:                      # outcome of tls_server_name
    TLS_MORE = 0                # the ClientHello is not whole yet
    TLS_OK
    TLS_BAD

cdef enum:
    MAX_SERVER_NAME = 255

# One of Sniff for the first bytes p[0:n] of a connection. As soon as the bytes decide, and never later.
cdef int sniff(const uint8_t *p, uint32_t n) noexcept nogil
# The host name that a TLS client asks for (RFC 6066 3), from its first bytes p[0:n], as it was sent. name has room for
# MAX_SERVER_NAME bytes: the name is copied, since it may be split over records. *length is 0 when there is none.
# name and *length are set with TLS_OK.
cdef int tls_server_name(const uint8_t *p, uint32_t n, uint8_t *name, uint8_t *length) noexcept nogil
