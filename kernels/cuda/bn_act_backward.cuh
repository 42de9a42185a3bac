// bn_act in CUDA, backward: the gradient, masked by the activation, and its two sums per channel, in one launch.

#pragma once

#include "bn_act_join.cuh"

namespace hrnet_fast::cuda {

// The caller's arguments. With g = grad + addend where the activation was positive, else 0: the sums of g and of
// g * (x - mean) * invstd.
template <typename T>
struct BnBackwardSumsArguments {
  MapShape shape;
  Map<const T> grad, x;
  Map<const T> addend;  // data null: none
  Map<const T> out;     // the activation; data null: the mask is the sign of scale * x + shift, with `relu`
  Map<T> kept;          // g; data null: not wanted
  const math_t<T>* affine = nullptr;  // [4, C]
  math_t<T>* sums = nullptr;          // [2, C]
  math_t<T>* partials = nullptr;      // [bn_backward_sums_partials()]
  uint32_t* counters = nullptr;       // [kCounters] of this map, zero; zero again when the launch is done
  bool relu = true;
};

template <typename T>
using BnBackwardSumsPlan = MapsPlan<BnBackwardSumsArguments<T>>;

template <typename T, int kWidth, bool kLast>
__global__ void __launch_bounds__(kThreads, 2)
    bn_backward_sums_kernel(const __grid_constant__ BnBackwardSumsPlan<T> plan) {
  using M = math_t<T>;
  using Own = Place<kWidth, kLast>;
  constexpr int kPacks = kAhead<kWidth>, kSums = Own::kSums;
  __shared__ M buffer[kJoinBuffer<kSums>];
  const auto& map = plan.of_block(blockIdx.x);
  const auto& a = map.a;
  const Walk& w = map.walk;
  const Own p(w, blockIdx.x - map.first_block);
  const bool recomputed = a.relu && a.out.data == nullptr;
  Accumulated<M> first[kSums], second[kSums];  // a thread's few values are added in the maths' type
  if (p.busy) {
    M mean[kSums], scale[kSums], shift[kSums];
    p.table(w, a.affine, mean);
    if (recomputed) {
      p.table(w, a.affine + 2 * w.channels, scale);
      p.table(w, a.affine + 3 * w.channels, shift);
    }
#pragma unroll 1
    for (uint32_t item = p.begin; item < p.end; item += kPacks * w.lanes) {
      Pack<T, kWidth> grad[kPacks], x[kPacks], more[kPacks], out[kPacks];
#pragma unroll
      for (int u = 0; u < kPacks; ++u) {
        const uint32_t at = item + u * w.lanes;
        if (at >= p.end) continue;
        grad[u] = read_pack<kWidth>(p.at(a.grad, w, at));
        x[u] = read_pack<kWidth>(p.at(a.x, w, at));
        if (a.addend.data != nullptr) more[u] = read_pack<kWidth>(p.at(a.addend, w, at));
        if (a.out.data != nullptr) out[u] = read_pack<kWidth>(p.at(a.out, w, at));
      }
      M sum[kSums], product[kSums];
#pragma unroll
      for (int j = 0; j < kSums; ++j) sum[j] = product[j] = M(0);
#pragma unroll
      for (int u = 0; u < kPacks; ++u) {
        const uint32_t at = item + u * w.lanes;
        if (at >= p.end) continue;
        M own[kWidth];
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          const int c = kLast ? j : 0;
          const M value = to_math(x[u].values[j]);
          M g = to_math(grad[u].values[j]);
          if (a.addend.data != nullptr) g += to_math(more[u].values[j]);
          // As the framework's: NaN lets the gradient through.
          if (a.out.data != nullptr && to_math(out[u].values[j]) <= M(0)) g = M(0);
          if (recomputed && multiply_add(value, scale[c], shift[c]) <= M(0)) g = M(0);
          // What is summed and what the input's gradient is made of are the same numbers: the rounded ones.
          if (a.kept.data != nullptr) g = to_math(from_math<T>(g));
          sum[c] += g;
          product[c] += g * (value - mean[c]);
          own[j] = g;
        }
        if (a.kept.data != nullptr) write<kWidth>(p.at(a.kept, w, at), own);
      }
#pragma unroll
      for (int j = 0; j < kSums; ++j) {
        first[j].sum += sum[j];
        second[j].sum += product[j];
      }
    }
  }
  join_lanes<false>(w, p, M(0), first, second, buffer);
  if (!leave_partials<false>(w, p, first, second, a.partials, a.counters)) return;
  join_tiles<false, kWidth, kLast>(w, p.group_tile, a.partials, buffer, [&](int c, M, double sum, double product) {
    a.sums[c] = static_cast<M>(sum);
    a.sums[w.channels + c] = static_cast<M>(product * static_cast<double>(a.affine[w.channels + c]));
  });
}

template <typename T>
Packing bn_backward_sums_packing(const BnBackwardSumsArguments<T>& a) {
  return packing_of<T>(a.shape, {a.grad, a.x, a.addend, a.out, readable(a.kept)});
}

// Values of the partials.
template <typename T>
int64_t bn_backward_sums_partials(const BnBackwardSumsArguments<T>& a) {
  const Packing p = bn_backward_sums_packing(a);
  return partial_values<false>(walk_of(a.shape, p, true), a.shape.channels_last ? p.width : 1);
}

// Queues the sums for up to kMaxMaps maps; see launch_maps.
template <typename T>
cudaError_t bn_backward_sums(const BnBackwardSumsArguments<T>* maps, int count, cudaStream_t stream) {
  using Arguments = BnBackwardSumsArguments<T>;
  const auto prepare = [](const Arguments& given, Arguments& a, Walk& walk) {
    const Packing p = bn_backward_sums_packing(given);
    a = given;
    walk = walk_of(a.shape, p, true);
    walk.packed_tables = tables_packed(a.shape, p, {a.affine});
    a.grad = folded(a.grad, p);
    a.x = folded(a.x, p);
    a.addend = folded(a.addend, p);
    a.out = folded(a.out, p);
    a.kept = folded(a.kept, p);
    return p;
  };
  return launch_maps<T>(maps, count, prepare,
                        [&](auto width, auto last, unsigned blocks, const BnBackwardSumsPlan<T>& plan) {
                          return launch(bn_backward_sums_kernel<T, width.value, last.value>, blocks, 1, plan, stream);
                        });
}

}  // namespace hrnet_fast::cuda
