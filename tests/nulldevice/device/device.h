// State of the null device, and the rules of CUDA that its entries share: allocations, captures, launches.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <pthread.h>

#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "counters.h"

#define COUNT(field) (counters.field.fetch_add(1, std::memory_order_relaxed))
#define FAIL(code) return fail((code), __func__)
#define CHECK(call)                                 \
  do {                                              \
    if (cudaError_t error_ = (call)) return error_; \
  } while (0)

// What a handle's first word says. A destroyed object stays in memory as kDead, so that a later use of it is seen.
enum Magic : uint32_t { kStream = 0x53545245, kEvent = 0x4556454e, kGraph = 0x47524150, kExec = 0x45584543, kDead = 1 };

struct Object {
  uint32_t magic;
  int device;
};
struct Node {
  cudaGraphNodeType type;
  std::vector<Node*> deps;
  std::function<void()> op;  // what a launch of the graph does; empty for kernels
};
struct Graph : Object {
  std::vector<std::unique_ptr<Node>> nodes;
  std::vector<std::shared_ptr<void>> kept;  // user objects
};
struct Exec : Object {
  std::vector<std::function<void()>> ops;
  std::vector<std::shared_ptr<void>> kept;
  uint64_t nodes, kernels;
};
struct Stream;
struct Capture {
  unsigned long long id;
  cudaStreamCaptureMode mode;
  pthread_t thread;
  Stream* origin;
  Graph* graph;
  bool valid = true, ended = false;
  std::set<Stream*> streams;
};
struct Stream : Object {
  unsigned flags;
  int priority;
  unsigned long long id;
  std::shared_ptr<Capture> capture;
  std::vector<Node*> last;  // what the next operation of a captured stream depends on
};
struct Event : Object {
  unsigned flags;
  bool recorded = false;
  uint64_t time = 0;
  std::shared_ptr<Capture> capture;
  std::vector<Node*> last;
};
struct Function {
  std::string name;
  std::atomic<uint64_t> launches{0};
  int max_dynamic = 48 << 10;  // bytes of dynamic shared memory
};
struct Module {
  std::string image;
  std::map<std::string, Function*> functions;
};
struct Block {
  size_t size, room;
};

constexpr size_t kSpan = size_t(1) << 39;  // addresses per device
constexpr size_t kPage = 4096;
constexpr size_t kMemory = size_t(79) << 30;  // of one device
constexpr unsigned long long kLegacyStream = 1;

struct State {
  std::recursive_mutex lock;
  int devices = 1;
  bool verbose = false;
  char* device_base = nullptr;  // addresses given out; the host cannot touch them
  char* shadow_base = nullptr;  // where their contents are
  std::vector<size_t> top, used;
  std::map<char*, Block> blocks;
  std::multimap<std::pair<int, size_t>, char*> free;
  std::map<char*, size_t> pinned;
  std::set<std::shared_ptr<Capture>> captures;
  std::unordered_map<const void*, Function*> functions;  // by the host's stub, as nvcc registers them
  std::map<std::string, Function*> by_name;
  std::vector<Stream*> legacy;
  unsigned long long ids = 0;
  State();
};
State& state();
bool zero_scalars();  // whether small copies to the host deliver zeros: asked at each, so that a test can change it
using Lock = std::lock_guard<std::recursive_mutex>;

extern Counters counters;
extern thread_local cudaError_t last_error;
extern thread_local int current;  // device
extern thread_local cudaStreamCaptureMode thread_mode;
extern thread_local int own_captures;
extern std::atomic<int> active_captures;

cudaError_t fail(cudaError_t code, const char* where);
CUresult result(cudaError_t error);
uint64_t now();  // nanoseconds

// Memory. `contents` turns an address of the device into where the host finds its bytes.
bool is_device(const void* p);
int device_of(const void* p);
char* contents(const void* p);
const std::pair<char* const, Block>* block_of(const void* p);
bool is_pinned(const void* p);
bool reachable(const void* p, size_t n);  // whether a device's range lies in one allocation
void* take(size_t size, int device);
bool give(void* p);

// Captures.
Stream* stream_of(cudaStream_t handle);
void invalidate(Capture& capture);
// The legacy stream waits for every blocking stream, so its use breaks a capture that runs on one.
cudaError_t break_captures_by_legacy(Stream* stream);
// Calls that CUDA's documentation names potentially unsafe: refused by the thread's mode and the running captures'
// modes.
cudaError_t refuse_unsafe(const char* where);
cudaError_t may_query(cudaStream_t handle, const char* where);
cudaError_t enqueue(cudaStream_t handle, cudaGraphNodeType type, const std::function<void()>& op, const char* where,
                    bool own_device = false);

// Kernels.
cudaError_t launch(Function* f, dim3 grid, dim3 block, size_t shared, cudaStream_t stream, const char* where);
Function* function_of(const void* host);
Function* function_named(const std::string& name);
cudaError_t set_attribute(Function* f, int which, int value, const char* where);
int blocks_per_multiprocessor(int threads, size_t shared);
int device_attribute(int which);  // of an H100

template <class T>
T* object(void* handle, Magic magic) {
  auto it = static_cast<T*>(handle);
  return it && it->magic == magic ? it : nullptr;
}
