// bn_act on the CPU, backward: the masked gradient and its two sums in one pass, the input's gradient in another.

#include <ATen/Dispatch.h>

#include <cmath>

#include "bn_act.h"
#include "tiles.h"

namespace hrnet_fast::cpu {

namespace {

enum class Mask { kNone, kOut, kRecomputed };

// g, or zero where the activation was zero; like aten::threshold_backward, a NaN lets the gradient through.
template <typename T, typename M, bool kScalar>
HF_INLINE void mask_tile(Mask mask, const Tile<M, kScalar>& t, const T* __restrict__ x, const T* __restrict__ out,
                         M* __restrict__ g) {
  if (mask == Mask::kOut)
    for (int64_t j = 0; j < t.size; ++j) g[j] = read_value(out + j) <= M(0) ? M(0) : g[j];
  else if (mask == Mask::kRecomputed)
    for (int64_t j = 0; j < t.size; ++j) g[j] = read_value(x + j) * t.of(2, j) + t.of(3, j) <= M(0) ? M(0) : g[j];
}

template <typename T>
struct Sums {
  using M = math_t<T>;
  static constexpr int kVectors = 4;
  static constexpr int64_t kTiles = 1, kFlush = 64;
  static constexpr bool kAccumulates = true, kShifts = false;
  Shape shape;
  const M* vectors[4];  // mean, invstd, scale, shift
  const T *grad, *addend, *x, *out;
  T* kept;
  Mask mask;
  double* partial;

  HF_INLINE M shift(int64_t) const { return M(0); }
  template <bool kScalar>
  HF_INLINE void tile(Tile<M, kScalar> t, M* first, M* second) const {
    M buffer[2 * kTile + 64];
    if (t.size <= static_cast<int64_t>(sizeof(buffer) / sizeof(M))) return into(t, buffer, first, second);
    std::vector<M> large(t.size);
    into(t, large.data(), first, second);
  }
  template <bool kScalar>
  HF_INLINE void into(Tile<M, kScalar> t, M* __restrict__ g, M* __restrict__ first, M* __restrict__ second) const {
    const T* from = grad + t.offset;  // `kept` may be one of the two
    const T* __restrict__ own = x + t.offset;
    if (addend == nullptr) {
      for (int64_t j = 0; j < t.size; ++j) g[j] = read_value(from + j);
    } else {
      const T* more = addend + t.offset;
      for (int64_t j = 0; j < t.size; ++j) g[j] = read_value(from + j) + read_value(more + j);
    }
    mask_tile(mask, t, own, out == nullptr ? nullptr : out + t.offset, g);
    if (kept != nullptr) {
      // The sums and the input's gradient must use the same, rounded numbers.
      finish_row<T>(kept + t.offset, g, false, t.size);
      if constexpr (sizeof(T) < sizeof(M)) {
        const T* __restrict__ rounded = kept + t.offset;
        for (int64_t j = 0; j < t.size; ++j) g[j] = read_value(rounded + j);
      }
    }
    for (int64_t j = 0; j < t.size; ++j) {
      first[j] += g[j];
      second[j] += g[j] * (read_value(own + j) - t.of(0, j));
    }
  }
};

// scale * (g - s0 / n - (x - mean) * invstd * s1 / n), as a * g + b + c * (x - mean).
template <typename T, bool kInPlace>
struct InputOf {
  using M = math_t<T>;
  static constexpr int kVectors = 6;
  static constexpr int64_t kTiles = 1, kFlush = 64;
  static constexpr bool kAccumulates = false, kShifts = false;
  Shape shape;
  const M* vectors[6];  // mean, invstd, scale, shift, b, c
  const T *grad, *x;
  T* dx;  // the gradient itself if kInPlace
  Mask mask;
  bool given;  // constant statistics: the gradient is scale * g, even where x is infinite
  double* partial;

