// fuse_sum on the CPU, backward: one pass over the gradient for all terms.

#include <ATen/Parallel.h>

#include <vector>

#include "fuse_sum_backward_rows.h"

namespace hrnet_fast::cpu {

namespace {

HF_MULTIVERSION(run_rows, backward_rows, BackwardJob)

// Fills in those `results` that are wanted: gradients of all xs, then scales, then shifts.
template <typename T>
void compute(const Prepared& p, const at::Tensor& grad, const at::Tensor& out, at::TensorList scales,
             at::IntArrayRef wanted, std::vector<at::Tensor>& results) {
  using M = math_t<T>;
  const size_t n = p.heights.size();
  BackwardJob<T> job;
  job.grad = grad.const_data_ptr<T>();
  job.out = p.relu ? out.const_data_ptr<T>() : nullptr;
  job.masked = nullptr;
  job.height = p.height;
  job.width = p.width;
  job.inner = p.channels_last ? p.channels : 1;
  job.channels = p.channels_last ? 1 : p.channels;
  const int64_t planes = p.batch * job.channels;
  std::vector<at::Tensor> sums(n), products(n);
  job.terms.reserve(n);
  for (size_t k = 0; k < n; ++k) {
    const bool affine = p.scales[k].defined(), want_affine = wanted[n + k] != 0;
    if (wanted[k]) results[k] = at::empty({p.batch, p.channels, p.heights[k], p.widths[k]}, grad.options(), p.format());
    if (wanted[k] && p.same_size(k) && !affine && job.masked == nullptr) {
      job.masked = results[k].mutable_data_ptr<T>();
      if (!want_affine) continue;
    } else if (!wanted[k] && !want_affine) {
      continue;
    }
    BackwardTerm<T> term;
    term.x = want_affine ? p.xs[k].const_data_ptr<T>() : nullptr;
    term.grad_x = wanted[k] ? results[k].mutable_data_ptr<T>() : nullptr;
    term.scale = affine ? p.scales[k].const_data_ptr<M>() : nullptr;
    term.height = p.heights[k];
    term.width = p.widths[k];
    term.same_width = p.widths[k] == p.width;
    term.rows = reach_table<M>(p.mode, term.height, p.height);
    term.columns = reach_table<M>(p.mode, term.width, p.width);
    term.window = window_of(term.rows);
    if (want_affine) {
      sums[k] = at::empty({planes * term.height, job.inner}, grad.options().dtype(at::kDouble));
      products[k] = at::empty_like(sums[k]);
    }
    term.row_sums = want_affine ? sums[k].mutable_data_ptr<double>() : nullptr;
    term.row_products = want_affine ? products[k].mutable_data_ptr<double>() : nullptr;
    job.terms.push_back(std::move(term));
  }
  // Reading past its range costs a thread time, so its range should be large.
  const int64_t least = std::max<int64_t>(grain(job.width * job.inner), std::min<int64_t>(32, job.height));
  at::parallel_for(0, planes * job.height, least, [&](int64_t b, int64_t e) { run_rows(job, b, e); });
  for (size_t k = 0; k < n; ++k) {
    if (!sums[k].defined()) continue;
    // Rows of a channels-last image, or of each channel's planes, to one value per channel.
    const int64_t rows = planes * p.heights[k];
    const auto shape = p.channels_last ? std::vector<int64_t>{1, rows, p.channels}
                                       : std::vector<int64_t>{p.batch, p.channels, p.heights[k]};
    const auto dims = p.channels_last ? std::vector<int64_t>{0, 1} : std::vector<int64_t>{0, 2};
    results[n + k] = products[k].view(shape).sum(dims).to(scales[k].scalar_type());
    results[2 * n + k] = sums[k].view(shape).sum(dims).to(scales[k].scalar_type());
  }
}

}  // namespace

std::vector<at::Tensor> fuse_sum_backward(const at::Tensor& given, const at::Tensor& out, at::TensorList xs,
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
  std::vector<at::Tensor> results(3 * n);
  if (out.numel() == 0) {
    const auto options = given.options().memory_format(p.format());
    for (size_t k = 0; k < n; ++k) {
      if (wanted[k]) results[k] = at::zeros({p.batch, p.channels, p.heights[k], p.widths[k]}, options);
      if (wanted[n + k]) results[n + k] = at::zeros_like(scales[k]), results[2 * n + k] = at::zeros_like(scales[k]);
    }
    return results;
  }
  const at::Tensor grad = given.contiguous(p.format()), own = out.contiguous(p.format());
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, grad.scalar_type(), "fuse_sum_backward",
                                  [&] { compute<scalar_t>(p, grad, own, scales, wanted, results); });
  return results;
}

}  // namespace hrnet_fast::cpu
