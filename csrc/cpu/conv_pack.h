// Shared by the convolution kernels: packed weights, and division of positions into strips.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "conv.h"

// Compilers that support the instructions; the processor is checked at run time.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 11)
#if __has_include(<avx512bf16intrin.h>)
#define HF_CONV_AVX512 1
#endif
#if __has_include(<amxbf16intrin.h>)
#define HF_CONV_AMX 1
#endif
#endif

namespace hrnet_fast::cpu {

enum class Kernel : int { portable, avx512, amx };

// Output channels that one register block computes.
struct OutBlock {
  int64_t first;    // output channel
  int64_t vectors;  // of 16 channels
  int64_t weights;  // offset of its weights, in elements
};

// A window is read in runs of adjacent elements: [rows of the kernel] x [taps x channels] of a dense input, else
// [taps] x [channels].
struct PackedConv {
  ConvShape shape;
  Kernel kernel = Kernel::portable;
  int64_t runs = 0, run = 0;
  // Matrix units take a run in `steps` pieces of `depth`; the last one overlaps its predecessor instead of reading
  // past the run, with zero weights in the overlap. No element outside the window is multiplied, not even by zero.
  int64_t steps = 0, depth = 0;
  std::vector<OutBlock> blocks;
  int64_t dots = 0;        // output channels after the blocks, computed as dot products (conv_avx512_dots.h)
  float* bias = nullptr;   // [out_channels], zero padded to whole blocks
  float* floor = nullptr;  // lower bound of an output: 0 with a ReLU, otherwise -infinity
  void* weights = nullptr;
  int64_t weight_bytes = 0;

  bool one_run_per_row() const { return shape.dense_input && shape.kernel == 3; }
  int64_t depth_of_window() const { return runs * run; }
};

// The weight of output channel `out` at element `at` of run `run`, from contiguous [out, in, kernel, kernel].
inline float window_weight(const PackedConv& conv, const float* weight, int64_t out, int64_t run, int64_t at) {
  const int64_t channels = conv.shape.in_channels, taps = int64_t{conv.shape.kernel} * conv.shape.kernel;
  if (out >= conv.shape.out_channels) return 0.0f;
  const int64_t tap = conv.one_run_per_row() ? run * 3 + at / channels : run;
  return weight[(out * channels + at % channels) * taps + tap];
}

// Start of each run, in elements from the position's own pixel.
inline void run_offsets(const PackedConv& conv, const Map& in, int64_t offsets[9]) {
  for (int64_t run = 0; run < conv.runs; ++run) {
    const int64_t dy = conv.shape.kernel == 1 ? 0 : conv.runs == 3 ? run - 1 : run / 3 - 1;
    const int64_t dx = conv.shape.kernel == 1 ? 0 : conv.runs == 3 ? -1 : run % 3 - 1;
    offsets[run] = dy * in.row() + dx * in.pixel;
  }
}

// Positions that one register block computes, at equal distances in memory. At stride 1 they are pieces of the whole
// map read as one sequence, halo included: strips cross the ends of rows, and results for the halo are not
// stored. At stride 2 they are pieces of an output row.
struct Strip {
  int64_t in, out, residual;  // start, in elements
  uint32_t stored;            // one bit for each position
};

class Strips {
 public:
  Strips(const ConvJob& job, int64_t length)
      : job_(job), length_(length), row_(job.in.width + 1), stride_(job.packed->shape.stride) {
    if (job.in.n == 0) return;
    if (stride_ == 1) {
      total_ = job.in.n * (job.in.height + 1) * row_ - row_ - 1;  // up to the last pixel inside
      count_ = (total_ + length - 1) / length;
    } else {
      per_row_ = (job.out.width + length - 1) / length;
      count_ = job.out.n * job.out.height * per_row_;
    }
  }

  int64_t count() const { return count_; }

  Strip at(int64_t index) const {
    Strip strip;
    if (stride_ == 1) {
      const int64_t first = index * length_;
      strip.in = first * job_.in.pixel;
      strip.out = first * job_.out.pixel;
      strip.residual = first * job_.residual.pixel;
      strip.stored = inside(first);
      return strip;
    }
    const int64_t y = index / per_row_, x = index % per_row_ * length_;
    const int64_t image = y / job_.out.height, line = y % job_.out.height;
    const Map &in = job_.in, &out = job_.out, &residual = job_.residual;
    strip.in = image * in.image() + 2 * (line * in.row() + x * in.pixel);
    strip.out = image * out.image() + line * out.row() + x * out.pixel;
    strip.residual = image * residual.image() + line * residual.row() + x * residual.pixel;
    strip.stored = bits(std::min(length_, out.width - x));
    return strip;
  }

 private:
  static uint32_t bits(int64_t count) { return static_cast<uint32_t>((uint64_t{1} << count) - 1); }

  uint32_t inside(int64_t first) const {
    const int64_t height = job_.in.height, width = job_.in.width;
    uint32_t stored = bits(std::min(length_, total_ - first));
    const int64_t line = first / row_, x = first - line * row_, y = line % (height + 1);
    for (int64_t halo = width - x; halo < length_; halo += row_) stored &= ~(uint32_t{1} << halo);
    if (y + (x + length_) / row_ < height) return stored;
    for (int64_t i = 0; i < length_; ++i) {
      if ((y + (x + i) / row_) % (height + 1) == height) stored &= ~(uint32_t{1} << i);
    }
    return stored;
  }

  const ConvJob& job_;
  int64_t length_, row_, stride_;
  int64_t total_ = 0, per_row_ = 1, count_ = 0;
};

// Part `index` of `total` divided evenly into `count` parts.
struct Part {
  int64_t begin, end;
};
inline Part part_of(int64_t total, int64_t count, int64_t index) {
  return {total * index / count, total * (index + 1) / count};
}

// Each kernel: can this processor run it, does it take this shape; layout of the weights; their values; its items.
#define HF_CONV_KERNEL(name)                                  \
  bool name##_supported(Element type);                        \
  bool name##_takes(const PackedConv& conv);                  \
  void name##_layout(PackedConv& conv);                       \
  void name##_weights(PackedConv& conv, const float* weight); \
  int64_t name##_items(const ConvJob& job);                   \
  void name##_item(const ConvJob& job, int64_t item)
HF_CONV_KERNEL(portable);
HF_CONV_KERNEL(avx512);
HF_CONV_KERNEL(amx);
#undef HF_CONV_KERNEL
void amx_release();

// Round to nearest even; NaN stays NaN.
inline uint16_t round_to_bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

}  // namespace hrnet_fast::cpu
