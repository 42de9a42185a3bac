// fuse_sum on CUDA, forward: conversion of tensors to maps, and the launch on the current stream.

#include <ATen/Dispatch.h>
#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <vector>

#include "../../kernels/cuda/fuse_sum.cuh"
#include "maps.h"

namespace hrnet_fast::cuda {

namespace {

template <typename T>
void queue_forward(const std::vector<at::Tensor>& xs, const std::vector<at::Tensor>& scales,
                   const std::vector<at::Tensor>& shifts, Resample mode, bool relu, bool last, at::Tensor& out) {
  FuseSumArguments<T> a;
  a.count = to_int(static_cast<int64_t>(xs.size()));
  for (size_t k = 0; k < xs.size(); ++k)
    a.terms[k] = {map_of<const T>(xs[k], last), values_or_null<math_t<T>>(scales[k]),
                  values_or_null<math_t<T>>(shifts[k]), to_int(xs[k].size(2)), to_int(xs[k].size(3))};
  a.out = map_of<T>(out, last);
  a.batch = out.size(0);
  a.channels = to_int(out.size(1));
  a.height = to_int(out.size(2));
  a.width = to_int(out.size(3));
  a.mode = mode;
  a.relu = relu;
  a.channels_last = last;
  check_launch("fuse_sum", fuse_sum_forward(a, c10::cuda::getCurrentCUDAStream()), out);
}

}  // namespace

at::Tensor fuse_sum_forward_tensors(at::TensorList xs, at::TensorList scales, at::TensorList shifts,
                                    at::IntArrayRef size, int64_t mode, bool relu) {
  TORCH_CHECK(!xs.empty() && xs.size() <= kMaxTerms && xs.size() == scales.size() && xs.size() == shifts.size(),
              "fuse_sum: 1 to ", kMaxTerms, " terms, each with a scale and a shift (empty: none), are accepted");
  const c10::cuda::CUDAGuard guard(xs[0].device());
  // The largest term decides the layout, because it is the most expensive to copy.
  const auto largest = std::max_element(xs.begin(), xs.end(), [](const at::Tensor& a, const at::Tensor& b) {
    return a.size(2) * a.size(3) < b.size(2) * b.size(3);
  });
  const bool last = largest->suggest_memory_format() == at::MemoryFormat::ChannelsLast;
  at::Tensor out = at::empty({xs[0].size(0), xs[0].size(1), size[0], size[1]}, xs[0].options(), format_of(last));
  if (out.numel() == 0) return out;
  std::vector<at::Tensor> maps, own_scales, own_shifts;
  const auto math = math_type(xs[0].scalar_type());
  for (size_t k = 0; k < xs.size(); ++k) {
    TORCH_CHECK(xs[k].device() == xs[0].device() && xs[k].scalar_type() == xs[0].scalar_type(),
                "fuse_sum: all terms must be of one type, on one device");
    maps.push_back(as_map(xs[k], last));
    own_scales.push_back(present(scales[k], math));
    own_shifts.push_back(present(shifts[k], math));
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "fuse_sum_cuda", [&] {
    queue_forward<Bits<scalar_t>::type>(maps, own_scales, own_shifts, static_cast<Resample>(mode), relu, last, out);
  });
  return out;
}

}  // namespace hrnet_fast::cuda
