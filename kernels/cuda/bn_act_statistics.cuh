// bn_act in CUDA, statistics: moments of several maps, and what normalisations make of them, in one launch.
//
// Means are relative to values of the map itself, so that a large mean costs no digits. Threads sum x - c and its
// square where c is near the mean of their own values; threads and blocks join by Chan's formula.

#pragma once

#include "bn_act_affine.cuh"
#include "bn_act_join.cuh"

namespace hrnet_fast::cuda {

template <typename T>
struct StatisticsMap {
  Map<const T> x;
  MapShape shape;
  math_t<T>* result = nullptr;  // [4, C], an affine; [2, C], mean and biased variance, of a map without norms
  int first_norm = 0, norms = 0;
};

// The caller's arguments. Norms follow one another along the channels of all maps. No map is empty.
template <typename T>
struct BnStatisticsArguments {
  StatisticsMap<T> maps[kMaxMaps];
  NormArguments norms[kMaxNorms];
  int count = 0;
  math_t<T>* partials = nullptr;  // [bn_statistics_partials()]
  uint32_t* counters = nullptr;   // [count, kCounters], zero; zero again when the launch is done
};

template <typename T>
struct BnStatisticsPlan {
  struct OwnMap {
    Map<const T> x;
    math_t<T>*result, *partials;
    uint32_t first_block;
    int first_norm, norms, width;
    bool channels_last;
    Walk walk;
  };
  OwnMap maps[kMaxMaps];
  NormArguments norms[kMaxNorms];
  uint32_t* counters;
  int count;
};

// The first value of a channel, which means are relative to; not an infinity or NaN: the sums shall carry those.
template <bool kLast, typename T>
HF_DEVICE math_t<T> first_value(const Map<const T>& x, uint32_t channel) {
  const math_t<T> value = to_math(*x.template at<kLast>(0, channel, 0));
  return value - value == math_t<T>(0) ? value : math_t<T>(0);
}

// What a thread subtracts from its values of a channel: the average of the first few. The differences keep all digits,
// and no value far out is what others are relative to.
template <int kWidth, int kPacks, int kSums, typename M>
HF_DEVICE void choose_centre(const M (&value)[kPacks][kWidth], int valid, M (&centre)[kSums]) {
  const M share = M(1) / static_cast<M>(kSums == kWidth ? valid : valid * kWidth);
#pragma unroll
  for (int c = 0; c < kSums; ++c) {
    M sum = M(0);
#pragma unroll
    for (int u = 0; u < kPacks; ++u)
#pragma unroll
      for (int j = c; j < (kSums == kWidth ? c + 1 : kWidth); ++j)
        if (u < valid) sum += value[u][j] - value[0][c];
    const M average = value[0][c] + sum * share;
    centre[c] = average - average == M(0) ? average : M(0);
  }
}

// The moments of one thread's values of each channel: mean, relative to the channel's first value, and sum of squared
// deviations. Returns the number of values.
template <typename T, int kWidth, bool kLast, int kSums>
HF_DEVICE math_t<T> thread_moments(const Map<const T>& x, const Walk& w, const Place<kWidth, kLast>& p,
                                   Accumulated<math_t<T>> (&mean)[kSums], Accumulated<math_t<T>> (&squares)[kSums]) {
  using M = math_t<T>;
  constexpr int kPacks = 4;
  if (!p.busy || p.begin >= p.end) return M(0);
  M centre[kSums], sum[kSums], square[kSums];
#pragma unroll
  for (int j = 0; j < kSums; ++j) sum[j] = square[j] = M(0);
#pragma unroll 1
  for (uint32_t item = p.begin; item < p.end; item += kPacks * w.lanes) {
    M value[kPacks][kWidth];
    int valid = 0;
#pragma unroll
    for (int u = 0; u < kPacks; ++u) {
      if (item + u * w.lanes >= p.end) continue;
      read<kWidth>(p.at(x, w, item + u * w.lanes), value[u]);
      ++valid;
    }
    if (item == p.begin) choose_centre(value, valid, centre);
    M one[kSums], two[kSums];
#pragma unroll
    for (int j = 0; j < kSums; ++j) one[j] = two[j] = M(0);
#pragma unroll
    for (int j = 0; j < kWidth; ++j) {
      const int c = kLast ? j : 0;
      M d[kPacks];
#pragma unroll
      for (int u = 0; u < kPacks; ++u) d[u] = u < valid ? value[u][j] - centre[c] : M(0);
      one[c] += (d[0] + d[1]) + (d[2] + d[3]);
      two[c] += (d[0] * d[0] + d[1] * d[1]) + (d[2] * d[2] + d[3] * d[3]);
    }
#pragma unroll
    for (int j = 0; j < kSums; ++j) {
      sum[j] += one[j];
      square[j] += two[j];
    }
  }
  const M count = static_cast<M>((p.end - p.begin + w.lanes - 1) / w.lanes * (kLast ? 1 : kWidth));
#pragma unroll
  for (int j = 0; j < kSums; ++j) {
    const M average = sum[j] / count;
    squares[j].add(multiply_add(-average, sum[j], square[j]));
    mean[j].add(centre[j]);
    mean[j].add(-first_value<kLast>(x, p.own_channel(w, j)));
    mean[j].add(average);
  }
  return count;
}

template <typename T, int kWidth, bool kLast>
HF_DEVICE void map_statistics(const BnStatisticsPlan<T>& plan, int k, math_t<T>* buffer) {
  using M = math_t<T>;
  const auto& map = plan.maps[k];
  const Walk& w = map.walk;
  const Place<kWidth, kLast> p(w, blockIdx.x - map.first_block);
  Accumulated<M> mean[p.kSums], squares[p.kSums];
  const M count = thread_moments<T>(map.x, w, p, mean, squares);
  join_lanes<true>(w, p, count, mean, squares, buffer);
  if (!leave_partials<true>(w, p, mean, squares, map.partials, plan.counters + k * kCounters)) return;
  const double n = static_cast<double>(w.items) * (kLast ? 1 << w.fold : kWidth);
  join_tiles<true, kWidth, kLast>(w, p.group_tile, map.partials, buffer, [&](int c, M origin, double a, double b) {
    const double shift = a / n, rest = (b - a * shift) / n;
    const double variance = rest < 0.0 ? 0.0 : rest;  // rounding; NaN stays
    const double average = static_cast<double>(first_value<kLast>(map.x, c)) + static_cast<double>(origin) + shift;
    if (map.norms == 0) {
      map.result[c] = static_cast<M>(average);
      map.result[w.channels + c] = static_cast<M>(variance);
      return;
    }
    const NormArguments* norm = plan.norms + map.first_norm;
    while (c >= norm->end) ++norm;
    write_affine(*norm, c - norm->begin, average, variance, map.result + c, w.channels);
    norm->running_mean.move(c - norm->begin, average, norm->momentum);
    norm->running_var.move(c - norm->begin, variance * (n / (n - 1.0)), norm->momentum);
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) bn_statistics_kernel(const __grid_constant__ BnStatisticsPlan<T> plan) {
  __shared__ math_t<T> buffer[kJoinBuffer<kVectorWidth<T>>];
  int k = 0;
  while (k + 1 < plan.count && blockIdx.x >= plan.maps[k + 1].first_block) ++k;
  const int width = plan.maps[k].width;
  if (plan.maps[k].channels_last) {
    if (width == kVectorWidth<T>) return map_statistics<T, kVectorWidth<T>, true>(plan, k, buffer);
    if (width == 2) return map_statistics<T, 2, true>(plan, k, buffer);
    return map_statistics<T, 1, true>(plan, k, buffer);
  }
  if (width == kVectorWidth<T>) return map_statistics<T, kVectorWidth<T>, false>(plan, k, buffer);
  if (width == 2) return map_statistics<T, 2, false>(plan, k, buffer);
  map_statistics<T, 1, false>(plan, k, buffer);
}

template <typename T>
int64_t statistics_partials(const StatisticsMap<T>& map) {
  const Packing p = packing_of<T>(map.shape, {map.x});
  return partial_values<true>(walk_of(map.shape, p, true), map.shape.channels_last ? p.width : 1);
}

// Values of the partials, of all maps.
template <typename T>
int64_t bn_statistics_partials(const BnStatisticsArguments<T>& a) {
  int64_t values = 0;
  for (int k = 0; k < a.count; ++k) values += statistics_partials(a.maps[k]);
  return values;
}

// Queues the statistics of all maps. cudaErrorInvalidValue: 2^31 items or more, or no map or more than kMaxMaps.
template <typename T>
cudaError_t bn_statistics(const BnStatisticsArguments<T>& a, cudaStream_t stream) {
  if (a.count < 1 || a.count > kMaxMaps) return cudaErrorInvalidValue;
  BnStatisticsPlan<T> plan{};
  math_t<T>* partials = a.partials;
  int64_t blocks = 0;
  for (int k = 0; k < a.count; ++k) {
    const StatisticsMap<T>& map = a.maps[k];
    const Packing p = packing_of<T>(map.shape, {map.x});
    const Walk w = walk_of(map.shape, p, true);
    if (w.items == 0) return cudaErrorInvalidValue;
    plan.maps[k] = {folded(map.x, p),
                    map.result,
                    partials,
                    static_cast<uint32_t>(blocks),
                    map.first_norm,
                    map.norms,
                    p.width,
                    map.shape.channels_last,
                    w};
    partials += statistics_partials(map);
    blocks += static_cast<int64_t>(w.tiles) * w.group_tiles;
  }
  if (blocks > kMaxItems) return cudaErrorInvalidValue;
  for (int k = 0; k < kMaxNorms; ++k) plan.norms[k] = a.norms[k];
  plan.counters = a.counters;
  plan.count = a.count;
  return launch(bn_statistics_kernel<T>, static_cast<unsigned>(blocks), 1, plan, stream);
}

}  // namespace hrnet_fast::cuda
