// Residual chains and a fusion as one call of the training step has them: their layers, read from modules.

#pragma once

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "residual_chain.h"
#include "stacked_fusion.h"

namespace hrnet_fast::training {

Memory memory_of(const std::string& name);

// Whether maps are worked on together, layer by layer: on CUDA devices, or as a test asks.
struct Joint {
  std::optional<bool> together;
  bool runs_together(const at::Tensor& x) const { return together.value_or(x.is_cuda()); }
};

// Chains at a call, with what their forward leaves for backward. Absent parameters are undefined tensors.
class ChainsCall : public Joint {
 public:
  explicit ChainsCall(std::vector<Chain> chains) : chains_(std::move(chains)) {}

  // Chains to be executed together; null where two layers share their running statistics.
  static std::shared_ptr<ChainsCall> joined(std::vector<Chain> chains);

  // Weight, bias, scale and shift of every layer.
  std::vector<at::Tensor> parameters() const;
  // What backward needs of these: affines hold the others' values.
  std::vector<at::Tensor> weights() const;
  // Whether all chains have a gradient on these inputs, or none has.
  bool require_grad_alike(const std::vector<at::Tensor>& xs) const;
  // Whether all layers compute in `dtype` without autocast.
  bool computes_in(at::ScalarType dtype) const;
  // Whether a chain's first unit adds its input.
  bool adds_input() const;
  // Whether the first layer of chain `number` normalises by the batch's statistics.
  bool normalises_batches(size_t number) const { return chains_[number].units[0].layers[0].batch; }

  // `blocks`, of each chain: add long windows by blocks of channels.
  std::vector<at::Tensor> run(const std::vector<at::Tensor>& xs, const std::vector<bool>& blocks);

  // Returns the outputs and the tensors to be kept; weights that are the parameters' own are left out.
  std::pair<std::vector<at::Tensor>, std::vector<at::Tensor>> forward(const std::vector<at::Tensor>& xs, Memory memory,
                                                                      const std::vector<bool>& blocks);

  // How many tensors forward kept.
  size_t kept() const { return kept_; }

  // What backward needs, of the tensors that forward kept, the chains' inputs and the outputs (with Memory::kFast).
  std::vector<Kept> recompute(const std::vector<at::Tensor>& saved, const std::vector<at::Tensor>& xs,
                              const std::vector<at::Tensor>& weights, const std::vector<at::Tensor>& outs) const;

  // Gradients of the inputs, then of every layer's parameters; undefined where an output was not used or a gradient is
  // not wanted.
  std::vector<at::Tensor> backward(std::vector<Kept> of, const std::vector<at::Tensor>& grads,
                                   const std::vector<bool>& want_xs, const std::vector<bool>& wanted) const;

 private:
  // How many tensors forward kept of a chain, and the layers whose weight was cast.
  struct Counts {
    size_t affines, ys, inner, activations;
    std::vector<size_t> cast;
  };
  std::vector<Chain> chains_;
  std::vector<Counts> counts_;
  size_t kept_ = 0;
};

// A fusion at a call.
class FusionCall : public Joint {
 public:
  FusionCall(std::vector<std::vector<Term>> rows, size_t sources, int64_t mode)
      : fusion_(std::move(rows), sources, mode) {}

  std::vector<at::Tensor> parameters() const;
  std::vector<at::Tensor> weights() const;
  bool alike() const { return fusion_.alike(); }
  // Whether all weights have the dtype of `x`.
  bool has_dtype_of(const at::Tensor& x) const;

  // The first term whose map does not fit its target: source and target; sizes are the branches' (height, width).
  std::optional<std::pair<size_t, size_t>> misfit(const std::vector<std::array<int64_t, 2>>& sizes, bool exact) const {
    return fusion_.misfit(sizes, exact);
  }

  std::vector<at::Tensor> run(const std::vector<at::Tensor>& xs) { return fusion_.forward(xs, nullptr); }

  // Returns the targets and the tensors to be kept: outputs of the stacked convolutions and their affines.
  std::pair<std::vector<at::Tensor>, std::vector<at::Tensor>> forward(const std::vector<at::Tensor>& xs);

  size_t kept() const { return 2 * fusion_.groups(); }

  // As the chains' backward.
  std::vector<at::Tensor> backward(const std::vector<at::Tensor>& saved, const std::vector<at::Tensor>& xs,
                                   const std::vector<at::Tensor>& outs, const std::vector<at::Tensor>& grads,
                                   const std::vector<bool>& want_xs, const std::vector<bool>& wanted) const;

 private:
  Fusion fusion_;
};

}  // namespace hrnet_fast::training
