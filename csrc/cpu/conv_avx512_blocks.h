// Convolutions on 512-bit registers: sums of P positions x V vectors of output channels stay in registers.
//
// An element of a position is broadcast and multiplied with V vectors of weights, in bfloat16 a pair of elements.
// Weights are [block of V vectors][run][element][V * 16], in bfloat16 [block][run][pair][V * 16][2].

#pragma once

#include "conv_strips.h"

#if !defined(__clang__)
// GCC's own intrinsics start from undefined registers, and it warns of each.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define HF_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,fma")))
#define HF_AVX512_INLINE HF_AVX512 inline __attribute__((always_inline))

namespace hrnet_fast::cpu {

struct Tile {
  const void *in, *weights;
  void* out;
  const void* residual;
  const float *bias, *floor;
  const int64_t* offsets;
  const TripleStrips::Strip* strip;
  int64_t runs, run;                        // elements
  int64_t step, out_pixel, residual_pixel;  // elements from one position to the next
  __mmask16 last;                           // channels of the last vector
};

template <typename T>
HF_AVX512_INLINE __m512 load(const T* from, __mmask16 mask) {
  if constexpr (std::is_same_v<T, float>) return _mm512_maskz_loadu_ps(mask, from);
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

template <typename T>
HF_AVX512_INLINE void store(T* to, __mmask16 mask, __m512 value) {
  if constexpr (std::is_same_v<T, float>) {
    _mm512_mask_storeu_ps(to, mask, value);
  } else {
    _mm256_mask_storeu_epi16(to, mask, (__m256i)_mm512_cvtneps_pbh(value));
  }
}

// Weights are prefetched this many bytes ahead: for maps with few positions each weight is read from memory once or
// twice, and hardware prefetching is too slow.
constexpr int64_t kAhead = 8192;

// Adds an element (bfloat16: two) of each position, times V vectors of weights. Every third position has an address
// register, so that addresses and loop counters fit the general registers; groups of three may be anywhere.
template <typename T, int P, int V>
HF_AVX512_INLINE void accumulate(__m512 (&sums)[P][V], const char* const (&at)[(P + 2) / 3], int64_t step,
                                 const char* weights) {
  __m512 w[V];
#pragma GCC unroll 4
  for (int v = 0; v < V; ++v) {
    w[v] = _mm512_load_ps(weights + v * 64);
    _mm_prefetch(weights + v * 64 + kAhead, _MM_HINT_T1);
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    const char* from = at[p / 3] + (p % 3) * step;
    float value;
    std::memcpy(&value, from, 4);
    __m512 x = _mm512_set1_ps(value);
    // One load for V products: a memory operand in each would make loads the bottleneck.
    asm("" : "+v"(x));
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      if constexpr (std::is_same_v<T, float>) {
        sums[p][v] = _mm512_fmadd_ps(x, w[v], sums[p][v]);
      } else {
        sums[p][v] = _mm512_dpbf16_ps(sums[p][v], (__m512bh)x, (__m512bh)w[v]);
      }
    }
  }
}

// Long float32 sums are split into parts of about this many products, because the error grows with the chain.
constexpr int64_t kChain = 128;

template <typename T, int P, int V>
HF_AVX512 void compute(const Tile& tile) {
  constexpr int64_t kGroup = 4 / static_cast<int64_t>(sizeof(T));  // elements of a product
  __m512 sums[P][V];
  alignas(64) float parts[P][V][16];
  const bool in_parts = std::is_same_v<T, float> && tile.runs * tile.run > kChain + kChain / 2;
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      sums[p][v] = _mm512_setzero_ps();
      _mm512_store_ps(parts[p][v], _mm512_load_ps(tile.bias + v * 16));
    }
  }
  const int64_t step = tile.step * static_cast<int64_t>(sizeof(T));
  const char* weights = static_cast<const char*>(tile.weights);
  const int64_t whole = tile.run / kGroup, rest = tile.run % kGroup;
  int64_t chain = 0;
  for (int64_t run = 0; run < tile.runs; ++run) {
    const char* at[(P + 2) / 3];
#pragma GCC unroll 6
    for (int p = 0; p < (P + 2) / 3; ++p) {
      at[p] = static_cast<const char*>(tile.in) + (tile.strip->in[p] + tile.offsets[run]) * int64_t{sizeof(T)};
    }
    for (int64_t left = whole, now; left > 0; left -= now) {
      now = in_parts ? std::min(left, kChain) : left;
      for (const char* end = weights + now * V * 64; weights != end; weights += V * 64) {
        accumulate<T, P, V>(sums, at, step, weights);
#pragma GCC unroll 6
        for (int p = 0; p < (P + 2) / 3; ++p) at[p] += 4;
      }
      chain += now;
      if (in_parts && chain > kChain / 2) {
        chain = 0;
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
          for (int v = 0; v < V; ++v) {
            _mm512_store_ps(parts[p][v], _mm512_add_ps(_mm512_load_ps(parts[p][v]), sums[p][v]));
            sums[p][v] = _mm512_setzero_ps();
          }
        }
      }
    }
    if (rest != 0) {  // the last element, with a zero weight for its pair
#pragma GCC unroll 6
      for (int p = 0; p < (P + 2) / 3; ++p) at[p] -= sizeof(T);
      accumulate<T, P, V>(sums, at, step, weights);
      weights += V * 64;
    }
  }
  T* out = static_cast<T*>(tile.out);
  const T* residual = static_cast<const T*>(tile.residual);
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) {
    if ((tile.strip->stored >> p & 1) != 0) {
      T* to = out + tile.strip->out[p / 3] + p % 3 * tile.out_pixel;
      const T* from = residual + tile.strip->residual[p / 3] + p % 3 * tile.residual_pixel;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const __mmask16 mask = v == V - 1 ? tile.last : __mmask16(0xffff);
        __m512 value = _mm512_add_ps(sums[p][v], _mm512_load_ps(parts[p][v]));
        if (residual != nullptr) {
          value = _mm512_add_ps(value, load(from + v * 16, mask));
        }
        // The maximum instruction returns the second operand if one is NaN.
        store(to + v * 16, mask, _mm512_max_ps(_mm512_load_ps(tile.floor + v * 16), value));
      }
    }
  }
}

using Compute = void (*)(const Tile&);
struct Choice {
  int positions;
  Compute compute[2];  // by Element
};
#define HF_CHOICE(P, V)                                  \
  {                                                      \
    P, { compute<float, P, V>, compute<uint16_t, P, V> } \
  }
constexpr int kChoices = 5;
// As many positions as registers hold, and fewer for short rows. [vectors - 1]
static const Choice kTable[4][kChoices] = {
    {HF_CHOICE(16, 1), HF_CHOICE(12, 1), HF_CHOICE(8, 1), HF_CHOICE(6, 1), HF_CHOICE(4, 1)},
    {HF_CHOICE(14, 2), HF_CHOICE(12, 2), HF_CHOICE(8, 2), HF_CHOICE(6, 2), HF_CHOICE(4, 2)},
    {HF_CHOICE(9, 3), HF_CHOICE(8, 3), HF_CHOICE(7, 3), HF_CHOICE(6, 3), HF_CHOICE(4, 3)},
    {HF_CHOICE(6, 4), HF_CHOICE(5, 4), HF_CHOICE(4, 4), HF_CHOICE(3, 4), HF_CHOICE(2, 4)},
};
#undef HF_CHOICE

}  // namespace hrnet_fast::cpu
