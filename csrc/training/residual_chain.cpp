// Chains of residual units, forward and recomputation: see residual_chain.h.

#include "residual_chain.h"

#include <algorithm>

namespace hrnet_fast::training {

namespace {

constexpr int64_t kLong = 64;  // channels from which on a window may be added by blocks of channels

// Whether the window of `layer` is long enough to be added by blocks of channels.
bool by_blocks(const Chain& chain, const Unit& unit, const ConvNorm& layer, const at::Tensor& x) {
  // Not in basic units: they hold most of a network's multiply-adds and, behind stem and first stage, little of its
  // error.
  return chain.blocks && unit.steps() != 2 && x.size(1) >= kLong && layer.weight.size(2) * layer.weight.size(3) > 1 &&
         layer.groups == 1;
}

// The map that a unit's output is made of.
BnActMap finish(const Unit& unit, const Saved* saved, const at::Tensor& x) {
  const Saved& last = saved[unit.steps() - 1];
  if (unit.shortcut == Shortcut::kProjection) {
    const Saved& projected = saved[unit.steps()];
    return {last.y, last.affine, projected.y, projected.affine};
  }
  if (unit.shortcut == Shortcut::kIdentity) return {last.y, last.affine, x, std::nullopt};
  return {last.y, last.affine, std::nullopt, std::nullopt};
}

// Weights of every chain's layers, in the dtype of its maps. oneDNN's strided convolutions may be computed in float32
// (conv_norm.cpp).
void cast_weights(const std::vector<Chain>& chains, std::vector<std::vector<at::Tensor>>& weights,
                  const at::Tensor& x) {
  std::vector<at::Tensor*> converted;
  for (size_t c = 0; c < chains.size(); ++c) {
    const auto layers = chains[c].layers();
    for (size_t k = 0; k < layers.size(); ++k)
      if (!x.is_cpu() || layers[k]->stride.back() == 1) converted.push_back(&weights[c][k]);
  }
  cast_together(converted, x.scalar_type());
}

// The forward of one chain, layer by layer: convolve, normalise, and the pass that follows.
class Forward {
 public:
  Forward(Chain& chain, const at::Tensor& x, std::vector<at::Tensor> weights, Kept* kept)
      : chain_(chain), own_(&chain), x_(x), weights_(std::move(weights)), kept_(kept) {}
  // Again, with the affines that are known; gathers the convolutions' and the units' outputs.
  Forward(const Chain& chain, const at::Tensor& x, std::vector<at::Tensor> weights, Kept& kept)
      : chain_(chain), x_(x), weights_(std::move(weights)), kept_(&kept) {}

  bool done() const { return unit_ == chain_.units.size(); }
  const at::Tensor& x() const { return x_; }
  const ConvNorm& layer() const { return unit().layers[layer_]; }
  size_t number() const { return number_; }

  at::Tensor convolve() const {
    const at::Tensor& from = layer_ == 0 || layer_ == unit().steps() ? x_ : inner_;
    const at::Tensor& weight = weights_[number_];
    return by_blocks(chain_, unit(), layer(), from) ? convolve_by_blocks(from, weight, layer())
                                                    : training::convolve(from, weight, layer().bias, layer());
  }

  // Takes the layer's results and goes on; returns the pass that comes next, if one does before the next convolution.
  std::optional<BnActMap> take(const Saved& saved) {
    if (own_ != nullptr && kept_ != nullptr) {
      own_->own.push_back(layer().weight.scalar_type());
      own_->counts.push_back(saved.count);
      kept_->affines.push_back(saved.affine);
      kept_->weights.push_back(chain_.memory == Memory::kMin ? layer().weight : weights_[number_]);
    }
    if (kept_ != nullptr && (own_ == nullptr || chain_.memory != Memory::kMin)) kept_->ys.push_back(saved.y);
    saved_.push_back(saved);
    ++number_;
    const size_t just = layer_++;
    if (layer_ == unit().layers.size()) return finish(unit(), saved_.data(), x_);
    if (layer_ < unit().steps()) return BnActMap{saved_[just].y, saved_[just].affine, std::nullopt, std::nullopt};
    return std::nullopt;  // the projection, of the unit's input
  }

  // Takes the result of that pass.
  void take(const at::Tensor& passed) {
    const bool fast = kept_ != nullptr && own_ != nullptr && chain_.memory == Memory::kFast;
    if (layer_ < unit().layers.size()) {
      inner_ = passed;
      if (fast) kept_->inner.push_back(passed);
      return;
    }
    x_ = passed;
    if (fast || own_ == nullptr) kept_->activations.push_back(passed);
    inner_ = at::Tensor();
    saved_.clear();
    layer_ = 0;
    ++unit_;
  }

 private:
  const Unit& unit() const { return chain_.units[unit_]; }

