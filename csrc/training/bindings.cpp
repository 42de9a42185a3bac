// Residual chains and fusions for Python: hrnet_fast/training has the autograd nodes that call them.

#include "bindings.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <set>

#include "module_reader.h"
#include "module_states.h"
#include "residual_chain.h"
#include "stacked_fusion.h"
#include "tensor_versions.h"

namespace py = pybind11;

namespace hrnet_fast::training {
namespace {

using OptionalTensors = std::vector<std::optional<at::Tensor>>;

std::optional<at::Tensor> or_none(const at::Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; }

// Code below autograd and autocast, which the calling node stands for, without the interpreter's lock.
struct Below {
  py::gil_scoped_release release;
  at::AutoDispatchBelowADInplaceOrView autograd;
  c10::impl::ExcludeDispatchKeyGuard autocast{c10::autocast_dispatch_keyset};
};

void append(OptionalTensors& to, const ConvNorm& layer) {
  for (const at::Tensor* t : {&layer.weight, &layer.bias, &layer.scale, &layer.shift}) to.push_back(or_none(*t));
}

void append(OptionalTensors& to, const Gradients& g) {
  for (const at::Tensor* t : {&g.weight, &g.bias, &g.scale, &g.shift}) to.push_back(or_none(*t));
}

std::vector<Wanted> fours(const std::vector<bool>& flags) {
  std::vector<Wanted> found(flags.size() / 4);
  for (size_t k = 0; k < flags.size(); ++k) found[k / 4][k % 4] = flags[k];
  return found;
}

// Whether the layer computes in `dtype` without autocast.
bool is_of(const ConvNorm& layer, at::ScalarType dtype) { return layer.weight.scalar_type() == dtype; }

Memory memory_of(const std::string& name) {
  if (name == "fast") return Memory::kFast;
  if (name == "lean") return Memory::kLean;
  if (name == "min") return Memory::kMin;
  throw std::invalid_argument("memory is fast, lean or min, not " + name);
}

// Lets Python's garbage collector see what a class refers to: a module may refer back to the one that holds this.
template <typename T>
py::custom_type_setup collectable() {
  return py::custom_type_setup([](PyHeapTypeObject* heap) {
    PyTypeObject* type = &heap->ht_type;
    type->tp_flags |= Py_TPFLAGS_HAVE_GC;
    type->tp_traverse = [](PyObject* self, visitproc visit, void* arg) {
#if PY_VERSION_HEX >= 0x03090000
      Py_VISIT(Py_TYPE(self));
#endif
      auto* instance = reinterpret_cast<py::detail::instance*>(self);
      if (!instance->get_value_and_holder().holder_constructed()) return 0;
      return py::cast<T&>(py::handle(self)).traverse(visit, arg);
    };
    type->tp_clear = [](PyObject* self) {
      auto* instance = reinterpret_cast<py::detail::instance*>(self);
      if (instance->get_value_and_holder().holder_constructed()) py::cast<T&>(py::handle(self)).clear();
      return 0;
    };
  });
}

// Modules of one layer as Python gives them: convolution, normalisation, and whether that is frozen.
using Given = std::tuple<py::object, py::object, bool>;

LayerModules modules_of(const Given& given) { return {std::get<0>(given), std::get<1>(given), std::get<2>(given)}; }

// Whether maps are worked on together, layer by layer: on CUDA devices, or as a test asks.
struct Joint {
  std::optional<bool> together;
  bool runs_together(const at::Tensor& x) const { return together.value_or(x.is_cuda()); }
};

// What backward needs of all chains, as Python holds it.
struct Recomputed {
  std::vector<Kept> kept;
};

// Chains at a call, with what their forward leaves for backward.
class ChainsCall : public Joint {
 public:
  explicit ChainsCall(std::vector<Chain> chains) : chains_(std::move(chains)) {}

