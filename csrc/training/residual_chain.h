// Residual units in a row, forward and backward as one call each: hrnet_fast/training/residual_chain.py in C++.

#pragma once

#include <vector>

#include "conv_norm.h"

namespace hrnet_fast::training {

enum class Shortcut { kNone, kIdentity, kProjection };

// Layers with ReLU between, a shortcut, and a last ReLU. A projection is the last of `layers`.
struct Unit {
  std::vector<ConvNorm> layers;
  Shortcut shortcut = Shortcut::kNone;

  size_t steps() const { return layers.size() - (shortcut == Shortcut::kProjection ? 1 : 0); }
};

// What is kept for backward: see `memory` of hrnet_fast.accelerate.
enum class Memory { kFast, kLean, kMin };

// A chain at a call: its layers, without their tensors once forward is over.
struct Chain {
  std::vector<Unit> units;
  Memory memory = Memory::kLean;
  bool blocks = false;              // add long windows by blocks of channels
  std::vector<at::ScalarType> own;  // dtypes of the layers' weights
  std::vector<double> counts;       // values per channel behind every layer's statistics
  std::vector<const ConvNorm*> layers() const;
};

// What backward needs besides the chain. All vectors have one element per layer, but `activations`.
struct Kept {
  std::vector<at::Tensor> affines;
  std::vector<at::Tensor> ys;           // outputs of convolutions; empty with Memory::kMin
  std::vector<at::Tensor> inner;        // inputs of the convolutions inside units; only with Memory::kFast
  std::vector<at::Tensor> activations;  // every unit's input, and the output; without the first one if that is known
  std::vector<at::Tensor> weights;      // as convolutions took them
};

// Runs the chain on `x`, in the dtype and layout that convolutions compute in. Fills `kept` if it is not null.
at::Tensor chain_forward(Chain& chain, const at::Tensor& x, Kept* kept);

// Computes what was not kept: outputs of convolutions and the units' inputs, which end with the chain's output.
void chain_recompute(const Chain& chain, const at::Tensor& x, Kept& kept);

struct ChainGradients {
  at::Tensor x;
  std::vector<Gradients> layers;
};

// `kept` is complete; its tensors are released on the way.
ChainGradients chain_backward(const Chain& chain, Kept kept, const at::Tensor& grad, bool want_x,
                              const std::vector<Wanted>& wanted);

}  // namespace hrnet_fast::training
