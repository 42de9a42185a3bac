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

namespace hrnet_fast::training {

namespace {

// Whether oneDNN's bfloat16 convolution is wrong: strided, with one column of results. See hrnet_fast/ops/common.py.
bool wrong_in_bfloat16(const at::Tensor& x, int64_t width, const at::Tensor& weight, const ConvNorm& layer) {
  if (x.scalar_type() != at::kBFloat16 || layer.stride.back() == 1 || !x.is_cpu()) return false;
  const int64_t window = layer.dilation.back() * (weight.size(-1) - 1) + 1;
  return width + 2 * layer.padding.back() - window < layer.stride.back();
}

constexpr std::array<int64_t, 2> kNone{0, 0};  // padding of outputs

}  // namespace

void count_batches(const std::vector<const ConvNorm*>& layers) {
  std::vector<at::Tensor> counters;
  std::set<const void*> distinct;
  bool all_on_host = true;
  for (const ConvNorm* layer : layers)
    if (layer->counter.defined()) {
      counters.push_back(layer->counter);
      distinct.insert(layer->counter.unsafeGetTensorImpl());
      all_on_host &= layer->counter.is_cpu() && layer->counter.scalar_type() == at::kLong;
    }
  if (counters.empty()) return;
  if (all_on_host)
    for (const at::Tensor& counter : counters) *counter.mutable_data_ptr<int64_t>() += 1;
  else if (distinct.size() < counters.size())  // one layer in two places: a joint call would race
    for (at::Tensor& counter : counters) counter.add_(1);
  else
    at::_foreach_add_(counters, 1);
  for (const at::Tensor& counter : counters)  // below autograd nothing else shows that the statistics moved
    if (!counter.is_inference()) counter.unsafeGetTensorImpl()->bump_version();
}

at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const ConvNorm& layer) {
  if (wrong_in_bfloat16(x, x.size(-1), weight, layer))
    return convolve(x.to(at::kFloat), weight.to(at::kFloat), bias, layer).to(x.scalar_type());
  std::optional<at::Tensor> given;
  if (bias.defined()) given = cast(bias, x.scalar_type());
  return at::convolution(x, cast(weight, x.scalar_type()), given, layer.stride, layer.padding, layer.dilation, false,
                         kNone, layer.groups);
}

at::Tensor convolve_by_blocks(const at::Tensor& x, const at::Tensor& weight, const ConvNorm& layer) {
  const int64_t blocks = std::min<int64_t>(8, x.size(1) / 16);
  const auto maps = x.chunk(blocks, 1), weights = weight.chunk(blocks, 1);
  at::Tensor result = convolve(maps[0], weights[0], layer.bias, layer);
  for (size_t k = 1; k < maps.size(); ++k) result.add_(convolve(maps[k], weights[k], at::Tensor(), layer));
  return result;
}

namespace {

// What the passes are told of norms.
struct NormLists {
  std::vector<int64_t> channels;
  std::vector<at::Tensor> scales, shifts, means, variances;
  std::vector<double> momenta, eps;

  int64_t add(const Norms& norms) {
    int64_t width = 0;
    for (const ConvNorm* layer : norms) {
      channels.push_back(layer->weight.size(0));
      scales.push_back(layer->scale);
      shifts.push_back(layer->shift);
      means.push_back(layer->running_mean);
      variances.push_back(layer->running_var);
      momenta.push_back(layer->momentum);
      eps.push_back(layer->eps);
      width += channels.back();
    }
    return width;
  }
};

}  // namespace

