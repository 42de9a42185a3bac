// fuse_sum on the CPU, backward: the gradient, masked by the activation, gathered back to every term's resolution.
//
// Every input row gathers from the output rows that it reached (no scatter, no atomics): first down, into a float
// buffer as wide as the output, then across. Per-channel sums for the affine's gradients are kept per row and added in
// a fixed order, so results do not depend on the number of threads.

#include <ATen/Parallel.h>

#include <vector>

#include "fuse_sum.h"
#include "rows.h"

namespace hrnet_fast::cpu {

namespace {

template <typename M>
struct Reach {  // outputs that one input element reached along one axis
  int64_t begin = 0;
  std::vector<M> weights;
};

template <typename M>
std::vector<Reach<M>> reach_table(Resample mode, int64_t in, int64_t out) {
  const M scale = axis_scale<M>(mode, in, out);
  std::vector<Reach<M>> table(in);
  for (int64_t src = 0; src < in; ++src) {
    const Range<> range = reached_by<M>(mode, inverse_scale(scale), src, in, out);
    int64_t first = range.end, last = range.begin;
    for (int64_t dst = range.begin; dst < range.end; ++dst)
      if (weight_of<M>(mode, scale, dst, src, in) != M(0)) {
        first = std::min(first, dst);
        last = std::max(last, dst + 1);
      }
    table[src].begin = first;
    for (int64_t dst = first; dst < last; ++dst) table[src].weights.push_back(weight_of<M>(mode, scale, dst, src, in));
  }
  return table;
}

template <typename T>
struct Job {
  const T* grad;  // masked, at the output's size
  const T* x;     // null where no affine gradient is wanted
  T* grad_x;      // null where it is not wanted
  const math_t<T>* scale;
  double* row_sums;      // per input row: sum of the gathered gradient, by channel
  double* row_products;  // per input row: sum of gradient * x, by channel
  int64_t height, width, out_height, out_width, inner, channels;
  const Reach<math_t<T>>* rows;
  const Reach<math_t<T>>* columns;
};

// Values that stay in the first-level cache while all rows are added to them.
constexpr int64_t kBlock = 2048;

template <typename T>
HF_INLINE void gather_down(const Job<T>& job, const T* image, int64_t y, math_t<T>* wide) {
  using M = math_t<T>;
  const int64_t n = job.out_width * job.inner;
  const Reach<M>& reach = job.rows[y];
  const int64_t count = static_cast<int64_t>(reach.weights.size());
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t size = std::min(kBlock, n - start);
    M* __restrict__ to = wide + start;
    for (int64_t j = 0; j < size; ++j) to[j] = M(0);
    for (int64_t i = 0; i < count; ++i) {
      const T* __restrict__ row = image + (reach.begin + i) * n + start;
      const M weight = reach.weights[i];
      for (int64_t j = 0; j < size; ++j) to[j] += weight * read_value(row + j);
    }
  }
}

template <typename T>
HF_INLINE void gather_across(const Job<T>& job, const math_t<T>* wide, math_t<T>* narrow) {
  using M = math_t<T>;
  const int64_t inner = job.inner;
  for (int64_t x = 0; x < job.width; ++x) {
    const Reach<M>& reach = job.columns[x];
    M* __restrict__ to = narrow + x * inner;
    for (int64_t c = 0; c < inner; ++c) to[c] = M(0);
    for (size_t i = 0; i < reach.weights.size(); ++i) {
      const M weight = reach.weights[i];
      const M* __restrict__ from = wide + (reach.begin + static_cast<int64_t>(i)) * inner;
      for (int64_t c = 0; c < inner; ++c) to[c] += weight * from[c];
    }
  }
}

template <typename T>
HF_INLINE void backward_row(const Job<T>& job, int64_t index, math_t<T>* wide, math_t<T>* narrow) {
  using M = math_t<T>;
  const int64_t plane = index / job.height, y = index % job.height, inner = job.inner;
  const T* image = job.grad + plane * job.out_height * job.out_width * inner;
  if (job.rows == nullptr) {
    const T* row = image + y * job.out_width * inner;
    for (int64_t j = 0; j < job.width * inner; ++j) narrow[j] = read_value(row + j);
  } else {
    gather_down(job, image, y, wide);
    gather_across(job, wide, narrow);
  }
  const int64_t start = index * job.width * inner;
  if (job.row_sums != nullptr) {
    // In double: the library's pairwise sums, which these are compared with, lose less than plain ones in float.
    double* __restrict__ sums = job.row_sums + index * inner;
    double* __restrict__ products = job.row_products + index * inner;
    for (int64_t c = 0; c < inner; ++c) sums[c] = products[c] = 0.0;
    for (int64_t x = 0; x < job.width; ++x)
      for (int64_t c = 0; c < inner; ++c) {
        const M g = narrow[x * inner + c];
        sums[c] += g;
        products[c] += static_cast<double>(g) * read_value(job.x + start + x * inner + c);
      }
  }
  if (job.grad_x == nullptr) return;
  T* to = job.grad_x + start;
  if (job.scale == nullptr) {
    for (int64_t j = 0; j < job.width * inner; ++j) write_value(to + j, narrow[j]);
    return;
  }
  const M* scale = inner == 1 ? job.scale + plane % job.channels : job.scale;
  for (int64_t x = 0; x < job.width; ++x)
    for (int64_t c = 0; c < inner; ++c) write_value(to + x * inner + c, narrow[x * inner + c] * scale[c]);
}

#define HF_BACKWARD_ROWS(T, NAME)                                                                          \
  HF_CLONES void NAME(const Job<T>& job, int64_t begin, int64_t end, math_t<T>* wide, math_t<T>* narrow) { \
    for (int64_t i = begin; i < end; ++i) backward_row<T>(job, i, wide, narrow);                           \
  }
HF_BACKWARD_ROWS(float, backward_rows_float)
HF_BACKWARD_ROWS(double, backward_rows_double)
HF_BACKWARD_ROWS(c10::BFloat16, backward_rows_bfloat16)
HF_BACKWARD_ROWS(c10::Half, backward_rows_half)
#undef HF_BACKWARD_ROWS

void backward_rows(const Job<float>& j, int64_t b, int64_t e, float* w, float* n) {
  backward_rows_float(j, b, e, w, n);
}
void backward_rows(const Job<double>& j, int64_t b, int64_t e, double* w, double* n) {
  backward_rows_double(j, b, e, w, n);
}
void backward_rows(const Job<c10::BFloat16>& j, int64_t b, int64_t e, float* w, float* n) {
  backward_rows_bfloat16(j, b, e, w, n);
}
void backward_rows(const Job<c10::Half>& j, int64_t b, int64_t e, float* w, float* n) {
  backward_rows_half(j, b, e, w, n);
}

struct TermGradients {
  at::Tensor x, scale, shift;
};

template <typename T>
TermGradients term_gradients(const Prepared& p, size_t k, const at::Tensor& masked, bool want_x, bool want_affine) {
  using M = math_t<T>;
  const bool same_size = p.same_size(k);
  const bool affine = p.scales[k].defined();
  TermGradients result;
  if (want_x && same_size && !affine) {
    result.x = masked;
    want_x = false;
  }
  if (!want_x && !want_affine) return result;

  Job<T> job;
  job.grad = masked.const_data_ptr<T>();
  job.x = want_affine ? p.xs[k].const_data_ptr<T>() : nullptr;
  if (want_x) result.x = at::empty({p.batch, p.channels, p.heights[k], p.widths[k]}, masked.options(), p.format());
  job.grad_x = want_x ? result.x.mutable_data_ptr<T>() : nullptr;
  job.scale = affine ? p.scales[k].const_data_ptr<M>() : nullptr;
  job.height = p.heights[k];
  job.width = p.widths[k];
  job.out_height = p.height;
  job.out_width = p.width;
  job.inner = p.channels_last ? p.channels : 1;
  job.channels = p.channels_last ? 1 : p.channels;
  std::vector<Reach<M>> rows, columns;
  if (!same_size) {
    rows = reach_table<M>(p.mode, job.height, job.out_height);
    columns = reach_table<M>(p.mode, job.width, job.out_width);
  }
  job.rows = same_size ? nullptr : rows.data();
  job.columns = same_size ? nullptr : columns.data();
  const int64_t count = p.batch * job.channels * job.height;
  at::Tensor sums, products;
  if (want_affine) {
    sums = at::empty({count, job.inner}, p.scales[k].options().dtype(at::kDouble));
    products = at::empty_like(sums);
  }
  job.row_sums = want_affine ? sums.mutable_data_ptr<double>() : nullptr;
  job.row_products = want_affine ? products.mutable_data_ptr<double>() : nullptr;
  at::parallel_for(0, count, grain(job.out_width * job.inner), [&](int64_t begin, int64_t end) {
    std::vector<M> wide(job.out_width * job.inner), narrow(job.width * job.inner);
    backward_rows(job, begin, end, wide.data(), narrow.data());
  });
  if (want_affine) {
    // Rows of a channels-last image, or of each channel's planes, to one value per channel.
    const auto shape = p.channels_last ? std::vector<int64_t>{1, count, p.channels}
                                       : std::vector<int64_t>{p.batch, p.channels, job.height};
    const auto dims = p.channels_last ? std::vector<int64_t>{0, 1} : std::vector<int64_t>{0, 2};
    result.shift = sums.view(shape).sum(dims);
    result.scale = products.view(shape).sum(dims);
  }
  return result;
}

}  // namespace

