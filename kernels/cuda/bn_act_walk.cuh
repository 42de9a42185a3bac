// How the kernels of bn_act cover a map [N, C, H, W], and how a reduction joins threads and blocks.
//
// The values of a channel are items: pixels of all images (channels-last), or packs of pixels of all images
// (contiguous). A block takes a tile, a run of items, of a few groups of channels. A thread stays with one group, so
// that per-channel values are read once. Where a channels-last pack is wider than what divides the channels (18 of a
// half type), 2^fold neighbouring pixels count as one pixel with 2^fold times the channels.

#pragma once

#include <initializer_list>
#include <type_traits>

#include "common.cuh"

namespace hrnet_fast::cuda {

struct MapShape {
  int64_t batch = 0;
  int channels = 0;
  int64_t pixels = 0;  // of an image
  bool channels_last = true;
};

struct Packing {
  int width = 1;
  int fold = 0;
};

// Blocks of a reduction, unless a thread would then add up more than kMostItems items one by one. The numbers depend on
// the shape alone, and so do results.
constexpr int64_t kReducers = 256, kMostReducers = 2048, kFewestItems = 8, kMostItems = 64;
constexpr int64_t kCounters = 512;  // of one map, at most
constexpr int kMaxMaps = 8;         // of one launch
constexpr int64_t kEnoughBlocksOfPass = 1024;

// Packs of each map that a thread reads before it uses the first: registers are few.
template <int kWidth>
constexpr int kAhead = kWidth > 4 ? 1 : 2;

struct Walk {
  uint32_t items = 0;     // of a channel
  uint32_t per_tile = 0;  // items of a block
  uint32_t tiles = 0;
  int group_tiles = 0;             // blocks per tile
  int groups = 0, all_groups = 0;  // of a block, of the map
  int lanes = 0;                   // threads of a block that share a group
  int half = 0;                    // the largest power of two below the lanes
  int channels = 0, fold = 0;
  bool packed_tables = false;  // whether per-channel values can be read in packs
  Divider by_group_tile, by_channel;
  Divider inner;      // of a thread's number: groups (channels-last) or lanes (contiguous)
  Divider per_image;  // packs of a channel (contiguous)
};

template <typename T>
bool packs_fit(const MapShape& s, const Map<T>& map, const Packing& p) {
  if (map.data == nullptr) return true;
  if (!s.channels_last) return aligned(map, p.width);
  return aligned(map.data, p.width) && (p.fold == 0 ? map.step % p.width == 0 : map.step == s.channels);
}

// The widest pack that all maps allow; absent ones have no data.
template <typename T>
Packing packing_of(const MapShape& s, std::initializer_list<Map<const T>> maps) {
  for (const int width : {kVectorWidth<T>, 2}) {
    Packing p{width, 0};
    if (s.channels_last) {
      while ((static_cast<int64_t>(s.channels) << p.fold) % width != 0) ++p.fold;
      if (s.batch * s.pixels % (1 << p.fold) != 0) continue;
      if (p.fold > 0 && (static_cast<int64_t>(s.channels) << p.fold) / width > kThreads) continue;
    } else if (s.pixels % width != 0) {
      continue;
    }
    bool fits = true;
    for (const auto& map : maps) fits = fits && packs_fit(s, map, p);
    if (fits) return p;
  }
  return {};
}

// The map with 2^fold pixels as one.
template <typename T>
Map<T> folded(const Map<T>& map, const Packing& p) {
  return {map.data, map.image_step, map.step << p.fold};
}

// How a kernel covers a map. Without items: the map is beyond 32-bit numbers.
inline Walk walk_of(const MapShape& s, const Packing& p, bool reduces) {
  const bool last = s.channels_last;
  const int64_t per_image = last ? s.pixels : s.pixels / p.width;
  const int64_t items = (s.batch * per_image) >> p.fold;
  const int64_t all_groups = last ? (static_cast<int64_t>(s.channels) << p.fold) / p.width : s.channels;
  Walk w;
  int64_t group_tiles;
  if (last) {
    group_tiles = p.fold > 0 ? 1 : ceil_div(all_groups, 32);
    w.groups = static_cast<int>(ceil_div(all_groups, group_tiles));
    w.lanes = kThreads / w.groups;
  } else {
    const int64_t wanted = ceil_div(items, 32) * 32;
    w.lanes = static_cast<int>(wanted < kThreads ? wanted : kThreads);
    const int64_t room = kThreads / w.lanes;
    w.groups = static_cast<int>(room < all_groups ? room : all_groups);
    group_tiles = ceil_div(all_groups, w.groups);
  }
  const int64_t steps = ceil_div(items, w.lanes);  // items of a thread if there were one tile
  int64_t repeats = steps;
  if (!reduces) {
    const int64_t spare = steps * group_tiles / kEnoughBlocksOfPass;
    repeats = spare < 1 ? 1 : spare > 8 ? 8 : spare;
  } else if (group_tiles <= kCounters) {
    const int64_t room = kReducers / group_tiles, useful = ceil_div(steps, kFewestItems);
    int64_t tiles = room < useful ? room : useful;
    if (tiles < 1) tiles = 1;
    if (steps > tiles * kMostItems) {
      const int64_t wanted = ceil_div(steps, kMostItems), most = kMostReducers / group_tiles;
      tiles = wanted < most ? wanted : most;
    }
    repeats = ceil_div(steps, tiles);
  }
  const int64_t per_tile = repeats * w.lanes, tiles = ceil_div(items, per_tile);
  if (s.pixels > kMaxItems || items > kMaxItems || all_groups > kMaxItems || tiles * group_tiles > kMaxItems) return {};
  w.items = static_cast<uint32_t>(items);
  w.per_tile = static_cast<uint32_t>(per_tile);
  w.tiles = static_cast<uint32_t>(tiles);
  w.group_tiles = static_cast<int>(group_tiles);
  w.all_groups = static_cast<int>(all_groups);
  w.half = w.lanes > 1 ? 1 : 0;
  while (w.half > 0 && 2 * w.half < w.lanes) w.half *= 2;
  w.channels = s.channels;
  w.fold = p.fold;
  w.by_group_tile = Divider(static_cast<uint32_t>(group_tiles));
  w.by_channel = Divider(static_cast<uint32_t>(s.channels));
  w.inner = Divider(static_cast<uint32_t>(last ? w.groups : w.lanes));
  w.per_image = Divider(static_cast<uint32_t>(per_image));
  return w;
}

// Whether a thread can read its pack's values of tables [k, C] in packs; absent ones are null.
template <typename M>
bool tables_packed(const MapShape& s, const Packing& p, std::initializer_list<const M*> tables) {
  bool packed = p.fold == 0;
  for (const M* table : tables) packed = packed && aligned(table, p.width);
  return packed || !s.channels_last;
}

// Calls `launch` with the width and the layout as constants.
template <typename T, typename Launch>
cudaError_t with_packing(int width, bool channels_last, const Launch& launch) {
  const auto with_width = [&](auto last) {
    if (width == kVectorWidth<T>) return launch(std::integral_constant<int, kVectorWidth<T>>{}, last);
    if (width == 2) return launch(std::integral_constant<int, 2>{}, last);
    return launch(std::integral_constant<int, 1>{}, last);
  };
  return channels_last ? with_width(std::true_type{}) : with_width(std::false_type{});
}

// What one launch does: maps of the same packing and layout, each with its own arguments and walk.
template <typename Arguments>
struct MapsPlan {
  struct OwnMap {
    Arguments a;
    Walk walk;
    uint32_t first_block;
  };
  OwnMap maps[kMaxMaps];
  int count;

