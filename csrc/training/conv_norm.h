// One convolution with its batch normalisation, forward and backward, on any device that has the elementwise passes.
//
// The arithmetic is hrnet_fast/training/residual_chain.py's and batch_norm.py's, operator by operator; those run where
// this extension is not there.

#pragma once

#include <ATen/ATen.h>

#include <optional>
#include <vector>

namespace hrnet_fast::training {

// A layer at a call. Tensors that a layer does not have are undefined.
struct ConvNorm {
  at::Tensor weight, bias;
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups = 1;
  at::Tensor scale, shift, running_mean, running_var, counter;
  double momentum = 0.0, eps = 0.0;
  bool batch = false;  // normalises by the batch's statistics
};

// What one convolution leaves for backward.
struct Saved {
  at::Tensor y;        // its output [N, C, H, W]
  at::Tensor affine;   // mean, invstd, scale, shift [4, C]
  double count = 0.0;  // values per channel; infinite for given statistics
};

struct Gradients {
  at::Tensor weight, bias, scale, shift;  // undefined: not wanted
};

// Which gradients are wanted, in the order of Gradients.
using Wanted = std::array<bool, 4>;

// Adds one to every layer's num_batches_tracked.
void count_batches(const std::vector<const ConvNorm*>& layers);

at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const ConvNorm& layer);

// The same as a sum over at most eight blocks of 16 or more input channels.
at::Tensor convolve_by_blocks(const at::Tensor& x, const at::Tensor& weight, const ConvNorm& layer);

// Affines of maps whose channels are normalised by `layers`, one after another; moves the running statistics.
std::vector<Saved> normalise(const std::vector<at::Tensor>& ys, const std::vector<const ConvNorm*>& layers);

// Gradients of a convolution's input, weight and bias, the parameters' in `dtype`.
struct ConvGradients {
  at::Tensor x, weight, bias;
};
ConvGradients convolve_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                                at::ScalarType dtype, const ConvNorm& layer, std::array<bool, 3> wanted);

// The elementwise passes of the device that `x` is on; see csrc/cpu/bn_act.h.
using OptionalTensor = std::optional<at::Tensor>;
at::Tensor bn_act(const at::Tensor& x, const at::Tensor& affine, const OptionalTensor& residual,
                  const OptionalTensor& residual_affine, bool relu);
std::tuple<at::Tensor, at::Tensor> backward_sums(const at::Tensor& grad, const OptionalTensor& addend,
                                                 const at::Tensor& x, const at::Tensor& affine,
                                                 const OptionalTensor& out, bool relu, bool keep);
at::Tensor backward_input(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& affine, const at::Tensor& sums,
                          double count, bool relu);
at::Tensor fuse_sum(const std::vector<at::Tensor>& xs, const std::vector<at::Tensor>& scales,
                    const std::vector<at::Tensor>& shifts, at::IntArrayRef size, int64_t mode, bool relu);
std::vector<at::Tensor> fuse_sum_backward(const at::Tensor& grad, const at::Tensor& out, at::IntArrayRef sizes,
                                          int64_t mode, bool relu, const std::vector<int64_t>& wanted);

// `tensor` in `dtype`, itself where it is already.
inline at::Tensor cast(const at::Tensor& tensor, at::ScalarType dtype) {
  return !tensor.defined() || tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

}  // namespace hrnet_fast::training
