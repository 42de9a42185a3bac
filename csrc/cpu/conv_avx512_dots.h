// The few output channels after the last full vector of 16, in float32, as dot products.
//
// A vector of weights for 2 channels would waste 14 lanes. Here lanes are elements of the window instead: a window's
// run is read 16 elements at a time, and the lanes of a position are added at the end.
// Weights are [group of 4 or 2 channels][run][16 elements][channel][16], zero where a run or the channels end.

#pragma once

#include "conv_avx512_blocks.h"

namespace hrnet_fast::cpu {

// Channels of the group that begins at `channel` of `count`.
inline int64_t dots_group(int64_t channel, int64_t count) { return count - channel > 2 ? 4 : 2; }

inline int64_t dots_padded(int64_t count) { return (count + 1) / 2 * 2; }

inline int64_t dots_vectors(const PackedConv& conv) { return conv.runs * ((conv.run + 15) / 16); }

// The number of output channels to compute as dot products: those after the last full vector, if that takes clearly
// fewer products than one more vector.
inline int64_t dots_of(const PackedConv& conv) {
  const int64_t count = conv.shape.out_channels % 16, padded = dots_padded(count);
  if (conv.shape.type != Element::float32 || count == 0 || conv.shape.out_channels < 16) return 0;
  const int64_t products = dots_vectors(conv) * padded, adding_up = 4 * padded + 14;
  return (products + adding_up) * 10 <= conv.depth_of_window() * 6 ? count : 0;
}

inline float* dots_weights(const PackedConv& conv, const float* weight, float* packed) {
  for (int64_t channel = 0; channel < conv.dots;) {
    const int64_t group = dots_group(channel, conv.dots);
    for (int64_t run = 0; run < conv.runs; ++run) {
      for (int64_t first = 0; first < conv.run; first += 16) {
        for (int64_t i = 0; i < group * 16; ++i) {
          const int64_t out = conv.shape.out_channels - conv.dots + channel + i / 16, at = first + i % 16;
          *packed++ = at < conv.run ? window_weight(conv, weight, out, run, at) : 0.0f;
        }
      }
    }
    channel += group;
  }
  return packed;
}

// Lane i of the result is the sum of the lanes of sums[i].
HF_AVX512_INLINE __m512 add_lanes(const __m512 (&sums)[16]) {
  __m512 pairs[8], fours[4];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const __m512 a = sums[2 * i], b = sums[2 * i + 1];
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d a = _mm512_castps_pd(pairs[2 * i]), b = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
  }
  const __m512 low =
      _mm512_add_ps(_mm512_shuffle_f32x4(fours[0], fours[1], 0x88), _mm512_shuffle_f32x4(fours[0], fours[1], 0xdd));
  const __m512 high =
      _mm512_add_ps(_mm512_shuffle_f32x4(fours[2], fours[3], 0x88), _mm512_shuffle_f32x4(fours[2], fours[3], 0xdd));
  return _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
}

// Adds 16 elements of each position (those in `inside`), times the weights of G channels.
template <int G>
HF_AVX512_INLINE void accumulate_dots(__m512 (&sums)[16], const float* const (&at)[16 / G], int64_t offset,
                                      const float* weights, __mmask16 inside) {
  __m512 w[G];
#pragma GCC unroll 4
  for (int g = 0; g < G; ++g) w[g] = _mm512_load_ps(weights + g * 16);
#pragma GCC unroll 8
  for (int p = 0; p < 16 / G; ++p) {
    __m512 x = _mm512_maskz_loadu_ps(inside, at[p] + offset);
    asm("" : "+v"(x));  // a single load, since most cross a cache line
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g) sums[p * G + g] = _mm512_fmadd_ps(x, w[g], sums[p * G + g]);
  }
}

// The stored positions of a strip.
struct Stored {
  const float *in[24], *residual[16];  // the last one is repeated up to a whole group
  float* out[16];
  int count = 0;

  explicit Stored(const Tile& tile) {
    for (uint32_t left = tile.strip->stored; left != 0; left &= left - 1) {
      const int position = __builtin_ctz(left), three = position / 3, place = position % 3;
      in[count] = static_cast<const float*>(tile.in) + tile.strip->in[three] + place * tile.step;
      out[count] = static_cast<float*>(tile.out) + tile.strip->out[three] + place * tile.out_pixel;
      residual[count] = tile.residual == nullptr ? nullptr
                                                 : static_cast<const float*>(tile.residual) +
                                                       tile.strip->residual[three] + place * tile.residual_pixel;
      ++count;
    }
    if (count != 0) std::fill_n(in + count, 7, in[count - 1]);
  }
};

// 16 / G positions at a time, times one group of G channels, of which `channels` are stored.
template <int G>
HF_AVX512 void compute_dots(const Tile& tile, const Stored& stored, const float* weights, int64_t channel,
                            int64_t channels) {
  constexpr int P = 16 / G;
  const auto mask = static_cast<__mmask8>((1u << channels) - 1);
  const auto rest = static_cast<__mmask16>((1u << tile.run % 16) - 1);
  const __m128 bias = _mm_loadu_ps(tile.bias + channel), floor = _mm_loadu_ps(tile.floor + channel);
  for (int first = 0; first < stored.count; first += P) {
    __m512 sums[16];
    const float* at[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) at[p] = stored.in[first + p];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) sums[i] = _mm512_setzero_ps();
    const float* w = weights;
    for (int64_t run = 0; run < tile.runs; ++run) {
      int64_t i = tile.offsets[run];
      for (const int64_t end = i + tile.run / 16 * 16; i != end; i += 16, w += G * 16) {
        accumulate_dots<G>(sums, at, i, w, 0xffff);
      }
      if (rest != 0) {
        accumulate_dots<G>(sums, at, i, w, rest);
        w += G * 16;
      }
    }
    alignas(64) float totals[20];  // four are read of the last two
    _mm512_store_ps(totals, add_lanes(sums));
    for (int p = first; p < std::min(first + P, stored.count); ++p) {
      __m128 value = _mm_add_ps(_mm_loadu_ps(totals + (p - first) * G), bias);
      if (stored.residual[p] != nullptr) {
        value = _mm_add_ps(value, _mm_maskz_loadu_ps(mask, stored.residual[p] + channel));
      }
      _mm_mask_storeu_ps(stored.out[p] + channel, mask, _mm_max_ps(floor, value));
    }
  }
}

// The dot products of one strip. All of the tile's addresses are of channel 0 of the block that `channel` counts from.
inline void strip_dots(const PackedConv& conv, const Tile& tile, const float* weights, int64_t channel) {
  const Stored stored(tile);
  for (int64_t done = 0; done < conv.dots;) {
    const int64_t group = dots_group(done, conv.dots), channels = std::min(group, conv.dots - done);
    if (group == 4) {
      compute_dots<4>(tile, stored, weights, channel + done, channels);
    } else {
      compute_dots<2>(tile, stored, weights, channel + done, channels);
    }
    weights += dots_vectors(conv) * group * 16;
    done += group;
  }
}

}  // namespace hrnet_fast::cpu
