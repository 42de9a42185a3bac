// fuse_sum in CUDA, backward of one term: the gradient, masked by the activation, gathered to the term's resolution.
//
// Every element of the term adds the gradients of the outputs that it contributed to, with the forward's weights and
// without atomics. If few elements contributed to many outputs, several threads share the rows of an element and add in
// shared memory. For an affine's gradient every block stores one row of partial sums per channel, and a second kernel
// adds these in a fixed order. Results are deterministic.

#pragma once

#include "common.cuh"

namespace hrnet_fast::cuda {

// The caller's arguments. All sizes are positive; layouts agree.
template <typename T>
struct FuseSumBackwardArguments {
  Map<const T> grad;
  Map<const T> out;  // read only with `relu`
  Map<const T> x;    // read only for sums
  const math_t<T>* scale = nullptr;
  Map<T> grad_x;               // data null: not needed
  double* partials = nullptr;  // [fuse_sum_partial_rows(), 2 * channels]; null: no sums needed
  double* totals = nullptr;    // [2 * channels]: sums of the gradient (shift's), then of gradient * x (scale's)
  int64_t batch = 0;
  int channels = 0;
  int height = 0, width = 0;          // of the term
  int out_height = 0, out_width = 0;  // of the result
  Resample mode = Resample::kBilinear;
  bool relu = true;
  bool channels_last = true;
};

// Distribution of a block's threads: `groups` packs of channels (channels-last) or channels (contiguous), times `lanes`
// elements of the term, times `split` shares of the rows that an element contributed to.
struct Spread {
  int groups = 1, lanes = 1, split = 1;
  int repeats = 1;          // elements that a thread computes in sequence
  int64_t tiles = 1;        // blocks per image
  int64_t group_tiles = 1;  // blocks per pixel
};

template <typename T>
struct FuseSumBackwardPlan {
  FuseSumBackwardArguments<T> a;
  math_t<T> scale_y, scale_x, inverse_y, inverse_x;
  bool same_size;
  uint32_t items;  // packs of one image, of one channel or group of channels
  int groups, lanes, split, repeats, all_groups;
  Divider tiles, per_row;
  Divider inner;  // of a thread's number: groups (channels-last) or lanes * split (contiguous)
  Divider share;  // lanes
};

// The outputs [begin, end) that have a weight for element `src` of one axis.
template <typename M, Resample kMode>
HF_DEVICE Range<int> outputs_of(M scale, M inverse, int src, int in, int out) {
  Range<int> range = reached_by<M, int>(kMode, inverse, src, in, out);
  while (range.begin < range.end && weight_of<M, int>(kMode, scale, range.begin, src, in) == M(0)) ++range.begin;
  while (range.begin < range.end && weight_of<M, int>(kMode, scale, range.end - 1, src, in) == M(0)) --range.end;
  return range;
}

// The gradient of one pack of the result, zero where the activation was zero.
template <typename T, int kWidth, bool kLast>
HF_DEVICE void masked(const FuseSumBackwardArguments<T>& a, uint32_t n, uint32_t c, uint32_t pixel,
                      math_t<T> (&g)[kWidth]) {
  using M = math_t<T>;
  read<kWidth>(a.grad.template at<kLast>(n, c, pixel), g);
  if (!a.relu) return;
  M out[kWidth];
  read<kWidth>(a.out.template at<kLast>(n, c, pixel), out);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) g[j] = out[j] <= M(0) ? M(0) : g[j];
}

// Share `share` of the sum that element (y, x) of the term gathers.
template <typename T, int kWidth, Resample kMode, bool kLast>
HF_DEVICE void gathered(const FuseSumBackwardPlan<T>& plan, uint32_t n, uint32_t c, int y, int x, int share,
                        math_t<T> (&total)[kWidth]) {
  using M = math_t<T>;
  const auto& a = plan.a;
  const auto rows = outputs_of<M, kMode>(plan.scale_y, plan.inverse_y, y, a.height, a.out_height);
  const auto columns = outputs_of<M, kMode>(plan.scale_x, plan.inverse_x, x, a.width, a.out_width);
  for (int i = rows.begin + share; i < rows.end; i += plan.split) {
    const M down = weight_of<M, int>(kMode, plan.scale_y, i, y, a.height);
    for (int k = columns.begin; k < columns.end; ++k) {
      const M weight = down * weight_of<M, int>(kMode, plan.scale_x, k, x, a.width);
      if (weight == M(0)) continue;  // zero times an infinite gradient would be NaN
      M g[kWidth];
      masked<T, kWidth, kLast>(a, n, c, static_cast<uint32_t>(i) * a.out_width + k, g);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) total[j] += weight * g[j];
    }
  }
}

