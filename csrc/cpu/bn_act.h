// bn_act on the CPU: the primitives of hrnet_fast/reference/bn_act.py, under the same names.

#pragma once

#include <ATen/ATen.h>

#include <tuple>
#include <vector>

#include "../bn_act_maps.h"

namespace hrnet_fast::cpu {

// Norm j covers channels[j] of the channels of all maps, one map after another; absent tensors are empty ones.
// Returns (mean, invstd, scale, shift) [4, C] of every map, and updates the running statistics.
std::vector<at::Tensor> batch_affine(at::TensorList xs, at::IntArrayRef channels, at::TensorList weights,
                                     at::TensorList biases, at::TensorList running_means, at::TensorList running_vars,
                                     at::ArrayRef<double> momenta, at::ArrayRef<double> eps);

// The same from the running statistics, in double if `wide`.
at::Tensor running_affine(at::IntArrayRef channels, at::TensorList weights, at::TensorList biases,
                          at::TensorList running_means, at::TensorList running_vars, at::ArrayRef<double> eps,
                          bool wide);

// Mean and biased variance [2, C].
at::Tensor statistics(const at::Tensor& x);

// act(scale * x + shift + residual), where the residual may have an affine of its own.
at::Tensor bn_act(const at::Tensor& x, const at::Tensor& affine, const OptionalTensor& residual,
                  const OptionalTensor& residual_affine, bool relu);

// ([2, C] sums of g and of g * xhat, g or an undefined tensor); g is grad + addend where the activation was positive.
// It is written to `memory` if that is defined and as the map is.
std::tuple<at::Tensor, at::Tensor> backward_sums(const at::Tensor& grad, const OptionalTensor& addend,
                                                 const at::Tensor& x, const at::Tensor& affine,
                                                 const OptionalTensor& out, bool relu, bool keep,
                                                 const at::Tensor& memory = {});

// The gradient of a normalisation's input, in `memory` likewise.
at::Tensor backward_input(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& affine, const at::Tensor& sums,
                          double count, bool relu, const at::Tensor& memory = {});

}  // namespace hrnet_fast::cpu
