// bn_act in CUDA, the passes without a reduction: act(scale * x + shift + residual), and the gradient of x.

#pragma once

#include "bn_act_walk.cuh"

namespace hrnet_fast::cuda {

// The caller's arguments. An affine is [4, C]: mean, invstd, scale, shift.
template <typename T>
struct BnActArguments {
  MapShape shape;
  Map<const T> x;
  Map<const T> residual;  // data null: none
  Map<T> out;
  const math_t<T>* affine = nullptr;
  const math_t<T>* residual_affine = nullptr;  // null: the residual is added as it is
  bool relu = true;
};

template <typename T>
struct BnBackwardInputArguments {
  MapShape shape;
  Map<const T> grad, x;
  Map<T> grad_x;
  const math_t<T>* affine = nullptr;
  const math_t<T>* sums = nullptr;  // [2, C] of bn_backward_sums; null: the statistics are constants
  double count = 1;                 // values per channel that the sums stand for
  bool relu = true;                 // whether the gradient is masked by the sign of scale * x + shift
};

template <typename T>
struct BnActPlan {
  BnActArguments<T> a;
  Walk walk;
};

template <typename T>
struct BnBackwardInputPlan {
  BnBackwardInputArguments<T> a;
  Walk walk;
  math_t<T> share, rest;  // 1 / count, in two parts: its rounding would be an error of the whole channel
};

constexpr int kPassBlocks = 3;  // of a multiprocessor: the tables of a pack of eight channels stay in registers

template <typename T, int kWidth, bool kLast>
__global__ void __launch_bounds__(kThreads, kPassBlocks) bn_act_kernel(const __grid_constant__ BnActPlan<T> plan) {
  using M = math_t<T>;
  using Own = Place<kWidth, kLast>;
  constexpr int kPacks = kAhead<kWidth>;
  const auto& a = plan.a;
  const Walk& w = plan.walk;
  const Own p(w, blockIdx.x);
  if (!p.busy) return;
  const bool adds = a.residual.data != nullptr, affine = adds && a.residual_affine != nullptr;
  M scale[Own::kSums], shift[Own::kSums], other_scale[Own::kSums], other_shift[Own::kSums];
  p.table(w, a.affine + 2 * w.channels, scale);
  p.table(w, a.affine + 3 * w.channels, shift);
  if (affine) {
    p.table(w, a.residual_affine + 2 * w.channels, other_scale);
    p.table(w, a.residual_affine + 3 * w.channels, other_shift);
  }
#pragma unroll 1
  for (uint32_t item = p.begin; item < p.end; item += kPacks * w.lanes) {
    Pack<T, kWidth> x[kPacks], other[kPacks];
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      if (item + u * w.lanes >= p.end) continue;
      x[u] = read_pack<kWidth>(p.at(a.x, w, item + u * w.lanes));
      if (adds) other[u] = read_pack<kWidth>(p.at(a.residual, w, item + u * w.lanes));
    }
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      if (item + u * w.lanes >= p.end) continue;
      M result[kWidth];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const int c = kLast ? j : 0;
        // One rounding by name, and not by the compiler's choice: backward must find the sign that forward found.
        M y = multiply_add(to_math(x[u].values[j]), scale[c], shift[c]);
        if (affine)
          y += multiply_add(to_math(other[u].values[j]), other_scale[c], other_shift[c]);
        else if (adds)
          y += to_math(other[u].values[j]);
        result[j] = a.relu && y < M(0) ? M(0) : y;  // keeps NaN
      }
      write<kWidth>(p.at(a.out, w, item + u * w.lanes), result);
    }
  }
}