template <typename T, int kWidth, Resample kMode, bool kLast>
__global__ void __launch_bounds__(kThreads, kBlocks)
    fuse_sum_backward_kernel(const __grid_constant__ FuseSumBackwardPlan<T> plan) {
  using M = math_t<T>;
  // Sums per thread: one per channel of its pack.
  constexpr int kSums = kLast ? kWidth : 1;
  __shared__ M buffer[kWidth * kThreads];  // value j of thread t at j * kThreads + t
  const auto& a = plan.a;

  const uint32_t thread = threadIdx.x;
  const uint32_t major = plan.inner.quotient(thread), minor = plan.inner.remainder(thread, major);
  const int group = static_cast<int>(kLast ? minor : major), slot = static_cast<int>(kLast ? major : minor);
  const int share = static_cast<int>(plan.share.quotient(slot)), lane = slot - share * plan.lanes;
  const int own_group = static_cast<int>(blockIdx.y) * plan.groups + group;
  const bool busy = group < plan.groups && share < plan.split && own_group < plan.all_groups;
  const uint32_t n = plan.tiles.quotient(blockIdx.x), tile = plan.tiles.remainder(blockIdx.x, n);
  const uint32_t c = static_cast<uint32_t>(own_group) * kSums;

  M sums[kSums], products[kSums];
#pragma unroll
  for (int j = 0; j < kSums; ++j) sums[j] = products[j] = M(0);
#pragma unroll 1
  for (int i = 0; i < plan.repeats; ++i) {
    const uint32_t item = (tile * plan.repeats + i) * plan.lanes + lane;
    const bool valid = busy && item < plan.items;
    const uint32_t pixel = kLast ? item : item * kWidth;
    M total[kWidth];
#pragma unroll
    for (int j = 0; j < kWidth; ++j) total[j] = M(0);
    if (valid && plan.same_size) masked<T, kWidth, kLast>(a, n, c, pixel, total);
    // Packs of several pixels gather nothing: the launcher uses them only for terms of the result's size.
    if constexpr (kLast || kWidth == 1) {
      if (!plan.same_size) {
        const uint32_t y = plan.per_row.quotient(pixel), x = plan.per_row.remainder(pixel, y);
        if (valid)
          gathered<T, kWidth, kMode, kLast>(plan, n, c, static_cast<int>(y), static_cast<int>(x), share, total);
        if (plan.split > 1) {
#pragma unroll
          for (int j = 0; j < kWidth; ++j) buffer[j * kThreads + thread] = total[j];
          __syncthreads();
          if (valid && share == 0) {
            const int step = plan.lanes * (kLast ? plan.groups : 1);
            for (int s = 1; s < plan.split; ++s)
#pragma unroll
              for (int j = 0; j < kWidth; ++j) total[j] += buffer[j * kThreads + thread + s * step];
          }
          __syncthreads();
        }
      }
    }
    if (!valid || share != 0) continue;
    if (a.partials != nullptr) {
      M value[kWidth];
      read<kWidth>(a.x.template at<kLast>(n, c, pixel), value);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        sums[kLast ? j : 0] += total[j];
        products[kLast ? j : 0] += total[j] * value[j];
      }
    }
    if (a.grad_x.data == nullptr) continue;
    if (a.scale != nullptr) {
      M scale[kSums];
      read_channels<kSums>(a.scale + c, scale);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) total[j] *= scale[kLast ? j : 0];
    }
    write<kWidth>(a.grad_x.template at<kLast>(n, c, pixel), total);
  }
  if (a.partials == nullptr) return;

  double* row = a.partials + static_cast<int64_t>(blockIdx.x) * 2 * a.channels;
#pragma unroll
  for (int part = 0; part < 2; ++part) {
    __syncthreads();
#pragma unroll
    for (int j = 0; j < kSums; ++j) buffer[j * kThreads + thread] = part == 0 ? sums[j] : products[j];
    __syncthreads();
    const int first = static_cast<int>(blockIdx.y) * plan.groups;
    for (int v = static_cast<int>(thread); v < plan.groups * kSums; v += kThreads) {
      // Neighbouring threads take neighbouring groups, to access different banks.
      const int j = v / plan.groups, g = v - j * plan.groups;
      if (first + g >= plan.all_groups) continue;
      const int start = j * kThreads + (kLast ? g : g * plan.lanes * plan.split), step = kLast ? plan.groups : 1;
      double sum = 0;
      for (int l = 0; l < plan.lanes; ++l) sum += buffer[start + l * step];
      row[part * a.channels + (first + g) * kSums + j] = sum;
    }
  }
}

// Adds the rows of the partials: a block has 4 columns (a sector of memory) and kThreads / 4 rows at a time.
struct ColumnSums {
  const double* partials;
  double* totals;
  int64_t rows;
  int columns;
};

static __global__ void __launch_bounds__(kThreads, kBlocks)
    column_sums_kernel(const __grid_constant__ ColumnSums plan) {
  constexpr int kColumns = 4, kLanes = kThreads / kColumns;
  __shared__ double buffer[kThreads];
  const int own = static_cast<int>(threadIdx.x) % kColumns, lane = static_cast<int>(threadIdx.x) / kColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kColumns + own;
  double sum = 0;
  if (column < plan.columns)
#pragma unroll 4
    for (int64_t row = lane; row < plan.rows; row += kLanes) sum += plan.partials[row * plan.columns + column];
  buffer[threadIdx.x] = sum;
  for (int half = kLanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) buffer[threadIdx.x] += buffer[threadIdx.x + half * kColumns];
  }
  if (lane == 0 && column < plan.columns) plan.totals[column] = buffer[threadIdx.x];
}

}  // namespace hrnet_fast::cuda