std::vector<at::Tensor> running_affines(const std::vector<Norms>& norms, at::ScalarType dtype) {
  std::vector<at::Tensor> found(norms.size());
  if (norms.empty()) return found;
  const bool wide = dtype == at::kDouble;
  std::vector<size_t> places;
  std::vector<int64_t> tables;
  NormLists all;
  for (size_t k = 0; k < norms.size(); ++k) {
    if (norms[k][0]->batch) continue;
    if (norms[k][0]->weight.is_cuda()) {
      tables.push_back(all.add(norms[k]));
      places.push_back(k);
      continue;
    }
    NormLists own;
    own.add(norms[k]);
    found[k] = cpu::running_affine(own.channels, own.scales, own.shifts, own.means, own.variances, own.eps, wide);
  }
#if defined(HRNET_FAST_WITH_CUDA)
  if (!tables.empty()) {
    const auto made =
        cuda::running_affines(tables, all.channels, all.scales, all.shifts, all.means, all.variances, all.eps, wide);
    for (size_t i = 0; i < places.size(); ++i) found[places[i]] = made[i];
  }
#endif
  return found;
}

std::vector<Saved> normalise(const std::vector<at::Tensor>& ys, const std::vector<Norms>& norms,
                             const std::vector<at::Tensor>& running) {
  NormLists all;
  std::vector<at::Tensor> batches, affines;
  for (size_t k = 0; k < ys.size(); ++k) {
    const at::Tensor& y = ys[k];
    if (!norms[k][0]->batch) continue;
    TORCH_CHECK_VALUE(y.size(0) * y.size(2) * y.size(3) != 1,
                      "Expected more than 1 value per channel when training, got input size ", y.sizes());
    batches.push_back(y);
    all.add(norms[k]);
  }
  if (!batches.empty())
    affines =
        batch_affine(batches, all.channels, all.scales, all.shifts, all.means, all.variances, all.momenta, all.eps);
  std::vector<Saved> saved;
  size_t next = 0;
  for (size_t k = 0; k < ys.size(); ++k) {
    const at::Tensor& y = ys[k];
    if (norms[k][0]->batch)
      saved.push_back({y, affines[next++], static_cast<double>(y.size(0) * y.size(2) * y.size(3))});
    else
      saved.push_back({y, running[k], std::numeric_limits<double>::infinity()});
  }
  return saved;
}

ConvGradients convolve_backward(const at::Tensor& given_grad, const at::Tensor& given_x, const at::Tensor& weight,
                                const ConvNorm& layer, std::array<bool, 3> wanted) {
  if (!wanted[0] && !wanted[1] && !wanted[2]) return {};
  at::Tensor grad = given_grad, x = given_x;
  if (wrong_in_bfloat16(grad, x.size(-1), weight, layer)) {
    grad = grad.to(at::kFloat);
    x = x.to(at::kFloat);
  }
  const std::array<int64_t, 1> bias{weight.size(0)};
  auto [dx, dw, db] = at::convolution_backward(grad, x, cast(weight, x.scalar_type()), bias, layer.stride,
                                               layer.padding, layer.dilation, false, kNone, layer.groups, wanted);
  return {wanted[0] ? cast(dx, given_x.scalar_type()) : at::Tensor(), wanted[1] ? dw : at::Tensor(),
          wanted[2] ? db : at::Tensor()};
}

std::vector<at::Tensor> batch_affine(at::TensorList xs, at::IntArrayRef channels, at::TensorList weights,
                                     at::TensorList biases, at::TensorList running_means, at::TensorList running_vars,
                                     at::ArrayRef<double> momenta, at::ArrayRef<double> eps) {
#if defined(HRNET_FAST_WITH_CUDA)
  if (xs[0].is_cuda())
    return cuda::batch_affine(xs, channels, weights, biases, running_means, running_vars, momenta, eps);
#endif
  return cpu::batch_affine(xs, channels, weights, biases, running_means, running_vars, momenta, eps);
}

at::Tensor running_affine(at::IntArrayRef channels, at::TensorList weights, at::TensorList biases,
                          at::TensorList running_means, at::TensorList running_vars, at::ArrayRef<double> eps,
                          bool wide) {
#if defined(HRNET_FAST_WITH_CUDA)
  if (running_means[0].is_cuda()) {
    int64_t width = 0;
    for (const int64_t n : channels) width += n;
    return cuda::running_affines({width}, channels, weights, biases, running_means, running_vars, eps, wide)[0];
  }
#endif
  return cpu::running_affine(channels, weights, biases, running_means, running_vars, eps, wide);
}