std::vector<at::Tensor> fuse_sum_backward(const at::Tensor& grad, const at::Tensor& out, at::TensorList xs,
                                          at::TensorList scales, at::IntArrayRef sizes, int64_t mode, bool relu,
                                          at::IntArrayRef wanted) {
  const size_t n = xs.size();
  Prepared p;
  p.batch = out.size(0);
  p.channels = out.size(1);
  p.height = out.size(2);
  p.width = out.size(3);
  p.mode = static_cast<Resample>(mode);
  p.relu = relu;
  p.channels_last = out.suggest_memory_format() == at::MemoryFormat::ChannelsLast;
  const auto math = math_type(out.scalar_type());
  for (size_t k = 0; k < n; ++k) {
    p.xs.push_back(xs[k].numel() > 0 ? xs[k].contiguous(p.format()) : at::Tensor());
    p.scales.push_back(present(scales[k], math));
    p.heights.push_back(sizes[2 * k]);
    p.widths.push_back(sizes[2 * k + 1]);
  }
  at::Tensor masked = grad.contiguous(p.format());
  if (relu) masked = at::threshold_backward(masked, out, 0);

  std::vector<at::Tensor> results(3 * n);
  for (at::Tensor& result : results) result = at::empty({0}, grad.options());  // apart: results may not alias
  for (size_t k = 0; k < n; ++k) {
    const bool want_x = wanted[k] != 0, want_affine = wanted[n + k] != 0;
    TermGradients g;
    if (masked.numel() == 0 || p.heights[k] * p.widths[k] == 0) {
      g.x = at::zeros({p.batch, p.channels, p.heights[k], p.widths[k]}, grad.options().memory_format(p.format()));
      g.scale = g.shift = at::zeros({p.channels}, grad.options());
    } else {
      AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, masked.scalar_type(), "fuse_sum_backward",
                                      [&] { g = term_gradients<scalar_t>(p, k, masked, want_x, want_affine); });
    }
    if (want_x) results[k] = g.x;
    if (want_affine) {
      results[n + k] = g.scale.to(scales[k].scalar_type());
      results[2 * n + k] = g.shift.to(scales[k].scalar_type());
    }
  }
  return results;
}

}  // namespace hrnet_fast::cpu
