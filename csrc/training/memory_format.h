// Memory formats of chains and fusions: hrnet_fast/training/memory_format.py in C++, which gives the reasons.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Context.h>

#include <optional>

namespace hrnet_fast::training {

inline bool is_converted(const at::Tensor& x) {
  if (!x.is_cpu() || x.scalar_type() == at::kDouble || !at::globalContext().userEnabledMkldnn()) return false;
  return !x.is_contiguous(at::MemoryFormat::ChannelsLast);
}

inline at::Tensor in_compute_format(const at::Tensor& x) {
  return is_converted(x) ? x.contiguous(at::MemoryFormat::ChannelsLast) : x;
}

inline at::MemoryFormat format_of(const at::Tensor& x) {
  return x.stride(1) == 1 && x.stride(3) != 1 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

inline at::Tensor in_input_format(const at::Tensor& result, const at::Tensor& x) {
  return !x.is_cpu() || format_of(x) == at::MemoryFormat::ChannelsLast ? result : result.contiguous();
}

inline at::Tensor to_input(const at::Tensor& x, std::optional<at::ScalarType> dtype) {
  return in_compute_format(dtype ? x.to(*dtype) : x);
}

// Not PyTorch's capability, which an environment variable lowers: oneDNN reads the processor's.
inline bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f");
#else
  return false;
#endif
}

// Whether chains in training on `x` sum long windows by blocks of channels, to round as plain modules do.
inline bool sums_by_channel_blocks(const at::Tensor& x) {
  return x.scalar_type() == at::kFloat && is_converted(x) && has_avx512();
}

}  // namespace hrnet_fast::training
