// bn_act on the CPU, forward: statistics, affine, update of the running statistics, and application.

#include "bn_act.h"

#include <ATen/Dispatch.h>

#include <cmath>

#include "tiles.h"

namespace hrnet_fast::cpu {

namespace {

// Sums of x - shift and of its square. The shift is the chunk's first pixel, close enough to the mean to avoid
// cancellation for values far from zero.
template <typename T>
struct Moments {
  using M = math_t<T>;
  static constexpr int kVectors = 0;
  static constexpr int64_t kTiles = kTogether, kFlush = 8;
  static constexpr bool kAccumulates = true, kShifts = true;
  Shape shape;
  const M* vectors[1];
  const T* x;
  double* partial;

  HF_INLINE M shift(int64_t at) const {
    const M value = read_value(x + at);
    return value - value == M(0) ? value : M(0);  // infinity and NaN: no shift, so that the sums carry them
  }
  template <bool kScalar>
  HF_INLINE void tile(Tile<M, kScalar> t, M* __restrict__ first, M* __restrict__ second) const {
    static_assert(kTogether == 4);
    const T* __restrict__ from = x + t.offset;
    if (t.size == kTogether * t.lanes) {
      const int64_t n = t.lanes;
      for (int64_t j = 0; j < n; ++j) {
        const M s = t.of(0, j), d0 = read_value(from + j) - s, d1 = read_value(from + n + j) - s,
                d2 = read_value(from + 2 * n + j) - s, d3 = read_value(from + 3 * n + j) - s;
        first[j] += (d0 + d1) + (d2 + d3);
        second[j] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3);
      }
      return;
    }
    for (int64_t begin = 0; begin < t.size; begin += t.lanes)
      for (int64_t j = 0; j < std::min(t.lanes, t.size - begin); ++j) {
        const M d = read_value(from + begin + j) - t.of(0, j);
        first[j] += d;
        second[j] += d * d;
      }
  }
};

// act(scale * x + shift [+ residual | + scale2 * residual + shift2]).
template <typename T>
struct Apply {
  using M = math_t<T>;
  static constexpr int kVectors = 4;
  static constexpr int64_t kTiles = 1, kFlush = 64;
  static constexpr bool kAccumulates = false, kShifts = false;
  Shape shape;
  const M* vectors[4];  // scale, shift, scale2, shift2
  const T* x;
  const T* residual;  // null: none
  bool residual_affine;
  bool relu;
  T* y;
  double* partial;

  HF_INLINE M shift(int64_t) const { return M(0); }
  template <bool kScalar>
  HF_INLINE void tile(Tile<M, kScalar> t, M*, M*) const {
    M buffer[2 * kTile + 64];
    if (t.size <= static_cast<int64_t>(sizeof(buffer) / sizeof(M))) return into(t, buffer);
    std::vector<M> large(t.size);  // for more channels than the fixed buffer has
    into(t, large.data());
  }
  template <bool kScalar>
  HF_INLINE void into(Tile<M, kScalar> t, M* __restrict__ v) const {
    const T* __restrict__ from = x + t.offset;
    for (int64_t j = 0; j < t.size; ++j) v[j] = read_value(from + j) * t.of(0, j) + t.of(1, j);
    if (residual != nullptr) {
      const T* __restrict__ r = residual + t.offset;
      if (residual_affine)
        for (int64_t j = 0; j < t.size; ++j) v[j] += read_value(r + j) * t.of(2, j) + t.of(3, j);
      else
        for (int64_t j = 0; j < t.size; ++j) v[j] += read_value(r + j);
    }
    finish_row<T>(y + t.offset, v, relu, t.size);
  }
};

HF_MULTIVERSION(run_chunks, walk, Moments)
HF_MULTIVERSION(run_chunks, walk, Apply)

struct Total {
  std::vector<double> mean, variance;
};

// Combines the chunks' moments in order, in double (Chan et al., 1979).
template <typename T>
Total join(const Moments<T>& job) {
  const Shape& s = job.shape;
  const int64_t chunks = s.chunks(), own = s.channels_last ? s.channels : 1;
  const double count = static_cast<double>(s.batch * s.plane);
  Total total{std::vector<double>(s.channels, 0.0), std::vector<double>(s.channels, 0.0)};
  for (int pass = 0; pass < 2; ++pass)
    for (int64_t k = 0; k < chunks; ++k)
      for (int64_t j = 0; j < own; ++j) {
        const int64_t c = s.channels_last ? j : k % s.channels;
        const double n = static_cast<double>(s.values(k) / own);
        const double first = job.partial[(k * 2) * own + j], second = job.partial[(k * 2 + 1) * own + j];
        const double mean = job.shift(k * s.chunk() + j) + first / n;
        if (pass == 0)
          total.mean[c] += mean * n / count;
        else
          total.variance[c] +=
              (second - first * first / n + n * (mean - total.mean[c]) * (mean - total.mean[c])) / count;
      }
  for (double& v : total.variance) v = v < 0.0 ? 0.0 : v;  // negative by rounding; NaN stays
  return total;
}

Total moments_of(const at::Tensor& given) {
  const Shape shape = Shape::of(given);
  const at::Tensor x = given.contiguous(shape.format());
  Total total;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "bn_statistics", [&] {
    Moments<scalar_t> job{shape, {nullptr}, x.const_data_ptr<scalar_t>(), nullptr};
    std::vector<double> partial(2 * shape.chunks() * (shape.channels_last ? shape.channels : 1));
    job.partial = partial.data();
    at::parallel_for(0, shape.chunks(), shape.grain(), [&](int64_t b, int64_t e) { run_chunks(job, b, e); });
    total = join(job);
  });
  return total;
}

