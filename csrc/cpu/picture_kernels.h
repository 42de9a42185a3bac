// Kernels of random crops on the CPU: parts of uint8 pictures by affine maps and by resizing, and their normalisation.
//
// All arithmetic of crops is on integers, in the order of hrnet_fast/datasets/image_warps.py, whose tables of positions
// these kernels take: both give the same bytes. Plain C++ without PyTorch, so that a program of tests/cuda_host can run
// it under sanitizers. Everything here is forced inline into multiversioned functions.

#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "../../kernels/cuda/resample.h"

#if defined(__GNUC__)
#define HF_PREFETCH(address) __builtin_prefetch(address)
#else
#define HF_PREFETCH(address) static_cast<void>(address)
#endif

namespace hrnet_fast::cpu {

// A picture in memory: 3 or 4 bytes a pixel, of which red, green and blue are the first, or a map of 1 byte a pixel.
struct Picture {
  const uint8_t* data;
  int64_t row;  // bytes from row to row
  int64_t pixel;
  int64_t height, width;
};

constexpr int64_t kLanes = 32;  // pixels of a block, whose arithmetic is vectorised

// `width` rounded up to blocks.
HF_INLINE int64_t blocks(int64_t width) { return (width + kLanes - 1) / kLanes * kLanes; }

// One output row of a warp: the positions of its pixels are `down` + `across`, in 1/1024 pixel.
struct WarpRow {
  const int32_t* across_x;  // [width], rounded up to blocks
  const int32_t* across_y;
  int32_t down_x, down_y;
  int32_t ahead_x, ahead_y;  // `down` of a later row, which is fetched from memory meanwhile
  bool flip;                 // the picture is mirrored before it is warped
  int64_t width;
  uint8_t* channels[3];
};

// Four neighbours of each pixel of a block, red in the lowest byte, and the weights of the right and the lower ones.
struct Block {
  uint32_t upper_left[kLanes], upper_right[kLanes], lower_left[kLanes], lower_right[kLanes];
  uint32_t right[kLanes], below[kLanes];
};

HF_INLINE uint32_t load_pixel(const Picture& p, int64_t y, int64_t x) {
  if (y < 0 || y >= p.height || x < 0 || x >= p.width) return 0;
  const uint8_t* at = p.data + y * p.row + x * p.pixel;
  return at[0] | static_cast<uint32_t>(at[1]) << 8 | static_cast<uint32_t>(at[2]) << 16;
}

// Two neighbouring pixels as one load of 8 bytes.
HF_INLINE uint64_t load_pair(const uint8_t* at) {
  uint64_t pair;
  std::memcpy(&pair, at, sizeof(pair));
  return pair;
}

HF_INLINE void blend_block(const Block& b, uint8_t* __restrict__ red, uint8_t* __restrict__ green,
                           uint8_t* __restrict__ blue) {
  for (int64_t i = 0; i < kLanes; ++i) {
    const uint32_t right = b.right[i], left = 32 - right, below = b.below[i], above = 32 - below;
    // Red and blue share a word: a row's sums are at most 255 * 32.
    const uint32_t upper = (b.upper_left[i] & 0xFF00FF) * left + (b.upper_right[i] & 0xFF00FF) * right;
    const uint32_t lower = (b.lower_left[i] & 0xFF00FF) * left + (b.lower_right[i] & 0xFF00FF) * right;
    const uint32_t upper_green = (b.upper_left[i] >> 8 & 255) * left + (b.upper_right[i] >> 8 & 255) * right;
    const uint32_t lower_green = (b.lower_left[i] >> 8 & 255) * left + (b.lower_right[i] >> 8 & 255) * right;
    red[i] = static_cast<uint8_t>(((upper & 0xFFFF) * above + (lower & 0xFFFF) * below + 512) >> 10);
    green[i] = static_cast<uint8_t>((upper_green * above + lower_green * below + 512) >> 10);
    blue[i] = static_cast<uint8_t>(((upper >> 16) * above + (lower >> 16) * below + 512) >> 10);
  }
}

HF_INLINE void warp_row(const Picture& p, const WarpRow& r) {
  Block block;
  int32_t row[kLanes], column[kLanes];
  uint8_t made[3][kLanes];
  // A load of 8 bytes reads 2 beyond a pair of 3-byte pixels: the last rows are read pixel by pixel.
  const int32_t rows = static_cast<int32_t>(p.height - (p.pixel == 3 ? 2 : 1));
  const int32_t columns = static_cast<int32_t>(p.width - 1);
  const int shift = p.pixel == 3 ? 24 : 32;
  // Where the later row lies in bytes from this one. An address outside of the picture may be prefetched.
  const int64_t later = ((r.ahead_y - int64_t{r.down_y}) >> 10) * p.row +
                        ((r.ahead_x - int64_t{r.down_x}) >> 10) * p.pixel * (r.flip ? -1 : 1);
  for (int64_t start = 0; start < r.width; start += kLanes) {
    int32_t outside = 0, touching = 0;
    for (int64_t i = 0; i < kLanes; ++i) {
      // Sums wrap, as PyTorch's do.
      const int32_t x =
          static_cast<int32_t>(static_cast<uint32_t>(r.down_x) + static_cast<uint32_t>(r.across_x[start + i]));
      const int32_t y =
          static_cast<int32_t>(static_cast<uint32_t>(r.down_y) + static_cast<uint32_t>(r.across_y[start + i]));
      column[i] = x >> 10;
      row[i] = y >> 10;
      block.right[i] = static_cast<uint32_t>(x >> 5) & 31;
      block.below[i] = static_cast<uint32_t>(y >> 5) & 31;
      outside |= static_cast<int32_t>(column[i] < 0) | static_cast<int32_t>(column[i] >= columns) |
                 static_cast<int32_t>(row[i] < 0) | static_cast<int32_t>(row[i] >= rows);
      touching |= static_cast<int32_t>(column[i] >= -1) & static_cast<int32_t>(column[i] <= columns) &
                  static_cast<int32_t>(row[i] >= -1) & static_cast<int32_t>(row[i] < p.height);
    }
    const int64_t count = std::min(kLanes, r.width - start);
    if (!touching) {
      for (uint8_t* channel : r.channels) std::memset(channel + start, 0, count);
      continue;
    }
    if (!outside) {
      if (r.flip)
        for (int64_t i = 0; i < kLanes; ++i) {
          column[i] = columns - 1 - column[i];
          block.right[i] = 32 - block.right[i];
        }
      for (int64_t i = 0; i < kLanes; ++i) {
        const uint8_t* at = p.data + row[i] * p.row + column[i] * p.pixel;
        if (i % 4 == 0) HF_PREFETCH(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(at) + later));
        const uint64_t upper = load_pair(at), lower = load_pair(at + p.row);
        block.upper_left[i] = static_cast<uint32_t>(upper);
        block.upper_right[i] = static_cast<uint32_t>(upper >> shift);
        block.lower_left[i] = static_cast<uint32_t>(lower);
        block.lower_right[i] = static_cast<uint32_t>(lower >> shift);
      }
    } else {
      for (int64_t i = 0; i < kLanes; ++i) {
        const int64_t y = row[i], x = r.flip ? columns - int64_t{column[i]} : column[i], next = r.flip ? x - 1 : x + 1;
        block.upper_left[i] = load_pixel(p, y, x);
        block.upper_right[i] = load_pixel(p, y, next);
        block.lower_left[i] = load_pixel(p, y + 1, x);
        block.lower_right[i] = load_pixel(p, y + 1, next);
      }
    }
    if (count == kLanes) {
      blend_block(block, r.channels[0] + start, r.channels[1] + start, r.channels[2] + start);
      continue;
    }
    blend_block(block, made[0], made[1], made[2]);
    for (int64_t c = 0; c < 3; ++c) std::memcpy(r.channels[c] + start, made[c], count);
  }
}

