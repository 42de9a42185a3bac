// Source indices and weights of resampling, and their adjoint, for fuse_sum.
//
// Used by the CPU operator, the CUDA kernels and the tests that run them on a host. It includes no framework or CUDA
// header: plain C++ with an attribute for CUDA compilers. Indices and weights are those of
// torch.nn.functional.interpolate with `size` given (not `scale_factor`), so that results agree with the reference.

#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define HF_INLINE __host__ __device__ __forceinline__
#else
#define HF_INLINE inline __attribute__((always_inline))
#endif

namespace hrnet_fast {

enum class Resample : int { kNearest = 0, kBilinear = 1, kBilinearAligned = 2 };

// Two neighbours along one axis and the weight of the second; the first weighs 1 - weight. Index is int32_t on devices,
// where 64-bit arithmetic costs several instructions.
template <typename T, typename Index = int64_t>
struct Neighbours {
  Index first;
  Index second;
  T weight;
};

// The ratio of input to output coordinates along one axis.
template <typename T>
HF_INLINE T axis_scale(Resample mode, int64_t in, int64_t out) {
  if (mode == Resample::kBilinearAligned) return out > 1 ? static_cast<T>(in - 1) / static_cast<T>(out - 1) : T(0);
  if (mode == Resample::kNearest) return static_cast<T>(static_cast<float>(in) / static_cast<float>(out));
  return static_cast<T>(in) / static_cast<T>(out);
}

// The inputs that output element `dst` mixes along one axis of `in` elements.
template <typename T, typename Index>
HF_INLINE Neighbours<T, Index> neighbours(Resample mode, T scale, Index dst, Index in) {
  if (mode == Resample::kNearest) {
    // PyTorch computes scale and index in float for every dtype.
    Index index = static_cast<Index>(static_cast<float>(dst) * static_cast<float>(scale));
    index = index < in - 1 ? index : in - 1;
    return {index, index, T(0)};
  }
  T position = mode == Resample::kBilinearAligned ? static_cast<T>(dst) * scale
                                                  : (static_cast<T>(dst) + T(0.5)) * scale - T(0.5);
  position = position > T(0) ? position : T(0);
  Index first = static_cast<Index>(position);
  first = first < in - 1 ? first : in - 1;
  T weight = position - static_cast<T>(first);
  weight = weight < T(1) ? weight : T(1);
  const Index second = first + (first < in - 1 ? 1 : 0);
  return {first, second, weight};
}

// The weight of input `src` in output `dst`, by the same arithmetic as the forward.
template <typename T, typename Index>
HF_INLINE T weight_of(Resample mode, T scale, Index dst, Index src, Index in) {
  const Neighbours<T, Index> n = neighbours<T, Index>(mode, scale, dst, in);
  T weight = T(0);
  if (n.first == src) weight += T(1) - n.weight;
  if (n.second == src) weight += n.weight;
  return weight;
}

// A range [begin, end) that contains all outputs to which input `src` contributes. It may be too wide: callers multiply
// by weight_of, which is zero there. One element on either side covers rounding of the inverse.
template <typename Index = int64_t>
struct Range {
  Index begin;
  Index end;
};

// The reciprocal of axis_scale, or 0 if there is none; any output may then depend on any input.
template <typename T>
HF_INLINE T inverse_scale(T scale) {
  return scale > T(0) ? T(1) / scale : T(0);
}

template <typename T, typename Index>
HF_INLINE Range<Index> reached_by(Resample mode, T inverse, Index src, Index in, Index out) {
  if (inverse <= T(0)) return {0, out};  // a single output or input
  const T offset = mode == Resample::kBilinear ? T(0.5) : T(0);
  const T low = mode == Resample::kNearest ? static_cast<T>(src) : static_cast<T>(src - 1) + offset;
  const T high = static_cast<T>(src + 1) + offset;
  Index begin = static_cast<Index>(low * inverse - offset) - 2;
  Index end = static_cast<Index>(high * inverse - offset) + 3;
  // All outputs beyond the first and last inputs depend on these.
  if (src == 0) begin = 0;
  if (src == in - 1) end = out;
  begin = begin > 0 ? begin : 0;
  end = end < out ? end : out;
  return {begin, end};
}

}  // namespace hrnet_fast
