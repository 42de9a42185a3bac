// Launches of fuse_sum's backward: selection of the pack, and distribution of a block's threads over a term.

#pragma once

#include "fuse_sum_backward.cuh"

namespace hrnet_fast::cuda {

// The widest pack that the arguments allow.
template <typename T>
int fuse_sum_backward_width(const FuseSumBackwardArguments<T>& a) {
  const bool same = a.height == a.out_height && a.width == a.out_width;
  if (!a.channels_last && !same) return 1;  // neighbours gather from different addresses
  for (const int width : {kVectorWidth<T>, 2}) {
    bool fits = (a.channels_last ? a.channels : a.width) % width == 0 && aligned(a.grad, width);
    fits = fits && (!a.relu || aligned(a.out, width)) && (a.partials == nullptr || aligned(a.x, width));
    fits = fits && (a.grad_x.data == nullptr || aligned(a.grad_x, width));
    fits = fits && (!a.channels_last || a.scale == nullptr || aligned(a.scale, width));
    if (fits) return width;
  }
  return 1;
}

// Enough threads and blocks to occupy a large device.
constexpr int64_t kEnoughThreads = 1 << 17, kEnoughBlocks = 1 << 10;

template <typename T>
Spread fuse_sum_spread(const FuseSumBackwardArguments<T>& a, int width) {
  const int64_t groups = a.channels_last ? a.channels / width : a.channels;
  const int64_t items = static_cast<int64_t>(a.height) * a.width / (a.channels_last ? 1 : width);
  Spread s;
  // Rows are divided while threads are few and every share has a row.
  const int64_t reached = 2 * a.out_height / a.height;
  if (a.height != a.out_height || a.width != a.out_width)
    while (s.split < 16 && 2 * s.split <= reached && a.batch * items * groups * s.split < kEnoughThreads) s.split *= 2;
  if (a.channels_last) {
    s.group_tiles = ceil_div(groups, 32);
    s.groups = static_cast<int>(ceil_div(groups, s.group_tiles));
    if (s.split > kThreads / s.groups) s.split = 1;
    s.lanes = kThreads / s.groups / s.split;
  } else {
    const int64_t wanted = ceil_div(items, 32) * 32;
    s.lanes = static_cast<int>(wanted * s.split < kThreads ? wanted : kThreads / s.split);
    const int64_t room = kThreads / (s.lanes * s.split);
    s.groups = static_cast<int>(room < groups ? room : groups);
    s.group_tiles = ceil_div(groups, s.groups);
  }
  // A compromise: few rows of partials to add later, and few values added in single precision.
  const int64_t once = ceil_div(items, s.lanes);
  if (a.partials != nullptr) {
    const int64_t spare = a.batch * once * s.group_tiles / kEnoughBlocks;
    s.repeats = static_cast<int>(spare < 1 ? 1 : spare > 16 ? 16 : spare);
  }
  s.tiles = ceil_div(once, s.repeats);
  return s;
}

// Rows of partials that a term's sums need. `a.partials` only has to be other than null.
template <typename T>
int64_t fuse_sum_partial_rows(const FuseSumBackwardArguments<T>& a) {
  return a.batch * fuse_sum_spread(a, fuse_sum_backward_width(a)).tiles;
}

template <typename T, int kWidth, bool kLast>
cudaError_t fuse_sum_backward_launch(const FuseSumBackwardArguments<T>& a, cudaStream_t stream) {
  using M = math_t<T>;
  const Spread s = fuse_sum_spread(a, kWidth);
  FuseSumBackwardPlan<T> plan{};
  plan.a = a;
  plan.scale_y = axis_scale<M>(a.mode, a.height, a.out_height);
  plan.scale_x = axis_scale<M>(a.mode, a.width, a.out_width);
  plan.inverse_y = inverse_scale(plan.scale_y);
  plan.inverse_x = inverse_scale(plan.scale_x);
  plan.same_size = a.height == a.out_height && a.width == a.out_width;
  const int64_t pixels = static_cast<int64_t>(a.height) * a.width;
  const int64_t out_pixels = static_cast<int64_t>(a.out_height) * a.out_width;
  if (pixels > kMaxItems || out_pixels > kMaxItems || s.group_tiles > 65535 || a.batch * s.tiles > kMaxItems)
    return cudaErrorInvalidValue;
  plan.items = static_cast<uint32_t>(kLast ? pixels : pixels / kWidth);
  plan.groups = s.groups;
  plan.lanes = s.lanes;
  plan.split = s.split;
  plan.repeats = s.repeats;
  plan.all_groups = kLast ? a.channels / kWidth : a.channels;
  plan.tiles = Divider(static_cast<uint32_t>(s.tiles));
  plan.per_row = Divider(static_cast<uint32_t>(a.width));
  plan.inner = Divider(static_cast<uint32_t>(kLast ? s.groups : s.lanes * s.split));
  plan.share = Divider(static_cast<uint32_t>(s.lanes));
  const auto blocks = static_cast<unsigned>(a.batch * s.tiles), rows = static_cast<unsigned>(s.group_tiles);
  switch (a.mode) {
    case Resample::kNearest:
      return launch(fuse_sum_backward_kernel<T, kWidth, Resample::kNearest, kLast>, blocks, rows, plan, stream);
    case Resample::kBilinear:
      return launch(fuse_sum_backward_kernel<T, kWidth, Resample::kBilinear, kLast>, blocks, rows, plan, stream);
    case Resample::kBilinearAligned:
      return launch(fuse_sum_backward_kernel<T, kWidth, Resample::kBilinearAligned, kLast>, blocks, rows, plan, stream);
  }
  return cudaErrorInvalidValue;
}

// Queues one term's gradients on `stream`. cudaErrorInvalidValue: an image of 2^31 pixels or more, or too many blocks.
template <typename T>
cudaError_t fuse_sum_backward(const FuseSumBackwardArguments<T>& a, cudaStream_t stream) {
  const int width = fuse_sum_backward_width(a);
  cudaError_t status = cudaErrorInvalidValue;
  if (width == kVectorWidth<T>)
    status = a.channels_last ? fuse_sum_backward_launch<T, kVectorWidth<T>, true>(a, stream)
                             : fuse_sum_backward_launch<T, kVectorWidth<T>, false>(a, stream);
  else if (width == 2)
    status = a.channels_last ? fuse_sum_backward_launch<T, 2, true>(a, stream)
                             : fuse_sum_backward_launch<T, 2, false>(a, stream);
  else
    status = a.channels_last ? fuse_sum_backward_launch<T, 1, true>(a, stream)
                             : fuse_sum_backward_launch<T, 1, false>(a, stream);
  if (status != cudaSuccess || a.partials == nullptr) return status;
  const ColumnSums sums{a.partials, a.totals, fuse_sum_partial_rows(a), 2 * a.channels};
  return launch(column_sums_kernel, static_cast<unsigned>(ceil_div(sums.columns, 4)), 1, sums, stream);
}

}  // namespace hrnet_fast::cuda
