// Row kernels of fuse_sum on the CPU: one output row (forward) or one input row (backward) at a time.
//
// A row is W pixels of `inner` values: all channels of a channels-last image, or one value of a contiguous plane.
// Everything here is forced inline into multiversioned functions.

#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>

#include "../../kernels/cuda/resample.h"

namespace hrnet_fast::cpu {

template <typename T>
struct Math {
  using type = float;  // half types compute in float
};
template <>
struct Math<double> {
  using type = double;
};
template <typename T>
using math_t = typename Math<T>::type;

template <typename T>
HF_INLINE math_t<T> read_value(const T* p) {
  return static_cast<math_t<T>>(*p);
}

template <>
HF_INLINE float read_value<c10::BFloat16>(const c10::BFloat16* p) {
  const uint32_t bits = static_cast<uint32_t>(p->x) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

template <typename T>
HF_INLINE void write_value(T* p, math_t<T> value) {
  *p = static_cast<T>(value);
}

template <>
HF_INLINE void write_value<c10::BFloat16>(c10::BFloat16* p, float value) {
  // Round to nearest even in integers, which vectorises; a NaN keeps its sign and one mantissa bit.
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t nan = (bits >> 16) | 0x40u;
  p->x = static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
}

// Channel k's scale and shift of an affine over a row; the identity where there is none.
template <typename M>
struct Affine {
  const M* scale;  // null: identity
  const M* shift;
};

// accumulator[x, c] (=|+=) affine(row[x, c]).
template <typename T, bool kFirst>
HF_INLINE void add_row(math_t<T>* __restrict__ acc, const T* __restrict__ row, Affine<math_t<T>> affine, int64_t width,
                       int64_t inner) {
  using M = math_t<T>;
  if (affine.scale == nullptr) {
    for (int64_t j = 0; j < width * inner; ++j) acc[j] = (kFirst ? M(0) : acc[j]) + read_value(row + j);
    return;
  }
  if (inner == 1) {
    const M scale = affine.scale[0], shift = affine.shift[0];
    for (int64_t x = 0; x < width; ++x) acc[x] = (kFirst ? M(0) : acc[x]) + (read_value(row + x) * scale + shift);
    return;
  }
  for (int64_t x = 0; x < width; ++x)
    for (int64_t c = 0; c < inner; ++c) {
      const int64_t j = x * inner + c;
      acc[j] = (kFirst ? M(0) : acc[j]) + (read_value(row + j) * affine.scale[c] + affine.shift[c]);
    }
}

// low[x, c] = affine((1 - weight) * above[x, c] + weight * below[x, c]).
template <typename T>
HF_INLINE void mix_rows(math_t<T>* __restrict__ low, const T* __restrict__ above, const T* __restrict__ below,
                        math_t<T> weight, Affine<math_t<T>> affine, int64_t width, int64_t inner) {
  using M = math_t<T>;
  const M rest = M(1) - weight;
  for (int64_t j = 0; j < width * inner; ++j) low[j] = rest * read_value(above + j) + weight * read_value(below + j);
  if (affine.scale == nullptr) return;
  for (int64_t x = 0; x < width; ++x)
    for (int64_t c = 0; c < inner; ++c) low[x * inner + c] = low[x * inner + c] * affine.scale[c] + affine.shift[c];
}

// accumulator[x, c] (=|+=) low[x's two neighbours, c].
template <typename M, bool kFirst>
HF_INLINE void spread_row(M* acc, const M* low, const Neighbours<M>* columns, int64_t width, int64_t inner) {
  for (int64_t x = 0; x < width; ++x) {
    const Neighbours<M> n = columns[x];
    const M weight = n.weight, rest = M(1) - weight;
    const M* __restrict__ first = low + n.first * inner;
    const M* __restrict__ second = low + n.second * inner;
    M* __restrict__ to = acc + x * inner;
    for (int64_t c = 0; c < inner; ++c) to[c] = (kFirst ? M(0) : to[c]) + (rest * first[c] + weight * second[c]);
  }
}

// accumulator[x, c] (=|+=) affine(row[x's nearest, c]).
template <typename T, bool kFirst>
HF_INLINE void repeat_row(math_t<T>* acc, const T* row, const Neighbours<math_t<T>>* columns, Affine<math_t<T>> affine,
                          int64_t width, int64_t inner) {
  using M = math_t<T>;
  for (int64_t x = 0; x < width; ++x) {
    const T* __restrict__ from = row + columns[x].first * inner;
    M* __restrict__ to = acc + x * inner;
    if (affine.scale == nullptr)
      for (int64_t c = 0; c < inner; ++c) to[c] = (kFirst ? M(0) : to[c]) + read_value(from + c);
    else
      for (int64_t c = 0; c < inner; ++c)
        to[c] = (kFirst ? M(0) : to[c]) + (read_value(from + c) * affine.scale[c] + affine.shift[c]);
  }
}

// out = act(accumulator). It keeps NaN, which max(NaN, 0) would not.
template <typename T>
HF_INLINE void finish_row(T* __restrict__ out, const math_t<T>* __restrict__ acc, bool relu, int64_t n) {
  using M = math_t<T>;
  if (relu)
    for (int64_t j = 0; j < n; ++j) write_value(out + j, acc[j] < M(0) ? M(0) : acc[j]);
  else
    for (int64_t j = 0; j < n; ++j) write_value(out + j, acc[j]);
}

}  // namespace hrnet_fast::cpu
