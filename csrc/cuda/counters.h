// Counters of the blocks that finished, for reductions in one launch.

#pragma once

#include <c10/cuda/CUDAStream.h>

#include <cstdint>

namespace hrnet_fast::cuda {

// Counters that are zero when the next kernel on `stream` starts, and that no kernel uses at the same time if each
// leaves them at zero: enough for the maps of one launch. Launches on one stream share them; a capture has its own, for
// as long as its graph lives, since graphs may run beside the stream that they were captured on.
uint32_t* counters_of(const c10::cuda::CUDAStream& stream);

}  // namespace hrnet_fast::cuda