  // The chains of several calls, to be executed together; null where two layers share their running statistics.
  static std::unique_ptr<ChainsCall> joined(const std::vector<ChainsCall*>& calls) {
    std::vector<Chain> all;
    for (const ChainsCall* call : calls) all.insert(all.end(), call->chains_.begin(), call->chains_.end());
    std::set<const void*> moved;
    for (const Chain& chain : all)
      for (const ConvNorm* layer : chain.layers())
        if (layer->batch && layer->running_mean.defined() &&
            !moved.insert(layer->running_mean.unsafeGetTensorImpl()).second)
          return nullptr;
    return std::make_unique<ChainsCall>(std::move(all));
  }

  OptionalTensors parameters() const {
    OptionalTensors found;
    for (const Chain& chain : chains_)
      for (const ConvNorm* layer : chain.layers()) append(found, *layer);
    return found;
  }

  bool requires_grad() const {
    for (const Chain& chain : chains_)
      for (const ConvNorm* layer : chain.layers())
        for (const at::Tensor* t : {&layer->weight, &layer->bias, &layer->scale, &layer->shift})
          if (t->defined() && t->requires_grad()) return true;
    return false;
  }

  bool computes_in(at::ScalarType dtype) const {
    for (const Chain& chain : chains_)
      for (const ConvNorm* layer : chain.layers())
        if (!is_of(*layer, dtype)) return false;
    return true;
  }

  bool adds_input() const {
    for (const Chain& chain : chains_)
      if (chain.units[0].shortcut == Shortcut::kIdentity) return true;
    return false;
  }

  // Whether the first layer of chain `number` normalises by the batch's statistics.
  bool normalises_batches(size_t number) const { return chains_[number].units[0].layers[0].batch; }

  std::vector<at::Tensor> run(const std::vector<at::Tensor>& xs, const std::vector<bool>& blocks) {
    for (size_t c = 0; c < chains_.size(); ++c) chains_[c].blocks = blocks[c];
    const Below below;
    return chains_forward(chains_, xs, runs_together(xs[0]), nullptr);
  }

  // Returns the outputs and the tensors to be kept; weights that are the parameters' own are left out.
  std::pair<std::vector<at::Tensor>, std::vector<at::Tensor>> forward(const std::vector<at::Tensor>& xs,
                                                                      const std::string& memory,
                                                                      const std::vector<bool>& blocks) {
    for (size_t c = 0; c < chains_.size(); ++c) {
      chains_[c].memory = memory_of(memory);
      chains_[c].blocks = blocks[c];
    }
    const Below below;
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

  size_t kept() const { return kept_; }

  // What backward needs, of the tensors that forward returned, the chains' inputs and the outputs (with "fast").
  Recomputed recompute(const std::vector<at::Tensor>& saved, const std::vector<at::Tensor>& xs,
                       const OptionalTensors& parameters, const std::vector<at::Tensor>& outs) const {
    const Below below;
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
      for (size_t k = 0; k < n.affines; ++k) own.weights.push_back(*parameters[4 * layer++]);
      for (const size_t k : n.cast) own.weights[k] = *next++;
    }
    chains_recompute(chains_, xs, runs_together(xs[0]), kept);
    return {std::move(kept)};
  }

  // Gradients of the inputs, then of every layer's parameters. Those of outputs that nothing used are None.
  OptionalTensors backward(Recomputed& of, const OptionalTensors& grads, const std::vector<bool>& want_xs,
                           const std::vector<bool>& wanted) const {
    const Below below;
    std::vector<at::Tensor> given;
    for (const auto& grad : grads) given.push_back(grad.value_or(at::Tensor()));
    const bool together = runs_together(of.kept[0].affines[0]);
    const auto found = chains_backward(chains_, std::move(of.kept), given, together, want_xs, fours(wanted));
    OptionalTensors all;
    for (const ChainGradients& chain : found) all.push_back(or_none(chain.x));
    for (const ChainGradients& chain : found)
      for (const Gradients& g : chain.layers) append(all, g);
    return all;
  }

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

class ChainModules {
 public:
  // Units: layers, and how many of them are the shortcut's: -1 for the identity, 0 for none, 1 for a projection.
  explicit ChainModules(const std::vector<std::pair<std::vector<Given>, int>>& units) {
    for (const auto& [layers, shortcut] : units) {
      std::vector<LayerModules> modules;
      for (const Given& layer : layers) modules.push_back(modules_of(layer));
      units_.emplace_back(std::move(modules), shortcut < 0    ? Shortcut::kIdentity
                                              : shortcut == 0 ? Shortcut::kNone
                                                              : Shortcut::kProjection);
    }
  }

