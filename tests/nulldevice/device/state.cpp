// State of the null device and its memory: addresses that the host cannot touch, and a shadow with their contents.
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "device.h"

Counters counters;
thread_local cudaError_t last_error = cudaSuccess;
thread_local int current = 0;
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;
thread_local int own_captures = 0;
std::atomic<int> active_captures{0};

namespace {

long setting(const char* name, long fallback) {
  const char* text = getenv(name);
  return text ? atol(text) : fallback;
}

// Reserves addresses without access, which a limit of the process's data does not count.
char* reserve(size_t size) {
  void* p = mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    perror("nulldevice: mmap");
    abort();
  }
  return static_cast<char*>(p);
}

}  // namespace

State::State() {
  devices = static_cast<int>(setting("NULLDEVICE_DEVICES", 1));
  verbose = setting("NULLDEVICE_VERBOSE", 0);
  device_base = reserve(kSpan * devices);
  shadow_base = reserve(kSpan * devices);
  top.assign(devices, size_t(2) << 20);
  used.assign(devices, 0);
  for (int i = 0; i < devices; ++i) legacy.push_back(new Stream{{kStream, i}, 0, 0, kLegacyStream, {}, {}});
}

bool zero_scalars() { return setting("NULLDEVICE_ZERO_SCALARS", 0); }

State& state() {
  static State* s = new State;  // never destroyed: libraries call CUDA from their own destructors
  return *s;
}

cudaError_t fail(cudaError_t code, const char* where) {
  last_error = code;
  COUNT(errors);
  if (state().verbose) fprintf(stderr, "nulldevice: %s returns %d (%s)\n", where, code, cudaGetErrorName(code));
  return code;
}

CUresult result(cudaError_t error) { return static_cast<CUresult>(error); }

uint64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}

bool is_device(const void* p) {
  auto c = static_cast<const char*>(p);
  return c >= state().device_base && c < state().device_base + kSpan * state().devices;
}
int device_of(const void* p) { return (static_cast<const char*>(p) - state().device_base) / kSpan; }
char* contents(const void* p) {
  auto c = const_cast<char*>(static_cast<const char*>(p));
  return is_device(p) ? state().shadow_base + (c - state().device_base) : c;
}
const std::pair<char* const, Block>* block_of(const void* p) {
  auto c = const_cast<char*>(static_cast<const char*>(p));
  auto it = state().blocks.upper_bound(c);
  if (it == state().blocks.begin()) return nullptr;
  --it;
  return c < it->first + it->second.size ? &*it : nullptr;
}
bool is_pinned(const void* p) {
  auto c = const_cast<char*>(static_cast<const char*>(p));
  auto it = state().pinned.upper_bound(c);
  if (it == state().pinned.begin()) return false;
  --it;
  return c < it->first + it->second;
}
bool reachable(const void* p, size_t n) {  // device ranges must lie in one allocation
  if (!n || !is_device(p)) return true;
  Lock hold(state().lock);
  auto block = block_of(p);
  return block && static_cast<const char*>(p) + n <= block->first + block->second.size;
}
void* take(size_t size, int device) {
  State& s = state();
  Lock hold(s.lock);
  size_t room = (size + kPage - 1) / kPage * kPage;
  if (s.used[device] + room > kMemory) return nullptr;
  char* p;
  auto it = s.free.find({device, room});
  if (it != s.free.end()) {
    p = it->second;
  } else {
    size_t start = s.top[device];
    if (room >= (1 << 20)) start = (start + (2 << 20) - 1) / (2 << 20) * (2 << 20);
    if (start + room + kPage > kSpan) return nullptr;
    p = s.device_base + device * kSpan + start;
  }
  // From here on the limit of the process's data counts it.
  if (mprotect(contents(p), room, PROT_READ | PROT_WRITE)) return nullptr;
  if (it != s.free.end())
    s.free.erase(it);
  else
    s.top[device] = p - s.device_base - device * kSpan + room + kPage;  // a page that belongs to no block between two
  s.blocks[p] = {size, room};
  s.used[device] += room;
  COUNT(allocations), COUNT(live_allocations);
  counters.live_bytes += size;
  return p;
}

bool give(void* p) {
  State& s = state();
  Lock hold(s.lock);
  auto it = s.blocks.find(static_cast<char*>(p));
  if (it == s.blocks.end()) return false;
  Block block = it->second;
  s.blocks.erase(it);
  madvise(contents(p), block.room, MADV_DONTNEED);  // reads as zeros again
  mprotect(contents(p), block.room, PROT_NONE);
  s.free.insert({{device_of(p), block.room}, static_cast<char*>(p)});
  s.used[device_of(p)] -= block.room;
  COUNT(frees);
  counters.live_allocations--, counters.live_bytes -= block.size;
  return true;
}
