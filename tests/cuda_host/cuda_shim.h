// Stands in for the CUDA runtime, so that the kernels run on a host, under sanitizers: one block after another, its
// threads as fibers that take turns at every __syncthreads().

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one at a time

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
using cudaStream_t = void*;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};

inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float __bfloat162float(__nv_bfloat16 value) { return float_of(static_cast<uint32_t>(value.bits) << 16); }

inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = bits_of(value);
  if (std::isnan(value)) return {0x7FFF};
  return {static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

inline float __half2float(__half value) {
  const int exponent = (value.bits >> 10) & 31, mantissa = value.bits & 1023;
  float magnitude = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -24)
                                  : std::ldexp(static_cast<float>(1024 + mantissa), exponent - 25);
  if (exponent == 31) magnitude = mantissa ? NAN : INFINITY;
  return value.bits & 0x8000 ? -magnitude : magnitude;
}

inline __half __float2half_rn(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float magnitude = std::fabs(value);
  uint32_t bits = 0x7C00;  // infinity, which 65520 already rounds to
  if (std::isnan(value))
    bits = 0x7FFF;
  else if (magnitude < 0x1p-14f)
    bits = static_cast<uint32_t>(std::nearbyint(magnitude * 0x1p24f));
  else if (magnitude < 65520.0f)
    bits = (bits_of(magnitude) + 0xFFFu + ((bits_of(magnitude) >> 13) & 1u) - (112u << 23)) >> 13;
  return {static_cast<uint16_t>(sign | bits)};
}

namespace shim {

constexpr size_t kStack = 64 * 1024;

// A stack and where it goes on. ASan is told about each switch.
struct Context {
  void* resume[5];  // of __builtin_setjmp
  const void* bottom = nullptr;
  size_t size = 0;
  void* fake = nullptr;
};

// The two builtins keep no signal mask: swapcontext takes a system call for it, and ASan's version of swapcontext
// clears what is known of the whole stack.
__attribute__((noinline, no_sanitize("address", "undefined"))) inline void change(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.size);
#endif
  if (__builtin_setjmp(from.resume) == 0) __builtin_longjmp(to.resume, 1);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
}

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  bool finished = false;
};

inline Context scheduler;
inline std::deque<Fiber> fibers;  // each stays where it is
inline Fiber* running = nullptr;
inline std::function<void()> body;
inline long barriers = 0;

enum class Order : int { kAscending = 0, kDescending = 1, kShuffled = 2 };
inline Order order = Order::kAscending;  // of a launch's blocks

// Runs one thread of each block, beginning with the one that `change` asks for next.
inline void enter() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.bottom, &scheduler.size);
#endif
  while (true) {
    change(running->context, scheduler);
    body();
    running->finished = true;
  }
}

__attribute__((noinline, no_sanitize("address", "undefined"))) inline void start(Fiber& fiber) {
  running = &fiber;
  fiber.context.bottom = fiber.stack.get();
  fiber.context.size = kStack;
  ucontext_t first;
  getcontext(&first);
  first.uc_stack.ss_sp = fiber.stack.get();
  first.uc_stack.ss_size = kStack;
  first.uc_link = nullptr;
  makecontext(&first, enter, 0);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler.fake, fiber.context.bottom, kStack);
#endif
  if (__builtin_setjmp(scheduler.resume) == 0) setcontext(&first);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler.fake, nullptr, nullptr);
#endif
}

// Between two barriers threads take turns in order, or against it: what depends on the order is a race.
inline void run_block(unsigned threads, bool backwards) {
  while (fibers.size() < threads) start(fibers.emplace_back());
  for (unsigned left = threads; left > 0;) {
    unsigned ended = 0;
    for (unsigned i = 0; i < threads; ++i) {
      threadIdx = dim3(backwards ? threads - 1 - i : i, 0, 0);
      running = &fibers[threadIdx.x];
      running->finished = false;
      change(scheduler, running->context);
      ended += running->finished;
    }
    if (ended != 0 && ended != threads) {
      std::fprintf(stderr, "shim: %u of %u threads passed a barrier that the others never reached\n", threads - ended,
                   threads);
      std::abort();
    }
    left -= ended;
  }
}

}  // namespace shim

inline void __syncthreads() {
  ++shim::barriers;
  shim::change(shim::running->context, shim::scheduler);
}

// Blocks run one after another, so that what one wrote is there for the next.
inline void __threadfence() {}

template <typename T>
T __ldcg(const T* from) {
  return *from;
}

inline unsigned atomicInc(unsigned* counter, unsigned most) {
  const unsigned before = *counter;
  *counter = before >= most ? 0 : before + 1;
  return before;
}

template <typename Plan>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Plan), const Plan& plan) {
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  shim::body = [&] { kernel(plan); };
  std::vector<dim3> blocks;
  for (unsigned y = 0; y < gridDim.y; ++y)
    for (unsigned x = 0; x < gridDim.x; ++x) blocks.emplace_back(x, y);
  if (shim::order == shim::Order::kDescending) std::reverse(blocks.begin(), blocks.end());
  if (shim::order == shim::Order::kShuffled) std::shuffle(blocks.begin(), blocks.end(), std::minstd_rand(7));
  for (const dim3& block : blocks) {
    blockIdx = block;
    shim::run_block(blockDim.x, (block.x + block.y) % 2 == 1);
  }
  return cudaSuccess;
}