// scale * (g - sums[0] / count - (x - mean) * invstd * sums[1] / count).
template <typename T, int kWidth, bool kLast>
__global__ void __launch_bounds__(kThreads, kPassBlocks)
    bn_backward_input_kernel(const __grid_constant__ BnBackwardInputPlan<T> plan) {
  using M = math_t<T>;
  using Own = Place<kWidth, kLast>;
  constexpr int kPacks = kAhead<kWidth>;
  const auto& a = plan.a;
  const Walk& w = plan.walk;
  const Own p(w, blockIdx.x);
  if (!p.busy) return;
  M scale[Own::kSums], shift[Own::kSums], mean[Own::kSums], base[Own::kSums], slope[Own::kSums];
  p.table(w, a.affine + 2 * w.channels, scale);
  if (a.relu) p.table(w, a.affine + 3 * w.channels, shift);
  if (a.sums != nullptr) {
    p.table(w, a.affine, mean);
    p.table(w, a.affine + w.channels, slope);
    M sum[Own::kSums];
    p.table(w, a.sums, sum);
#pragma unroll
    for (int j = 0; j < Own::kSums; ++j) base[j] = multiply_add(sum[j], plan.share, sum[j] * plan.rest);
    p.table(w, a.sums + w.channels, sum);
#pragma unroll
    for (int j = 0; j < Own::kSums; ++j) slope[j] *= sum[j] * plan.share;
  }
  const bool reads_x = a.relu || a.sums != nullptr;
#pragma unroll 1
  for (uint32_t item = p.begin; item < p.end; item += kPacks * w.lanes) {
    Pack<T, kWidth> grad[kPacks], x[kPacks];
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      if (item + u * w.lanes >= p.end) continue;
      grad[u] = read_pack<kWidth>(p.at(a.grad, w, item + u * w.lanes));
      if (reads_x) x[u] = read_pack<kWidth>(p.at(a.x, w, item + u * w.lanes));
    }
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      if (item + u * w.lanes >= p.end) continue;
      M result[kWidth];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        const int c = kLast ? j : 0;
        M g = to_math(grad[u].values[j]);
        if (a.relu && multiply_add(to_math(x[u].values[j]), scale[c], shift[c]) <= M(0)) g = M(0);
        if (a.sums != nullptr) g = multiply_add(mean[c] - to_math(x[u].values[j]), slope[c], g - base[c]);
        result[j] = scale[c] * g;
      }
      write<kWidth>(p.at(a.grad_x, w, item + u * w.lanes), result);
    }
  }
}

// Queues act(scale * x + shift + residual). cudaErrorInvalidValue: 2^31 items or more.
template <typename T>
cudaError_t bn_act_apply(const BnActArguments<T>& a, cudaStream_t stream) {
  const Packing p = packing_of<T>(a.shape, {a.x, a.residual, readable(a.out)});
  BnActPlan<T> plan{a, walk_of(a.shape, p, false)};
  plan.walk.packed_tables = tables_packed(a.shape, p, {a.affine, a.residual_affine});
  plan.a.x = folded(a.x, p);
  plan.a.residual = folded(a.residual, p);
  plan.a.out = folded(a.out, p);
  if (plan.walk.items == 0) return cudaErrorInvalidValue;
  return with_packing<T>(p.width, a.shape.channels_last, [&](auto width, auto last) {
    return launch(bn_act_kernel<T, width.value, last.value>, plan.walk.tiles * plan.walk.group_tiles, 1, plan, stream);
  });
}

// Queues the gradient of x. cudaErrorInvalidValue: 2^31 items or more.
template <typename T>
cudaError_t bn_backward_input(const BnBackwardInputArguments<T>& a, cudaStream_t stream) {
  const Packing p = packing_of<T>(a.shape, {a.grad, a.x, readable(a.grad_x)});
  BnBackwardInputPlan<T> plan{a, walk_of(a.shape, p, false), static_cast<math_t<T>>(1.0 / a.count), 0};
  plan.rest = static_cast<math_t<T>>(1.0 / a.count - static_cast<double>(plan.share));
  plan.walk.packed_tables = tables_packed(a.shape, p, {a.affine, a.sums});
  plan.a.grad = folded(a.grad, p);
  plan.a.x = folded(a.x, p);
  plan.a.grad_x = folded(a.grad_x, p);
  if (plan.walk.items == 0) return cudaErrorInvalidValue;
  return with_packing<T>(p.width, a.shape.channels_last, [&](auto width, auto last) {
    return launch(bn_backward_input_kernel<T, width.value, last.value>, plan.walk.tiles * plan.walk.group_tiles, 1,
                  plan, stream);
  });
}

}  // namespace hrnet_fast::cuda
