// The runtime's allocations, copies and fills.
#include <stdlib.h>
#include <string.h>

#include "device.h"

extern "C" {
static cudaError_t allocate(void** p, size_t n, const char* where) {
  if (!p) return fail(cudaErrorInvalidValue, where);
  *p = nullptr;
  if (n && !(*p = take(n, current))) return fail(cudaErrorMemoryAllocation, where);
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** p, size_t n) {
  CHECK(refuse_unsafe(__func__));
  return allocate(p, n, __func__);
}
cudaError_t cudaFree(void* p) {
  CHECK(refuse_unsafe(__func__));
  if (p && !give(p)) FAIL(cudaErrorInvalidValue);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** p, size_t n, unsigned) {
  CHECK(refuse_unsafe(__func__));
  if (posix_memalign(p, kPage, n ? n : 1)) FAIL(cudaErrorMemoryAllocation);
  Lock hold(state().lock);
  state().pinned[static_cast<char*>(*p)] = n;
  COUNT(host_allocations), COUNT(live_host_allocations);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* p) {
  CHECK(refuse_unsafe(__func__));
  Lock hold(state().lock);
  if (p && !state().pinned.erase(static_cast<char*>(p))) FAIL(cudaErrorInvalidValue);
  if (p) counters.live_host_allocations--;
  free(p);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* left, size_t* total) {
  *total = kMemory, *left = kMemory - state().used[current];
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void* p) {
  memset(a, 0, sizeof *a);
  Lock hold(state().lock);
  a->device = -2;
  if (is_device(p) && block_of(p)) {
    a->type = cudaMemoryTypeDevice, a->device = device_of(p), a->devicePointer = const_cast<void*>(p);
  } else if (is_pinned(p)) {
    a->type = cudaMemoryTypeHost, a->device = current, a->devicePointer = a->hostPointer = const_cast<void*>(p);
  } else {
    a->type = cudaMemoryTypeUnregistered, a->hostPointer = const_cast<void*>(p);
  }
  return cudaSuccess;
}
static cudaError_t copy(void* d, const void* s, size_t n, cudaMemcpyKind kind, cudaStream_t stream, const char* where) {
  if (!n) return cudaSuccess;
  bool to = is_device(d), from = is_device(s);
  bool wrong = (kind == cudaMemcpyHostToDevice && from) || (kind == cudaMemcpyDeviceToHost && to);
  {
    Lock hold(state().lock);
    wrong = wrong || (!to && (kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice) && !is_pinned(d)) ||
            (!from && (kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice) && !is_pinned(s));
  }
  if (!d || !s || wrong || !reachable(d, n) || !reachable(s, n)) return fail(cudaErrorInvalidValue, where);
  bool blank = from && !to && n <= 8 && zero_scalars();  // what the host would decide on is always 0
  auto work = [=] { blank ? memset(contents(d), 0, n) : memmove(contents(d), contents(s), n); };
  CHECK(enqueue(stream, cudaGraphNodeTypeMemcpy, work, where));
  COUNT(memcpys);
  if (from && !to) COUNT(to_host), counters.bytes_to_host += n;
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind kind) {
  COUNT(synchronizations);
  CHECK(may_query(nullptr, __func__));
  return copy(d, s, n, kind, nullptr, __func__);
}
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind kind, cudaStream_t stream) {
  return copy(d, s, n, kind, stream, __func__);
}
cudaError_t cudaMemcpyPeerAsync(void* d, int, const void* s, int, size_t n, cudaStream_t stream) {
  return copy(d, s, n, cudaMemcpyDeviceToDevice, stream, __func__);
}
static cudaError_t fill(void* p, size_t n, cudaStream_t stream, const std::function<void()>& op, const char* where) {
  if (!n) return cudaSuccess;
  if (!is_device(p) || !reachable(p, n)) return fail(cudaErrorInvalidValue, where);
  CHECK(enqueue(stream, cudaGraphNodeTypeMemset, op, where));
  COUNT(memsets);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t s) {
  return fill(p, n, s, [=] { memset(contents(p), v, n); }, __func__);
}
cudaError_t cudaMemset(void* p, int v, size_t n) {
  CHECK(refuse_unsafe(__func__));
  return cudaMemsetAsync(p, v, n, nullptr);
}
}  // extern "C"
