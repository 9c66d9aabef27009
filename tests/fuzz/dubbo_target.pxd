include "core/linux.pxd"
include "core/names.pxd"
include "core/frame.pxd"
include "core/dubbo.pxd"
