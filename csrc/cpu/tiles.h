// Iteration over a map [N, C, H, W] in tiles for per-channel arithmetic, channels-last or contiguous.
//
// A channels-last tile is a few whole pixels, with the per-channel values repeated for each, so that inner loops run
// over long arrays for any number of channels (18 would leave vectors half empty). A contiguous tile is a run of one
// plane, whose per-channel values are scalars. Chunks of tiles store partial sums. Their number, and so the result,
// does not depend on the number of threads.

#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../../kernels/cuda/resample.h"
#include "clones.h"
#include "rows.h"

namespace hrnet_fast::cpu {

constexpr int64_t kTile = 512;       // minimum values of a tile, if the map has as many
constexpr int64_t kChunk = 1 << 15;  // minimum values of a channels-last chunk
constexpr int64_t kTogether = 4;     // maximum tiles that a job takes at once

struct Shape {
  int64_t batch, channels, plane;  // plane: H * W
  bool channels_last;

  static Shape of(const at::Tensor& x) {
    return {x.size(0), x.size(1), x.size(2) * x.size(3), x.suggest_memory_format() == at::MemoryFormat::ChannelsLast};
  }
  at::MemoryFormat format() const {
    return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
  }
  int64_t tile() const {
    return channels_last ? (kTile + channels - 1) / channels * channels : std::min(kTile, (plane + 15) / 16 * 16);
  }
  int64_t chunk() const {  // values per chunk
    const int64_t t = tile();
    return channels_last ? (kChunk + t - 1) / t * t : plane;
  }
  int64_t chunks() const {
    const int64_t values = batch * channels * plane;
    return values == 0 ? 0 : (values + chunk() - 1) / chunk();
  }
  int64_t values(int64_t index) const { return std::min(chunk(), batch * channels * plane - index * chunk()); }
  // Minimum number of chunks per thread, so that the work outweighs the dispatch.
  int64_t grain() const { return std::max<int64_t>(1, kChunk / std::max<int64_t>(1, chunk())); }
};

// `size` values from `offset`: one tile, or several of `lanes` values. Vector k's value for lane j is of(k, j).
template <typename M, bool kScalar>
struct Tile {
  int64_t offset, size, lanes;
  const M* vectors;
  int64_t stride;

  HF_INLINE M of(int k, int64_t j) const { return vectors[k * stride + (kScalar ? 0 : j)]; }
};

// Helpers without a division per value; the number of lanes is a multiple of the channels', or of 16 in a plane.
template <typename M>
HF_INLINE void repeat(const M* __restrict__ from, int64_t channels, int64_t lanes, M* __restrict__ to) {
  for (int64_t p = 0; p < lanes; p += channels)
    for (int64_t c = 0; c < channels; ++c) to[p + c] = from[c];
}

template <typename M>
HF_INLINE void widen(const M* __restrict__ sums, int64_t count, double* __restrict__ wide) {
  for (int64_t j = 0; j < count; ++j) wide[j] += static_cast<double>(sums[j]);
}

HF_INLINE void fold(const double* __restrict__ lanes, int64_t channels, int64_t count, double* __restrict__ sums) {
  for (int64_t p = 0; p < count; p += channels)
    for (int64_t c = 0; c < channels; ++c) sums[c] += lanes[p + c];
}

template <typename M>
HF_INLINE double total(const M* __restrict__ lanes, int64_t count) {
  double parts[16] = {};
  for (int64_t p = 0; p < count; p += 16)
    for (int j = 0; j < 16; ++j) parts[j] += static_cast<double>(lanes[p + j]);
  double sum = 0.0;
  for (const double part : parts) sum += part;
  return sum;
}

// Calls job.tile(Tile, accumulators) for the tiles of chunks [begin, end), kTiles at once, and, where the job
// accumulates, leaves per channel and chunk two sums in job.partial: [chunks, 2, C] channels-last, [chunks, 2]
// contiguous. A job has `shape`, `vectors` (kVectors pointers to [C]), and the static kVectors, kTiles, kAccumulates
// and kShifts.
template <typename Job>
HF_INLINE void walk(const Job& job, int64_t begin, int64_t end) {
  using M = typename Job::M;
  const Shape& s = job.shape;
  const int64_t lanes = s.tile();
  const int64_t own = s.channels_last ? s.channels : 1;  // channels that a chunk has
  std::vector<M> vectors((Job::kVectors + 1) * (s.channels_last ? lanes : 1));
  std::vector<M> sums(Job::kAccumulates ? 2 * lanes : 0);
  std::vector<double> wide(s.channels_last ? sums.size() : 0);
  const int64_t stride = s.channels_last ? lanes : 1;
  M* __restrict__ v = vectors.data();
  if (s.channels_last)
    for (int k = 0; k < Job::kVectors; ++k) repeat(job.vectors[k], s.channels, lanes, v + k * stride);
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t start = chunk * s.chunk(), size = s.values(chunk);
    if (!s.channels_last)
      for (int k = 0; k < Job::kVectors; ++k) v[k] = job.vectors[k][chunk % s.channels];
    if (Job::kShifts)  // the last vector is the shift of the statistics
      for (int64_t p = 0; p < stride; p += own)
        for (int64_t c = 0; c < own; ++c) v[Job::kVectors * stride + p + c] = job.shift(start + c);
    double* partial = Job::kAccumulates ? job.partial + chunk * 2 * own : nullptr;
    if (Job::kAccumulates) std::fill(partial, partial + 2 * own, 0.0);
    std::fill(wide.begin(), wide.end(), 0.0);
    for (int64_t first = 0; first < size; first += Job::kFlush * lanes) {
      std::fill(sums.begin(), sums.end(), M(0));
      const int64_t last = std::min(size, first + Job::kFlush * lanes);
      for (int64_t at = first; at < last; at += Job::kTiles * lanes) {
        const int64_t n = std::min(Job::kTiles * lanes, last - at);
        if (s.channels_last)
          job.tile(Tile<M, false>{start + at, n, lanes, v, stride}, sums.data(), sums.data() + lanes);
        else
          job.tile(Tile<M, true>{start + at, n, lanes, v, stride}, sums.data(), sums.data() + lanes);
      }
      if (!Job::kAccumulates) continue;
      if (s.channels_last)
        widen(sums.data(), 2 * lanes, wide.data());
      else
        for (int k = 0; k < 2; ++k) partial[k] += total(sums.data() + k * lanes, lanes);
    }
    if (Job::kAccumulates && s.channels_last)
      for (int k = 0; k < 2; ++k) fold(wide.data() + k * lanes, own, lanes, partial + k * own);
  }
}

}  // namespace hrnet_fast::cpu
