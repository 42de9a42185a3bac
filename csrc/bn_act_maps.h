// The elementwise passes of bn_act for several maps at once: arguments of each map, as in csrc/cpu/bn_act.h.

#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace hrnet_fast {

using OptionalTensor = std::optional<at::Tensor>;

struct BnActMap {
  at::Tensor x, affine;
  OptionalTensor residual, residual_affine;
  bool relu = true;
};

struct BackwardSumsMap {
  at::Tensor grad;
  OptionalTensor addend;
  at::Tensor x, affine;
  OptionalTensor out;
  bool relu = true, keep = false;
};

struct BackwardSums {
  at::Tensor sums, masked;  // [2, C]; the masked gradient, empty if it is not kept
};

struct BackwardInputMap {
  at::Tensor grad, x, affine, sums;
  double count = 0.0;
  bool relu = true;
};

}  // namespace hrnet_fast