  HF_DEVICE const OwnMap& of_block(uint32_t block) const {
    int k = 0;
    while (k + 1 < count && block >= maps[k + 1].first_block) ++k;
    return maps[k];
  }
};

// Calls `launch` with a plan of the maps that share a packing and a layout, until none is left. `prepare` fills
// in a map's arguments and walk and returns its packing. cudaErrorInvalidValue: no map or more than kMaxMaps, or one of
// 2^31 items or more.
template <typename T, typename Arguments, typename Prepare, typename Launch>
cudaError_t launch_maps(const Arguments* given, int count, const Prepare& prepare, const Launch& launch) {
  if (count < 1 || count > kMaxMaps) return cudaErrorInvalidValue;
  MapsPlan<Arguments> all, plan;
  Packing packings[kMaxMaps];
  bool done[kMaxMaps] = {};
  for (int k = 0; k < count; ++k) {
    packings[k] = prepare(given[k], all.maps[k].a, all.maps[k].walk);
    if (all.maps[k].walk.items == 0) return cudaErrorInvalidValue;
  }
  for (int first = 0; first < count; ++first) {
    if (done[first]) continue;
    const bool last = given[first].shape.channels_last;
    const int width = packings[first].width;
    int64_t blocks = 0;
    plan.count = 0;
    for (int k = first; k < count; ++k) {
      if (done[k] || packings[k].width != width || given[k].shape.channels_last != last) continue;
      const Walk& w = all.maps[k].walk;
      const int64_t own = static_cast<int64_t>(w.tiles) * w.group_tiles;
      if (blocks + own > kMaxItems) continue;
      done[k] = true;
      plan.maps[plan.count] = all.maps[k];
      plan.maps[plan.count++].first_block = static_cast<uint32_t>(blocks);
      blocks += own;
    }
    const cudaError_t status = with_packing<T>(width, last, [&](auto packed, auto layout) {
      return launch(packed, layout, static_cast<unsigned>(blocks), plan);
    });
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

// What a thread works on: items begin, begin + lanes, ... below end, of the pack of channels that starts at `channel`.
template <int kWidth, bool kLast>
struct Place {
  static constexpr int kSums = kLast ? kWidth : 1;  // channels of a pack
  uint32_t tile, group_tile, channel, begin, end;
  int group, lane;
  bool busy;

  HF_DEVICE Place(const Walk& w, uint32_t block) {
    tile = w.by_group_tile.quotient(block);
    group_tile = w.by_group_tile.remainder(block, tile);
    const uint32_t major = w.inner.quotient(threadIdx.x), minor = w.inner.remainder(threadIdx.x, major);
    group = static_cast<int>(kLast ? minor : major);
    lane = static_cast<int>(kLast ? major : minor);
    const int own = static_cast<int>(group_tile) * w.groups + group;
    busy = group < w.groups && lane < w.lanes && own < w.all_groups;
    channel = static_cast<uint32_t>(own) * kSums;
    begin = tile * w.per_tile + lane;
    end = (tile + 1) * w.per_tile;
    end = end < w.items ? end : w.items;
  }

  template <typename T>
  HF_DEVICE T* at(const Map<T>& map, const Walk& w, uint32_t item) const {
    if constexpr (kLast) return map.template at<true>(0, channel, item);
    const uint32_t image = w.per_image.quotient(item);
    return map.template at<false>(image, channel, w.per_image.remainder(item, image) * kWidth);
  }

  // Values of the pack's channels from a table [C].
  template <typename M>
  HF_DEVICE void table(const Walk& w, const M* values, M (&to)[kSums]) const {
    if (w.packed_tables) {
      read_channels<kSums>(values + channel, to);
      return;
    }
#pragma unroll
    for (int j = 0; j < kSums; ++j) to[j] = values[own_channel(w, j)];
  }

  HF_DEVICE uint32_t own_channel(const Walk& w, int j) const {
    return w.by_channel.remainder(channel + j, w.by_channel.quotient(channel + j));
  }
};

HF_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
HF_DEVICE double multiply_add(double a, double b, double c) { return fma(a, b, c); }

}  // namespace hrnet_fast::cuda