std::vector<at::Tensor> bn_act(const std::vector<BnActMap>& maps) {
#if defined(HRNET_FAST_WITH_CUDA)
  if (!maps.empty() && maps[0].x.is_cuda()) return cuda::bn_act(maps);
#endif
  std::vector<at::Tensor> found;
  for (const BnActMap& m : maps) found.push_back(cpu::bn_act(m.x, m.affine, m.residual, m.residual_affine, m.relu));
  return found;
}

std::vector<BackwardSums> backward_sums(const std::vector<BackwardSumsMap>& maps) {
#if defined(HRNET_FAST_WITH_CUDA)
  if (!maps.empty() && maps[0].x.is_cuda()) return cuda::backward_sums(maps);
#endif
  std::vector<BackwardSums> found;
  for (const BackwardSumsMap& m : maps) {
    auto [sums, masked] = cpu::backward_sums(m.grad, m.addend, m.x, m.affine, m.out, m.relu, m.keep, m.memory);
    found.push_back({sums, masked});
  }
  return found;
}

std::vector<at::Tensor> backward_input(const std::vector<BackwardInputMap>& maps) {
#if defined(HRNET_FAST_WITH_CUDA)
  if (!maps.empty() && maps[0].x.is_cuda()) return cuda::backward_input(maps);
#endif
  std::vector<at::Tensor> found;
  for (const BackwardInputMap& m : maps)
    found.push_back(cpu::backward_input(m.grad, m.x, m.affine, m.sums, m.count, m.relu, m.memory));
  return found;
}

namespace {

// By the strides: a slice of channels is contiguous in neither format, yet has one.
at::MemoryFormat format_of(const at::Tensor& x) {
  return x.stride(1) == 1 && x.stride(3) != 1 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
}

}  // namespace

at::Tensor fuse_sum(at::TensorList xs, at::TensorList scales, at::TensorList shifts, at::IntArrayRef size, int64_t mode,
                    bool relu) {
  const at::Tensor* largest = &xs[0];
  for (const at::Tensor& x : xs)
    if (x.size(-2) * x.size(-1) > largest->size(-2) * largest->size(-1)) largest = &x;
#if defined(HRNET_FAST_WITH_CUDA)
  if (xs[0].is_cuda())
    return cuda::fuse_sum_forward_tensors(xs, scales, shifts, size, mode, relu).contiguous(format_of(*largest));
#endif
  return cpu::fuse_sum_forward(xs, scales, shifts, size, mode, relu).contiguous(format_of(*largest));
}

std::vector<at::Tensor> fuse_sum_backward(const at::Tensor& grad, const at::Tensor& out, at::TensorList xs,
                                          at::TensorList scales, at::IntArrayRef sizes, int64_t mode, bool relu,
                                          at::IntArrayRef wanted) {
  std::vector<at::Tensor> found;
#if defined(HRNET_FAST_WITH_CUDA)
  if (grad.is_cuda())
    found = cuda::fuse_sum_backward_tensors(grad, out, xs, scales, sizes, mode, relu, wanted);
  else
#endif
    found = cpu::fuse_sum_backward(grad, out, xs, scales, sizes, mode, relu, wanted);
  for (size_t k = 0; k < xs.size(); ++k)
    if (found[k].defined()) found[k] = found[k].contiguous(format_of(out));
  return found;
}

void cast_together(const std::vector<at::Tensor*>& tensors, at::ScalarType dtype) {
  std::vector<at::Tensor> from, to;
  std::vector<at::Tensor*> places;
  for (at::Tensor* tensor : tensors) {
    if (!tensor->defined() || tensor->scalar_type() == dtype) continue;
    from.push_back(*tensor);
    to.push_back(at::empty_like(*tensor, tensor->options().dtype(dtype)));
    places.push_back(tensor);
  }
  if (from.empty()) return;
  at::_foreach_copy_(to, from);
  for (size_t k = 0; k < places.size(); ++k) *places[k] = to[k];
}

}  // namespace hrnet_fast::training
