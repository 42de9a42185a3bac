// Rows of the elementwise steps, for every instruction set that clones.h has.

#include "program_steps.h"

#include <algorithm>

#include "clones.h"
#include "rows.h"

namespace hrnet_fast::cpu {

Axis::Axis(Resample mode, int64_t in, int64_t out) : first(out), second(out), weight(out) {
  const float scale = axis_scale<float>(mode, in, out);
  for (int64_t k = 0; k < out; ++k) {
    const auto n = neighbours<float, int64_t>(mode, scale, k, in);
    first[k] = static_cast<int32_t>(n.first), second[k] = static_cast<int32_t>(n.second), weight[k] = n.weight;
  }
}

namespace {

constexpr int64_t kChunk = 2048;  // float sums that stay in the first-level cache

template <typename T>
HF_INLINE T* at(const Map& map, int64_t n, int64_t y, int64_t x) {
  return static_cast<T*>(map.data) + n * map.image() + y * map.row() + x * map.pixel;
}

// The pixel of a row that is nearest to each of the sums; without `columns`, the row itself.
template <typename T>
HF_INLINE void add_nearest(float* __restrict__ sums, const T* __restrict__ row, const int32_t* columns, int64_t pixels,
                           int64_t pitch, int64_t channels, bool set) {
  for (int64_t x = 0; x < pixels; ++x) {
    float* s = sums + x * channels;
    const T* p = row + (columns == nullptr ? x : columns[x]) * pitch;
    if (set) {
      for (int64_t c = 0; c < channels; ++c) s[c] = read_value(p + c);
    } else {
      for (int64_t c = 0; c < channels; ++c) s[c] += read_value(p + c);
    }
  }
}

template <typename T>
HF_INLINE void add_bilinear(float* __restrict__ sums, const T* __restrict__ above, const T* __restrict__ below,
                            float wy, const Axis& columns, int64_t begin, int64_t pixels, int64_t pitch,
                            int64_t channels, bool set) {
  for (int64_t x = 0; x < pixels; ++x) {
    const int64_t a = columns.first[begin + x] * pitch, b = columns.second[begin + x] * pitch;
    const float wx = columns.weight[begin + x], vx = 1.0f - wx, vy = 1.0f - wy;
    float* s = sums + x * channels;
    const T *p = above + a, *q = above + b, *r = below + a, *t = below + b;
    if (set) {
      for (int64_t c = 0; c < channels; ++c)
        s[c] = vy * (vx * read_value(p + c) + wx * read_value(q + c)) +
               wy * (vx * read_value(r + c) + wx * read_value(t + c));
    } else {
      for (int64_t c = 0; c < channels; ++c)
        s[c] += vy * (vx * read_value(p + c) + wx * read_value(q + c)) +
                wy * (vx * read_value(r + c) + wx * read_value(t + c));
    }
  }
}

template <typename T>
HF_INLINE void sum_body(const SumJob& job, int64_t begin, int64_t end) {
  alignas(64) float sums[kChunk];
  const int64_t channels = job.channels, height = job.out.height, width = job.out.width;
  const int64_t block = std::max<int64_t>(1, kChunk / channels);  // pixels at a time
  const int64_t slice = std::min(channels, kChunk);               // channels at a time, of very wide maps
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / height, y = row - n * height;
    for (int64_t c = 0; c < channels; c += slice) {
      const int64_t some = std::min(slice, channels - c);
      for (int64_t x = 0; x < width; x += block) {
        const int64_t pixels = std::min(block, width - x);
        for (int64_t k = 0; k < job.count; ++k) {
          const SumTerm& term = job.terms[k];
          const int64_t pitch = term.map.pixel;
          if (term.rows == nullptr) {
            add_nearest(sums, at<const T>(term.map, n, y, x) + c, nullptr, pixels, pitch, some, k == 0);
          } else if (term.nearest) {
            const T* from = at<const T>(term.map, n, term.rows->first[y], 0) + c;
            add_nearest(sums, from, term.columns->first.data() + x, pixels, pitch, some, k == 0);
          } else {
            const T* above = at<const T>(term.map, n, term.rows->first[y], 0) + c;
            const T* below = at<const T>(term.map, n, term.rows->second[y], 0) + c;
            add_bilinear(sums, above, below, term.rows->weight[y], *term.columns, x, pixels, pitch, some, k == 0);
          }
        }
        for (int64_t p = 0; p < pixels; ++p) {
          T* __restrict__ to = at<T>(job.out, n, y, x + p) + c;
          const float* s = sums + p * some;
          if (job.relu) {
            // This comparison keeps NaN, as torch.relu does.
            for (int64_t i = 0; i < some; ++i) write_value(to + i, s[i] < 0.0f ? 0.0f : s[i]);
          } else {
            for (int64_t i = 0; i < some; ++i) write_value(to + i, s[i]);
          }
        }
      }
    }
  }
}

template <typename T>
HF_INLINE void pool_body(const PoolJob& job, int64_t begin, int64_t end) {
  alignas(64) float sums[kChunk];
  const float share = 1.0f / static_cast<float>(job.size * job.size);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / job.out.height, y = row - n * job.out.height;
    for (int64_t x = 0; x < job.out.width; ++x) {
      for (int64_t c = 0; c < job.channels; c += kChunk) {
        const int64_t some = std::min(kChunk, job.channels - c);
        std::fill(sums, sums + some, 0.0f);
        for (int64_t k = 0; k < job.size * job.size; ++k) {
          const T* p = at<const T>(job.in, n, y * job.size + k / job.size, x * job.size + k % job.size) + c;
          for (int64_t i = 0; i < some; ++i) sums[i] += read_value(p + i);
        }
        T* to = at<T>(job.out, n, y, x) + c;
        for (int64_t i = 0; i < some; ++i) write_value(to + i, sums[i] * share);
      }
    }
  }
}