  HF_INLINE M shift(int64_t) const { return M(0); }
  template <bool kScalar>
  HF_INLINE void tile(Tile<M, kScalar> t, M*, M*) const {
    const T* __restrict__ own = x + t.offset;
    T* __restrict__ to = dx + t.offset;
    if (given && mask == Mask::kNone)
      for (int64_t j = 0; j < t.size; ++j) write_value(to + j, t.of(2, j) * gradient(to, t.offset, j));
    else if (mask == Mask::kNone)
      for (int64_t j = 0; j < t.size; ++j)
        write_value(to + j, t.of(2, j) * gradient(to, t.offset, j) + t.of(4, j) +
                                t.of(5, j) * (read_value(own + j) - t.of(0, j)));
    else if constexpr (sizeof(T) == sizeof(M))
      for (int64_t j = 0; j < t.size; ++j) {
        // Loaded unconditionally: a conditional load would not vectorise.
        const M v = read_value(own + j), all = gradient(to, t.offset, j);
        const M g = v * t.of(2, j) + t.of(3, j) <= M(0) ? M(0) : all;
        const M rest = t.of(4, j) + t.of(5, j) * (v - t.of(0, j));
        write_value(to + j, t.of(2, j) * g + (given ? M(0) : rest));
      }
    else
      masked_halves(t, own, to);
  }
  HF_INLINE M gradient(const T* to, int64_t offset, int64_t j) const {
    return kInPlace ? read_value(to + j) : read_value(grad + offset + j);
  }
  // A loop that masks, computes and converts to a half type would not vectorise.
  template <bool kScalar>
  HF_INLINE void masked_halves(Tile<M, kScalar> t, const T* __restrict__ own, T* __restrict__ to) const {
    M buffer[kTile];
    M* __restrict__ g = buffer;
    for (int64_t at = 0; at < t.size; at += kTile) {
      const int64_t n = std::min(kTile, t.size - at);
      for (int64_t j = 0; j < n; ++j) g[j] = gradient(to, t.offset, at + j);
      for (int64_t j = 0; j < n; ++j)
        g[j] = read_value(own + at + j) * t.of(2, at + j) + t.of(3, at + j) <= M(0) ? M(0) : g[j];
      if (given)
        for (int64_t j = 0; j < n; ++j) g[j] *= t.of(2, at + j);
      else
        for (int64_t j = 0; j < n; ++j)
          g[j] = t.of(2, at + j) * g[j] +
                 (t.of(4, at + j) + t.of(5, at + j) * (read_value(own + at + j) - t.of(0, at + j)));
      finish_row<T>(to + at, g, false, n);
    }
  }
};

template <typename T>
using Input = InputOf<T, false>;
template <typename T>
using InputInPlace = InputOf<T, true>;

HF_MULTIVERSION(sums, walk, Sums)
HF_MULTIVERSION(input, walk, Input)
HF_MULTIVERSION(input, walk, InputInPlace)

template <typename T>
const T* data_or_null(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr<T>() : nullptr;
}

// Where a pass over x writes its result.
at::Tensor result_like(const at::Tensor& x, const Shape& shape, const at::Tensor& memory) {
  const bool fits = memory.defined() && memory.sizes() == x.sizes() && memory.scalar_type() == x.scalar_type() &&
                    memory.is_contiguous(shape.format());
  return fits ? memory : at::empty_like(x, shape.format());
}

at::Tensor laid_out(const OptionalTensor& t, const Shape& shape) {
  return t ? t->contiguous(shape.format()) : at::Tensor();
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> backward_sums(const at::Tensor& given_grad, const OptionalTensor& given_addend,
                                                 const at::Tensor& given_x, const at::Tensor& given_affine,
                                                 const OptionalTensor& given_out, bool relu, bool keep,
                                                 const at::Tensor& memory) {
  const Shape shape = Shape::of(given_x);
  const int64_t channels = shape.channels;
  const at::Tensor x = given_x.contiguous(shape.format()), grad = given_grad.contiguous(shape.format());
  const at::Tensor addend = laid_out(given_addend, shape), out = laid_out(given_out, shape);
  const at::Tensor affine = given_affine.contiguous();
  for (const at::Tensor& t : {grad, addend, out})
    TORCH_CHECK(!t.defined() || (t.sizes() == x.sizes() && t.scalar_type() == x.scalar_type()),
                "backward_sums: gradients and activations must be as the map is, ", x.sizes());
  TORCH_CHECK(affine.size(1) == channels, "backward_sums: an affine of another width than ", x.sizes());
  at::Tensor kept = keep ? result_like(x, shape, memory) : at::Tensor();
  at::Tensor result = at::empty({2, channels}, affine.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "bn_backward_sums", [&] {
    using M = math_t<scalar_t>;
    const M* a = affine.const_data_ptr<M>();
    const int64_t own = shape.channels_last ? channels : 1;
    std::vector<double> partial(2 * shape.chunks() * own);
    const Sums<scalar_t> job{shape,
                             {a, a + channels, a + 2 * channels, a + 3 * channels},
                             grad.const_data_ptr<scalar_t>(),
                             data_or_null<scalar_t>(addend),
                             x.const_data_ptr<scalar_t>(),
                             data_or_null<scalar_t>(out),
                             keep ? kept.mutable_data_ptr<scalar_t>() : nullptr,
                             out.defined() ? Mask::kOut : (relu ? Mask::kRecomputed : Mask::kNone),
                             partial.data()};
    at::parallel_for(0, shape.chunks(), shape.grain(), [&](int64_t b, int64_t e) { sums(job, b, e); });
    std::vector<double> total(2 * channels, 0.0);
    for (int64_t k = 0; k < shape.chunks(); ++k)
      for (int64_t j = 0; j < own; ++j) {
        const int64_t c = shape.channels_last ? j : k % channels;
        total[c] += partial[(2 * k) * own + j];
        total[channels + c] += partial[(2 * k + 1) * own + j];
      }
    M* to = result.mutable_data_ptr<M>();
    for (int64_t c = 0; c < channels; ++c) {
      to[c] = static_cast<M>(total[c]);
      to[channels + c] = static_cast<M>(total[channels + c] * a[channels + c]);
    }
  });
  return {result, kept};
}

at::Tensor backward_input(const at::Tensor& given_grad, const at::Tensor& given_x, const at::Tensor& given_affine,
                          const at::Tensor& sums, double count, bool relu, const at::Tensor& memory) {
  const Shape shape = Shape::of(given_x);
  const int64_t channels = shape.channels;
  const at::Tensor x = given_x.contiguous(shape.format()), grad = given_grad.contiguous(shape.format());
  // Constant statistics have no sums, and the tensor may be empty or undefined.
  const bool batch = std::isfinite(count);
  const at::Tensor affine = given_affine.contiguous(), totals = batch ? sums.contiguous() : at::Tensor();
  TORCH_CHECK(grad.sizes() == x.sizes() && grad.scalar_type() == x.scalar_type() && affine.size(1) == channels,
              "backward_input: gradient and affine must be as the map is, ", x.sizes());
  at::Tensor dx = result_like(x, shape, memory);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "bn_backward_input", [&] {
    using M = math_t<scalar_t>;
    const M* a = affine.const_data_ptr<M>();
    const M* s = batch ? totals.const_data_ptr<M>() : nullptr;
    std::vector<M> b(channels, M(0)), c(channels, M(0));
    for (int64_t k = 0; batch && k < channels; ++k) {
      b[k] = static_cast<M>(-static_cast<double>(a[2 * channels + k]) * s[k] / count);
      c[k] = static_cast<M>(-static_cast<double>(a[2 * channels + k]) * a[channels + k] * s[channels + k] / count);
    }
    const auto run = [&](auto job) {
      job.shape = shape;
      const M* vectors[] = {a, a + channels, a + 2 * channels, a + 3 * channels, b.data(), c.data()};
      std::copy(std::begin(vectors), std::end(vectors), job.vectors);
      job.grad = grad.const_data_ptr<scalar_t>();
      job.x = x.const_data_ptr<scalar_t>();
      job.dx = dx.mutable_data_ptr<scalar_t>();
      job.mask = relu ? Mask::kRecomputed : Mask::kNone;
      job.given = !batch;
      at::parallel_for(0, shape.chunks(), shape.grain(), [&](int64_t b, int64_t e) { input(job, b, e); });
    };
    if (dx.const_data_ptr() == grad.const_data_ptr())
      run(InputInPlace<scalar_t>{});
    else
      run(Input<scalar_t>{});
  });
  return dx;
}

}  // namespace hrnet_fast::cpu
