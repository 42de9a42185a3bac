// Convolutions in bfloat16 on AMX: 32 positions x 32 output channels at a time, with sums in four tiles.
//
// Each step takes `depth` elements of a run: a tile of 16 positions, read in place, times a tile of packed
// weights. Weights are [block of 32 output channels][run][step][half of 16 channels][depth / 2][16 channels][2].
// Finished sums pass through a small buffer and become outputs while the matrix units compute the next block.

#include "conv_pack.h"

#if defined(HF_CONV_AMX)

#if !defined(__clang__)
// GCC's own intrinsics start from undefined registers, and it warns of each.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <cpuid.h>
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstring>

#define HF_AMX __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-bf16")))
#define HF_AMX_INLINE HF_AMX inline __attribute__((always_inline))

namespace hrnet_fast::cpu {
namespace {

constexpr int64_t kRows = 16;      // positions of a tile
constexpr int64_t kColumns = 32;   // output channels of a block
constexpr int64_t kMaxDepth = 32;  // elements of a step

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Finished sums that are not yet stored as outputs.
struct Pending {
  const float* sums = nullptr;  // [32 positions][32 channels]
  uint32_t stored = 0;          // positions still to be stored
  __mmask32 columns = 0;
  const float *bias = nullptr, *floor = nullptr;
  uint16_t* out[2] = {};  // of either strip
  const uint16_t* residual[2] = {};
};

struct Geometry {
  int64_t out_pixel, residual_pixel, in_bytes;
  int64_t runs, run, steps, depth, quota;
  int64_t offsets[9];
};

// Stores up to `count` positions as outputs.
HF_AMX_INLINE void finish(Pending& pending, const Geometry& geometry, int64_t count) {
  uint32_t stored = pending.stored;
  for (; stored != 0 && count > 0; --count, stored &= stored - 1) {
    const int position = __builtin_ctz(stored), strip = position >> 4, row = position & 15;
    const float* sums = pending.sums + position * kColumns;
    __m512 low = _mm512_add_ps(_mm512_load_ps(sums), _mm512_loadu_ps(pending.bias));
    __m512 high = _mm512_add_ps(_mm512_load_ps(sums + 16), _mm512_loadu_ps(pending.bias + 16));
    if (pending.residual[0] != nullptr) {
      const uint16_t* from = pending.residual[strip] + row * geometry.residual_pixel;
      const __m512i added = _mm512_maskz_loadu_epi16(pending.columns, from);
      const __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(added));
      const __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(added, 1));
      low = _mm512_add_ps(low, _mm512_castsi512_ps(_mm512_slli_epi32(first, 16)));
      high = _mm512_add_ps(high, _mm512_castsi512_ps(_mm512_slli_epi32(second, 16)));
    }
    // The maximum instruction returns the second operand if one is NaN.
    low = _mm512_max_ps(_mm512_loadu_ps(pending.floor), low);
    high = _mm512_max_ps(_mm512_loadu_ps(pending.floor + 16), high);
    const __m512i rounded = (__m512i)_mm512_cvtne2ps_pbh(high, low);
    _mm512_mask_storeu_epi16(pending.out[strip] + row * geometry.out_pixel, pending.columns, rounded);
  }
  pending.stored = stored;
}

