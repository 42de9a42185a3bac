// Which calls CUDA allows while streams are captured, and kernels that are counted in place of being run.
#include <mutex>

#include "device.h"

Stream* stream_of(cudaStream_t handle) {
  static thread_local Stream* own = nullptr;
  auto value = reinterpret_cast<uintptr_t>(handle);
  if (value <= 1) return state().legacy[current];
  if (value == 2) return own ? own : own = new Stream{{kStream, current}, 0, 0, 2, {}, {}};
  auto stream = reinterpret_cast<Stream*>(handle);
  return stream->magic == kStream ? stream : nullptr;
}
static bool is_legacy(Stream* stream) { return stream->id == 1; }
void invalidate(Capture& capture) {
  if (capture.valid) COUNT(captures_invalidated);
  capture.valid = false;
}
cudaError_t break_captures_by_legacy(Stream* stream) {
  bool broken = false;
  if (is_legacy(stream))
    for (auto& c : state().captures)
      for (Stream* member : c->streams)
        if (!(member->flags & cudaStreamNonBlocking) && member->device == stream->device) invalidate(*c), broken = true;
  return broken ? cudaErrorStreamCaptureImplicit : cudaSuccess;
}
cudaError_t refuse_unsafe(const char* where) {
  if (!active_captures.load(std::memory_order_relaxed) || thread_mode == cudaStreamCaptureModeRelaxed)
    return cudaSuccess;
  Lock hold(state().lock);
  bool broken = false;
  for (auto& c : state().captures) {
    bool mine = pthread_equal(c->thread, pthread_self());
    if (mine ? c->mode != cudaStreamCaptureModeRelaxed
             : thread_mode == cudaStreamCaptureModeGlobal && c->mode == cudaStreamCaptureModeGlobal)
      invalidate(*c), broken = true;
  }
  return broken ? fail(cudaErrorStreamCaptureUnsupported, where) : cudaSuccess;
}
cudaError_t may_query(cudaStream_t handle, const char* where) {
  Stream* stream = stream_of(handle);
  if (!stream) return fail(cudaErrorInvalidResourceHandle, where);
  if (!active_captures.load()) return cudaSuccess;
  Lock hold(state().lock);
  if (stream->capture) {
    bool valid = stream->capture->valid;
    invalidate(*stream->capture);
    return fail(valid ? cudaErrorStreamCaptureUnsupported : cudaErrorStreamCaptureInvalidated, where);
  }
  if (cudaError_t e = break_captures_by_legacy(stream)) return fail(e, where);
  return refuse_unsafe(where);
}
cudaError_t enqueue(cudaStream_t handle, cudaGraphNodeType type, const std::function<void()>& op, const char* where,
                    bool own_device) {
  Stream* stream = stream_of(handle);
  if (!stream || (own_device && stream->device != current)) return fail(cudaErrorInvalidResourceHandle, where);
  if (active_captures.load(std::memory_order_relaxed)) {
    Lock hold(state().lock);
    if (auto capture = stream->capture) {
      if (!capture->valid) return fail(cudaErrorStreamCaptureInvalidated, where);
      auto node = new Node{type, stream->last, op};
      capture->graph->nodes.emplace_back(node);
      stream->last = {node};
      COUNT(captured_nodes);
      return cudaSuccess;
    }
    if (cudaError_t e = break_captures_by_legacy(stream)) return fail(e, where);
    if (own_captures) COUNT(stray_operations);
  }
  if (op) op();
  return cudaSuccess;
}
cudaError_t launch(Function* f, dim3 grid, dim3 block, size_t shared, cudaStream_t stream, const char* where) {
  if (!f) return fail(cudaErrorInvalidDeviceFunction, where);
  if (!grid.x || !grid.y || !grid.z || !block.x || !block.y || !block.z || grid.x > 2147483647u || grid.y > 65535 ||
      grid.z > 65535 || block.x > 1024 || block.y > 1024 || block.z > 64 || block.x * block.y * block.z > 1024)
    return fail(cudaErrorInvalidConfiguration, where);
  if (shared > size_t(f->max_dynamic)) return fail(cudaErrorInvalidValue, where);
  CHECK(enqueue(stream, cudaGraphNodeTypeKernel, nullptr, where, true));
  COUNT(launches);
  if (current) COUNT(launches_beyond_device_0);
  f->launches.fetch_add(1, std::memory_order_relaxed);
  return cudaSuccess;
}
void count_library_launch(void* stream, const char* name) {  // one kernel of cuBLAS, cuDNN, ...
  static std::mutex lock;
  static std::unordered_map<const char*, Function*> known;
  Function* f;
  {
    std::lock_guard<std::mutex> hold(lock);
    Function*& slot = known[name];
    if (!slot) {
      Lock other(state().lock);
      slot = state().by_name[name] = new Function{name};
    }
    f = slot;
  }
  launch(f, {1, 1, 1}, {32, 1, 1}, 0, static_cast<cudaStream_t>(stream), name);
  COUNT(library_launches);
}
Function* function_of(const void* host) {
  Lock hold(state().lock);
  auto it = state().functions.find(host);
  if (it != state().functions.end()) return it->second;
  for (auto& f : state().by_name)
    if (f.second == host) return f.second;  // a cudaKernel_t
  return nullptr;
}
Function* function_named(const std::string& name) {
  Function*& f = state().by_name[name];
  return f ? f : f = new Function{name};
}
