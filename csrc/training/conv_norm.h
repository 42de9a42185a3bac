// One convolution with its batch normalisation, forward and backward, on any device that has the elementwise passes.
//
// The arithmetic is hrnet_fast/training/residual_chain.py's and batch_norm.py's, operator by operator; those run where
// this extension is not there.

#pragma once

#include <ATen/ATen.h>

#include <array>
#include <vector>

#include "../bn_act_maps.h"

namespace hrnet_fast::training {

// A layer at a call. Tensors that a layer does not have are undefined.
struct ConvNorm {
  at::Tensor weight, bias;
  std::array<int64_t, 2> stride{1, 1}, padding{0, 0}, dilation{1, 1};
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

// The layers that normalise a map's channels, one after another.
using Norms = std::vector<const ConvNorm*>;

// Affines of the maps that are normalised by running statistics, for maps of `dtype`; undefined for the others. All
// come from one launch on CUDA devices.
std::vector<at::Tensor> running_affines(const std::vector<Norms>& norms, at::ScalarType dtype);

// Normalises maps: those of batch statistics together, moving the running statistics, the others by `running`.
std::vector<Saved> normalise(const std::vector<at::Tensor>& ys, const std::vector<Norms>& norms,
                             const std::vector<at::Tensor>& running);

// Gradients of a convolution's input, weight and bias, the parameters' in the dtype that they were computed in.
struct ConvGradients {
  at::Tensor x, weight, bias;
};
ConvGradients convolve_backward(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight,
                                const ConvNorm& layer, std::array<bool, 3> wanted);

// The passes of several maps, on the device that they are on; see csrc/cpu/bn_act.h and csrc/cpu/fuse_sum.h. Absent
// tensors are undefined.
std::vector<at::Tensor> batch_affine(at::TensorList xs, at::IntArrayRef channels, at::TensorList weights,
                                     at::TensorList biases, at::TensorList running_means, at::TensorList running_vars,
                                     at::ArrayRef<double> momenta, at::ArrayRef<double> eps);
at::Tensor running_affine(at::IntArrayRef channels, at::TensorList weights, at::TensorList biases,
                          at::TensorList running_means, at::TensorList running_vars, at::ArrayRef<double> eps,
                          bool wide);
std::vector<at::Tensor> bn_act(const std::vector<BnActMap>& maps);
std::vector<BackwardSums> backward_sums(const std::vector<BackwardSumsMap>& maps);
std::vector<at::Tensor> backward_input(const std::vector<BackwardInputMap>& maps);
at::Tensor fuse_sum(at::TensorList xs, at::TensorList scales, at::TensorList shifts, at::IntArrayRef size, int64_t mode,
                    bool relu);
std::vector<at::Tensor> fuse_sum_backward(const at::Tensor& grad, const at::Tensor& out, at::TensorList xs,
                                          at::TensorList scales, at::IntArrayRef sizes, int64_t mode, bool relu,
                                          at::IntArrayRef wanted);

// `tensor` in `dtype`, itself where it is already.
inline at::Tensor cast(const at::Tensor& tensor, at::ScalarType dtype) {
  return !tensor.defined() || tensor.scalar_type() == dtype ? tensor : tensor.to(dtype);
}

// Replaces tensors by copies in `dtype` where theirs is another; by one launch for all of them on CUDA devices.
void cast_together(const std::vector<at::Tensor*>& tensors, at::ScalarType dtype);

}  // namespace hrnet_fast::training