  std::unique_ptr<ChainsCall> read() const {
    Chain chain;
    for (const auto& [modules, shortcut] : units_) {
      Unit unit;
      unit.shortcut = shortcut;
      for (const LayerModules& layer : modules) unit.layers.push_back(layer.read());
      chain.units.push_back(std::move(unit));
    }
    return std::make_unique<ChainsCall>(std::vector<Chain>{std::move(chain)});
  }

  int traverse(visitproc visit, void* arg) const {
    for (const auto& [modules, shortcut] : units_)
      for (const LayerModules& layer : modules)
        if (const int found = layer.traverse(visit, arg)) return found;
    return 0;
  }
  void clear() { units_.clear(); }

 private:
  std::vector<std::pair<std::vector<LayerModules>, Shortcut>> units_;
};

// A fusion at a call.
class FusionCall : public Joint {
 public:
  FusionCall(std::vector<std::vector<Term>> rows, size_t sources, int64_t mode)
      : fusion_(std::move(rows), sources, mode) {}

  OptionalTensors parameters() const {
    OptionalTensors found;
    for (const Member& member : fusion_.members()) append(found, member.layer());
    return found;
  }

  bool alike() const { return fusion_.alike(); }

  std::vector<at::Tensor> weights() const {
    std::vector<at::Tensor> found;
    for (const Member& member : fusion_.members()) found.push_back(member.layer().weight);
    return found;
  }

  // The first term whose map does not fit its target: source and target; sizes are the branches' (height, width).
  std::optional<std::pair<size_t, size_t>> misfit(const std::vector<std::array<int64_t, 2>>& sizes, bool exact) const {
    return fusion_.misfit(sizes, exact);
  }

  std::vector<at::Tensor> run(const std::vector<at::Tensor>& xs) {
    const Below below;
    return fusion_.forward(xs, nullptr);
  }

  // Returns the targets and the tensors to be kept: outputs of the stacked convolutions and their affines.
  std::pair<std::vector<at::Tensor>, std::vector<at::Tensor>> forward(const std::vector<at::Tensor>& xs) {
    const Below below;
    Fusion::Kept kept;
    auto outs = fusion_.forward(xs, &kept);
    kept.ys.insert(kept.ys.end(), kept.affines.begin(), kept.affines.end());
    return {std::move(outs), std::move(kept.ys)};
  }

  size_t kept() const { return 2 * fusion_.groups(); }

  OptionalTensors backward(const std::vector<at::Tensor>& saved, const std::vector<at::Tensor>& xs,
                           const std::vector<at::Tensor>& outs, const OptionalTensors& grads,
                           const std::vector<bool>& want_xs, const std::vector<bool>& wanted) const {
    const Below below;
    const size_t n = fusion_.groups();
    Fusion::Kept kept;
    kept.ys.assign(saved.begin(), saved.begin() + n);
    kept.affines.assign(saved.begin() + n, saved.begin() + 2 * n);
    kept.weights = fusion_.weights(xs[0]);
    std::vector<at::Tensor> given;
    for (const auto& grad : grads) given.push_back(grad.value_or(at::Tensor()));
    const auto found = fusion_.backward(std::move(kept), xs, outs, given, runs_together(xs[0]), want_xs, fours(wanted));
    OptionalTensors all;
    for (const at::Tensor& x : found.xs) all.push_back(or_none(x));
    for (const Gradients& g : found.members) append(all, g);
    return all;
  }

