// The elementwise passes of bn_act for several maps at once: arguments of each map, as in csrc/cpu/bn_act.h.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/TensorImpl.h>

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
  // What nobody else needs any more, perhaps the gradient or the addend itself: a CPU writes the masked gradient there
  // if it has the map's size and format. Fresh memory costs page faults and misses the cache.
  at::Tensor memory = {};
};

struct BackwardSums {
  at::Tensor sums, masked;  // [2, C]; the masked gradient, undefined if it is not kept
};

struct BackwardInputMap {
  at::Tensor grad, x, affine, sums;
  double count = 0.0;
  bool relu = true;
  at::Tensor memory = {};  // as in BackwardSumsMap, for the result
};

// A contiguous part of contiguous memory, from element `first` on: at::as_strided below autograd, in a fifth of its
// time.
inline at::Tensor part_of(const at::Tensor& memory, int64_t first, c10::IntArrayRef sizes) {
  at::Tensor part = at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, c10::Storage(memory.storage()),
                                                             memory.key_set(), memory.dtype());
  c10::TensorImpl* impl = part.unsafeGetTensorImpl();
  impl->set_storage_offset(memory.storage_offset() + first);
  impl->set_sizes_contiguous(sizes);
  return part;
}

// A row of a table [rows, C].
inline at::Tensor row_of(const at::Tensor& table, int64_t row) {
  return part_of(table, row * table.size(1), {table.size(1)});
}

}  // namespace hrnet_fast