  const Chain& chain_;
  Chain* own_ = nullptr;  // null: known results are computed again
  at::Tensor x_, inner_;
  std::vector<at::Tensor> weights_;
  Kept* kept_;
  std::vector<Saved> saved_;  // of the unit
  size_t unit_ = 0, layer_ = 0, number_ = 0;
};

// Runs chains together. `normalise` gets the numbers of those that have a layer left and their convolutions' outputs.
template <typename Normalise>
void run(std::vector<Forward>& chains, const Normalise& normalise) {
  for (;;) {
    std::vector<size_t> active;
    std::vector<at::Tensor> ys;
    for (size_t c = 0; c < chains.size(); ++c)
      if (!chains[c].done()) {
        active.push_back(c);
        ys.push_back(chains[c].convolve());
      }
    if (active.empty()) return;
    const std::vector<Saved> saved = normalise(active, ys);
    std::vector<BnActMap> passes;
    std::vector<size_t> owners;
    for (size_t i = 0; i < active.size(); ++i)
      if (auto pass = chains[active[i]].take(saved[i])) {
        passes.push_back(std::move(*pass));
        owners.push_back(active[i]);
      }
    const auto passed = bn_act(passes);
    for (size_t i = 0; i < owners.size(); ++i) chains[owners[i]].take(passed[i]);
  }
}

// Calls each(first, count) for the chains that execute together.
template <typename Each>
void in_groups(bool together, size_t count, const Each& each) {
  if (together) return each(0, count);
  for (size_t c = 0; c < count; ++c) each(c, 1);
}

}  // namespace

std::vector<const ConvNorm*> Chain::layers() const {
  std::vector<const ConvNorm*> found;
  for (const Unit& unit : units)
    for (const ConvNorm& layer : unit.layers) found.push_back(&layer);
  return found;
}

std::vector<at::Tensor> chains_forward(std::vector<Chain>& chains, const std::vector<at::Tensor>& xs, bool together,
                                       std::vector<Kept>* kept) {
  std::vector<const ConvNorm*> all;
  std::vector<Norms> norms;
  std::vector<size_t> starts;
  std::vector<std::vector<at::Tensor>> weights;
  for (const Chain& chain : chains) {
    starts.push_back(all.size());
    weights.emplace_back();
    for (const ConvNorm* layer : chain.layers()) {
      all.push_back(layer);
      norms.push_back({layer});
      weights.back().push_back(layer->weight);
    }
  }
  count_batches(all);
  cast_weights(chains, weights, xs[0]);
  const auto running = running_affines(norms, xs[0].scalar_type());
  std::vector<at::Tensor> outs;
  in_groups(together, chains.size(), [&](size_t first, size_t count) {
    std::vector<Forward> runs;
    for (size_t c = first; c < first + count; ++c)
      runs.emplace_back(chains[c], xs[c], std::move(weights[c]), kept == nullptr ? nullptr : &(*kept)[c]);
    run(runs, [&](const std::vector<size_t>& active, const std::vector<at::Tensor>& ys) {
      std::vector<Norms> own;
      std::vector<at::Tensor> tables;
      for (const size_t c : active) {
        own.push_back({&runs[c].layer()});
        tables.push_back(running[starts[first + c] + runs[c].number()]);
      }
      return normalise(ys, own, tables);
    });
    for (const Forward& one : runs) outs.push_back(one.x());
  });
  return outs;
}

void chains_recompute(const std::vector<Chain>& chains, const std::vector<at::Tensor>& xs, bool together,
                      std::vector<Kept>& kept) {
  for (size_t c = 0; c < chains.size(); ++c) kept[c].activations.insert(kept[c].activations.begin(), xs[c]);
  if (chains[0].memory == Memory::kFast) return;
  if (chains[0].memory == Memory::kMin) {
    std::vector<std::vector<at::Tensor>> weights;
    for (const Kept& own : kept) weights.push_back(own.weights);
    cast_weights(chains, weights, xs[0]);
    in_groups(together, chains.size(), [&](size_t first, size_t count) {
      std::vector<Forward> runs;
      for (size_t c = first; c < first + count; ++c) runs.emplace_back(chains[c], xs[c], weights[c], kept[c]);
      run(runs, [&](const std::vector<size_t>& active, const std::vector<at::Tensor>& ys) {
        std::vector<Saved> saved;
        for (size_t i = 0; i < ys.size(); ++i)
          saved.push_back({ys[i], kept[first + active[i]].affines[runs[active[i]].number()], 0.0});
        return saved;
      });
    });
    return;
  }
  // Units' outputs from the convolutions', unit by unit.
  std::vector<size_t> begins(chains.size(), 0);
  size_t longest = 0;
  for (const Chain& chain : chains) longest = std::max(longest, chain.units.size());
  for (size_t u = 0; u < longest; ++u) {
    std::vector<BnActMap> passes;
    std::vector<size_t> owners;
    for (size_t c = 0; c < chains.size(); ++c) {
      if (u >= chains[c].units.size()) continue;
      const Unit& unit = chains[c].units[u];
      std::vector<Saved> saved;
      for (size_t j = 0; j < unit.layers.size(); ++j)
        saved.push_back({kept[c].ys[begins[c] + j], kept[c].affines[begins[c] + j], 0.0});
      passes.push_back(finish(unit, saved.data(), kept[c].activations.back()));
      owners.push_back(c);
      begins[c] += unit.layers.size();
    }
    const auto outs = bn_act(passes);
    for (size_t i = 0; i < owners.size(); ++i) kept[owners[i]].activations.push_back(outs[i]);
  }
}

}  // namespace hrnet_fast::training
