include "core/linux.pxd"
include "core/native.pxd"
include "core/names.pxd"
include "core/http1.pxd"
