# What the codecs and the table agree on: the protocols, how long a name may be, and where one stands in a message.

cdef enum:
    MAX_KEY = 255               # bytes of a service name
    PROTOCOL_HTTP = 0
    PROTOCOL_TCP = 1
    PROTOCOL_BOLT = 2
    PROTOCOL_DUBBO = 3
    PROTOCOL_TLS = 4            # passed through, routed by the server name of its first record
    PROTOCOL_AUTO = 5           # listeners only: each connection says by its first bytes what it speaks

cdef struct Span:               # of a message, counted from its start
    uint32_t start
    uint32_t length
