// Shared by the CUDA kernels: maps in memory, packs of values, exact division by an invariant.
//
// Framework-free. `HF_CUDA_SHIM` names a header that replaces the CUDA runtime when the kernels run on a host
// (tests/cuda_host).

#pragma once

#if defined(HF_CUDA_SHIM)
#include HF_CUDA_SHIM
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cstdint>

#include "resample.h"

#define HF_DEVICE __device__ __forceinline__

namespace hrnet_fast::cuda {

constexpr int kThreads = 256;  // threads of a block, in every kernel
// Minimum blocks per multiprocessor, which allows 64 registers per thread. Without it the compiler uses fewer and
// spills.
constexpr int kBlocks = 4;
constexpr int kMaxTerms = 8;

// The arithmetic type of a type: float for half types.
template <typename T>
struct Math {
  using type = float;
};
template <>
struct Math<double> {
  using type = double;
};
template <typename T>
using math_t = typename Math<T>::type;

HF_DEVICE float to_math(float value) { return value; }
HF_DEVICE double to_math(double value) { return value; }
HF_DEVICE float to_math(__half value) { return __half2float(value); }
HF_DEVICE float to_math(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
HF_DEVICE T from_math(math_t<T> value) {
  return value;
}
template <>
HF_DEVICE __half from_math<__half>(float value) {
  return __float2half_rn(value);
}
template <>
HF_DEVICE __nv_bfloat16 from_math<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// Values loaded or stored together: 16 bytes are one 128-bit access.
template <typename T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T values[kWidth];
};

// The widest pack. Narrower ones are pairs (18 channels of a half type, for instance) and single values.
template <typename T>
constexpr int kVectorWidth = 16 / static_cast<int>(sizeof(T));

template <int kWidth, typename T>
HF_DEVICE Pack<T, kWidth> read_pack(const T* from) {
  return *reinterpret_cast<const Pack<T, kWidth>*>(from);
}

template <int kWidth, typename T>
HF_DEVICE void read(const T* from, math_t<T> (&to)[kWidth]) {
  const Pack<T, kWidth> pack = read_pack<kWidth>(from);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) to[j] = to_math(pack.values[j]);
}

template <int kWidth, typename T>
HF_DEVICE void write(T* to, const math_t<T> (&from)[kWidth]) {
  Pack<T, kWidth> pack;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) pack.values[j] = from_math<T>(from[j]);
  *reinterpret_cast<Pack<T, kWidth>*>(to) = pack;
}

// Per-channel parameters: narrower packs than the map's, as float may be wider than its type.
template <int kWidth, typename M>
HF_DEVICE void read_channels(const M* from, M (&to)[kWidth]) {
  constexpr int kPart = kWidth < kVectorWidth<M> ? kWidth : kVectorWidth<M>;
#pragma unroll
  for (int i = 0; i < kWidth; i += kPart) {
    const Pack<M, kPart> pack = *reinterpret_cast<const Pack<M, kPart>*>(from + i);
#pragma unroll
    for (int j = 0; j < kPart; ++j) to[i + j] = pack.values[j];
  }
}

// A feature map [N, C, h, w]. `step` is from pixel to pixel of a channels-last map, from channel to channel of a
// contiguous one; rows are adjacent. A map may be a slice of the channels of a larger one.
template <typename T>
struct Map {
  T* data;
  int64_t image_step;
  int64_t step;

  template <bool kChannelsLast>
  HF_DEVICE T* at(uint32_t image, uint32_t channel, uint32_t pixel) const {
    T* origin = data + static_cast<int64_t>(image) * image_step;
    return kChannelsLast ? origin + (static_cast<int64_t>(pixel) * step + channel)
                         : origin + (static_cast<int64_t>(channel) * step + pixel);
  }
};

template <typename T>
Map<const T> readable(const Map<T>& map) {
  return {map.data, map.image_step, map.step};
}

// Division of numbers below 2^31 by an invariant one: a multiplication and a shift.
class Divider {
 public:
  Divider() = default;
  explicit Divider(uint32_t divisor) : divisor_(divisor) {
    while (shift_ < 31 && (1u << shift_) < divisor) ++shift_;
    const uint64_t missing = (uint64_t{1} << shift_) - divisor;
    factor_ = static_cast<uint32_t>((missing << 32) / divisor + 1);
  }

  HF_DEVICE uint32_t quotient(uint32_t n) const {
    return (static_cast<uint32_t>((static_cast<uint64_t>(n) * factor_) >> 32) + n) >> shift_;
  }
  HF_DEVICE uint32_t remainder(uint32_t n, uint32_t quotient) const { return n - quotient * divisor_; }

 private:
  uint32_t divisor_ = 1;
  uint32_t factor_ = 1;
  uint32_t shift_ = 0;
};

constexpr int64_t kMaxItems = (int64_t{1} << 31) - kThreads;  // packs of one image, so that 32 bits index them

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether packs of `width` values are aligned at the address; an access has at most 16 bytes.
template <typename T>
bool aligned(const T* pointer, int width) {
  const uintptr_t bytes = sizeof(T) * width;
  return reinterpret_cast<uintptr_t>(pointer) % (bytes < 16 ? bytes : 16) == 0;
}

// Whether every pack of a map is aligned.
template <typename T>
bool aligned(const Map<T>& map, int width) {
  return aligned(map.data, width) && map.image_step % width == 0 && map.step % width == 0;
}

template <typename Kernel, typename Plan>
cudaError_t launch(Kernel kernel, unsigned blocks, unsigned rows, const Plan& plan, cudaStream_t stream) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks, rows);
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, plan);
}

}  // namespace hrnet_fast::cuda
