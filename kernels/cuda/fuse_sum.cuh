// fuse_sum in CUDA, forward: act(sum_k resample_k(scale_k * x_k + shift_k)) in one launch.
//
// A thread computes one pack of the result: neighbouring channels of a pixel (channels-last) or neighbouring pixels of
// a row (contiguous), for all terms, in registers. Source indices and weights are computed on the fly. The loop over
// terms reads the kernel's parameters from constant memory.

#pragma once

#include "common.cuh"

namespace hrnet_fast::cuda {

template <typename T>
struct FuseSumTerm {
  Map<const T> x;
  const math_t<T>* scale = nullptr;  // [C]; null: identity
  const math_t<T>* shift = nullptr;
  int height = 0;
  int width = 0;
};

// The caller's arguments. All sizes are positive.
template <typename T>
struct FuseSumArguments {
  FuseSumTerm<T> terms[kMaxTerms];
  int count = 0;
  Map<T> out;
  int64_t batch = 0;
  int channels = 0;
  int height = 0;
  int width = 0;
  Resample mode = Resample::kBilinear;
  bool relu = true;
  bool channels_last = true;
};

template <typename T>
struct FuseSumPlan {
  struct Term : FuseSumTerm<T> {
    math_t<T> scale_y;
    math_t<T> scale_x;
    bool same_size;
  };
  Term terms[kMaxTerms];
  int count;
  Map<T> out;
  uint32_t items;     // packs of one image
  Divider blocks;     // per image
  Divider per_outer;  // packs per pixel (channels-last), per channel (contiguous)
  Divider per_row;    // pixels per row
  bool relu;
};

// The interpolated values of a term for one pack of the result, before its affine.
template <typename T, int kWidth, Resample kMode, bool kLast>
HF_DEVICE void resampled(const typename FuseSumPlan<T>::Term& term, uint32_t n, uint32_t c, int y, int x,
                         math_t<T> (&value)[kWidth]) {
  using M = math_t<T>;
  // A pack of a contiguous map is several pixels with different neighbours.
  constexpr int kPart = kLast ? kWidth : 1;
  const auto rows = neighbours<M, int>(kMode, term.scale_y, y, term.height);
  const uint32_t above = static_cast<uint32_t>(rows.first) * term.width;
  const uint32_t below = static_cast<uint32_t>(rows.second) * term.width;
#pragma unroll
  for (int i = 0; i < kWidth; i += kPart) {
    const auto columns = neighbours<M, int>(kMode, term.scale_x, x + i, term.width);
    M part[kPart];
    read<kPart>(term.x.template at<kLast>(n, c, above + columns.first), part);
    if constexpr (kMode != Resample::kNearest) {
      M right[kPart], low[kPart], low_right[kPart];
      read<kPart>(term.x.template at<kLast>(n, c, above + columns.second), right);
      read<kPart>(term.x.template at<kLast>(n, c, below + columns.first), low);
      read<kPart>(term.x.template at<kLast>(n, c, below + columns.second), low_right);
      const M down = rows.weight, up = M(1) - down, east = columns.weight, west = M(1) - east;
#pragma unroll
      for (int j = 0; j < kPart; ++j)
        part[j] = west * (up * part[j] + down * low[j]) + east * (up * right[j] + down * low_right[j]);
    }
#pragma unroll
    for (int j = 0; j < kPart; ++j) value[i + j] = part[j];
  }
}

template <typename T, int kWidth, Resample kMode, bool kLast>
__global__ void __launch_bounds__(kThreads, kBlocks) fuse_sum_kernel(const __grid_constant__ FuseSumPlan<T> plan) {
  using M = math_t<T>;
  const uint32_t n = plan.blocks.quotient(blockIdx.x);
  const uint32_t item = plan.blocks.remainder(blockIdx.x, n) * kThreads + threadIdx.x;
  if (item >= plan.items) return;
  const uint32_t outer = plan.per_outer.quotient(item);
  const uint32_t inner = plan.per_outer.remainder(item, outer) * kWidth;
  const uint32_t pixel = kLast ? outer : inner, c = kLast ? inner : outer;
  const uint32_t y = plan.per_row.quotient(pixel), x = plan.per_row.remainder(pixel, y);

  M total[kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) total[j] = M(0);
#pragma unroll 1
  for (int k = 0; k < plan.count; ++k) {
    const auto& term = plan.terms[k];
    M value[kWidth];
    if (term.same_size)
      read<kWidth>(term.x.template at<kLast>(n, c, pixel), value);
    else
      resampled<T, kWidth, kMode, kLast>(term, n, c, static_cast<int>(y), static_cast<int>(x), value);
    if (term.scale == nullptr) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) total[j] += value[j];
    } else {
      // Interpolation weights sum to one, so the affine may follow.
      constexpr int kChannels = kLast ? kWidth : 1;
      M scale[kChannels], shift[kChannels];
      read_channels<kChannels>(term.scale + c, scale);
      read_channels<kChannels>(term.shift + c, shift);
#pragma unroll
      for (int j = 0; j < kWidth; ++j) total[j] += value[j] * scale[kLast ? j : 0] + shift[kLast ? j : 0];
    }
  }
  if (plan.relu) {
#pragma unroll
    for (int j = 0; j < kWidth; ++j) total[j] = total[j] < M(0) ? M(0) : total[j];  // keeps NaN, unlike max
  }
  write<kWidth>(plan.out.template at<kLast>(n, c, pixel), total);
}

