// Convolutions on AVX-512: division of a layer into blocks, layout of its weights, execution of its items.

#include "conv_pack.h"
#include "conv_strips.h"

#if defined(HF_CONV_AVX512)

#include <cpuid.h>

#include <array>

#include "conv_avx512_blocks.h"
#include "conv_avx512_dots.h"

namespace hrnet_fast::cpu {
namespace {

struct Plan {
  const Choice* choice = nullptr;
  Order order = Order::sequence;
  int64_t strips = 0, ranges = 0;
};
// The block size and order of positions with the fewest wasted products.
Plan make_plan(const ConvJob& job, int64_t vectors) {
  Plan plan;
  int64_t least = 0;
  for (const Choice& choice : kTable[vectors - 1]) {
    for (const Order order : {Order::sequence, Order::rows, Order::threes}) {
      if (!TripleStrips::possible(job, order, choice.positions)) continue;
      const int64_t strips = TripleStrips(job, order, choice.positions).count();
      const int64_t cost = strips * (choice.positions * vectors + 2);
      if (plan.choice == nullptr || cost < least)
        plan.choice = &choice, plan.order = order, plan.strips = strips, least = cost;
    }
  }
  const auto strip = static_cast<double>(plan.choice->positions * vectors * 16 * job.packed->depth_of_window());
  const int64_t most = std::max<int64_t>(1, static_cast<int64_t>(1e6 / strip));
  plan.ranges = (plan.strips + most - 1) / most;
  return plan;
}

// Every item needs its job's plan; a thread caches the last one with all values that it depends on.
Plan plan_of(const ConvJob& job, int64_t vectors) {
  const std::array<int64_t, 8> now = {vectors,
                                      job.packed->shape.stride,
                                      job.packed->depth_of_window(),
                                      job.in.n,
                                      job.in.height,
                                      job.in.width,
                                      job.out.height,
                                      job.out.width};
  static thread_local std::array<int64_t, 8> before = {};
  static thread_local Plan plan;
  if (now != before) plan = make_plan(job, vectors), before = now;
  return plan;
}

// Whether items go through all weights for one range of positions, then the next: if the map is larger than the
// weights, the weights should stay in cache. Otherwise, and if blocks differ, block after block.
bool positions_first(const ConvJob& job) {
  const PackedConv& conv = *job.packed;
  for (const OutBlock& block : conv.blocks) {
    if (block.vectors != conv.blocks.front().vectors) return false;
  }
  const int64_t size = conv.shape.type == Element::float32 ? 4 : 2;
  return job.in.n * job.in.height * job.in.width * conv.shape.in_channels * size > conv.weight_bytes;
}

}  // namespace

bool avx512_supported(Element type) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return false;
  }
  if (type == Element::float32) return true;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a >> 5 & 1) != 0;
}

// In bfloat16 elements are taken in pairs within the run.
bool avx512_takes(const PackedConv& conv) { return conv.shape.type == Element::float32 || conv.run >= 2; }

void avx512_layout(PackedConv& conv) {
  // Four vectors share a broadcast but read more weights for each product, which pays only while these stay in cache.
  conv.dots = dots_of(conv);
  const int64_t vectors = (conv.shape.out_channels - conv.dots + 15) / 16;
  const int64_t words = conv.shape.type == Element::float32 ? conv.run : (conv.run + 1) / 2;
  const int64_t most = conv.runs * words <= 128 ? 4 : vectors % 2 == 0 || vectors == 1 ? 2 : 3;
  const int64_t blocks = most == 3 ? std::max<int64_t>(1, vectors / 2) : (vectors + most - 1) / most;
  const int64_t size = conv.shape.type == Element::float32 ? 4 : 2;
  int64_t bytes = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    const Part part = part_of(vectors, blocks, block);
    conv.blocks.push_back({part.begin * 16, part.end - part.begin, bytes / size});
    bytes += conv.runs * words * (part.end - part.begin) * 64;
  }
  for (int64_t done = 0; done < conv.dots; done += dots_group(done, conv.dots)) {
    bytes += dots_vectors(conv) * dots_group(done, conv.dots) * 64;
  }
  conv.weight_bytes = bytes;
}

