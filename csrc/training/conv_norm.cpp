// One convolution with its batch normalisation: see conv_norm.h.

#include "conv_norm.h"

#include <cmath>
#include <limits>
#include <set>

#include "../cpu/bn_act.h"
#include "../cpu/fuse_sum.h"
#if defined(HRNET_FAST_WITH_CUDA)
#include "../cuda/operators.h"
#endif

// The implementation of the device that a tensor is on.
#if defined(HRNET_FAST_WITH_CUDA)
#define HF_ON_DEVICE(tensor, call) ((tensor).is_cuda() ? cuda::call : cpu::call)
#else
#define HF_ON_DEVICE(tensor, call) (cpu::call)
#endif

namespace hrnet_fast::training {

namespace {

// Whether oneDNN's bfloat16 convolution is wrong: strided, with one column of results. See hrnet_fast/ops/common.py.
bool wrong_in_bfloat16(const at::Tensor& x, int64_t width, const at::Tensor& weight, const ConvNorm& layer) {
  if (x.scalar_type() != at::kBFloat16 || layer.stride.back() == 1 || !x.is_cpu()) return false;
  const int64_t window = layer.dilation.back() * (weight.size(-1) - 1) + 1;
  return width + 2 * layer.padding.back() - window < layer.stride.back();
}

at::Tensor or_empty(const at::Tensor& tensor, const at::Tensor& empty) { return tensor.defined() ? tensor : empty; }

}  // namespace

void count_batches(const std::vector<const ConvNorm*>& layers) {
  std::vector<at::Tensor> counters;
  std::set<const void*> distinct;
  for (const ConvNorm* layer : layers)
    if (layer->counter.defined()) {
      counters.push_back(layer->counter);
      distinct.insert(layer->counter.unsafeGetTensorImpl());
    }
  if (counters.empty()) return;
  if (distinct.size() < counters.size())  // one layer in two places: a joint call would race
    for (at::Tensor& counter : counters) counter.add_(1);
  else
    at::_foreach_add_(counters, 1);
}

at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const ConvNorm& layer) {
  if (wrong_in_bfloat16(x, x.size(-1), weight, layer))
    return convolve(x.to(at::kFloat), weight.to(at::kFloat), bias, layer).to(x.scalar_type());
  const std::vector<int64_t> none(layer.stride.size(), 0);
  std::optional<at::Tensor> given;
  if (bias.defined()) given = cast(bias, x.scalar_type());
  return at::convolution(x, cast(weight, x.scalar_type()), given, layer.stride, layer.padding, layer.dilation, false,
                         none, layer.groups);
}

at::Tensor convolve_by_blocks(const at::Tensor& x, const at::Tensor& weight, const ConvNorm& layer) {
  const int64_t blocks = std::min<int64_t>(8, x.size(1) / 16);
  const auto maps = x.chunk(blocks, 1), weights = weight.chunk(blocks, 1);
  at::Tensor result = convolve(maps[0], weights[0], layer.bias, layer);
  for (size_t k = 1; k < maps.size(); ++k) result.add_(convolve(maps[k], weights[k], at::Tensor(), layer));
  return result;
}

std::vector<Saved> normalise(const std::vector<at::Tensor>& ys, const std::vector<const ConvNorm*>& layers) {
  const at::Tensor empty = at::empty({0}, at::TensorOptions().device(ys[0].device()));
  std::vector<int64_t> channels;
  std::vector<at::Tensor> scales, shifts, means, variances;
  std::vector<double> momenta, eps;
  std::vector<Saved> saved;
  const auto forget = [&] {
    channels.clear(), scales.clear(), shifts.clear(), means.clear(), variances.clear(), momenta.clear(), eps.clear();
  };
  const auto take = [&](const ConvNorm& layer) {
    channels.push_back(layer.weight.size(0));
    scales.push_back(or_empty(layer.scale, empty));
    shifts.push_back(or_empty(layer.shift, empty));
    means.push_back(or_empty(layer.running_mean, empty));
    variances.push_back(or_empty(layer.running_var, empty));
    momenta.push_back(layer.momentum);
    eps.push_back(layer.eps);
  };
  if (!layers[0]->batch) {
    size_t next = 0;
    for (const at::Tensor& y : ys) {
      forget();
      for (int64_t start = 0; start < y.size(1); start += channels.back()) take(*layers[next++]);
      const bool wide = y.scalar_type() == at::kDouble;
      saved.push_back({y, HF_ON_DEVICE(y, running_affine(channels, scales, shifts, means, variances, eps, wide)),
                       std::numeric_limits<double>::infinity()});
    }
    return saved;
  }
  for (const ConvNorm* layer : layers) take(*layer);
  for (const at::Tensor& y : ys)
    TORCH_CHECK_VALUE(y.size(0) * y.size(2) * y.size(3) != 1,
                      "Expected more than 1 value per channel when training, got input size ", y.sizes());
  const auto affines = HF_ON_DEVICE(ys[0], batch_affine(ys, channels, scales, shifts, means, variances, momenta, eps));
  for (size_t k = 0; k < ys.size(); ++k)
    saved.push_back({ys[k], affines[k], static_cast<double>(ys[k].size(0) * ys[k].size(2) * ys[k].size(3))});
  return saved;
}

