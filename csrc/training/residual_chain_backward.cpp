// Chains of residual units, backward: see residual_chain.h.

#include <algorithm>

#include "residual_chain.h"

namespace hrnet_fast::training {

namespace {

Gradients of_norm(const at::Tensor& sums, const ConvNorm& layer, const Wanted& wanted) {
  Gradients found;
  if (wanted[2] && layer.scale.defined()) found.scale = cast(row_of(sums, 1), layer.scale.scalar_type());
  if (wanted[3] && layer.shift.defined()) found.shift = cast(row_of(sums, 0), layer.shift.scalar_type());
  return found;
}

// The backward of one chain, layer by layer from its end. For each: the sums, the gradient of the convolution's output,
// the convolution's input if it is to be computed again, and the convolution's gradients.
class Backward {
 public:
  Backward(const Chain& chain, Kept kept, const at::Tensor& grad, bool want_input, const Wanted* wanted)
      : chain_(chain), kept_(std::move(kept)), wanted_(wanted), want_input_(want_input), dx_(grad) {
    unit_ = chain_.units.size();
    end_ = kept_.affines.size();
    result_.layers.resize(end_);
    begin_unit();
  }

  bool done() const { return unit_ == 0; }

  BackwardSumsMap sums() const {
    const size_t k = number();
    if (projects()) return {grad_, std::nullopt, kept_.ys[k], kept_.affines[k], std::nullopt, false, false};
    const OptionalTensor more = ends() && addend_.defined() ? OptionalTensor(addend_) : std::nullopt;
    const OptionalTensor mask = ends() && residual() ? OptionalTensor(out_) : std::nullopt;
    return {g_, more, kept_.ys[k], kept_.affines[k], mask, true, keeps(), owned_ ? g_ : at::Tensor()};
  }

  BackwardInputMap input(const BackwardSums& found) {
    const size_t k = number();
    sums_ = found.sums;
    // A unit's masked gradient is last needed here by a projection.
    if (projects()) return {grad_, kept_.ys[k], kept_.affines[k], sums_, chain_.counts[k], false, grad_};
    const bool kept = keeps();
    if (kept) g_ = found.masked;  // else the mask is computed again with the input's gradient
    at::Tensor memory = kept ? addend_ : owned_ ? g_ : at::Tensor();
    if (ends()) {
      grad_ = g_;
      addend_ = at::Tensor();
    }
    return {g_, kept_.ys[k], kept_.affines[k], sums_, chain_.counts[k], !kept, std::move(memory)};
  }

  // The pass that gives the convolution's input, if it was not kept.
  std::optional<BnActMap> activation() const {
    if (projects() || step_ == 0 || !kept_.inner.empty()) return std::nullopt;
    return BnActMap{kept_.ys[number() - 1], kept_.affines[number() - 1], std::nullopt, std::nullopt};
  }

  void finish(const at::Tensor& dy, const at::Tensor& activation) {
    const size_t k = number();
    const ConvNorm& layer = unit().layers[step_];
    const Wanted& own = wanted_[k];
    const bool inside = !projects() && step_ > 0, want_x = inside || unit_ > 1 || want_input_;
    at::Tensor a = inside ? activation : x_;
    if (inside && !a.defined()) {
      a = kept_.inner.back();
      kept_.inner.pop_back();
    }
    const auto found =
        convolve_backward(dy, a, kept_.weights[k], layer, {want_x, own[0], own[1] && layer.bias.defined()});
    result_.layers[k] = of_norm(sums_, layer, own);
    result_.layers[k].weight = found.weight;
    result_.layers[k].bias = cast(found.bias, chain_.own[k]);
    if (projects()) {
      dx_ = dinput_;
      addend_ = found.x;
      return end_unit();
    }
    dinput_ = found.x;
    if (dinput_.defined()) {
      g_ = dinput_;
      owned_ = true;
    }
    if (step_ > 0) {
      --step_;
    } else if (unit().shortcut == Shortcut::kProjection) {
      step_ = unit().steps();
    } else {
      dx_ = dinput_;
      addend_ = residual() ? grad_ : at::Tensor();
      end_unit();
    }
  }

  ChainGradients result() {
    if (want_input_) result_.x = dx_.defined() && addend_.defined() ? dx_.add_(addend_) : dx_;
    return std::move(result_);
  }