// One axis of a resize: the two pixels of each output pixel, the second one's share in 1/2048, and what is inside.
struct Axis {
  const int32_t* first;
  const int32_t* second;
  const int32_t* share;
  const int32_t* inside;
};

// Three channels of a row of the picture, each rounded up to blocks, resized along the row: sums of 1/2048 shares,
// divided by 16.
HF_INLINE void resize_row(const Picture& p, int64_t y, const Axis& columns, int64_t width, int32_t* __restrict__ made) {
  const uint8_t* from = p.data + y * p.row;
  // A pixel of 3 bytes is read as 4: the last one of a row from the byte before it.
  const int64_t last = p.pixel == 3 ? p.width - 1 : p.width;
  const auto pixel = [&](int64_t x) {
    uint32_t value;
    if (x < last) {
      std::memcpy(&value, from + x * p.pixel, sizeof(value));
      return value;
    }
    const uint8_t* at = from + x * p.pixel;
    return at[0] | static_cast<uint32_t>(at[1]) << 8 | static_cast<uint32_t>(at[2]) << 16;
  };
  const int64_t wide = blocks(width);
  uint32_t left[kLanes], right[kLanes];
  int32_t share[kLanes];
  for (int64_t start = 0; start < width; start += kLanes) {
    const int64_t count = std::min(kLanes, width - start);
    for (int64_t i = 0; i < count; ++i) {
      left[i] = pixel(columns.first[start + i]);
      right[i] = pixel(columns.second[start + i]);
      share[i] = columns.share[start + i];
    }
    for (int64_t i = count; i < kLanes; ++i) left[i] = right[i] = share[i] = 0;
    for (int c = 0; c < 3; ++c)
      for (int64_t i = 0; i < kLanes; ++i) {
        const int32_t a = left[i] >> 8 * c & 255, b = right[i] >> 8 * c & 255;
        made[c * wide + start + i] = (a * (2048 - share[i]) + b * share[i]) >> 4;
      }
  }
}

// One output row from two resized rows, by the second one's share.
HF_INLINE void join_rows(const int32_t* __restrict__ upper, const int32_t* __restrict__ lower, int32_t share,
                         const int32_t* __restrict__ inside, int64_t width, uint8_t* __restrict__ made) {
  const int32_t above = 2048 - share;
  for (int64_t i = 0; i < width; ++i) {
    const int32_t value = ((upper[i] * above >> 16) + (lower[i] * share >> 16) + 2) >> 2;
    made[i] = static_cast<uint8_t>(inside[i] ? value : 0);
  }
}

// A row of a map of classes, without interpolation.
HF_INLINE void pick_row(const Picture& p, int64_t y, const Axis& columns, uint8_t outside, int64_t width,
                        uint8_t* __restrict__ made) {
  const uint8_t* from = p.data + y * p.row;
  for (int64_t i = 0; i < width; ++i) made[i] = columns.inside[i] ? from[columns.first[i]] : outside;
}

// (x / 255 - mean) / std in float32, each operation rounded.
HF_INLINE void normalize_values(const uint8_t* __restrict__ x, int64_t count, float mean, float std,
                                float* __restrict__ made) {
  for (int64_t i = 0; i < count; ++i) made[i] = (static_cast<float>(x[i]) / 255.0f - mean) / std;
}

}  // namespace hrnet_fast::cpu