 private:
  Fusion fusion_;
};

class FusionModules {
 public:
  using GivenTerm = std::tuple<size_t, size_t, std::vector<Given>>;

  // Rows of terms: source, target and layers.
  FusionModules(const std::vector<std::vector<GivenTerm>>& rows, size_t sources, int64_t mode)
      : sources_(sources), mode_(mode) {
    for (const auto& row : rows) {
      rows_.emplace_back();
      for (const auto& [source, target, layers] : row) {
        rows_.back().push_back({source, target, {}});
        for (const Given& layer : layers) rows_.back().back().layers.push_back(modules_of(layer));
      }
    }
  }

  std::unique_ptr<FusionCall> read() const {
    std::vector<std::vector<Term>> rows;
    for (const auto& row : rows_) {
      rows.emplace_back();
      for (const auto& term : row) {
        rows.back().push_back({term.source, term.target, {}});
        for (const LayerModules& layer : term.layers) rows.back().back().layers.push_back(layer.read());
      }
    }
    return std::make_unique<FusionCall>(std::move(rows), sources_, mode_);
  }

  int traverse(visitproc visit, void* arg) const {
    for (const auto& row : rows_)
      for (const auto& term : row)
        for (const LayerModules& layer : term.layers)
          if (const int found = layer.traverse(visit, arg)) return found;
    return 0;
  }
  void clear() { rows_.clear(); }

 private:
  struct TermModules {
    size_t source, target;
    std::vector<LayerModules> layers;
  };
  std::vector<std::vector<TermModules>> rows_;
  size_t sources_;
  int64_t mode_;
};

}  // namespace

void bind_training(py::module_& m) {
  py::class_<ModuleStates>(m, "ModuleStates", collectable<ModuleStates>())
      .def(py::init<const py::iterable&, const py::tuple&>())
      .def("unchanged", &ModuleStates::unchanged);
  py::class_<TensorVersions>(m, "TensorVersions", collectable<TensorVersions>())
      .def(py::init<const py::iterable&>())
      .def("unchanged", &TensorVersions::unchanged);
  py::class_<Recomputed>(m, "ChainActivations").def("output", [](const Recomputed& self, size_t chain) {
    return self.kept.at(chain).activations.back();
  });
  py::class_<ChainsCall>(m, "ResidualChainsCall")
      .def_static("joined", &ChainsCall::joined)
      .def("parameters", &ChainsCall::parameters)
      .def_readwrite("together", &ChainsCall::together)
      .def("requires_grad", &ChainsCall::requires_grad)
      .def("computes_in", &ChainsCall::computes_in)
      .def("adds_input", &ChainsCall::adds_input)
      .def("normalises_batches", &ChainsCall::normalises_batches)
      .def_property_readonly("kept", &ChainsCall::kept)
      .def("run", &ChainsCall::run)
      .def("forward", &ChainsCall::forward)
      .def("recompute", &ChainsCall::recompute)
      .def("backward", &ChainsCall::backward);
  py::class_<ChainModules>(m, "ResidualChain", collectable<ChainModules>())
      .def(py::init<const std::vector<std::pair<std::vector<Given>, int>>&>())
      .def("read", &ChainModules::read);
  py::class_<FusionCall>(m, "StackedFusionCall")
      .def("parameters", &FusionCall::parameters)
      .def_readwrite("together", &FusionCall::together)
      .def("alike", &FusionCall::alike)
      .def("weights", &FusionCall::weights)
      .def("misfit", &FusionCall::misfit)
      .def_property_readonly("kept", &FusionCall::kept)
      .def("run", &FusionCall::run)
      .def("forward", &FusionCall::forward)
      .def("backward", &FusionCall::backward);
  py::class_<FusionModules>(m, "StackedFusion", collectable<FusionModules>())
      .def(py::init<const std::vector<std::vector<FusionModules::GivenTerm>>&, size_t, int64_t>())
      .def("read", &FusionModules::read);
}

}  // namespace hrnet_fast::training
