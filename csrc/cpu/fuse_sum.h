// Shared by forward and backward of fuse_sum: prepared arguments, and the tables of neighbours.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Dispatch.h>

#include <algorithm>
#include <vector>

#include "../../kernels/cuda/resample.h"
#include "clones.h"

namespace hrnet_fast::cpu {

// Arguments of one call in a common layout. An absent tensor is undefined.
struct Prepared {
  std::vector<at::Tensor> xs;
  std::vector<at::Tensor> scales;  // undefined: identity
  std::vector<at::Tensor> shifts;
  std::vector<int64_t> heights, widths;  // of the terms
  int64_t batch, channels, height, width;
  Resample mode;
  bool relu;
  bool channels_last;

  at::MemoryFormat format() const {
    return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  }
  bool same_size(size_t k) const { return heights[k] == height && widths[k] == width; }
};

inline at::ScalarType math_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

// An empty or undefined tensor is an absent one.
inline at::Tensor present(const at::Tensor& t, at::ScalarType type) {
  return t.numel() > 0 ? t.to(type).contiguous() : at::Tensor();
}

// Source rows and columns of each output row and column of one term; empty if the sizes agree.
template <typename M>
struct Tables {
  std::vector<Neighbours<M>> rows, columns;
};

template <typename M>
std::vector<Neighbours<M>> axis_table(Resample mode, int64_t in, int64_t out) {
  const M scale = axis_scale<M>(mode, in, out);
  std::vector<Neighbours<M>> table(out);
  for (int64_t i = 0; i < out; ++i) table[i] = neighbours<M>(mode, scale, i, in);
  return table;
}

template <typename M>
std::vector<Tables<M>> make_tables(const Prepared& p) {
  std::vector<Tables<M>> tables(p.heights.size());
  for (size_t k = 0; k < tables.size(); ++k)
    if (!p.same_size(k))
      tables[k] = {axis_table<M>(p.mode, p.heights[k], p.height), axis_table<M>(p.mode, p.widths[k], p.width)};
  return tables;
}

// Minimum number of rows per thread, so that the work outweighs the dispatch.
inline int64_t grain(int64_t row_elements) { return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, row_elements)); }

// Arguments are checked by hrnet_fast/ops/fuse_sum.py. Empty or undefined tensors are absent affines; `size` is (H, W).
at::Tensor fuse_sum_forward(at::TensorList xs, at::TensorList scales, at::TensorList shifts, at::IntArrayRef size,
                            int64_t mode, bool relu);

// `sizes` holds (height, width) of every term. xs[k] may be absent if no affine gradient is needed. `wanted` flags
// the gradients of all xs, then of all affines. Returns those of xs, scales and shifts; one that is not needed is
// undefined.
std::vector<at::Tensor> fuse_sum_backward(const at::Tensor& grad, const at::Tensor& out, at::TensorList xs,
                                          at::TensorList scales, at::IntArrayRef sizes, int64_t mode, bool relu,
                                          at::IntArrayRef wanted);

}  // namespace hrnet_fast::cpu
