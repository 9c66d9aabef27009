SETTINGS = (
    "connect_ms", "header_ms", "request_ms", "keepalive_ms", "idle_ms", "half_close_ms", "pool_idle_ms", "pool_size",
    "head_bytes", "headers", "attempts", "splice_bytes", "eject_failures", "eject_ms", "buffers",
)
assert len(SETTINGS) == SETTINGS_COUNT