// Sums of one or two strips and one or two halves of a block.
template <bool two_strips, bool two_halves>
HF_AMX_INLINE void multiply(const Geometry& g, const uint16_t* first, const uint16_t* second, const uint16_t* weights,
                            Pending& pending) {
  _tile_zero(0);
  if (two_halves) _tile_zero(1);
  if (two_strips) _tile_zero(2);
  if (two_strips && two_halves) _tile_zero(3);
  const int64_t half = g.depth * 16;
  for (int64_t run = 0; run < g.runs; ++run) {
    const int64_t begin = g.offsets[run], last = begin + g.run - g.depth;
    for (int64_t step = 0, at = begin; step < g.steps; ++step, at += g.depth) {
      const int64_t from = at < last ? at : last;
      _tile_loadd(6, weights, 64);
      _tile_loadd(4, first + from, g.in_bytes);
      _tile_dpbf16ps(0, 4, 6);
      if (two_halves) {
        _tile_loadd(7, weights + half, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (two_strips) {
        _tile_loadd(5, second + from, g.in_bytes);
        _tile_dpbf16ps(2, 5, 6);
        if (two_halves) _tile_dpbf16ps(3, 5, 7);
      }
      weights += two_halves ? 2 * half : half;
      if (pending.stored != 0) finish(pending, g, g.quota);
    }
  }
}

template <bool two_strips, bool two_halves>
HF_AMX void block(const Geometry& g, const uint16_t* first, const uint16_t* second, const uint16_t* weights,
                  Pending& pending, float* sums) {
  multiply<two_strips, two_halves>(g, first, second, weights, pending);
  if (pending.stored != 0) finish(pending, g, 2 * kRows);
  _tile_stored(0, sums, kColumns * 4);
  if (two_halves) _tile_stored(1, sums + 16, kColumns * 4);
  if (two_strips) _tile_stored(2, sums + kRows * kColumns, kColumns * 4);
  if (two_strips && two_halves) _tile_stored(3, sums + kRows * kColumns + 16, kColumns * 4);
}

// Strips of equal length: at stride 1 full tiles, at stride 2 even parts of a row.
int64_t strip_length(const ConvJob& job) {
  if (job.packed->shape.stride == 1) return kRows;
  const int64_t parts = (job.out.width + kRows - 1) / kRows;
  return (job.out.width + parts - 1) / parts;
}

// An item is a group of blocks of output channels on a range of pairs of strips. A group has up to 32 KiB of weights,
// which stay in cache; consecutive items share a group.
struct Plan {
  int64_t pairs, groups, ranges;
};
Plan plan_of(const ConvJob& job, const Strips& strips) {
  const PackedConv& conv = *job.packed;
  const auto blocks = static_cast<int64_t>(conv.blocks.size());
  const int64_t bytes = conv.depth_of_window() * kColumns * 2;
  const int64_t group = std::clamp<int64_t>((32 << 10) / bytes, 1, blocks);
  Plan plan;
  plan.pairs = (strips.count() + 1) / 2;
  plan.groups = (blocks + group - 1) / group;
  const double pair = 1024.0 * static_cast<double>(conv.depth_of_window() * group);
  const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(6e6 / pair));
  plan.ranges = (plan.pairs + most - 1) / most;
  return plan;
}

HF_AMX void configure(const PackedConv& conv, int64_t rows) {
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = static_cast<uint8_t>(tile < 6 ? rows : conv.depth / 2);
    config.row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? conv.depth * 2 : 64);
  }
  // Loading a configuration is slower than comparing it and empties the tile pipeline, so items of one shape load it
  // once. Other users of tiles on this thread load their own before use.
  TileConfig now;
  _tile_storeconfig(&now);
  asm volatile("" ::"r"(&now) : "memory");
  if (std::memcmp(&now, &config, sizeof(now)) == 0) return;
  // GCC assumes that the instruction reads 8 bytes of the configuration, and would remove the other stores.
  asm volatile("" ::"r"(&config) : "memory");
  _tile_loadconfig(&config);
}

}  // namespace

