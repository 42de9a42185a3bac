// Convolutions on maps with zero halos: map layout, selection of the kernel, and the portable kernel.

#include "conv.h"

#include <c10/util/BFloat16.h>

#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "clones.h"
#include "conv_pack.h"

namespace hrnet_fast::cpu {

int64_t map_lead(int64_t width, int64_t pixel) { return (width + 2) * pixel; }

int64_t map_elements(int64_t n, int64_t height, int64_t width, int64_t pixel) {
  return map_lead(width, pixel) + (n * (height + 1) * (width + 1) + 16 + width + 2) * pixel;
}

void clear_halo(const Map& map, int64_t channels, Element type) {
  const int64_t size = type == Element::float32 ? 4 : 2;
  auto clear = [&](int64_t from, int64_t pixels) {  // pixel indices, the first image's first pixel being 0
    for (int64_t p = from; p < from + pixels; ++p) {
      std::memset(static_cast<char*>(map.data) + p * map.pixel * size, 0, channels * size);
    }
  };
  clear(-(map.width + 2), map.width + 2);
  for (int64_t image = 0; image < map.n; ++image) {
    const int64_t first = image * (map.height + 1) * (map.width + 1);
    for (int64_t y = 0; y < map.height; ++y) clear(first + y * (map.width + 1) + map.width, 1);
    clear(first + map.height * (map.width + 1), map.width + 1);
  }
}

namespace {

Kernel best_kernel(Element type) {
  static const bool amx[2] = {amx_supported(Element::float32), amx_supported(Element::bfloat16)};
  static const bool avx512[2] = {avx512_supported(Element::float32), avx512_supported(Element::bfloat16)};
  const char* asked = std::getenv("HRNET_FAST_CPU_KERNEL");
  const std::string wanted = asked == nullptr ? "" : asked;
  const int index = static_cast<int>(type);
  if (amx[index] && wanted != "avx512" && wanted != "portable") return Kernel::amx;
  if (avx512[index] && wanted != "portable") return Kernel::avx512;
  return Kernel::portable;
}

void* aligned(int64_t bytes) {
  void* memory = ::operator new(static_cast<size_t>(std::max<int64_t>(bytes, 64)), std::align_val_t{64});
  std::memset(memory, 0, static_cast<size_t>(bytes));
  return memory;
}

// The interface of all kernels, declared in conv_pack.h.
#define HF_CONV_DISPATCH(kernel, call) \
  switch (kernel) {                    \
    case Kernel::amx:                  \
      return amx_##call;               \
    case Kernel::avx512:               \
      return avx512_##call;            \
    default:                           \
      return portable_##call;          \
  }

void layout(PackedConv& conv) { HF_CONV_DISPATCH(conv.kernel, layout(conv)) }
void pack_weights(PackedConv& conv, const float* weight) { HF_CONV_DISPATCH(conv.kernel, weights(conv, weight)) }

}  // namespace

PackedConv* pack_conv(const ConvShape& shape, const float* weight, const float* bias) {
  if ((shape.kernel != 1 && shape.kernel != 3) || (shape.stride != 1 && shape.stride != 2)) {
    throw std::invalid_argument("convolutions on rimmed maps are 1x1 or 3x3, with stride 1 or 2");
  }
  if (shape.in_channels < 1 || shape.out_channels < 1) throw std::invalid_argument("a convolution without channels");
  std::unique_ptr<PackedConv, void (*)(PackedConv*)> conv(new PackedConv, free_conv);
  conv->shape = shape;
  conv->runs = shape.kernel == 1 ? 1 : shape.dense_input ? 3 : 9;
  conv->run = conv->one_run_per_row() ? 3 * shape.in_channels : shape.in_channels;
  conv->kernel = best_kernel(shape.type);
  if (conv->kernel == Kernel::amx && !amx_takes(*conv)) conv->kernel = Kernel::avx512;
  if (conv->kernel == Kernel::avx512 && !(avx512_supported(shape.type) && avx512_takes(*conv))) {
    conv->kernel = Kernel::portable;
  }
  layout(*conv);
  const int64_t padded = (shape.out_channels + 63) / 64 * 64;
  conv->bias = static_cast<float*>(aligned(padded * 4));
  conv->floor = static_cast<float*>(aligned(padded * 4));
  conv->weights = aligned(conv->weight_bytes);
  repack_conv(*conv, weight, bias);
  return conv.release();
}

void repack_conv(PackedConv& conv, const float* weight, const float* bias) {
  const ConvShape& shape = conv.shape;
  for (int64_t out = 0; out < shape.out_channels; ++out) {
    conv.bias[out] = bias[out];
    const bool relu = out >= shape.relu_begin && out < shape.relu_end;
    conv.floor[out] = relu ? 0.0f : -std::numeric_limits<float>::infinity();
  }
  pack_weights(conv, weight);
}

void free_conv(PackedConv* conv) {
  if (conv == nullptr) return;
  for (void* memory : {static_cast<void*>(conv->bias), static_cast<void*>(conv->floor), conv->weights}) {
    ::operator delete(memory, std::align_val_t{64});
  }
  delete conv;
}

int64_t conv_items(const ConvJob& job) {
  const ConvShape& shape = job.packed->shape;
  if (shape.dense_input && job.in.pixel != shape.in_channels) {
    throw std::invalid_argument("weights were packed for a dense input, and this one is a slice");
  }
  if (job.in.n == 0) return 0;
  HF_CONV_DISPATCH(job.packed->kernel, items(job))
}

void conv_item(const ConvJob& job, int64_t item) { HF_CONV_DISPATCH(job.packed->kernel, item(job, item)) }

void conv_release() {
  static const bool amx = amx_supported(Element::bfloat16);
  if (amx) amx_release();
}

const char* conv_kernel(Element type) {
  static const char* const names[] = {"portable", "avx512", "amx"};
  return names[static_cast<int>(best_kernel(type))];
}

// The portable kernel: weights float32 [block of 32 output channels][run][element][32], rounded to the maps' type.

namespace {

#if defined(__GNUC__)
#define HF_INLINE inline __attribute__((always_inline))  // compiled for the instruction set of each clone
#else
#define HF_INLINE inline
#endif

constexpr int64_t kColumns = 32;
constexpr int kPositions = 4;
// Sums are split into parts of at most this many products, because the error grows with the length of a chain.
constexpr int64_t kChain = 128;

template <typename T>
struct RowsJob {
  const ConvJob* job;
  const OutBlock* block;
};

template <typename T>
HF_INLINE void store_outputs(const RowsJob<T>& rows, const float* sums, const T* residual, T* out) {
  const PackedConv& conv = *rows.job->packed;
  const int64_t first = rows.block->first, columns = std::min(kColumns, conv.shape.out_channels - first);
  for (int64_t c = 0; c < columns; ++c) {
    float value = sums[c] + conv.bias[first + c];
    if (residual != nullptr) value += static_cast<float>(residual[first + c]);
    value = value < conv.floor[first + c] ? conv.floor[first + c] : value;  // a NaN is not less
    out[first + c] = static_cast<T>(value);
  }
}

// Output rows [begin, end) of one block of output channels.
template <typename T>
HF_INLINE void rows_body(const RowsJob<T>& rows, int64_t begin, int64_t end) {
  const ConvJob& job = *rows.job;
  const PackedConv& conv = *job.packed;
  const Map &in = job.in, &out = job.out;
  const int64_t step = conv.shape.stride * in.pixel;
  int64_t offsets[9];
  run_offsets(conv, in, offsets);
  for (int64_t y = begin; y < end; ++y) {
    const int64_t image = y / out.height, line = y % out.height;
    const T* source = static_cast<const T*>(in.data) + image * in.image() + line * conv.shape.stride * in.row();
    T* target = static_cast<T*>(out.data) + image * out.image() + line * out.row();
    const T* residual = static_cast<const T*>(job.residual.data);
    if (residual != nullptr) residual += image * job.residual.image() + line * job.residual.row();
    for (int64_t x = 0; x < out.width; x += kPositions) {
      const int64_t count = std::min<int64_t>(kPositions, out.width - x);
      float sums[kPositions][kColumns] = {};
      const float* weight = static_cast<const float*>(conv.weights) + rows.block->weights;
      const T* at[kPositions];
      for (int p = 0; p < kPositions; ++p) at[p] = source + (x + std::min<int64_t>(p, count - 1)) * step;
      for (int64_t run = 0; run < conv.runs; ++run) {
        for (int64_t i = offsets[run], end_of_run = i + conv.run; i < end_of_run;) {
          float part[kPositions][kColumns] = {};
          for (const int64_t until = std::min(end_of_run, i + kChain); i < until; ++i, weight += kColumns) {
            const float values[kPositions] = {at[0][i], at[1][i], at[2][i], at[3][i]};
            for (int p = 0; p < kPositions; ++p) {
              for (int64_t c = 0; c < kColumns; ++c) part[p][c] += values[p] * weight[c];
            }
          }
          for (int p = 0; p < kPositions; ++p) {
            for (int64_t c = 0; c < kColumns; ++c) sums[p][c] += part[p][c];
          }
        }
      }
      for (int64_t p = 0; p < count; ++p) {
        const T* added = residual == nullptr ? nullptr : residual + (x + p) * job.residual.pixel;
        store_outputs(rows, sums[p], added, target + (x + p) * out.pixel);
      }
    }
  }
}

HF_CLONES void run_rows(const RowsJob<float>& job, int64_t begin, int64_t end) { rows_body(job, begin, end); }
HF_CLONES void run_rows(const RowsJob<c10::BFloat16>& job, int64_t begin, int64_t end) { rows_body(job, begin, end); }

int64_t row_groups(const ConvJob& job) {
  const double row = static_cast<double>(job.out.width * job.packed->depth_of_window() * kColumns);
  const auto rows = std::max<int64_t>(1, static_cast<int64_t>(5e5 / row));
  return (job.out.n * job.out.height + rows - 1) / rows;
}

}  // namespace

bool portable_supported(Element) { return true; }
bool portable_takes(const PackedConv&) { return true; }

void portable_layout(PackedConv& conv) {
  for (int64_t first = 0; first < conv.shape.out_channels; first += kColumns) {
    conv.blocks.push_back({first, kColumns / 16, first * conv.depth_of_window()});
  }
  conv.weight_bytes = static_cast<int64_t>(conv.blocks.size()) * kColumns * conv.depth_of_window() * 4;
}

void portable_weights(PackedConv& conv, const float* weight) {
  auto* packed = static_cast<float*>(conv.weights);
  for (const OutBlock& block : conv.blocks) {
    for (int64_t run = 0; run < conv.runs; ++run) {
      for (int64_t i = 0; i < conv.run; ++i) {
        for (int64_t c = 0; c < kColumns; ++c) {
          const float value = window_weight(conv, weight, block.first + c, run, i);
          *packed++ = conv.shape.type == Element::float32 ? value : static_cast<float>(c10::BFloat16(value));
        }
      }
    }
  }
}

int64_t portable_items(const ConvJob& job) { return row_groups(job) * static_cast<int64_t>(job.packed->blocks.size()); }

void portable_item(const ConvJob& job, int64_t item) {
  const int64_t groups = row_groups(job);
  const Part rows = part_of(job.out.n * job.out.height, groups, item % groups);
  const OutBlock* block = &job.packed->blocks[item / groups];
  if (job.packed->shape.type == Element::float32) return run_rows(RowsJob<float>{&job, block}, rows.begin, rows.end);
  run_rows(RowsJob<c10::BFloat16>{&job, block}, rows.begin, rows.end);
}

}  // namespace hrnet_fast::cpu
