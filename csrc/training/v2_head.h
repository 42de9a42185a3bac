// HRNetV2's head as one node of autograd's graph: hrnet_fast/training/v2_head.py in C++, which gives the arithmetic.

#pragma once

#include <memory>
#include <vector>

#include "conv_norm.h"

namespace hrnet_fast::training {

// The head at a call.
class V2HeadCall {
 public:
  // `mix` is the 1x1 convolution over all maps with its normalisation; `classifier` has none. `mode` is the value of
  // hrnet_fast::Resample.
  V2HeadCall(ConvNorm mix, ConvNorm classifier, int64_t mode)
      : mix_(std::move(mix)), classifier_(std::move(classifier)), mode_(mode) {}

  // Weight, bias, scale and shift of the mix, then the classifier's weight and bias. Absent ones are undefined.
  std::vector<at::Tensor> parameters() const;

  // What backward needs besides the maps and the parameters.
  struct Kept {
    Saved mixed;                 // the sum of the convolved maps with its normalisation
    at::Tensor mix, classifier;  // weights, as convolutions took them
  };

  // The classifier's [N, K, H, W] of maps [N, C_k, h_k, w_k], highest resolution first.
  at::Tensor forward(const std::vector<at::Tensor>& xs, Kept& kept) const;

  // Gradients of the maps, then of parameters(); undefined ones are not wanted.
  std::vector<at::Tensor> backward(const Kept& kept, const std::vector<at::Tensor>& xs, const at::Tensor& grad,
                                   const std::vector<bool>& want_xs, const std::vector<bool>& wanted) const;

 private:
  ConvNorm mix_, classifier_;
  int64_t mode_;
};

// Runs the head on maps of the dtype that convolutions compute in; without the interpreter's lock.
at::Tensor run_v2_head(const std::shared_ptr<V2HeadCall>& call, const std::vector<at::Tensor>& xs);

}  // namespace hrnet_fast::training