bool amx_supported(Element type) {
  if (type != Element::bfloat16) return false;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!avx512_supported(type) || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  if ((d >> 22 & 1) == 0 || (d >> 24 & 1) == 0) return false;
  // The operating system allows tiles only to processes that request them.
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

// Steps take pairs of elements within the run.
bool amx_takes(const PackedConv& conv) { return conv.run >= 2; }

void amx_layout(PackedConv& conv) {
  auto even = [](int64_t value) { return value + value % 2; };
  conv.steps = (conv.run + kMaxDepth - 1) / kMaxDepth;
  conv.depth = even((conv.run + conv.steps - 1) / conv.steps);
  if (conv.depth > conv.run) {  // an odd run of one step: two steps that overlap
    conv.steps = 2;
    conv.depth = even((conv.run + 1) / 2);
  }
  int64_t elements = 0;
  for (int64_t first = 0; first < conv.shape.out_channels; first += kColumns) {
    const int64_t vectors = conv.shape.out_channels - first > 16 ? 2 : 1;
    conv.blocks.push_back({first, vectors, elements});
    elements += conv.runs * conv.steps * conv.depth * 16 * vectors;
  }
  conv.weight_bytes = elements * 2;
}

void amx_weights(PackedConv& conv, const float* weight) {
  auto* packed = static_cast<uint16_t*>(conv.weights);
  for (const OutBlock& block : conv.blocks) {
    for (int64_t run = 0; run < conv.runs; ++run) {
      for (int64_t step = 0; step < conv.steps; ++step) {
        const int64_t from = std::min(step * conv.depth, conv.run - conv.depth);
        for (int64_t i = 0; i < conv.depth * 16 * block.vectors; ++i) {
          const int64_t half = i / (conv.depth * 16), at = from + i / 32 % (conv.depth / 2) * 2 + i % 2;
          const int64_t out = block.first + half * 16 + i / 2 % 16;
          const bool taken = at < step * conv.depth;  // by the previous step
          *packed++ = taken ? 0 : round_to_bfloat16(window_weight(conv, weight, out, run, at));
        }
      }
    }
  }
}

int64_t amx_items(const ConvJob& job) {
  const Plan plan = plan_of(job, Strips(job, strip_length(job)));
  return plan.groups * plan.ranges;
}

HF_AMX void amx_item(const ConvJob& job, int64_t item) {
  const PackedConv& conv = *job.packed;
  const int64_t length = strip_length(job);
  const Strips strips(job, length);
  const Plan plan = plan_of(job, strips);
  const Part group = part_of(static_cast<int64_t>(conv.blocks.size()), plan.groups, item / plan.ranges);
  const Part pairs = part_of(plan.pairs, plan.ranges, item % plan.ranges);

  Geometry g;
  g.out_pixel = job.out.pixel;
  g.residual_pixel = job.residual.pixel;
  g.in_bytes = job.in.pixel * conv.shape.stride * 2;
  g.runs = conv.runs, g.run = conv.run, g.steps = conv.steps, g.depth = conv.depth;
  g.quota = (2 * kRows + g.runs * g.steps - 1) / (g.runs * g.steps);
  run_offsets(conv, job.in, g.offsets);

  const auto* in = static_cast<const uint16_t*>(job.in.data);
  auto* out = static_cast<uint16_t*>(job.out.data);
  const auto* residual = static_cast<const uint16_t*>(job.residual.data);
  alignas(64) float sums[2][2 * kRows * kColumns];
  Pending pending;
  int turn = 0;
  configure(conv, length);
  // A window of one pixel has few weights: a pair's inputs then serve the whole group. Else a block's weights serve all
  // pairs.
  const bool pairs_first = conv.shape.kernel == 1;
  const int64_t many = pairs.end - pairs.begin, blocks = group.end - group.begin;
  for (int64_t i = 0; i < many * blocks; ++i) {
    const int64_t pair = pairs.begin + (pairs_first ? i / blocks : i % many);
    const OutBlock& to = conv.blocks[group.begin + (pairs_first ? i % blocks : i / many)];
    const Strip first = strips.at(2 * pair);
    const bool two = 2 * pair + 1 < strips.count();
    const Strip second = two ? strips.at(2 * pair + 1) : first;
    const auto* weights = static_cast<const uint16_t*>(conv.weights) + to.weights;
    const uint16_t *a = in + first.in, *b = in + second.in;
    float* into = sums[turn];
    if (to.vectors == 2) {
      two ? block<true, true>(g, a, b, weights, pending, into) : block<false, true>(g, a, b, weights, pending, into);
    } else {
      two ? block<true, false>(g, a, b, weights, pending, into) : block<false, false>(g, a, b, weights, pending, into);
    }
    const int64_t columns = std::min(kColumns, conv.shape.out_channels - to.first);
    pending.sums = into;
    pending.stored = first.stored | (two ? second.stored << 16 : 0);
    pending.columns = static_cast<__mmask32>((uint64_t{1} << columns) - 1);
    pending.bias = conv.bias + to.first;
    pending.floor = conv.floor + to.first;
    pending.out[0] = out + first.out + to.first;
    pending.out[1] = out + second.out + to.first;
    if (residual != nullptr) {
      pending.residual[0] = residual + first.residual + to.first;
      pending.residual[1] = residual + second.residual + to.first;
    }
    turn ^= 1;
  }
  finish(pending, g, 2 * kRows);
}

HF_AMX void amx_release() { _tile_release(); }

}  // namespace hrnet_fast::cpu

#else

namespace hrnet_fast::cpu {
bool amx_supported(Element) { return false; }
bool amx_takes(const PackedConv&) { return false; }
void amx_layout(PackedConv&) {}
void amx_weights(PackedConv&, const float*) {}
int64_t amx_items(const ConvJob&) { return 0; }
void amx_item(const ConvJob&, int64_t) {}
void amx_release() {}
}  // namespace hrnet_fast::cpu

#endif
