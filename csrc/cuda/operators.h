// The operators on CUDA, as csrc/registration.cpp registers them; no CUDA header.

#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "../bn_act_maps.h"

namespace hrnet_fast::cuda {

// Arguments and results as in csrc/cpu/fuse_sum.h.
at::Tensor fuse_sum_forward_tensors(at::TensorList xs, at::TensorList scales, at::TensorList shifts,
                                    at::IntArrayRef size, int64_t mode, bool relu);
std::vector<at::Tensor> fuse_sum_backward_tensors(const at::Tensor& grad, const at::Tensor& out, at::TensorList xs,
                                                  at::TensorList scales, at::IntArrayRef sizes, int64_t mode, bool relu,
                                                  at::IntArrayRef wanted);

// Arguments and results as in csrc/cpu/bn_act.h.
std::vector<at::Tensor> batch_affine(at::TensorList xs, at::IntArrayRef channels, at::TensorList weights,
                                     at::TensorList biases, at::TensorList running_means, at::TensorList running_vars,
                                     at::ArrayRef<double> momenta, at::ArrayRef<double> eps);
at::Tensor statistics(const at::Tensor& x);

// Tables [4, width] for the widths of `tables`; norms follow one another along all of their channels.
std::vector<at::Tensor> running_affines(at::IntArrayRef tables, at::IntArrayRef channels, at::TensorList weights,
                                        at::TensorList biases, at::TensorList running_means,
                                        at::TensorList running_vars, at::ArrayRef<double> eps, bool wide);

// Maps of one dtype, packing and layout share a launch.
std::vector<at::Tensor> bn_act(const std::vector<BnActMap>& maps);
std::vector<BackwardSums> backward_sums(const std::vector<BackwardSumsMap>& maps);
std::vector<at::Tensor> backward_input(const std::vector<BackwardInputMap>& maps);

}  // namespace hrnet_fast::cuda
