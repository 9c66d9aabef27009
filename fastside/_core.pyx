# The hot path: one extension module, one translation unit, cut by subject. Below the Python API at the end of each file
# everything is nogil, takes no Python object and allocates nothing per request.

include "core/settings.pyx"
include "core/http1.pyx"
include "core/table.pyx"
include "core/balance.pyx"
include "core/stats.pyx"
include "core/memory.pyx"
include "core/timer.pyx"
include "core/connection.pyx"
include "core/upstream.pyx"
include "core/relay.pyx"
include "core/respond.pyx"
include "core/exchange.pyx"
include "core/accept.pyx"
include "core/inbox.pyx"
include "core/loop.pyx"
include "core/inspect.pyx"
