// fuse_sum on the CPU, forward: act(sum_k resample_k(scale_k * x_k + shift_k)) in one pass over the output.
//
// at::parallel_for distributes output rows over threads. A row is computed completely in a float buffer that stays in
// cache. Row functions are compiled for several instruction sets and selected at load time, so one binary uses AVX-512
// where the processor has it.

#include "fuse_sum.h"

#include <ATen/Parallel.h>

#include <vector>

#include "rows.h"

namespace hrnet_fast::cpu {

namespace {

template <typename T>
struct Term {
  const T* data;
  Affine<math_t<T>> affine;
  int64_t height, width;
  bool same_size;
  const Neighbours<math_t<T>>* rows;     // per output row
  const Neighbours<math_t<T>>* columns;  // per output column
  int64_t low_offset;                    // offset of its two interpolated rows in the row buffer
};

template <typename T>
struct Job {
  std::vector<Term<T>> terms;
  T* out;
  int64_t height, width, inner;
  int64_t planes;    // independent images: N, or N * C where a plane is one channel
  int64_t channels;  // planes per image: 1, or C
  int64_t low_size;  // of the interpolated rows of all terms
  bool relu;
  Resample mode;
};

// Number of values that stay in the first-level cache while all terms are added to them.
constexpr int64_t kBlock = 2048;

template <typename T>
HF_INLINE Affine<math_t<T>> affine_of(const Term<T>& term, const Job<T>& job, int64_t plane) {
  if (term.affine.scale == nullptr || job.channels == 1) return term.affine;
  const int64_t channel = plane % job.channels;
  return {term.affine.scale + channel, term.affine.shift + channel};
}

template <typename T, bool kFirst>
HF_INLINE void add_block(const Term<T>& term, const Job<T>& job, int64_t plane, int64_t y, int64_t x, int64_t width,
                         math_t<T>* acc, const math_t<T>* low) {
  const int64_t inner = job.inner;
  const T* image = term.data + plane * term.height * term.width * inner;
  if (term.same_size)
    add_row<T, kFirst>(acc, image + (y * term.width + x) * inner, affine_of(term, job, plane), width, inner);
  else if (job.mode == Resample::kNearest)
    repeat_row<T, kFirst>(acc, image + term.rows[y].first * term.width * inner, term.columns + x,
                          affine_of(term, job, plane), width, inner);
  else
    spread_row<math_t<T>, kFirst>(acc, low + term.low_offset, term.columns + x, width, inner);
}

template <typename T>
HF_INLINE void forward_row(const Job<T>& job, int64_t plane, int64_t y, math_t<T>* acc, math_t<T>* low) {
  const int64_t inner = job.inner;
  for (const Term<T>& term : job.terms) {
    if (term.same_size || job.mode == Resample::kNearest) continue;
    const auto row = term.rows[y];
    const T* image = term.data + plane * term.height * term.width * inner;
    mix_rows<T>(low + term.low_offset, image + row.first * term.width * inner, image + row.second * term.width * inner,
                row.weight, affine_of(term, job, plane), term.width, inner);
  }
  const int64_t step = std::max<int64_t>(1, kBlock / inner);
  T* out = job.out + (plane * job.height + y) * job.width * inner;
  for (int64_t x = 0; x < job.width; x += step) {
    const int64_t width = std::min(step, job.width - x);
    add_block<T, true>(job.terms[0], job, plane, y, x, width, acc, low);
    for (size_t k = 1; k < job.terms.size(); ++k) add_block<T, false>(job.terms[k], job, plane, y, x, width, acc, low);
    finish_row<T>(out + x * inner, acc, job.relu, width * inner);
  }
}

// Output rows [begin, end) of all planes.
template <typename T>
HF_INLINE void forward_rows(const Job<T>& job, int64_t begin, int64_t end) {
  std::vector<math_t<T>> acc(std::max(kBlock, job.inner)), low(job.low_size);
  for (int64_t i = begin; i < end; ++i) forward_row(job, i / job.height, i % job.height, acc.data(), low.data());
}

HF_MULTIVERSION(run_rows, forward_rows, Job)

template <typename T>
void run(const Prepared& p, at::Tensor& out) {
  using M = math_t<T>;
  const auto tables = make_tables<M>(p);
  Job<T> job;
  job.out = out.mutable_data_ptr<T>();
  job.height = p.height;
  job.width = p.width;
  job.inner = p.channels_last ? p.channels : 1;
  job.channels = p.channels_last ? 1 : p.channels;
  job.planes = p.batch * job.channels;
  job.relu = p.relu;
  job.mode = p.mode;
  job.low_size = 0;
  for (size_t k = 0; k < p.xs.size(); ++k) {
    const bool affine = p.scales[k].defined();
    job.terms.push_back(
        {p.xs[k].const_data_ptr<T>(),
         {affine ? p.scales[k].const_data_ptr<M>() : nullptr, affine ? p.shifts[k].const_data_ptr<M>() : nullptr},
         p.heights[k],
         p.widths[k],
         p.same_size(k),
         tables[k].rows.data(),
         tables[k].columns.data(),
         job.low_size});
    job.low_size += p.widths[k] * job.inner;
  }
  at::parallel_for(0, job.planes * job.height, grain(job.width * job.inner),
                   [&](int64_t begin, int64_t end) { run_rows(job, begin, end); });
}

}  // namespace

at::Tensor fuse_sum_forward(at::TensorList xs, at::TensorList scales, at::TensorList shifts, at::IntArrayRef size,
                            int64_t mode, bool relu) {
  Prepared p;
  p.batch = xs[0].size(0);
  p.channels = xs[0].size(1);
  p.height = size[0];
  p.width = size[1];
  p.mode = static_cast<Resample>(mode);
  p.relu = relu;
  // The largest term decides the layout, because it is the most expensive to copy.
  const auto largest = std::max_element(xs.begin(), xs.end(), [](const at::Tensor& a, const at::Tensor& b) {
    return a.size(2) * a.size(3) < b.size(2) * b.size(3);
  });
  p.channels_last = largest->suggest_memory_format() == at::MemoryFormat::ChannelsLast;
  const auto math = math_type(xs[0].scalar_type());
  for (size_t k = 0; k < xs.size(); ++k) {
    p.xs.push_back(xs[k].contiguous(p.format()));
    p.scales.push_back(present(scales[k], math));
    p.shifts.push_back(present(shifts[k], math));
    p.heights.push_back(xs[k].size(2));
    p.widths.push_back(xs[k].size(3));
  }
  at::Tensor out = at::empty({p.batch, p.channels, p.height, p.width}, p.xs[0].options(), p.format());
  if (out.numel() == 0) return out;
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, out.scalar_type(), "fuse_sum",
                                  [&] { run<scalar_t>(p, out); });
  return out;
}

}  // namespace hrnet_fast::cpu
