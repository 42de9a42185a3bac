// The operators on CUDA, as csrc/registration.cpp registers them; no CUDA header.

#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace hrnet_fast::cuda {

// Arguments and results as in csrc/cpu/fuse_sum.h.
at::Tensor fuse_sum_forward_tensors(at::TensorList xs, at::TensorList scales, at::TensorList shifts,
                                    at::IntArrayRef size, int64_t mode, bool relu);
std::vector<at::Tensor> fuse_sum_backward_tensors(const at::Tensor& grad, const at::Tensor& out, at::TensorList xs,
                                                  at::TensorList scales, at::IntArrayRef sizes, int64_t mode, bool relu,
                                                  at::IntArrayRef wanted);

using OptionalTensor = std::optional<at::Tensor>;

// Arguments and results as in csrc/cpu/bn_act.h.
std::vector<at::Tensor> batch_affine(at::TensorList xs, at::IntArrayRef channels, at::TensorList weights,
                                     at::TensorList biases, at::TensorList running_means, at::TensorList running_vars,
                                     at::ArrayRef<double> momenta, at::ArrayRef<double> eps);
at::Tensor running_affine(at::IntArrayRef channels, at::TensorList weights, at::TensorList biases,
                          at::TensorList running_means, at::TensorList running_vars, at::ArrayRef<double> eps,
                          bool wide);
at::Tensor statistics(const at::Tensor& x);
at::Tensor bn_act(const at::Tensor& x, const at::Tensor& affine, const OptionalTensor& residual,
                  const OptionalTensor& residual_affine, bool relu);
std::tuple<at::Tensor, at::Tensor> backward_sums(const at::Tensor& grad, const OptionalTensor& addend,
                                                 const at::Tensor& x, const at::Tensor& affine,
                                                 const OptionalTensor& out, bool relu, bool keep);
at::Tensor backward_input(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& affine, const at::Tensor& sums,
                          double count, bool relu);

}  // namespace hrnet_fast::cuda
