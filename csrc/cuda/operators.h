// The operators on CUDA, as csrc/registration.cpp registers them; no CUDA header.

#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace hrnet_fast::cuda {

// Arguments and results as in csrc/cpu/fuse_sum.h.
at::Tensor fuse_sum_forward_tensors(at::TensorList xs, at::TensorList scales, at::TensorList shifts,
                                    at::IntArrayRef size, int64_t mode, bool relu);
std::vector<at::Tensor> fuse_sum_backward_tensors(const at::Tensor& grad, const at::Tensor& out, at::TensorList xs,
                                                  at::TensorList scales, at::IntArrayRef sizes, int64_t mode, bool relu,
                                                  at::IntArrayRef wanted);

}  // namespace hrnet_fast::cuda
