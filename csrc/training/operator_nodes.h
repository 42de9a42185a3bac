// The operators bn_act and fuse_sum as nodes of autograd's graph, on devices that have the elementwise passes.
//
// They compute what the registered operators of hrnet_fast/ops compute, without the dispatcher and Python. Those are
// for calls that something else observes or transforms: compilers, modes, functorch, other tensor classes.

#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "../bn_act_maps.h"

namespace hrnet_fast::training {

// Whether nothing but autograd and autocast is concerned with an operator on these dense tensors, some undefined.
bool are_plain(at::TensorList tensors);

// Calls a registered operator, for gradients that are not plain, and returns its results.
std::vector<c10::IValue> dispatched(const char* name, std::vector<c10::IValue> arguments);

// Checked arguments of hrnet_fast.ops.bn_act. Undefined tensors are absent.
struct BnActCall {
  at::Tensor x, weight, bias, running_mean, running_var, residual;
  bool relu = true, batch = true;  // batch: normalises by the batch's statistics
  double momentum = 0.0, eps = 0.0;
};

// Returns the result, or nothing, with nothing changed, where the registered operators have to compute it.
std::optional<at::Tensor> bn_act_node(const BnActCall& call);

// Checked arguments of hrnet_fast.ops.fuse_sum. Undefined scales and shifts are the identity; mode is the value of
// hrnet_fast::Resample.
struct FuseSumCall {
  std::vector<at::Tensor> xs, scales, shifts;
  std::vector<int64_t> size;
  int64_t mode = 0;
  bool relu = true;
};

std::optional<at::Tensor> fuse_sum_node(const FuseSumCall& call);

}  // namespace hrnet_fast::training
