// Residual chains and a fusion as one call has them: see calls.h.

#include "calls.h"

#include <algorithm>
#include <stdexcept>

namespace hrnet_fast::training {
namespace {

void append(std::vector<at::Tensor>& to, const ConvNorm& layer) {
  for (const at::Tensor* t : {&layer.weight, &layer.bias, &layer.scale, &layer.shift}) to.push_back(*t);
}

void append(std::vector<at::Tensor>& to, const Gradients& g) {
  for (const at::Tensor* t : {&g.weight, &g.bias, &g.scale, &g.shift}) to.push_back(*t);
}

std::vector<Wanted> fours(const std::vector<bool>& flags) {
  std::vector<Wanted> found(flags.size() / 4);
  for (size_t k = 0; k < flags.size(); ++k) found[k / 4][k % 4] = flags[k];
  return found;
}

}  // namespace

Memory memory_of(const std::string& name) {
  if (name == "fast") return Memory::kFast;
  if (name == "lean") return Memory::kLean;
  if (name == "min") return Memory::kMin;
  throw std::invalid_argument("memory is fast, lean or min, not " + name);
}

std::shared_ptr<ChainsCall> ChainsCall::joined(std::vector<Chain> chains) {
  std::vector<const void*> moved;
  for (const Chain& chain : chains)
    for (const ConvNorm* layer : chain.layers())
      if (layer->batch && layer->running_mean.defined()) moved.push_back(layer->running_mean.unsafeGetTensorImpl());
  std::sort(moved.begin(), moved.end());
  if (std::adjacent_find(moved.begin(), moved.end()) != moved.end()) return nullptr;
  return std::make_shared<ChainsCall>(std::move(chains));
}

std::vector<at::Tensor> ChainsCall::parameters() const {
  std::vector<at::Tensor> found;
  for (const Chain& chain : chains_)
    for (const ConvNorm* layer : chain.layers()) append(found, *layer);
  return found;
}

std::vector<at::Tensor> ChainsCall::weights() const {
  std::vector<at::Tensor> found;
  for (const Chain& chain : chains_)
    for (const ConvNorm* layer : chain.layers()) found.push_back(layer->weight);
  return found;
}

bool ChainsCall::require_grad_alike(const std::vector<at::Tensor>& xs) const {
  size_t found = 0;
  for (size_t c = 0; c < chains_.size(); ++c) {
    std::vector<at::Tensor> tensors{xs[c]};
    for (const ConvNorm* layer : chains_[c].layers()) append(tensors, *layer);
    found += std::any_of(tensors.begin(), tensors.end(),
                         [](const at::Tensor& t) { return t.defined() && t.requires_grad(); });
  }
  return found == 0 || found == chains_.size();
}

bool ChainsCall::computes_in(at::ScalarType dtype) const {
  for (const Chain& chain : chains_)
    for (const ConvNorm* layer : chain.layers())
      if (layer->weight.scalar_type() != dtype) return false;
  return true;
}

bool ChainsCall::adds_input() const {
  for (const Chain& chain : chains_)
    if (chain.units[0].shortcut == Shortcut::kIdentity) return true;
  return false;
}

std::vector<at::Tensor> ChainsCall::run(const std::vector<at::Tensor>& xs, const std::vector<bool>& blocks) {
  for (size_t c = 0; c < chains_.size(); ++c) chains_[c].blocks = blocks[c];
  return chains_forward(chains_, xs, runs_together(xs[0]), nullptr);
}

std::pair<std::vector<at::Tensor>, std::vector<at::Tensor>> ChainsCall::forward(const std::vector<at::Tensor>& xs,
                                                                                Memory memory,
                                                                                const std::vector<bool>& blocks) {
  for (size_t c = 0; c < chains_.size(); ++c) {
    chains_[c].memory = memory;
    chains_[c].blocks = blocks[c];
  }
  std::vector<Kept> kept(chains_.size());
  auto outs = chains_forward(chains_, xs, runs_together(xs[0]), &kept);
  std::vector<at::Tensor> all;
  for (size_t c = 0; c < chains_.size(); ++c) {
    Kept& own = kept[c];
    if (!own.activations.empty()) own.activations.pop_back();  // the output is the node's
    for (const auto* part : {&own.affines, &own.ys, &own.inner, &own.activations})
      all.insert(all.end(), part->begin(), part->end());
    counts_.push_back({own.affines.size(), own.ys.size(), own.inner.size(), own.activations.size(), {}});
    const auto layers = chains_[c].layers();
    for (size_t k = 0; k < layers.size(); ++k)
      if (!own.weights[k].is_same(layers[k]->weight)) {
        all.push_back(own.weights[k]);
        counts_.back().cast.push_back(k);
      }
  }
  kept_ = all.size();
  return {std::move(outs), std::move(all)};
}

std::vector<Kept> ChainsCall::recompute(const std::vector<at::Tensor>& saved, const std::vector<at::Tensor>& xs,
                                        const std::vector<at::Tensor>& weights,
                                        const std::vector<at::Tensor>& outs) const {
  std::vector<Kept> kept(chains_.size());
  auto next = saved.begin();
  const auto take = [&](size_t n) {
    const std::vector<at::Tensor> part(next, next + n);
    next += n;
    return part;
  };
  size_t layer = 0;
  for (size_t c = 0; c < chains_.size(); ++c) {
    const Counts& n = counts_[c];
    Kept& own = kept[c];
    own.affines = take(n.affines);
    own.ys = take(n.ys);
    own.inner = take(n.inner);
    own.activations = take(n.activations);
    if (!outs.empty()) own.activations.push_back(outs[c]);
    for (size_t k = 0; k < n.affines; ++k) own.weights.push_back(weights[layer++]);
    for (const size_t k : n.cast) own.weights[k] = *next++;
  }
  chains_recompute(chains_, xs, runs_together(xs[0]), kept);
  return kept;
}

std::vector<at::Tensor> ChainsCall::backward(std::vector<Kept> of, const std::vector<at::Tensor>& grads,
                                             const std::vector<bool>& want_xs, const std::vector<bool>& wanted) const {
  const bool together = runs_together(of[0].affines[0]);
  const auto found = chains_backward(chains_, std::move(of), grads, together, want_xs, fours(wanted));
  std::vector<at::Tensor> all;
  for (const ChainGradients& chain : found) all.push_back(chain.x);
  for (const ChainGradients& chain : found)
    for (const Gradients& g : chain.layers) append(all, g);
  return all;
}

std::vector<at::Tensor> FusionCall::parameters() const {
  std::vector<at::Tensor> found;
  for (const Member& member : fusion_.members()) append(found, member.layer());
  return found;
}

std::vector<at::Tensor> FusionCall::weights() const {
  std::vector<at::Tensor> found;
  for (const Member& member : fusion_.members()) found.push_back(member.layer().weight);
  return found;
}

bool FusionCall::has_dtype_of(const at::Tensor& x) const {
  const auto all = weights();
  return std::all_of(all.begin(), all.end(), [&](const at::Tensor& w) { return w.scalar_type() == x.scalar_type(); });
}

std::pair<std::vector<at::Tensor>, std::vector<at::Tensor>> FusionCall::forward(const std::vector<at::Tensor>& xs) {
  Fusion::Kept kept;
  auto outs = fusion_.forward(xs, &kept);
  kept.ys.insert(kept.ys.end(), kept.affines.begin(), kept.affines.end());
  return {std::move(outs), std::move(kept.ys)};
}

std::vector<at::Tensor> FusionCall::backward(const std::vector<at::Tensor>& saved, const std::vector<at::Tensor>& xs,
                                             const std::vector<at::Tensor>& outs, const std::vector<at::Tensor>& grads,
                                             const std::vector<bool>& want_xs, const std::vector<bool>& wanted) const {
  const size_t n = fusion_.groups();
  Fusion::Kept kept;
  kept.ys.assign(saved.begin(), saved.begin() + n);
  kept.affines.assign(saved.begin() + n, saved.begin() + 2 * n);
  kept.weights = fusion_.weights(xs[0]);
  const auto found = fusion_.backward(std::move(kept), xs, outs, grads, runs_together(xs[0]), want_xs, fours(wanted));
  std::vector<at::Tensor> all = found.xs;
  for (const Gradients& g : found.members) append(all, g);
  return all;
}

}  // namespace hrnet_fast::training