 private:
  const Unit& unit() const { return chain_.units[unit_ - 1]; }
  size_t number() const { return begin_ + step_; }
  bool projects() const { return step_ == unit().steps(); }
  bool ends() const { return step_ + 1 == unit().steps(); }
  bool residual() const { return unit().shortcut != Shortcut::kNone; }
  bool keeps() const { return ends() && (residual() || addend_.defined()); }

  void begin_unit() {
    begin_ = end_ - unit().layers.size();
    out_ = kept_.activations.back();
    kept_.activations.pop_back();
    x_ = kept_.activations.back();
    grad_ = g_ = dx_;
    dinput_ = at::Tensor();
    step_ = unit().steps() - 1;
  }
  void end_unit() {
    kept_.ys.resize(begin_);
    end_ = begin_;
    grad_ = g_ = dinput_ = sums_ = at::Tensor();
    if (--unit_ > 0) begin_unit();
  }

  const Chain& chain_;
  Kept kept_;
  const Wanted* wanted_;
  bool want_input_;
  ChainGradients result_;
  at::Tensor dx_, addend_;  // the gradient of the unit's output in two parts, to be added
  at::Tensor out_, x_, grad_, g_, dinput_, sums_;
  bool owned_ = false;                        // whether g_ is a convolution's gradient, and not the one that was given
  size_t unit_, step_ = 0, begin_ = 0, end_;  // units to go; the layer in the unit; its layers in the chain
};

void run(std::vector<Backward>& chains) {
  for (;;) {
    std::vector<Backward*> active;
    for (Backward& chain : chains)
      if (!chain.done()) active.push_back(&chain);
    if (active.empty()) return;
    std::vector<BackwardSumsMap> summed;
    for (const Backward* chain : active) summed.push_back(chain->sums());
    const auto sums = backward_sums(summed);
    std::vector<BackwardInputMap> inputs;
    for (size_t i = 0; i < active.size(); ++i) inputs.push_back(active[i]->input(sums[i]));
    const auto dys = backward_input(inputs);
    std::vector<BnActMap> passes;
    std::vector<size_t> owners;
    for (size_t i = 0; i < active.size(); ++i)
      if (auto pass = active[i]->activation()) {
        passes.push_back(std::move(*pass));
        owners.push_back(i);
      }
    auto passed = bn_act(passes);
    std::vector<at::Tensor> activations(active.size());
    for (size_t i = 0; i < owners.size(); ++i) activations[owners[i]] = std::move(passed[i]);
    for (size_t i = 0; i < active.size(); ++i) active[i]->finish(dys[i], activations[i]);
  }
}

}  // namespace

std::vector<ChainGradients> chains_backward(const std::vector<Chain>& chains, std::vector<Kept> kept,
                                            const std::vector<at::Tensor>& grads, bool together,
                                            const std::vector<bool>& want_xs, const std::vector<Wanted>& wanted) {
  std::vector<ChainGradients> results(chains.size());
  std::vector<size_t> places;
  std::vector<Backward> runs;
  size_t start = 0;
  for (size_t c = 0; c < chains.size(); ++c) {
    const size_t layers = kept[c].affines.size();
    results[c].layers.resize(layers);
    const bool any = std::any_of(wanted.begin() + start, wanted.begin() + start + layers, [](const Wanted& own) {
      return std::find(own.begin(), own.end(), true) != own.end();
    });
    if (grads[c].defined() && (want_xs[c] || any)) {
      runs.emplace_back(chains[c], std::move(kept[c]), grads[c], want_xs[c], &wanted[start]);
      places.push_back(c);
      if (!together) {
        run(runs);
        results[c] = runs[0].result();
        runs.clear();
        places.clear();
      }
    }
    start += layers;
  }
  run(runs);
  for (size_t i = 0; i < places.size(); ++i) results[places[i]] = runs[i].result();
  // Gradients in the parameters' own dtypes, of all chains together.
  std::vector<std::pair<at::Tensor*, at::ScalarType>> weights;
  for (size_t c = 0; c < chains.size(); ++c)
    for (size_t k = 0; k < results[c].layers.size(); ++k)
      weights.emplace_back(&results[c].layers[k].weight, chains[c].own[k]);
  std::vector<at::Tensor*> converted;
  for (auto& [weight, dtype] : weights)
    if (dtype == weights[0].second)
      converted.push_back(weight);
    else
      *weight = cast(*weight, dtype);
  cast_together(converted, weights[0].second);
  return results;
}

}  // namespace hrnet_fast::training
