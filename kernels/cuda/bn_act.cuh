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
  // 1 / count, in two parts: its rounding would be an error of the whole channel. The launch fills them in.
  math_t<T> share = 1, rest = 0;
};

template <typename T>
using BnActPlan = MapsPlan<BnActArguments<T>>;

template <typename T>
using BnBackwardInputPlan = MapsPlan<BnBackwardInputArguments<T>>;

constexpr int kPassBlocks = 3;  // of a multiprocessor: the tables of a pack of eight channels stay in registers

template <typename T, int kWidth, bool kLast>
__global__ void __launch_bounds__(kThreads, kPassBlocks) bn_act_kernel(const __grid_constant__ BnActPlan<T> plan) {
  using M = math_t<T>;
  using Own = Place<kWidth, kLast>;
  constexpr int kPacks = kAhead<kWidth>;
  const auto& map = plan.of_block(blockIdx.x);
  const auto& a = map.a;
  const Walk& w = map.walk;
  const Own p(w, blockIdx.x - map.first_block);
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
  const auto& map = plan.of_block(blockIdx.x);
  const auto& a = map.a;
  const Walk& w = map.walk;
  const Own p(w, blockIdx.x - map.first_block);
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
    for (int j = 0; j < Own::kSums; ++j) base[j] = multiply_add(sum[j], a.share, sum[j] * a.rest);
    p.table(w, a.sums + w.channels, sum);
#pragma unroll
    for (int j = 0; j < Own::kSums; ++j) slope[j] *= sum[j] * a.share;
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

// Queues act(scale * x + shift + residual) for up to kMaxMaps maps; see launch_maps.
template <typename T>
cudaError_t bn_act_apply(const BnActArguments<T>* maps, int count, cudaStream_t stream) {
  const auto prepare = [](const BnActArguments<T>& given, BnActArguments<T>& a, Walk& walk) {
    const Packing p = packing_of<T>(given.shape, {given.x, given.residual, readable(given.out)});
    a = given;
    walk = walk_of(a.shape, p, false);
    walk.packed_tables = tables_packed(a.shape, p, {a.affine, a.residual_affine});
    a.x = folded(a.x, p);
    a.residual = folded(a.residual, p);
    a.out = folded(a.out, p);
    return p;
  };
  return launch_maps<T>(maps, count, prepare, [&](auto width, auto last, unsigned blocks, const BnActPlan<T>& plan) {
    return launch(bn_act_kernel<T, width.value, last.value>, blocks, 1, plan, stream);
  });
}

// Queues the gradients of x for up to kMaxMaps maps; see launch_maps.
template <typename T>
cudaError_t bn_backward_input(const BnBackwardInputArguments<T>* maps, int count, cudaStream_t stream) {
  using Arguments = BnBackwardInputArguments<T>;
  const auto prepare = [](const Arguments& given, Arguments& a, Walk& walk) {
    const Packing p = packing_of<T>(given.shape, {given.grad, given.x, readable(given.grad_x)});
    a = given;
    walk = walk_of(a.shape, p, false);
    walk.packed_tables = tables_packed(a.shape, p, {a.affine, a.sums});
    a.share = static_cast<math_t<T>>(1.0 / a.count);
    a.rest = static_cast<math_t<T>>(1.0 / a.count - static_cast<double>(a.share));
    a.grad = folded(a.grad, p);
    a.x = folded(a.x, p);
    a.grad_x = folded(a.grad_x, p);
    return p;
  };
  return launch_maps<T>(maps, count, prepare,
                        [&](auto width, auto last, unsigned blocks, const BnBackwardInputPlan<T>& plan) {
                          return launch(bn_backward_input_kernel<T, width.value, last.value>, blocks, 1, plan, stream);
                        });
}

}  // namespace hrnet_fast::cuda
