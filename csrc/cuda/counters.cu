// Counters of the blocks that finished: a slot of device memory per stream, and per captured graph and stream.
//
// The memory is not the framework's: a slot outlives the call, and captures account for all that is left in the pool
// of a graph.

#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>

#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "../../kernels/cuda/bn_act_walk.cuh"
#include "counters.h"

namespace hrnet_fast::cuda {

namespace {

constexpr size_t kSlotBytes = kMaxMaps * kCounters * sizeof(uint32_t);
constexpr int kSlotsAtOnce = 16;

class Slots {
 public:
  uint32_t* take(int device) {
    auto& free = free_[device];
    if (free.empty()) {
      // Another thread may capture: this allocation is none of its graph's.
      const c10::cuda::CUDAStreamCaptureModeGuard guard(cudaStreamCaptureModeRelaxed);
      char* memory = nullptr;
      C10_CUDA_CHECK(cudaMalloc(&memory, kSlotsAtOnce * kSlotBytes));
      for (int i = 0; i < kSlotsAtOnce; ++i) free.push_back(reinterpret_cast<uint32_t*>(memory + i * kSlotBytes));
    }
    uint32_t* slot = free.back();
    free.pop_back();
    return slot;
  }
  void put_back(int device, uint32_t* slot) { free_[device].push_back(slot); }

 private:
  std::map<int, std::vector<uint32_t*>> free_;
};

struct Owned {
  uint32_t* eager = nullptr;
  uint32_t* captured = nullptr;
  unsigned long long capture = 0;  // the capture that has `captured`
};

struct State {
  std::mutex mutex;
  Slots slots;
  std::map<std::pair<int, c10::StreamId>, Owned> owned;
};

// Never destroyed: graphs may be after it.
State& state() {
  static State* const all = new State;
  return *all;
}

struct Lease {
  int device;
  uint32_t* slot;
};

// The graph that had the slot is gone. No call of CUDA is allowed here.
void end(void* lease) {
  const std::unique_ptr<Lease> own(static_cast<Lease*>(lease));
  const std::lock_guard<std::mutex> lock(state().mutex);
  state().slots.put_back(own->device, own->slot);
}

void keep_with(cudaGraph_t graph, int device, uint32_t* slot) {
  cudaUserObject_t object;
  C10_CUDA_CHECK(cudaUserObjectCreate(&object, new Lease{device, slot}, end, 1, cudaUserObjectNoDestructorSync));
  C10_CUDA_CHECK(cudaGraphRetainUserObject(graph, object, 1, cudaGraphUserObjectMove));
}

}  // namespace

uint32_t* counters_of(const c10::cuda::CUDAStream& stream) {
  cudaStreamCaptureStatus status;
  unsigned long long capture = 0;
  cudaGraph_t graph = nullptr;
#if CUDART_VERSION >= 13000
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo(stream.stream(), &status, &capture, &graph));
#else
  C10_CUDA_CHECK(cudaStreamGetCaptureInfo_v2(stream.stream(), &status, &capture, &graph));
#endif
  const int device = stream.device_index();
  const std::lock_guard<std::mutex> lock(state().mutex);
  Owned& own = state().owned[{device, stream.id()}];
  const bool captures = status != cudaStreamCaptureStatusNone;
  if (captures ? own.captured != nullptr && own.capture == capture : own.eager != nullptr)
    return captures ? own.captured : own.eager;
  uint32_t* slot = state().slots.take(device);
  if (captures) keep_with(graph, device, slot);
  C10_CUDA_CHECK(cudaMemsetAsync(slot, 0, kSlotBytes, stream.stream()));
  (captures ? own.captured : own.eager) = slot;
  if (captures) own.capture = capture;
  return slot;
}

}  // namespace hrnet_fast::cuda