at::ScalarType math_type(at::ScalarType type) { return type == at::kDouble ? at::kDouble : at::kFloat; }

// [C] doubles of a parameter that may be absent (empty).
std::vector<double> values_or(const at::Tensor& t, int64_t channels, double otherwise) {
  std::vector<double> values(channels, otherwise);
  if (t.numel() == 0) return values;
  TORCH_CHECK(t.numel() == channels, "normalisation of ", channels, " channels has ", t.numel(), " values");
  const bool simple = t.dim() == 1 && t.is_floating_point();
  const at::Tensor plain = simple ? t.resolve_neg() : t.detach().to(at::kDouble).contiguous().view(-1);
  // Read in place: a copy by at::Tensor costs more than the arithmetic on a few channels.
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, plain.scalar_type(), "bn_parameter", [&] {
    const scalar_t* from = plain.const_data_ptr<scalar_t>();
    const int64_t stride = plain.stride(0);
    for (int64_t c = 0; c < channels; ++c) values[c] = static_cast<double>(from[c * stride]);
  });
  return values;
}

// Channels [start, start + n) of an affine [4, C]: mean, invstd, scale, shift.
void write_affine(at::Tensor& result, int64_t start, int64_t n, const double* mean, const double* variance,
                  const at::Tensor& weight, const at::Tensor& bias, double eps) {
  const auto scale = values_or(weight, n, 1.0), shift = values_or(bias, n, 0.0);
  const int64_t width = result.size(1);
  AT_DISPATCH_FLOATING_TYPES(result.scalar_type(), "bn_affine", [&] {
    scalar_t* to = result.mutable_data_ptr<scalar_t>() + start;
    for (int64_t c = 0; c < n; ++c) {
      const double invstd = 1.0 / std::sqrt(variance[c] + eps);
      to[c] = static_cast<scalar_t>(mean[c]);
      to[width + c] = static_cast<scalar_t>(invstd);
      to[2 * width + c] = static_cast<scalar_t>(invstd * scale[c]);
      // From the rounded scale, so that the mean maps to the bias up to one rounding.
      to[3 * width + c] = static_cast<scalar_t>(shift[c] - mean[c] * static_cast<double>(to[2 * width + c]));
    }
  });
}

void move_towards(const at::Tensor& running, int64_t channels, const double* value, double factor, double momentum) {
  if (running.numel() == 0) return;
  TORCH_CHECK(running.numel() == channels, "normalisation of ", channels, " channels has ", running.numel(), " values");
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, running.scalar_type(), "bn_running", [&] {
    auto to = running.accessor<scalar_t, 1>();
    for (int64_t c = 0; c < running.numel(); ++c)
      to[c] = static_cast<scalar_t>((1.0 - momentum) * static_cast<double>(to[c]) + momentum * factor * value[c]);
  });
}

}  // namespace

at::Tensor statistics(const at::Tensor& x) {
  const Total total = moments_of(x);
  const auto options = at::TensorOptions().dtype(at::kDouble);
  const int64_t channels = x.size(1);
  at::Tensor result = at::empty({2, channels}, options);
  std::copy_n(total.mean.data(), channels, result.mutable_data_ptr<double>());
  std::copy_n(total.variance.data(), channels, result.mutable_data_ptr<double>() + channels);
  return result.to(math_type(x.scalar_type()));
}