// Whether packs of `width` values fit channels or rows, strides and addresses of the arguments.
template <typename T>
bool fuse_sum_fits(const FuseSumArguments<T>& a, int width) {
  if ((a.channels_last ? a.channels : a.width) % width != 0 || !aligned(a.out, width)) return false;
  for (int k = 0; k < a.count; ++k) {
    const auto& term = a.terms[k];
    const bool same = term.height == a.height && term.width == a.width;
    if ((a.channels_last || same) && !aligned(term.x, width)) return false;
    if (!a.channels_last || term.scale == nullptr) continue;
    if (!aligned(term.scale, width) || !aligned(term.shift, width)) return false;
  }
  return true;
}

template <typename T, int kWidth, bool kLast>
cudaError_t fuse_sum_launch(const FuseSumArguments<T>& a, cudaStream_t stream) {
  using M = math_t<T>;
  const int64_t pixels = static_cast<int64_t>(a.height) * a.width;
  const int64_t items = pixels * a.channels / kWidth, blocks = ceil_div(items, kThreads);
  if (items > kMaxItems || pixels > kMaxItems || a.batch * blocks > kMaxItems) return cudaErrorInvalidValue;
  FuseSumPlan<T> plan{};
  for (int k = 0; k < a.count; ++k) {
    auto& term = plan.terms[k];
    static_cast<FuseSumTerm<T>&>(term) = a.terms[k];
    if (static_cast<int64_t>(term.height) * term.width > kMaxItems) return cudaErrorInvalidValue;
    term.scale_y = axis_scale<M>(a.mode, term.height, a.height);
    term.scale_x = axis_scale<M>(a.mode, term.width, a.width);
    term.same_size = term.height == a.height && term.width == a.width;
  }
  plan.count = a.count;
  plan.out = a.out;
  plan.items = static_cast<uint32_t>(items);
  plan.blocks = Divider(static_cast<uint32_t>(blocks));
  plan.per_outer = Divider(static_cast<uint32_t>((kLast ? a.channels : pixels) / kWidth));
  plan.per_row = Divider(static_cast<uint32_t>(a.width));
  plan.relu = a.relu;
  const auto grid = static_cast<unsigned>(a.batch * blocks);
  switch (a.mode) {
    case Resample::kNearest:
      return launch(fuse_sum_kernel<T, kWidth, Resample::kNearest, kLast>, grid, 1, plan, stream);
    case Resample::kBilinear:
      return launch(fuse_sum_kernel<T, kWidth, Resample::kBilinear, kLast>, grid, 1, plan, stream);
    case Resample::kBilinearAligned:
      return launch(fuse_sum_kernel<T, kWidth, Resample::kBilinearAligned, kLast>, grid, 1, plan, stream);
  }
  return cudaErrorInvalidValue;
}

// Eight pixels of a contiguous row would gather from 32 addresses and spill registers; four of a half type are 64 bits.
template <typename T>
constexpr int kRowWidth = kVectorWidth<T> < 4 ? kVectorWidth<T> : 4;

// The widest pack that the arguments allow.
template <typename T>
int fuse_sum_width(const FuseSumArguments<T>& a) {
  for (const int width : {a.channels_last ? kVectorWidth<T> : kRowWidth<T>, 2})
    if (fuse_sum_fits(a, width)) return width;
  return 1;
}

// Queues the sum on `stream`. cudaErrorInvalidValue: an image of 2^31 packs or more, or not 1 to 8 terms.
template <typename T>
cudaError_t fuse_sum_forward(const FuseSumArguments<T>& a, cudaStream_t stream) {
  if (a.count < 1 || a.count > kMaxTerms) return cudaErrorInvalidValue;
  const int width = fuse_sum_width(a);
  if (a.channels_last) {
    if (width == 1) return fuse_sum_launch<T, 1, true>(a, stream);
    if (width == 2) return fuse_sum_launch<T, 2, true>(a, stream);
    return fuse_sum_launch<T, kVectorWidth<T>, true>(a, stream);
  }
  if (width == 1) return fuse_sum_launch<T, 1, false>(a, stream);
  if (width == 2) return fuse_sum_launch<T, 2, false>(a, stream);
  return fuse_sum_launch<T, kRowWidth<T>, false>(a, stream);
}

}  // namespace hrnet_fast::cuda
