// Chains of residual units, forward and backward as one call each: hrnet_fast/training/residual_chain.py in C++.
//
// Several chains, the branches of a module, execute layer by layer on CUDA devices: the elementwise passes of a layer
// of all of them are one launch. On a CPU they execute one after another, which keeps their maps in its caches.

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

// A chain at a call.
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

// Runs each chain on its input, in the dtype and layout that convolutions compute in. Fills `kept` if it is not null.
// `together`: layer by layer, here and below.
std::vector<at::Tensor> chains_forward(std::vector<Chain>& chains, const std::vector<at::Tensor>& xs, bool together,
                                       std::vector<Kept>* kept);

// Computes what was not kept: outputs of convolutions and the units' inputs, which end with the chain's output.
void chains_recompute(const std::vector<Chain>& chains, const std::vector<at::Tensor>& xs, bool together,
                      std::vector<Kept>& kept);

struct ChainGradients {
  at::Tensor x;
  std::vector<Gradients> layers;
};

// `kept` is complete; its tensors are released on the way. A chain whose gradient is undefined is left out. `wanted`
// has the layers of all chains, one chain after another.
std::vector<ChainGradients> chains_backward(const std::vector<Chain>& chains, std::vector<Kept> kept,
                                            const std::vector<at::Tensor>& grads, bool together,
                                            const std::vector<bool>& want_xs, const std::vector<Wanted>& wanted);

}  // namespace hrnet_fast::training