std::vector<at::Tensor> batch_affine(at::TensorList xs, at::IntArrayRef channels, at::TensorList weights,
                                     at::TensorList biases, at::TensorList running_means, at::TensorList running_vars,
                                     at::ArrayRef<double> momenta, at::ArrayRef<double> eps) {
  int64_t maps = 0, layers = 0;
  for (const at::Tensor& x : xs) maps += x.size(1);
  for (const int64_t n : channels) layers += n;
  TORCH_CHECK(maps == layers, "batch_affine: normalisations of ", layers, " channels for maps of ", maps);
  std::vector<at::Tensor> results;
  size_t j = 0;  // the norm
  for (const at::Tensor& x : xs) {
    const Total total = moments_of(x);
    const double count = static_cast<double>(x.size(0) * x.size(2) * x.size(3));
    const int64_t width = x.size(1);
    at::Tensor result = at::empty({4, width}, x.options().dtype(math_type(x.scalar_type())).memory_format({}));
    for (int64_t start = 0; start < width; start += channels[j - 1]) {
      write_affine(result, start, channels[j], total.mean.data() + start, total.variance.data() + start, weights[j],
                   biases[j], eps[j]);
      move_towards(running_means[j], channels[j], total.mean.data() + start, 1.0, momenta[j]);
      move_towards(running_vars[j], channels[j], total.variance.data() + start, count / (count - 1.0), momenta[j]);
      ++j;
    }
    results.push_back(result);
  }
  return results;
}

at::Tensor running_affine(at::IntArrayRef channels, at::TensorList weights, at::TensorList biases,
                          at::TensorList running_means, at::TensorList running_vars, at::ArrayRef<double> eps,
                          bool wide) {
  int64_t width = 0;
  for (const int64_t n : channels) width += n;
  at::Tensor result = at::empty({4, width}, at::TensorOptions().dtype(wide ? at::kDouble : at::kFloat));
  for (int64_t start = 0, j = 0; start < width; start += channels[j++]) {
    const auto mean = values_or(running_means[j], channels[j], 0.0);
    const auto variance = values_or(running_vars[j], channels[j], 1.0);
    write_affine(result, start, channels[j], mean.data(), variance.data(), weights[j], biases[j], eps[j]);
  }
  return result;
}

at::Tensor bn_act(const at::Tensor& given, const at::Tensor& affine, const OptionalTensor& given_residual,
                  const OptionalTensor& residual_affine, bool relu) {
  const Shape shape = Shape::of(given);
  const at::Tensor x = given.contiguous(shape.format());
  const at::Tensor residual = given_residual ? given_residual->contiguous(shape.format()) : at::Tensor();
  TORCH_CHECK(!residual.defined() || (residual.sizes() == x.sizes() && residual.scalar_type() == x.scalar_type()),
              "bn_act: a residual of ", residual.defined() ? residual.sizes() : x.sizes(), " for a map of ", x.sizes());
  TORCH_CHECK(affine.size(1) == shape.channels, "bn_act: an affine of ", affine.size(1), " channels for ", x.sizes());
  TORCH_CHECK(!residual_affine || residual_affine->size(1) == shape.channels, "bn_act: the residual's affine has ",
              residual_affine ? residual_affine->size(1) : 0, " channels for ", x.sizes());
  at::Tensor y = at::empty_like(x, shape.format());
  const at::Tensor own = affine.contiguous();
  const at::Tensor other = residual_affine ? residual_affine->contiguous() : own;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, x.scalar_type(), "bn_act", [&] {
    using M = math_t<scalar_t>;
    const M* a = own.const_data_ptr<M>();
    const M* b = other.const_data_ptr<M>();
    const int64_t c = shape.channels;
    const Apply<scalar_t> job{shape,
                              {a + 2 * c, a + 3 * c, b + 2 * c, b + 3 * c},
                              x.const_data_ptr<scalar_t>(),
                              residual.defined() ? residual.const_data_ptr<scalar_t>() : nullptr,
                              residual_affine.has_value(),
                              relu,
                              y.mutable_data_ptr<scalar_t>(),
                              nullptr};
    at::parallel_for(0, shape.chunks(), shape.grain(), [&](int64_t b, int64_t e) { run_chunks(job, b, e); });
  });
  return y;
}

}  // namespace hrnet_fast::cpu
