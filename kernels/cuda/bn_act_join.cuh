// How a reduction of bn_act joins its threads, and in the same launch its blocks.
//
// Threads of a block join in a tree in shared memory. Each block leaves two values per channel; the last one of a group
// of channels to finish adds these up in a fixed order. So results are the same in every run.

#pragma once

#include "bn_act_walk.cuh"

namespace hrnet_fast::cuda {

// Shared memory of a reduction, in values.
template <int kSums>
constexpr int kJoinBuffer = (4 * kSums + 1 > 8 ? 4 * kSums + 1 : 8) * (kThreads / 2);

// A sum and what its roundings lost: as exact as in double, which many devices compute 64 times slower than float.
template <typename M>
struct Accumulated {
  M sum = M(0), lost = M(0);

  HF_DEVICE void add(M value) {
    const M total = sum + value, part = total - sum;
    lost += (sum - (total - part)) + (value - part);
    sum = total;
  }
  HF_DEVICE void add(const Accumulated& other) {
    add(other.sum);
    lost += other.lost;
  }
  // What the sum's own rounding leaves; of an infinite sum that is NaN.
  HF_DEVICE M rest() const { return lost - lost == M(0) ? lost : M(0); }
};

// Joins the threads of each group into its first lane. Sums are added; moments, the mean and the sum of squared
// deviations of `count` values, are joined by Chan's formula (1979).
template <bool kMoments, int kWidth, bool kLast, int kSums, typename M>
HF_DEVICE void join_lanes(const Walk& w, const Place<kWidth, kLast>& p, M count, Accumulated<M> (&a)[kSums],
                          Accumulated<M> (&b)[kSums], M* buffer) {
  constexpr int kRow = kThreads / 2;  // no more threads than half of them give at once
#pragma unroll 1
  for (int half = w.half; half > 0; half /= 2) {
    const int lane = p.lane < half ? p.lane : p.lane - half;
    M* slot = buffer + (kLast ? lane * w.groups + p.group : p.group * ((w.lanes + 1) / 2) + lane);
    __syncthreads();
    if (p.busy && p.lane >= half && p.lane < 2 * half) {
#pragma unroll
      for (int j = 0; j < kSums; ++j) {
        slot[(4 * j) * kRow] = a[j].sum;
        slot[(4 * j + 1) * kRow] = a[j].lost;
        slot[(4 * j + 2) * kRow] = b[j].sum;
        slot[(4 * j + 3) * kRow] = b[j].lost;
      }
      slot[4 * kSums * kRow] = count;
    }
    __syncthreads();
    if (!p.busy || p.lane >= half || p.lane + half >= w.lanes) continue;
    const M more = slot[4 * kSums * kRow], all = count + more;
    const M share = all > M(0) ? more / all : M(0), weight = count * share;
#pragma unroll
    for (int j = 0; j < kSums; ++j) {
      const Accumulated<M> first{slot[(4 * j) * kRow], slot[(4 * j + 1) * kRow]};
      b[j].add({slot[(4 * j + 2) * kRow], slot[(4 * j + 3) * kRow]});
      if constexpr (kMoments) {
        const M apart = (first.sum - a[j].sum) + (first.lost - a[j].lost);
        a[j].add(apart * share);
        b[j].add(apart * apart * weight);
      } else {
        a[j].add(first);
      }
    }
    count = all;
  }
}

// What a block leaves per channel: two sums, or a mean in two parts and a sum of squared deviations.
template <bool kMoments>
constexpr int kPartials = kMoments ? 3 : 2;

// Values that the blocks of a map leave.
template <bool kMoments>
int64_t partial_values(const Walk& w, int sums) {
  return static_cast<int64_t>(w.tiles) * w.group_tiles * kPartials<kMoments> * w.groups * sums;
}

// Leaves this block's share of [tiles, kPartials, channels of the block] of its group tile. Whether it is the last
// block to do so; what all left is then visible, and the counter at zero again.
template <bool kMoments, int kWidth, bool kLast, int kSums, typename M>
HF_DEVICE bool leave_partials(const Walk& w, const Place<kWidth, kLast>& p, const Accumulated<M> (&a)[kSums],
                              const Accumulated<M> (&b)[kSums], M* partials, uint32_t* counters) {
  __shared__ bool last;
  const int columns = w.groups * kSums;
  if (p.busy && p.lane == 0) {
    const int64_t row = static_cast<int64_t>(p.group_tile) * w.tiles + p.tile;
    M* to = partials + row * kPartials<kMoments> * columns + p.group * kSums;
#pragma unroll
    for (int j = 0; j < kSums; ++j) {
      to[j] = kMoments ? a[j].sum : a[j].sum + a[j].rest();
      to[columns + j] = b[j].sum + b[j].rest();
      if (kMoments) to[2 * columns + j] = a[j].rest();
    }
  }
  if (w.tiles > 1) __threadfence();
  __syncthreads();
  if (w.tiles == 1) return true;
  if (threadIdx.x == 0) last = atomicInc(counters + p.group_tile, w.tiles - 1) == w.tiles - 1;
  __syncthreads();
  if (last) __threadfence();
  return last;
}

// Joins what all blocks of a group tile left: finish(channel, origin, a, b) with the sums a and b, or of moments the
// sums of x - origin and of its square, where all are relative to what the blocks' means are relative to.
template <bool kMoments, int kWidth, bool kLast, typename M, typename Finish>
HF_DEVICE void join_tiles(const Walk& w, uint32_t group_tile, const M* partials, M* buffer, const Finish& finish) {
  constexpr int kSums = kLast ? kWidth : 1;
  const int columns = w.groups * kSums, first = static_cast<int>(group_tile) * columns;
  const int left = w.channels - first, all = left < columns ? left : columns;
  const M per_item = M(kLast ? 1 : kWidth), full = static_cast<M>(w.per_tile) * per_item;
  const M rest = static_cast<M>(w.items - (w.tiles - 1) * w.per_tile) * per_item;
  const int64_t row = kPartials<kMoments> * static_cast<int64_t>(columns);
  const M* rows = partials + group_tile * w.tiles * row;
  const uint32_t parts = w.tiles << w.fold;
#pragma unroll 1
  for (int base = 0; base < all; base += kThreads) {
    const int width = all - base < kThreads ? all - base : kThreads;
    const int lanes = kThreads / width, lane = static_cast<int>(threadIdx.x) / width;
    const int c = base + static_cast<int>(threadIdx.x) - lane * width;
    Accumulated<M> a, b;
    const M origin = kMoments ? __ldcg(rows + c) : M(0);
    if (lane < lanes) {
#pragma unroll 4
      for (uint32_t k = lane; k < parts; k += lanes) {
        const uint32_t tile = k >> w.fold, side = k - (tile << w.fold);
        const M* from = rows + tile * row + side * w.channels + c;
        const M one = __ldcg(from), two = __ldcg(from + columns);
        if constexpr (kMoments) {
          const M apart = (one - origin) + __ldcg(from + 2 * columns);
          const M moved = (tile + 1 == w.tiles ? rest : full) * apart;
          a.add(moved);
          b.add(multiply_add(moved, apart, two));
        } else {
          a.add(one);
          b.add(two);
        }
      }
    }
    int half = 1;
    while (2 * half < lanes) half *= 2;
#pragma unroll 1
    for (half = lanes > 1 ? half : 0; half > 0; half /= 2) {
      M* own = buffer + threadIdx.x;
      __syncthreads();
      if (lane >= half && lane < 2 * half) {
        own[0] = a.sum;
        own[kThreads] = a.lost;
        own[2 * kThreads] = b.sum;
        own[3 * kThreads] = b.lost;
      }
      __syncthreads();
      if (lane >= half || lane + half >= lanes) continue;
      const M* other = own + half * width;
      a.add({other[0], other[kThreads]});
      b.add({other[2 * kThreads], other[3 * kThreads]});
    }
    if (lane == 0)
      finish(first + c, origin, static_cast<double>(a.sum) + static_cast<double>(a.rest()),
             static_cast<double>(b.sum) + static_cast<double>(b.rest()));
    __syncthreads();
  }
}

}  // namespace hrnet_fast::cuda