ConvGradients convolve_backward(const at::Tensor& given_grad, const at::Tensor& given_x, const at::Tensor& weight,
                                at::ScalarType dtype, const ConvNorm& layer, std::array<bool, 3> wanted) {
  if (!wanted[0] && !wanted[1] && !wanted[2]) return {};
  at::Tensor grad = given_grad, x = given_x;
  if (wrong_in_bfloat16(grad, x.size(-1), weight, layer)) {
    grad = grad.to(at::kFloat);
    x = x.to(at::kFloat);
  }
  const std::vector<int64_t> none(layer.stride.size(), 0);
  const std::vector<int64_t> bias{weight.size(0)};
  auto [dx, dw, db] = at::convolution_backward(grad, x, cast(weight, x.scalar_type()), bias, layer.stride,
                                               layer.padding, layer.dilation, false, none, layer.groups, wanted);
  return {wanted[0] ? cast(dx, given_x.scalar_type()) : at::Tensor(), wanted[1] ? cast(dw, dtype) : at::Tensor(),
          wanted[2] ? cast(db, dtype) : at::Tensor()};
}

at::Tensor bn_act(const at::Tensor& x, const at::Tensor& affine, const OptionalTensor& residual,
                  const OptionalTensor& residual_affine, bool relu) {
  return HF_ON_DEVICE(x, bn_act(x, affine, residual, residual_affine, relu));
}

std::tuple<at::Tensor, at::Tensor> backward_sums(const at::Tensor& grad, const OptionalTensor& addend,
                                                 const at::Tensor& x, const at::Tensor& affine,
                                                 const OptionalTensor& out, bool relu, bool keep) {
  return HF_ON_DEVICE(x, backward_sums(grad, addend, x, affine, out, relu, keep));
}

at::Tensor backward_input(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& affine, const at::Tensor& sums,
                          double count, bool relu) {
  return HF_ON_DEVICE(x, backward_input(grad, x, affine, sums, count, relu));
}

namespace {

// By the strides: a slice of channels is contiguous in neither format, yet has one.
at::MemoryFormat format_of(const at::Tensor& x) {
  return x.stride(1) == 1 && x.stride(3) != 1 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

}  // namespace

at::Tensor fuse_sum(const std::vector<at::Tensor>& xs, const std::vector<at::Tensor>& scales,
                    const std::vector<at::Tensor>& shifts, at::IntArrayRef size, int64_t mode, bool relu) {
  const at::Tensor* largest = &xs[0];
  for (const at::Tensor& x : xs)
    if (x.size(-2) * x.size(-1) > largest->size(-2) * largest->size(-1)) largest = &x;
#if defined(HRNET_FAST_WITH_CUDA)
  if (xs[0].is_cuda())
    return cuda::fuse_sum_forward_tensors(xs, scales, shifts, size, mode, relu).contiguous(format_of(*largest));
#endif
  return cpu::fuse_sum_forward(xs, scales, shifts, size, mode, relu).contiguous(format_of(*largest));
}

std::vector<at::Tensor> fuse_sum_backward(const at::Tensor& grad, const at::Tensor& out, at::IntArrayRef sizes,
                                          int64_t mode, bool relu, const std::vector<int64_t>& wanted) {
  const std::vector<at::Tensor> none(sizes.size() / 2, at::empty({0}, grad.options().memory_format({})));
  std::vector<at::Tensor> found;
#if defined(HRNET_FAST_WITH_CUDA)
  if (grad.is_cuda())
    found = cuda::fuse_sum_backward_tensors(grad, out, none, none, sizes, mode, relu, wanted);
  else
#endif
    found = cpu::fuse_sum_backward(grad, out, none, none, sizes, mode, relu, wanted);
  found.resize(none.size());
  for (at::Tensor& g : found)
    if (g.dim() == 4) g = g.contiguous(format_of(out));
  return found;
}

}  // namespace hrnet_fast::training