template <typename T, typename S>
HF_INLINE void import_body(const ImportJob& job, int64_t begin, int64_t end) {
  const Plane& in = job.in;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / job.out.height, y = row - n * job.out.height;
    const S* from = static_cast<const S*>(in.data) + n * in.n + y * in.h;
    T* to = at<T>(job.out, n, y, 0);
    for (int64_t c = 0; c < job.channels; ++c) {
      const float scale = job.scale ? job.scale[c] : 1.0f, shift = job.scale ? job.shift[c] : 0.0f;
      const S* p = from + c * in.c;
      for (int64_t x = 0; x < job.out.width; ++x) {
        const float value = static_cast<float>(p[x * in.w]);
        write_value(to + x * job.out.pixel + c, job.scale ? value * scale + shift : value);
      }
    }
  }
}

template <typename T, typename S>
HF_INLINE void export_body(const ExportJob& job, int64_t begin, int64_t end) {
  constexpr int64_t kBlock = 16;  // channels whose rows are written together
  const Plane& out = job.out;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t n = row / job.in.height, y = row - n * job.in.height;
    const T* from = at<const T>(job.in, n, y, 0);
    S* to = static_cast<S*>(out.data) + n * out.n + y * out.h;
    for (int64_t c = 0; c < job.channels; c += kBlock) {
      const int64_t last = std::min(c + kBlock, job.channels);
      for (int64_t x = 0; x < job.in.width; ++x)
        for (int64_t k = c; k < last; ++k)
          write_value(to + k * out.c + x * out.w, read_value(from + x * job.in.pixel + k));
    }
  }
}

// Templates cannot be cloned for several instruction sets, so they are inlined into functions that can.
HF_CLONES void sum_f32(const SumJob& job, int64_t begin, int64_t end) { sum_body<float>(job, begin, end); }
HF_CLONES void sum_bf16(const SumJob& job, int64_t begin, int64_t end) { sum_body<c10::BFloat16>(job, begin, end); }
HF_CLONES void pool_f32(const PoolJob& job, int64_t begin, int64_t end) { pool_body<float>(job, begin, end); }
HF_CLONES void pool_bf16(const PoolJob& job, int64_t begin, int64_t end) { pool_body<c10::BFloat16>(job, begin, end); }

template <typename T>
void import_any(const ImportJob& job, int64_t begin, int64_t end) {
  switch (job.in.type) {
    case Scalar::float32:
      return import_body<T, float>(job, begin, end);
    case Scalar::bfloat16:
      return import_body<T, c10::BFloat16>(job, begin, end);
    case Scalar::float16:
      return import_body<T, c10::Half>(job, begin, end);
    case Scalar::uint8:
      return import_body<T, uint8_t>(job, begin, end);
  }
}

template <typename T>
void export_any(const ExportJob& job, int64_t begin, int64_t end) {
  switch (job.out.type) {
    case Scalar::float32:
      return export_body<T, float>(job, begin, end);
    case Scalar::bfloat16:
      return export_body<T, c10::BFloat16>(job, begin, end);
    case Scalar::float16:
      return export_body<T, c10::Half>(job, begin, end);
    case Scalar::uint8:
      return;  // unsupported output type: Program::run refuses it before
  }
}

}  // namespace

void sum_rows(const SumJob& job, Element type, int64_t begin, int64_t end) {
  type == Element::float32 ? sum_f32(job, begin, end) : sum_bf16(job, begin, end);
}

void pool_rows(const PoolJob& job, Element type, int64_t begin, int64_t end) {
  type == Element::float32 ? pool_f32(job, begin, end) : pool_bf16(job, begin, end);
}

void import_rows(const ImportJob& job, Element type, int64_t begin, int64_t end) {
  type == Element::float32 ? import_any<float>(job, begin, end) : import_any<c10::BFloat16>(job, begin, end);
}

void export_rows(const ExportJob& job, Element type, int64_t begin, int64_t end) {
  type == Element::float32 ? export_any<float>(job, begin, end) : export_any<c10::BFloat16>(job, begin, end);
}

}  // namespace hrnet_fast::cpu
