// Residual units in a row, forward and backward: see residual_chain.h.

#include "residual_chain.h"

namespace hrnet_fast::training {

namespace {

constexpr int64_t kLong = 64;  // channels from which on a window may be added by blocks of channels

// Where `layer` is computed from: whether its window is long enough to be added by blocks of channels.
bool by_blocks(const Chain& chain, const Unit& unit, const ConvNorm& layer, const at::Tensor& x) {
  // Not in basic units: they hold most of a network's multiply-adds and, behind stem and first stage, little of its
  // error.
  return chain.blocks && unit.steps() != 2 && x.size(1) >= kLong && layer.weight.size(2) * layer.weight.size(3) > 1 &&
         layer.groups == 1;
}

// The weight in the dtype of the maps. oneDNN's strided convolutions may be computed in float32 (conv_norm.cpp).
at::Tensor weight_for(const ConvNorm& layer, at::ScalarType dtype, bool is_cpu) {
  return is_cpu && layer.stride.back() != 1 ? layer.weight : cast(layer.weight, dtype);
}

at::Tensor finish(const Unit& unit, const Saved* saved, const at::Tensor& x) {
  const Saved& last = saved[unit.steps() - 1];
  if (unit.shortcut == Shortcut::kProjection) {
    const Saved& projected = saved[unit.steps()];
    return bn_act(last.y, last.affine, projected.y, projected.affine, true);
  }
  if (unit.shortcut == Shortcut::kIdentity) return bn_act(last.y, last.affine, x, std::nullopt, true);
  return bn_act(last.y, last.affine, std::nullopt, std::nullopt, true);
}

at::Tensor activated(const at::Tensor& y, const at::Tensor& affine) {
  return bn_act(y, affine, std::nullopt, std::nullopt, true);
}

}  // namespace

std::vector<const ConvNorm*> Chain::layers() const {
  std::vector<const ConvNorm*> found;
  for (const Unit& unit : units)
    for (const ConvNorm& layer : unit.layers) found.push_back(&layer);
  return found;
}

at::Tensor chain_forward(Chain& chain, const at::Tensor& given, Kept* kept) {
  at::Tensor x = given;
  count_batches(chain.layers());
  for (const Unit& unit : chain.units) {
    std::vector<Saved> saved;
    at::Tensor a = x;
    for (size_t j = 0; j < unit.layers.size(); ++j) {
      const ConvNorm& layer = unit.layers[j];
      if (j == unit.steps())
        a = x;
      else if (j > 0) {
        a = activated(saved[j - 1].y, saved[j - 1].affine);
        if (kept != nullptr && chain.memory == Memory::kFast) kept->inner.push_back(a);
      }
      const at::Tensor weight = weight_for(layer, x.scalar_type(), x.is_cpu());
      const at::Tensor y = by_blocks(chain, unit, layer, a) ? convolve_by_blocks(a, weight, layer)
                                                            : convolve(a, weight, layer.bias, layer);
      saved.push_back(normalise({y}, {&layer})[0]);
      if (kept != nullptr) {
        chain.own.push_back(layer.weight.scalar_type());
        chain.counts.push_back(saved.back().count);
        kept->affines.push_back(saved.back().affine);
        if (chain.memory != Memory::kMin) kept->ys.push_back(y);
        kept->weights.push_back(chain.memory == Memory::kMin ? layer.weight : weight);
      }
    }
    x = finish(unit, saved.data(), x);
    if (kept != nullptr && chain.memory == Memory::kFast) kept->activations.push_back(x);
  }
  return x;
}

void chain_recompute(const Chain& chain, const at::Tensor& given, Kept& kept) {
  kept.activations.insert(kept.activations.begin(), given);
  if (chain.memory == Memory::kFast) return;
  at::Tensor x = given;
  size_t begin = 0;
  for (const Unit& unit : chain.units) {
    std::vector<Saved> saved;
    at::Tensor a = x;
    for (size_t j = 0; j < unit.layers.size(); ++j) {
      const size_t k = begin + j;
      if (chain.memory == Memory::kMin) {
        if (j == unit.steps())
          a = x;
        else if (j > 0)
          a = activated(kept.ys[k - 1], kept.affines[k - 1]);
        const ConvNorm& layer = unit.layers[j];
        ConvNorm as_it_was = layer;  // by the weight that was kept
        as_it_was.weight = kept.weights[k];
        const at::Tensor weight = weight_for(as_it_was, x.scalar_type(), x.is_cpu());
        kept.ys.push_back(by_blocks(chain, unit, as_it_was, a) ? convolve_by_blocks(a, weight, layer)
                                                               : convolve(a, weight, layer.bias, layer));
      }
      saved.push_back({kept.ys[k], kept.affines[k], 0.0});
    }
    x = finish(unit, saved.data(), x);
    kept.activations.push_back(x);
    begin += unit.layers.size();
  }
}

namespace {

// The gradient of a unit's input in two parts, to be added.
struct InTwo {
  at::Tensor first, second;
};

Gradients of_norm(const at::Tensor& sums, const ConvNorm& layer, const Wanted& wanted) {
  Gradients found;
  if (wanted[2] && layer.scale.defined()) found.scale = cast(sums[1], layer.scale.scalar_type());
  if (wanted[3] && layer.shift.defined()) found.shift = cast(sums[0], layer.shift.scalar_type());
  return found;
}

}  // namespace

ChainGradients chain_backward(const Chain& chain, Kept kept, const at::Tensor& given, bool want_input,
                              const std::vector<Wanted>& wanted) {
  ChainGradients result;
  result.layers.resize(kept.affines.size());
  at::Tensor dx = given, addend;
  size_t end = kept.affines.size();
  for (size_t u = chain.units.size(); u-- > 0;) {
    const Unit& unit = chain.units[u];
    const size_t begin = end - unit.layers.size(), steps = unit.steps();
    const bool residual = unit.shortcut != Shortcut::kNone, want_x = u > 0 || want_input;
    const at::Tensor out = kept.activations.back(), x = kept.activations[kept.activations.size() - 2];
    kept.activations.pop_back();
    at::Tensor grad = dx, g = dx, dinput;
    const auto layer_backward = [&](size_t k, const at::Tensor& dy, const at::Tensor& a, const at::Tensor& sums,
                                    bool want) {
      const ConvNorm& layer = unit.layers[k - begin];
      const Wanted& own = wanted[k];
      const auto found = convolve_backward(dy, a, kept.weights[k], chain.own[k], layer,
                                           {want, own[0], own[1] && layer.bias.defined()});
      result.layers[k] = of_norm(sums, layer, own);
      result.layers[k].weight = found.weight;
      result.layers[k].bias = found.bias;
      return found.x;
    };
    for (size_t j = steps; j-- > 0;) {
      const size_t k = begin + j;
      const bool ends = j == steps - 1, keep = ends && (residual || addend.defined());
      const OptionalTensor more = ends && addend.defined() ? OptionalTensor(addend) : std::nullopt;
      const OptionalTensor mask = ends && residual ? OptionalTensor(out) : std::nullopt;
      auto [sums, masked] = backward_sums(g, more, kept.ys[k], kept.affines[k], mask, true, keep);
      if (keep) g = masked;  // else the mask is computed again with the input's gradient
      if (ends) grad = g;
      at::Tensor dy = backward_input(g, kept.ys[k], kept.affines[k], sums, chain.counts[k], !keep);
      at::Tensor a = x;
      if (j > 0) {
        if (kept.inner.empty()) {
          a = activated(kept.ys[k - 1], kept.affines[k - 1]);
        } else {
          a = kept.inner.back();
          kept.inner.pop_back();
        }
      }
      dinput = layer_backward(k, dy, a, sums, want_x || j > 0);
      if (dinput.defined()) g = dinput;
    }
    if (unit.shortcut == Shortcut::kProjection) {
      const size_t k = begin + steps;
      auto [sums, unused] = backward_sums(grad, std::nullopt, kept.ys[k], kept.affines[k], std::nullopt, false, false);
      const at::Tensor dy = backward_input(grad, kept.ys[k], kept.affines[k], sums, chain.counts[k], false);
      dx = dinput;
      addend = layer_backward(k, dy, x, sums, want_x);
    } else {
      dx = dinput;
      addend = residual ? grad : at::Tensor();
    }
    kept.ys.resize(begin);
    end = begin;
  }
  if (want_input) result.x = dx.defined() && addend.defined() ? dx + addend : dx;
  return result;
}

}  // namespace hrnet_fast::training