void avx512_weights(PackedConv& conv, const float* weight) {
  auto* singles = static_cast<float*>(conv.weights);
  auto* halves = static_cast<uint16_t*>(conv.weights);
  for (const OutBlock& block : conv.blocks) {
    for (int64_t run = 0; run < conv.runs; ++run) {
      if (conv.shape.type == Element::float32) {
        for (int64_t i = 0; i < conv.run * block.vectors * 16; ++i) {
          const int64_t out = block.first + i % (block.vectors * 16);
          *singles++ = window_weight(conv, weight, out, run, i / (block.vectors * 16));
        }
        continue;
      }
      for (int64_t i = 0; i < (conv.run + 1) / 2 * block.vectors * 32; ++i) {
        const int64_t pair = i / (block.vectors * 32) * 2, at = std::min(pair, conv.run - 2) + i % 2;
        const int64_t out = block.first + i / 2 % (block.vectors * 16);
        *halves++ = at < pair ? 0 : round_to_bfloat16(window_weight(conv, weight, out, run, at));
      }
    }
  }
  dots_weights(conv, weight, singles);
}

int64_t avx512_items(const ConvJob& job) {
  int64_t items = 0;
  for (const OutBlock& block : job.packed->blocks) items += plan_of(job, block.vectors).ranges;
  return items;
}

void avx512_item(const ConvJob& job, int64_t item) {
  const PackedConv& conv = *job.packed;
  const OutBlock* block = conv.blocks.data();
  Plan plan = plan_of(job, block->vectors);
  if (positions_first(job)) {
    const auto blocks = static_cast<int64_t>(conv.blocks.size());
    block += item % blocks;
    item /= blocks;
  } else {
    while (item >= plan.ranges) {
      item -= plan.ranges;
      ++block;
      plan = plan_of(job, block->vectors);
    }
  }
  const TripleStrips strips(job, plan.order, plan.choice->positions);
  const Part range = part_of(plan.strips, plan.ranges, item);
  const int64_t size = conv.shape.type == Element::float32 ? 4 : 2;
  const Compute compute = plan.choice->compute[static_cast<int>(conv.shape.type)];
  int64_t offsets[9];
  run_offsets(conv, job.in, offsets);

  Tile tile;
  tile.weights = static_cast<const char*>(conv.weights) + block->weights * size;
  tile.bias = conv.bias + block->first;
  tile.floor = conv.floor + block->first;
  tile.offsets = offsets;
  tile.runs = conv.runs, tile.run = conv.run;
  tile.step = conv.shape.stride * job.in.pixel;
  tile.out_pixel = job.out.pixel, tile.residual_pixel = job.residual.pixel;
  const int64_t channels = std::min<int64_t>(16, conv.shape.out_channels - block->first - (block->vectors - 1) * 16);
  tile.last = static_cast<__mmask16>((1u << channels) - 1);
  tile.in = job.in.data;
  tile.out = static_cast<char*>(job.out.data) + block->first * size;
  tile.residual =
      job.residual.data == nullptr ? nullptr : static_cast<const char*>(job.residual.data) + block->first * size;
  // Dot products follow their strip's last block, while its window is in cache.
  const bool dots = conv.dots != 0 && block == &conv.blocks.back();
  const float* dots_at = static_cast<const float*>(conv.weights) + conv.blocks.back().weights +
                         conv.depth_of_window() * conv.blocks.back().vectors * 16;
  for (int64_t index = range.begin; index < range.end; ++index) {
    const TripleStrips::Strip strip = strips.at(index);
    tile.strip = &strip;
    compute(tile);
    if (dots) strip_dots(conv, tile, dots_at, block->vectors * 16);
  }
}

}  // namespace hrnet_fast::cpu

#else

namespace hrnet_fast::cpu {
bool avx512_supported(Element) { return false; }
bool avx512_takes(const PackedConv&) { return false; }
void avx512_layout(PackedConv&) {}
void avx512_weights(PackedConv&, const float*) {}
int64_t avx512_items(const ConvJob&) { return 0; }
void avx512_item(const ConvJob&, int64_t) {}
}  // namespace hrnet_fast::cpu

#endif
