// What the operators on CUDA share: dispatch on types, tensors as the kernels' maps, and errors of launches.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/MemoryFormat.h>
#include <c10/cuda/CUDAException.h>

#include <limits>
#include <type_traits>

#include "../../kernels/cuda/common.cuh"
#include "operators.h"

namespace hrnet_fast::cuda {

// The kernels' own types: the framework's half types have the same bits.
template <typename T>
struct Bits {
  using type = T;
};
template <>
struct Bits<at::Half> {
  using type = __half;
};
template <>
struct Bits<at::BFloat16> {
  using type = __nv_bfloat16;
};

inline at::ScalarType math_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

inline at::MemoryFormat format_of(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

// Whether a tensor is a map of the layout as it lies: whole, or a slice of the channels of a larger one.
inline bool is_map(const at::Tensor& t, bool channels_last, int64_t step) {
  const auto agrees = [&](int64_t dim, int64_t stride) { return t.size(dim) == 1 || t.stride(dim) == stride; };
  const int64_t pixel = channels_last ? step : 1;
  return agrees(3, pixel) && agrees(2, t.size(3) * pixel) && (channels_last ? agrees(1, 1) : agrees(1, step));
}

// From pixel to pixel (channels-last) or from channel to channel. A dimension of one element has no stride of meaning.
inline int64_t step_of(const at::Tensor& t, bool channels_last) {
  if (!channels_last) return t.size(1) > 1 ? t.stride(1) : t.size(2) * t.size(3);
  if (t.size(3) > 1) return t.stride(3);
  return t.size(2) > 1 ? t.stride(2) : t.size(1);
}

// The tensor, copied only where it is no map of the layout.
inline at::Tensor as_map(const at::Tensor& t, bool channels_last) {
  return is_map(t, channels_last, step_of(t, channels_last)) ? t : t.contiguous(format_of(channels_last));
}

template <typename T>
Map<T> map_of(const at::Tensor& t, bool channels_last) {
  using Stored = std::remove_const_t<T>;
  T* data;
  if constexpr (std::is_const_v<T>)
    data = static_cast<const Stored*>(t.const_data_ptr());
  else
    data = static_cast<Stored*>(t.mutable_data_ptr());
  return {data, t.size(0) > 1 ? t.stride(0) : 0, step_of(t, channels_last)};
}

// An empty or undefined tensor is an absent affine.
inline at::Tensor present(const at::Tensor& t, at::ScalarType type) {
  return t.numel() > 0 ? t.to(type).contiguous() : at::Tensor();
}

template <typename M>
const M* values_or_null(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr<M>() : nullptr;
}

inline int to_int(int64_t size) {
  TORCH_CHECK(size <= std::numeric_limits<int>::max(), "a size of ", size, " is beyond the CUDA kernels");
  return static_cast<int>(size);
}

// What a launch answered, as an error of the framework's; `image` describes what may have been too large.
inline void check_launch(const char* name, cudaError_t status, const at::Tensor& image) {
  TORCH_CHECK(status != cudaErrorInvalidValue, name, ": maps of shape ", image.sizes(),
              " are beyond the CUDA kernels, which number packs of 16 bytes, or elements where they do not fit packs, "
              "with 31 bits. Take impl='reference'.");
  C10_CUDA_CHECK(status);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace hrnet_fast::cuda
